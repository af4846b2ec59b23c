//! `laptop-diff score`: what the removal of each single layer does, by several criteria. Calibration set -> **scores** -> plan.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::builder::TypedValueParser;
use diffusion::SamplerKind;
use eval::{ClipDrop, ClipDropOptions};
use prune_core::score::{AdaptiveScores, HeavyTails, Shard};
use prune_core::{LayerTable, Scores};
use serde_json::{Value, json};
use unet::scoring::{
    Adaptive, CLIP_SCORE, CRITERIA, Calibration, Criterion, CustomLoss, NUMBER_NOISE, Needs, OUTPUT_LOSS, ScoringEvent, ScoringOptions,
    TASK_LOSS_DELTA, below_noise, number_noise, score, score_model,
};
use unet::{Granularity, TableSizes, UNet};

use crate::common::{BadInput, describe, prepare_dir};
use crate::device::{DeviceArgs, DeviceDtype, kind_name};
use crate::model::ModelArg;
use crate::one_of::one_of;
use crate::out_of_memory;
use crate::scoring::{Points, advise, explain, with_progress};
use crate::table::{Table, thousands, with_error};

/// Arguments of `score`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Calibration set (written by `calibrate`); magnitude and random need none.
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Criteria, separated by commas. output_loss is the paper's.
    #[arg(long, value_parser = criterion(), value_delimiter = ',', required = true)]
    criterion: Vec<&'static Criterion>,
    /// The folder to write, one file per criterion; an interrupted run goes on from there.
    #[arg(long)]
    out: PathBuf,
    /// Points of the calibration set to use, from its start [default: all].
    #[arg(long)]
    samples: Option<usize>,
    /// Points per U-Net call.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Seed of the random criterion and of the images of clip_score.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What one item is: branch, block or transformer2d.
    #[arg(long, default_value = "branch")]
    granularity: Granularity,
    /// output_loss, task_loss_delta: stop measuring layers on which no plan for these ratios depends any more.
    #[arg(long, value_name = "RATIO", value_delimiter = ',')]
    adaptive: Vec<f64>,
    /// adaptive: chance allowed that a plan is another than after full scoring.
    #[arg(long, default_value_t = 0.05)]
    delta: f64,
    /// adaptive: points that every layer gets; layers that matter then get a quarter more, and so on.
    #[arg(long, default_value_t = 12)]
    first_samples: usize,
    /// adaptive: use intervals also where single points carry the means: fewer evaluations, but delta is not promised.
    #[arg(long)]
    trust_tails: bool,
    /// output_loss, task_loss_delta: measure only this part of the points, such as 1/4; `merge-scores` puts the parts together.
    #[arg(long, value_name = "I/N", conflicts_with = "adaptive")]
    shard: Option<Shard>,
    /// clip_score: number of prompts, the first of the calibration set.
    #[arg(long, default_value_t = 16)]
    prompts: usize,
    /// clip_score: sampling steps.
    #[arg(long, alias = "steps", default_value_t = 10)]
    num_inference_steps: usize,
    /// clip_score: classifier-free guidance.
    #[arg(long, alias = "cfg", default_value_t = 3.0)]
    guidance_scale: f64,
    /// clip_score: the CLIP model [default: the model directory's clip/].
    #[arg(long)]
    clip: Option<PathBuf>,
    #[command(flatten)]
    place: DeviceArgs,
    /// Print the scores as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn criterion() -> impl TypedValueParser<Value = &'static Criterion> {
    one_of(CRITERIA.iter().map(|criterion| (criterion, criterion.id, criterion.meaning)), &[("task_loss", TASK_LOSS_DELTA)])
}

/// Scores and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    args.check()?;
    prepare_dir(&args.out)?;
    let model = args.model.open()?;
    let points = args.calibration.as_deref().map(|path| Points::open(path, args.samples)).transpose()?;
    let table = model.table(TableSizes::own(args.granularity))?;
    let DeviceDtype { device, kind } = args.place.open_to_compare()?;
    let unet = UNet::open(model.unet(), device, kind)?;
    let samples = points.as_ref().map(|points| points.set.calibration()).transpose()?;
    let mut options = args.options(points.as_ref(), &unet)?;
    let noise = match &samples {
        Some(samples) if args.wants(OUTPUT_LOSS) => args.noise(&unet, &table, samples, options.samples)?,
        _ => None,
    };
    options.settings.extend(noise.map(|value| (NUMBER_NOISE.to_string(), json!(value))));

    let names: Vec<&str> = args.criterion.iter().map(|c| c.id).filter(|id| *id != CLIP_SCORE).collect();
    let mut done = args.with_progress(anyhow::Error::from, |on_event: &mut dyn FnMut(ScoringEvent<'_>) -> unet::Result<()>| {
        score(&unet, &table, samples.as_ref(), &names, &options, on_event)
    })?;
    if let Some(points) = points.as_ref().filter(|_| args.wants(CLIP_SCORE)) {
        done.push(args.clip_score(points, &unet, &table, &options)?);
    }
    done.sort_by_key(|scores| Criterion::position(scores.criterion()));
    if let (Some(noise), Some(scores)) = (noise, done.iter().find(|s| s.criterion() == OUTPUT_LOSS)) {
        warn_of_noise(&unet, noise, &scores.values()?);
    }
    if args.json {
        let files: BTreeMap<&str, Value> =
            done.iter().map(|s| Ok((s.criterion(), serde_json::from_str(&s.to_json()?)?))).collect::<anyhow::Result<_>>()?;
        println!("{}", serde_json::to_string_pretty(&files)?);
        return Ok(());
    }
    print(&done, &table);
    for path in done.iter().filter_map(|scores| options.path(scores.criterion())) {
        println!("written     {}", path.display());
    }
    Ok(())
}

impl Args {
    fn wants(&self, criterion: &str) -> bool {
        self.criterion.iter().any(|wanted| wanted.id == criterion)
    }

    fn check(&self) -> anyhow::Result<()> {
        for (flag, value) in [("--batch", self.batch), ("--prompts", self.prompts), ("--num-inference-steps", self.num_inference_steps)] {
            if value == 0 {
                return Err(BadInput(format!("{flag} 0: expected at least 1")).into());
            }
        }
        match self.criterion.iter().find(|c| c.needs != Needs::Nothing) {
            Some(criterion) if self.calibration.is_none() => {
                Err(BadInput(format!("--criterion {} needs --calibration", criterion.id)).into())
            }
            _ => Ok(()),
        }
    }

    /// How the library is to score.
    fn options(&self, points: Option<&Points>, unet: &UNet) -> anyhow::Result<ScoringOptions> {
        let mut options = ScoringOptions::default();
        options.out = Some(self.out.clone());
        (options.batch, options.seed) = (self.batch, self.seed);
        if let Some(points) = points {
            (options.samples, options.samples_seed) = (Some(points.used), Some(points.set.seed));
            options.settings = points.settings(unet.device(), unet.kind());
            if self.shard.as_ref().is_some_and(|shard| shard.samples(0..points.used, self.batch).is_ok_and(|part| part.is_empty())) {
                let advice = "there are fewer batches of points than parts; ask for fewer parts or a smaller --batch";
                return Err(BadInput(format!("--shard: {advice}")).into());
            }
        }
        options.shard = self.shard;
        options.adaptive = (!self.adaptive.is_empty()).then(|| Adaptive {
            ratios: self.adaptive.clone(),
            first_samples: self.first_samples,
            delta: self.delta,
            heavy_tails: if self.trust_tails { HeavyTails::Trust } else { HeavyTails::TakeAll },
        });
        Ok(options)
    }

    /// How much rounding changes the output: what an earlier run measured, which this one may go on from, or measured now.
    fn noise(&self, unet: &UNet, table: &LayerTable, samples: &Calibration, used: Option<usize>) -> anyhow::Result<Option<f64>> {
        let path = self.out.join(format!("{OUTPUT_LOSS}.json"));
        if path.is_file()
            && let Some(value) = Scores::read_for(&path, table)?.settings().get(NUMBER_NOISE).and_then(Value::as_f64)
        {
            return Ok(Some(value));
        }
        let samples = samples.first(used.unwrap_or(samples.num_samples()))?;
        Ok(out_of_memory::attempt(|| Ok(number_noise(unet, &samples)?)).unwrap_or_else(|e| {
            let kind = kind_name(unet.kind());
            tracing::warn!("how much {kind} rounds was not measured, since the U-Net did not run in f32: {}", describe(&e));
            None
        }))
    }

    /// Runs a part of the scoring with progress; what adaptive scoring decided is printed.
    fn with_progress<T, E: From<prune_core::Error>>(
        &self,
        explain: impl FnOnce(E) -> anyhow::Error,
        work: impl FnOnce(&mut dyn FnMut(ScoringEvent<'_>) -> Result<(), E>) -> Result<T, E>,
    ) -> anyhow::Result<T> {
        let done = with_progress(|on_event| {
            work(&mut |event| {
                if let ScoringEvent::Decided(found) = &event
                    && !self.json
                {
                    print_decisions(&self.adaptive, found);
                }
                on_event(event)
            })
        });
        done?.map_err(|e| advise(explain(e), &self.out))
    }

    /// The drop of the CLIP score: a criterion of the caller's own, as far as the library knows.
    fn clip_score(&self, points: &Points, unet: &UNet, table: &LayerTable, options: &ScoringOptions) -> anyhow::Result<Scores> {
        let drawn = ClipDropOptions {
            prompts: self.prompts,
            steps: self.num_inference_steps,
            guidance: self.guidance_scale,
            seed: self.seed,
            sampler: SamplerKind::Ddim,
        };
        let drop = ClipDrop::open(&drawn, self.model.path()?, self.clip.as_deref(), &points.set.prompts, unet)?;
        let mut own = options.clone();
        own.settings.extend(drop.settings());
        (own.samples, own.batch, own.samples_seed) = (None, drop.num_samples(), Some(self.seed));
        (own.shard, own.adaptive) = (None, None);
        let mut model = CustomLoss::new(unet, table, CLIP_SCORE, drop.num_samples(), |unet, _| drop.losses(unet));
        let mut scores = self.with_progress(explain, |on_event| score_model(&mut model, &own, on_event))?;
        Ok(scores.remove(0))
    }
}

/// Says so where layers score no more than rounding changes.
fn warn_of_noise(unet: &UNet, noise: f64, scores: &[f64]) {
    let small = below_noise(noise, scores);
    if small > 0 {
        tracing::warn!(
            "{small} of {} layers have an output loss of at most {noise:.1e}, which is what rounding in {} changes: their order means \
             little, and --compute f32 tells them apart",
            scores.len(),
            kind_name(unet.kind())
        );
    }
}

fn print_decisions(ratios: &[f64], found: &AdaptiveScores) {
    let share = 100.0 * found.evaluations as f64 / found.full_evaluations.max(1) as f64;
    println!("adaptive    {} of {} layer evaluations ({share:.1} %)", found.evaluations, found.full_evaluations);
    for (ratio, certificate) in ratios.iter().zip(&found.certificates) {
        println!("ratio {ratio:<5} {certificate}");
    }
    println!();
}

fn print(all: &[Scores], table: &LayerTable) {
    let names: Vec<String> = all.iter().map(|scores| format!(">{}", scores.criterion())).collect();
    let mut rows = Table::new(["id", ">parameters"].into_iter().chain(names.iter().map(String::as_str)));
    for layer in table.layers() {
        let score = |scores: &Scores| scores.layer(layer.id.as_str()).map_or(String::new(), |s| with_error(s.value(), s.standard_error()));
        rows.row([layer.id.to_string(), thousands(layer.params)].into_iter().chain(all.iter().map(score)));
    }
    print!("{rows}");
}
