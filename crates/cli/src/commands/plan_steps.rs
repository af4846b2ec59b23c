//! `laptop-diff plan-steps`: remove some layers, score what is left without them, remove more. Calibration set -> scores and
//! **plan** of each step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::CalibrationSet;
use prune_core::{Budget, Constraints, LayerTable, ScoreEvent, ScoreOptions, Scores, Step, StepOptions, prune_in_steps};
use serde_json::json;
use unet::{Granularity, UNet};

use super::score::{POINTS, samples_of};
use crate::ablation::{ForwardGaps, OUTPUT_LOSS, advise, check_stop, explain};
use crate::common::{BadInput, file_hash, prepare_file, stop_flag};
use crate::device::{Place, PlaceArgs, kind_name};
use crate::hub::ModelArg;
use crate::model::{TableSizes, parse_granularity};
use crate::progress;

/// Arguments of `plan-steps`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: a directory in diffusers' layout, its unet/ folder or a single file.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Calibration set (written by `calibrate`).
    #[arg(long)]
    calibration: PathBuf,
    /// Share of the U-Net's parameters that is gone after the last step, at least.
    #[arg(long)]
    ratio: f64,
    /// Steps of equal size; 1 is one-shot pruning.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// A layer that stays; may be repeated.
    #[arg(long = "keep", value_name = "ID")]
    keep: Vec<String>,
    /// Points of the calibration set to use, from its start [default: all].
    #[arg(long)]
    samples: Option<usize>,
    /// Points per U-Net call.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// What one item is: branch, block or transformer2d.
    #[arg(long, default_value = "branch", value_parser = parse_granularity)]
    granularity: Granularity,
    #[command(flatten)]
    place: PlaceArgs,
    /// The plan to write. The scores of each step go to files beside it, `<name>.step-<n>.json`, from which an interrupted run goes on.
    #[arg(long)]
    out: PathBuf,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

/// Prunes in steps by the output loss, writes and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.batch == 0 {
        return Err(BadInput("--batch 0: expected at least 1".into()).into());
    }
    prepare_file(&args.out)?;
    let model = args.model.open()?;
    let set = CalibrationSet::open(&args.calibration)?;
    let samples = samples_of(args.samples, &set)?;
    let table = model.table(TableSizes::own(args.granularity))?;
    let Place { device, kind } = args.place.open_to_compare()?;
    let unet = UNet::open(model.unet(), device, kind)?;
    let settings = BTreeMap::from([
        ("calibration_sha256".to_string(), json!(file_hash(&args.calibration)?)),
        ("calibration_source".to_string(), json!(set.source.name())),
        ("compute".to_string(), json!(kind_name(kind))),
        (POINTS.to_string(), json!(samples)),
        ("timestep_bins".to_string(), json!(set.num_bins)),
    ]);
    let budget = |step: u32| Budget::params_ratio(args.ratio * f64::from(step) / f64::from(args.steps));
    let options = StepOptions {
        criterion: OUTPUT_LOSS.into(),
        budgets: (1..=args.steps).map(budget).collect(),
        constraints: Constraints { keep: args.keep.iter().map(|id| id.as_str().into()).collect(), ..Constraints::none() },
        score: ScoreOptions { samples: 0..samples, batch: args.batch, seed: Some(set.seed), settings },
    };
    let path = |step: usize| step_path(&args.out, step);
    let mut forward = ForwardGaps::new(&unet, &set, &table, &[OUTPUT_LOSS])?;
    let earlier = earlier(args, &table)?;
    let (stop, bar) = (stop_flag()?, progress::bar("plan-steps", u64::from(args.steps) * table.len() as u64));
    let steps = prune_in_steps(&mut forward, &options, earlier, &mut |step, event| match event {
        ScoreEvent::Batch { .. } => check_stop(&stop),
        ScoreEvent::Layer { layers, scores, .. } => {
            bar.set_position((step * table.len() + layers.0) as u64);
            scores.iter().try_for_each(|scores| scores.write(&path(step)))
        }
    });
    bar.finish_and_clear();
    let steps = steps.map_err(|e| advise(explain(e), &path(0)))?;
    for (number, step) in steps.iter().enumerate() {
        step.scores[0].write(&path(number))?;
    }
    // There is at least one step.
    let plan = &steps[steps.len() - 1].plan;
    plan.write(&args.out)?;
    if args.json {
        println!("{}", plan.to_json()?.trim_end());
        return Ok(());
    }
    print(&steps, &table, forward.forwards());
    println!("written     {}", args.out.display());
    Ok(())
}

fn step_path(out: &Path, step: usize) -> PathBuf {
    out.with_file_name(format!("{}.step-{}.json", unet::plan_name(out), step + 1))
}

/// The scores of the steps that an earlier run began.
fn earlier(args: &Args, table: &LayerTable) -> anyhow::Result<Vec<Vec<Scores>>> {
    let paths = (0..args.steps as usize).map(|step| step_path(&args.out, step));
    paths.take_while(|path| path.is_file()).map(|path| Ok(vec![Scores::read_for(&path, table)?])).collect()
}

fn print(steps: &[Step], table: &LayerTable, passes: f64) {
    println!("{:>4} {:>8} {:>16} {:>14}  goes in this step", "step", "layers", "parameters gone", "sum of scores");
    let mut before = prune_core::RemovalSet::empty();
    for (number, step) in steps.iter().enumerate() {
        let plan = &step.plan;
        let new: Vec<&str> = plan.removed.iter().map(|id| id.as_str()).filter(|id| !before.contains(id)).collect();
        let predicted = plan.predicted.map_or(String::new(), |sum| format!("{sum:.4e}"));
        let share = 100.0 * plan.params_ratio;
        println!("{:>4} {:>8} {share:>14.2} % {predicted:>14}  {} layers", number + 1, plan.removed.len(), new.len());
        before = plan.removal_set();
    }
    println!();
    println!("layers      {} of {} go", before.len(), table.len());
    println!("work        as much as {passes:.0} forward passes of one sample");
}
