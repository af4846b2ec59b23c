//! Time of a forward pass, of its blocks one by one, and of scoring every layer, on random weights in the shape of the embedded model.
//!
//!     cargo bench -p unet
//!
//! Scoring is measured both ways in one run: passes that share what comes before the removed layer, and the naive loop. The ratio of
//! the two is what counts; single times depend on the machine.

use std::collections::BTreeMap;
use std::ops::Range;

use criterion::{Criterion, criterion_group, criterion_main};
use prune_core::{Ablate, Gaps, LayerTable, RemovalSet, Resume, ScoreOptions, score_all};
use tch::{Device, Kind, Tensor};
use unet::{AddedCond, Calibration, Cond, ForwardOptions, TapSet, UNet, UNetConfig, UNetPasses, layer_table};

const SAMPLES: i64 = 8;

struct Setting {
    unet: UNet,
    x: Tensor,
    t: Tensor,
    cond: Cond,
}

fn setting() -> Setting {
    let config = UNetConfig::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/tiny-sdxl/unet.json")).expect("a configuration");
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let added = config.added.as_ref().map(|added| AddedCond {
        text_embeds: random(&[SAMPLES, added.input - 6 * added.channels]),
        time_ids: Tensor::full([SAMPLES, 6], 64, (Kind::Float, Device::Cpu)),
    });
    let (h, w) = config.sample_size.unwrap_or((16, 16));
    Setting {
        x: random(&[SAMPLES, config.in_channels, h, w]),
        t: Tensor::arange(SAMPLES, (Kind::Float, Device::Cpu)) * 100.0,
        cond: Cond { encoder_hidden_states: random(&[SAMPLES, 20, config.text_width]), added },
        unet: UNet::random(&config, 1, Device::Cpu, Kind::Float).expect("a network"),
    }
}

/// Every removal in a pass of its own.
struct Naive<'a> {
    setting: &'a Setting,
    table: LayerTable,
    criteria: [String; 1],
    original: Tensor,
}

impl Ablate for Naive<'_> {
    type Error = unet::Error;

    fn table(&self) -> &LayerTable {
        &self.table
    }

    fn criteria(&self) -> &[String] {
        &self.criteria
    }

    fn num_samples(&self) -> usize {
        SAMPLES as usize
    }

    fn sample_bin(&self, _: usize) -> u32 {
        0
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<Gaps, unet::Error> {
        let options = ForwardOptions { ablated: removed, taps: &TapSet::none() };
        let Setting { unet, x, t, cond } = self.setting;
        let out = tch::no_grad(|| unet.forward_with(x, t, cond, &options))?.sample;
        let gap = (out - &self.original).square().flatten(1, -1).mean_dim(1, false, Kind::Double);
        Ok(Gaps::new(1, Vec::<f64>::try_from(gap)?[samples].to_vec())?)
    }
}

fn benches(c: &mut Criterion) {
    let setting = setting();
    let Setting { unet, x, t, cond } = &setting;
    let table = layer_table(unet.config(), 16, 16).expect("a table");
    c.bench_function("forward, 8 samples", |b| b.iter(|| tch::no_grad(|| unet.forward(x, t, cond)).expect("a prediction")));

    let data =
        || Calibration::new(x.shallow_clone(), t.shallow_clone(), cond.shallow_clone(), x.shallow_clone(), vec![0; 8]).expect("samples");
    let mut passes = UNetPasses::new(unet, table.clone(), data()).expect("passes");
    let mut group = c.benchmark_group("one block, 8 samples");
    let none = RemovalSet::empty();
    let mut state = passes.start(0..SAMPLES as usize).expect("a pass");
    for segment in 0..passes.segments().len() {
        let name = passes.segments()[segment].layers.clone().map(|at| table.layers()[at].id.to_string()).next().unwrap_or_default();
        group.bench_function(format!("{segment:02} from {name}"), |b| b.iter(|| passes.step(&state, segment, &none).expect("a step")));
        state = passes.step(&state, segment, &none).expect("a step");
    }
    group.finish();

    let options = ScoreOptions { samples: 0..SAMPLES as usize, batch: SAMPLES as usize, seed: None, settings: BTreeMap::new() };
    let mut group = c.benchmark_group("score every layer, 8 samples");
    group.sample_size(10);
    let original = tch::no_grad(|| unet.forward(x, t, cond)).expect("a prediction");
    let mut naive = Naive { setting: &setting, table: table.clone(), criteria: ["output_loss".into()], original };
    group.bench_function("naive loop", |b| b.iter(|| score_all(&mut naive, &options, Vec::new(), &mut |_| Ok(())).expect("scores")));
    group.bench_function("shared beginnings", |b| {
        b.iter(|| {
            let passes = UNetPasses::new(unet, table.clone(), data()).expect("passes");
            score_all(&mut passes.ablate(1 << 30).expect("a model"), &options, Vec::new(), &mut |_| Ok(())).expect("scores")
        })
    });
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
