//! `laptop-diff score`: what the removal of each single layer does, by several criteria. Calibration set -> **scores** -> plan.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use data::CalibrationSet;
use diffusion::SamplerKind;
use prune_core::{
    AdaptiveEvent, AdaptiveOptions, AdaptiveScores, Budget, Constraints, LayerId, LayerTable, ScoreEvent, ScoreOptions, Scores, Shard,
    score_adaptively, score_all,
};
use serde_json::{Value, json};
use unet::{Granularity, UNet};

use crate::ablation::{self, ForwardGaps, OUTPUT_LOSS, TASK_LOSS_DELTA, advise, check_stop, explain};
use crate::common::{BadInput, file_hash, prepare_dir, stop_flag};
use crate::criteria::{self, ClipRun};
use crate::device::{Place, PlaceArgs, kind_name};
use crate::hub::ModelArg;
use crate::model::{TableSizes, parse_granularity};
use crate::progress;
use crate::rounding::{self, ROUNDING};
use crate::table::{Table, thousands};

/// Arguments of `score`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Calibration set (written by `calibrate`).
    #[arg(long)]
    calibration: PathBuf,
    /// Criteria, separated by commas. output_loss is the paper's.
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    criterion: Vec<Criterion>,
    /// The folder to write, one file per criterion; an interrupted run goes on from there.
    #[arg(long)]
    out: PathBuf,
    /// Points of the calibration set to use, from its start [default: all].
    #[arg(long)]
    samples: Option<usize>,
    /// Points per U-Net call.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Seed of the random criterion and of the pictures of clip_score.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What one item is: branch, block or transformer2d.
    #[arg(long, default_value = "branch", value_parser = parse_granularity)]
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
    /// output_loss, task_loss_delta: measure only this part of the points, such as 1/4; `merge-scores` puts the parts together.
    #[arg(long, value_name = "I/N", conflicts_with = "adaptive")]
    shard: Option<Shard>,
    /// clip_score: number of prompts, the first of the calibration set.
    #[arg(long, default_value_t = 16)]
    prompts: usize,
    /// clip_score: sampling steps.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// clip_score: classifier-free guidance.
    #[arg(long, default_value_t = 3.0)]
    cfg: f64,
    /// clip_score: the CLIP model [default: the model directory's clip/].
    #[arg(long)]
    clip: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print the scores as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// What a layer's score can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Criterion {
    /// Squared change of the U-Net's output (the paper's).
    OutputLoss,
    /// Change of the denoising loss.
    #[value(alias = "task_loss")]
    TaskLossDelta,
    /// Drop of the CLIP score of generated pictures.
    ClipScore,
    /// Sum of squared weights.
    Magnitude,
    /// First-order estimate |g.w| of the change of the denoising loss.
    Taylor,
    /// Uniform random numbers.
    Random,
}

impl Criterion {
    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Criterion::OutputLoss => OUTPUT_LOSS,
            Criterion::TaskLossDelta => TASK_LOSS_DELTA,
            Criterion::ClipScore => criteria::CLIP_SCORE,
            Criterion::Magnitude => criteria::MAGNITUDE,
            Criterion::Taylor => criteria::TAYLOR,
            Criterion::Random => criteria::RANDOM,
        }
    }
}

/// Setting of a score file: calibration points of the whole run, whatever part of them the file holds.
pub const POINTS: &str = "points";

/// What every criterion works with.
struct Run<'a> {
    args: &'a Args,
    unet: &'a UNet,
    set: &'a CalibrationSet,
    table: &'a LayerTable,
    samples: usize,
    /// What fixes the result, as recorded in the file.
    settings: BTreeMap<String, Value>,
}

/// Scores and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for (flag, value) in [("--batch", args.batch), ("--prompts", args.prompts), ("--steps", args.steps)] {
        if value == 0 {
            return Err(BadInput(format!("{flag} 0: expected at least 1")).into());
        }
    }
    prepare_dir(&args.out)?;
    let model = args.model.open()?;
    let set = CalibrationSet::open(&args.calibration)?;
    let samples = samples_of(args.samples, &set)?;
    let table = model.table(TableSizes::own(args.granularity))?;
    let Place { device, kind } = args.place.open_to_compare()?;
    let mut wanted = args.criterion.clone();
    wanted.sort_unstable();
    wanted.dedup();
    let unet = UNet::open(model.unet(), device, kind)?;
    let rounding = match wanted.contains(&Criterion::OutputLoss) {
        true => rounding_of(args, &table, &unet, &set, samples)?,
        false => None,
    };
    let mut settings = BTreeMap::from([
        ("calibration_sha256".to_string(), json!(file_hash(&args.calibration)?)),
        ("calibration_source".to_string(), json!(set.source.name())),
        ("compute".to_string(), json!(kind_name(kind))),
        (POINTS.to_string(), json!(samples)),
        ("timestep_bins".to_string(), json!(set.num_bins)),
    ]);
    settings.extend(rounding.map(|value| (ROUNDING.to_string(), json!(value))));
    let run = Run { args, unet: &unet, set: &set, table: &table, samples, settings };

    let mut done: Vec<Scores> = Vec::new();
    let forward: Vec<&str> =
        wanted.iter().filter(|c| matches!(c, Criterion::OutputLoss | Criterion::TaskLossDelta)).map(|c| c.name()).collect();
    if !forward.is_empty() {
        done.extend(run.forward(&forward)?);
    }
    for criterion in &wanted {
        let scores = match criterion {
            Criterion::OutputLoss | Criterion::TaskLossDelta => continue,
            Criterion::Magnitude => unet::magnitude(&unet, &table)?,
            Criterion::Taylor => run.taylor()?,
            Criterion::Random => criteria::random(&table, args.seed)?,
            Criterion::ClipScore => run.clip_score()?,
        };
        scores.write(&run.path(criterion.name()))?;
        done.push(scores);
    }
    let output_loss = done.iter().find(|s| s.criterion() == Criterion::OutputLoss.name());
    if let (Some(rounding), Some(scores)) = (rounding, output_loss) {
        rounding::warn_of_small(kind, rounding, &scores.values()?);
    }
    if args.json {
        let files: BTreeMap<&str, Value> =
            done.iter().map(|s| Ok((s.criterion(), serde_json::from_str(&s.to_json()?)?))).collect::<anyhow::Result<_>>()?;
        println!("{}", serde_json::to_string_pretty(&files)?);
    } else {
        print(&done, &table);
        for scores in &done {
            println!("written     {}", run.path(scores.criterion()).display());
        }
    }
    Ok(())
}

/// How much rounding changes the output: what an earlier run measured, which this one may go on from, or measured now.
fn rounding_of(args: &Args, table: &LayerTable, unet: &UNet, set: &CalibrationSet, samples: usize) -> anyhow::Result<Option<f64>> {
    let path = args.out.join(format!("{}.json", Criterion::OutputLoss.name()));
    if path.is_file()
        && let Some(value) = Scores::read_for(&path, table)?.settings().get(ROUNDING).and_then(Value::as_f64)
    {
        return Ok(Some(value));
    }
    rounding::measure(unet, set, samples)
}

/// How many points to use.
///
/// # Errors
/// [`BadInput`] for none, or more than there are.
pub fn samples_of(asked: Option<usize>, set: &CalibrationSet) -> anyhow::Result<usize> {
    match asked {
        None => Ok(set.len()),
        Some(n) if (1..=set.len()).contains(&n) => Ok(n),
        Some(n) => Err(BadInput(format!("--samples {n}: expected 1 to {}, the points of the calibration set", set.len())).into()),
    }
}

impl Run<'_> {
    fn path(&self, criterion: &str) -> PathBuf {
        self.args.out.join(format!("{criterion}.json"))
    }

    /// Output loss and task loss, from one pass; saved after every layer.
    fn forward(&self, names: &[&str]) -> anyhow::Result<Vec<Scores>> {
        let mut model = ForwardGaps::new(self.unet, self.set, self.table, names)?;
        let samples = match &self.args.shard {
            None => 0..self.samples,
            Some(shard) => shard.samples(0..self.samples, self.args.batch)?,
        };
        if samples.is_empty() {
            return Err(
                BadInput("--shard: there are fewer batches of points than parts; ask for fewer parts or a smaller --batch".into()).into()
            );
        }
        let options = ScoreOptions { samples, batch: self.args.batch, seed: Some(self.set.seed), settings: self.settings.clone() };
        if !self.args.adaptive.is_empty() {
            return self.adaptively(&mut model, names, &options);
        }
        let (stop, bar) = (stop_flag()?, progress::bar("score", self.table.len() as u64));
        let scores = score_all(&mut model, &options, self.earlier(names)?, &mut |event| match event {
            ScoreEvent::Batch { .. } => check_stop(&stop),
            ScoreEvent::Layer { layers, scores, .. } => {
                bar.set_position(layers.0 as u64);
                scores.iter().try_for_each(|s| s.write(&self.path(s.criterion())))
            }
        });
        bar.finish_and_clear();
        scores.map_err(|e| advise(explain(e), &self.args.out))
    }

    /// As many points per layer as the plans for the asked ratios depend on.
    fn adaptively(&self, model: &mut ForwardGaps<'_>, names: &[&str], options: &ScoreOptions) -> anyhow::Result<Vec<Scores>> {
        let adaptive = AdaptiveOptions {
            criterion: names[0].to_string(),
            budgets: self.args.adaptive.iter().map(|ratio| Budget::params_ratio(*ratio)).collect(),
            constraints: Constraints::none(),
            first_samples: self.args.first_samples,
            delta: self.args.delta,
        };
        let (stop, bar) = (stop_flag()?, progress::bar("score", (self.table.len() * options.samples.len()) as u64));
        let found = score_adaptively(model, options, &adaptive, self.earlier(names)?, &mut |event| match event {
            AdaptiveEvent::Batch { evaluations } => {
                bar.set_position(evaluations.0);
                check_stop(&stop)
            }
            AdaptiveEvent::Layers { scores, .. } => scores.iter().try_for_each(|s| s.write(&self.path(s.criterion()))),
        });
        bar.finish_and_clear();
        let found = found.map_err(|e| advise(explain(e), &self.args.out))?;
        found.scores.iter().try_for_each(|s| s.write(&self.path(s.criterion())))?;
        if !self.args.json {
            self.tell(&found);
        }
        Ok(found.scores)
    }

    fn tell(&self, found: &AdaptiveScores) {
        let share = 100.0 * found.evaluations as f64 / found.full_evaluations.max(1) as f64;
        println!("adaptive    {} of {} layer evaluations ({share:.1} %)", found.evaluations, found.full_evaluations);
        for (ratio, certificate) in self.args.adaptive.iter().zip(&found.certificates) {
            let ids = |ids: &[LayerId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            match certificate.decided {
                true => println!("ratio {ratio:<5} decided at delta {}: no other plan could be better", certificate.delta),
                false => {
                    println!("ratio {ratio:<5} undecided at delta {}: at most {:.2e} less if", certificate.delta, certificate.at_stake);
                    println!("  goes        {}", ids(&certificate.out));
                    println!("  comes back  {}", ids(&certificate.back));
                }
            }
        }
        println!();
    }

    /// The files of an earlier run, where all of them are there.
    fn earlier(&self, names: &[&str]) -> anyhow::Result<Vec<Scores>> {
        let paths: Vec<PathBuf> = names.iter().map(|n| self.path(n)).collect();
        if !paths.iter().all(|p| p.is_file()) {
            return Ok(Vec::new());
        }
        paths.iter().map(|path| Ok(Scores::read_for(path, self.table)?)).collect()
    }

    fn taylor(&self) -> anyhow::Result<Scores> {
        if self.set.target.is_none() {
            return Err(BadInput("criterion taylor needs targets; this calibration set was made from prompts alone".into()).into());
        }
        let first: Vec<usize> = (0..self.samples).collect();
        let data = ablation::samples(&self.set.select(&first)?)?;
        let bar = progress::bar("taylor", self.samples as u64);
        let scores = unet::taylor(self.unet, self.table, &data, &mut |done, _| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        Ok(scores.with_settings(Some(self.set.seed), self.settings.clone()))
    }

    fn clip_score(&self) -> anyhow::Result<Scores> {
        let path = self.path(criteria::CLIP_SCORE);
        let mut run = ClipRun::open(
            &ClipRun::settings(self.args.prompts, self.args.steps, self.args.cfg, self.args.seed, SamplerKind::Ddim),
            self.args.model.path()?,
            self.args.clip.as_deref(),
            self.set,
            self.unet,
            self.table,
        )?;
        let mut settings = self.settings.clone();
        settings.extend(run.record());
        let options = ScoreOptions { samples: 0..run.len(), batch: run.len(), seed: Some(self.args.seed), settings };
        let earlier = match path.is_file() {
            true => vec![Scores::read_for(&path, self.table)?],
            false => Vec::new(),
        };
        let (stop, bar) = (stop_flag()?, progress::bar("clip_score", self.table.len() as u64));
        let scores = score_all(&mut run, &options, earlier, &mut |event| match event {
            ScoreEvent::Batch { .. } => check_stop(&stop),
            ScoreEvent::Layer { layers, scores, .. } => {
                bar.set_position(layers.0 as u64);
                scores.iter().try_for_each(|s| s.write(&path))
            }
        });
        bar.finish_and_clear();
        let mut scores = scores.map_err(|e| advise(explain(e), &path))?;
        Ok(scores.remove(0))
    }
}

fn print(all: &[Scores], table: &LayerTable) {
    let names: Vec<String> = all.iter().map(|scores| format!(">{}", scores.criterion())).collect();
    let mut rows = Table::new(["id", ">parameters"].into_iter().chain(names.iter().map(String::as_str)));
    for layer in table.layers() {
        let score = |scores: &Scores| {
            scores.layer(layer.id.as_str()).map_or(String::new(), |s| match s.standard_error() {
                Some(se) => format!("{:.3e} ± {se:.1e}", s.value()),
                None => format!("{:.3e}", s.value()),
            })
        };
        rows.row([layer.id.to_string(), thousands(layer.params)].into_iter().chain(all.iter().map(score)));
    }
    print!("{rows}");
}
