//! Scoring every layer: passes that share what comes before the removed layer, against the naive loop; in turns in one run, on random
//! weights. The scores must have the same bits.
//!
//!     cargo bench -p unet --bench scoring [-- MODEL [LATENT_SIDE [SAMPLES [TURNS]]]]
//!
//! MODEL is `tiny` (the embedded model's shape, the default), `sd15`, `sdxl`, or `sdxl-narrow`: all of SDXL's layers at a fifth of their
//! width. What counts is the ratio; single times depend on the machine.

use std::ops::Range;
use std::time::Instant;

use prune_core::score::{LossDeltas, ScoreOptions};
use prune_core::{Ablate, LayerTable, RemovalSet, Scorer, Scores};
use serde_json::json;
use tch::{Device, Kind, Tensor};
use unet::scoring::{Calibration, OUTPUT_LOSS, TASK_LOSS_DELTA, UNetPasses};
use unet::{AddedConditioning, Conditioning, ForwardOptions, TapSet, UNet, UNetConfig, layer_table};

struct Setting {
    unet: UNet,
    table: LayerTable,
    x: Tensor,
    t: Tensor,
    cond: Conditioning,
}

fn config(model: &str) -> (UNetConfig, i64) {
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/tiny-sdxl/unet.json");
    match model {
        "tiny" => (UNetConfig::open(tiny).expect("a configuration"), 16),
        "sd15" => (UNetConfig::sd15(), 32),
        "sdxl" => (UNetConfig::sdxl(), 32),
        "sdxl-narrow" => {
            let mut json = UNetConfig::sdxl().to_json();
            for (key, value) in [
                ("block_out_channels", json!([64, 128, 256])),
                ("attention_head_dim", json!([1, 2, 4])),
                ("cross_attention_dim", json!(410)),
                ("addition_time_embed_dim", json!(52)),
                ("projection_class_embeddings_input_dim", json!(256 + 6 * 52)),
            ] {
                json[key] = value;
            }
            (UNetConfig::parse(&json.to_string(), "sdxl-narrow").expect("a configuration"), 32)
        }
        other => panic!("{other}: expected tiny, sd15, sdxl or sdxl-narrow"),
    }
}

fn setting(config: &UNetConfig, side: i64, samples: i64) -> Setting {
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let added = config.added.as_ref().map(|added| AddedConditioning {
        text_embeds: random(&[samples, added.input - 6 * added.channels]),
        time_ids: Tensor::full([samples, 6], 8 * side, (Kind::Float, Device::Cpu)),
    });
    Setting {
        x: random(&[samples, config.in_channels, side, side]),
        t: Tensor::arange(samples, (Kind::Float, Device::Cpu)) * (900.0 / samples as f64),
        cond: Conditioning { encoder_hidden_states: random(&[samples, 77, config.text_width]), added, guidance: None },
        table: layer_table(config, side, 77).expect("a table"),
        unet: UNet::random(config, 1, Device::Cpu, Kind::Float).expect("a network"),
    }
}

impl Setting {
    fn data(&self) -> Calibration {
        let (x, t, cond) = (self.x.shallow_clone(), self.t.shallow_clone(), self.cond.shallow_clone());
        Calibration::new(x, t, cond, Some(self.x.shallow_clone()), vec![0; self.x.size()[0] as usize]).expect("samples")
    }

    fn options(&self) -> ScoreOptions {
        let samples = self.x.size()[0] as usize;
        ScoreOptions::new(0..samples).batch(samples)
    }
}

/// Every removal in a pass of its own.
struct Naive<'a> {
    setting: &'a Setting,
    criteria: [String; 1],
    original: Tensor,
}

impl Ablate for Naive<'_> {
    type Error = unet::Error;

    fn table(&self) -> &LayerTable {
        &self.setting.table
    }

    fn criteria(&self) -> Vec<String> {
        self.criteria.to_vec()
    }

    fn num_samples(&self) -> usize {
        self.setting.x.size()[0] as usize
    }

    fn sample_bin(&self, _: usize) -> u32 {
        0
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<LossDeltas, unet::Error> {
        let options = ForwardOptions { ablated: removed, taps: &TapSet::none() };
        let Setting { unet, x, t, cond, .. } = self.setting;
        let out = tch::no_grad(|| unet.forward_with(x, t, cond, &options))?.sample;
        let gap =
            (out.to_kind(Kind::Double) - self.original.to_kind(Kind::Double)).square().flatten(1, -1).mean_dim(1, false, Kind::Double);
        Ok(LossDeltas::new(1, Vec::<f64>::try_from(gap)?[samples].to_vec())?)
    }
}

fn naive(setting: &Setting) -> Vec<Scores> {
    let Setting { unet, x, t, cond, .. } = setting;
    let original = tch::no_grad(|| unet.forward(x, t, cond)).expect("a prediction");
    let mut model = Naive { setting, criteria: ["output_loss".into()], original };
    Scorer::new(&mut model).options(setting.options()).run().expect("scores")
}

fn shared(setting: &Setting) -> Vec<Scores> {
    let passes = UNetPasses::new(&setting.unet, setting.table.clone(), setting.data(), &[OUTPUT_LOSS, TASK_LOSS_DELTA]).expect("passes");
    Scorer::new(&mut passes.ablate(4 << 30).expect("a model")).options(setting.options()).run().expect("scores")
}

fn main() {
    // Cargo adds a flag of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let number = |at: usize, default: i64| args.get(at).map_or(default, |a| a.parse().expect("a number"));
    let model = args.first().map_or("tiny", String::as_str);
    let (config, side) = config(model);
    let (side, samples, turns) = (number(1, side), number(2, if model == "tiny" { 8 } else { 1 }), number(3, 3));
    let setting = setting(&config, side, samples);
    println!("{model}: {} layers, {samples} samples of {side} x {side}", setting.table.len());
    let timed = |run: fn(&Setting) -> Vec<Scores>| {
        let start = Instant::now();
        let scores = run(&setting);
        (start.elapsed().as_secs_f64(), scores)
    };
    let mut ratios = Vec::new();
    for turn in 0..turns {
        let ((slow, naive), (fast, shared)) = (timed(naive), timed(shared));
        for layer in setting.table.layers() {
            let of = |scores: &[Scores]| scores[0].value(layer.id.as_str()).expect("a score").to_bits();
            assert_eq!(of(&naive), of(&shared), "{}", layer.id);
        }
        ratios.push(fast / slow);
        println!("turn {turn}: naive loop {slow:.2} s, shared beginnings {fast:.2} s, ratio {:.3}", fast / slow);
    }
    ratios.sort_by(f64::total_cmp);
    println!("ratio {:.3}; the same scores to the bit", ratios[ratios.len() / 2]);
}
