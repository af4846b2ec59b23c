//! `laptop-diff plan-iterative`: remove some layers, score what is left without them, remove more. Calibration set -> scores and
//! **plan** of each step.

use std::path::{Path, PathBuf};

use prune_core::refine::{Step, StepOptions, prune_in_steps_with};
use prune_core::score::{ScoreEvent, ScoreOptions};
use prune_core::{Budget, Constraints, LayerTable, Scores};
use unet::scoring::{OUTPUT_LOSS, ScoringEvent, UNetPasses};
use unet::{Granularity, TableSizes};

use crate::scoring::{MeasureArgs, Points, advise, explain, with_progress};
use crate::table::Table;

/// Arguments of `plan-iterative`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) measure: MeasureArgs,
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
    /// What one item is: branch, block or transformer2d.
    #[arg(long, default_value = "branch")]
    granularity: Granularity,
}

/// Prunes in steps by the output loss, writes and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let measure = &args.measure;
    let model = measure.open()?;
    let points = Points::open(&measure.calibration, args.samples)?;
    let table = model.table(TableSizes::own(args.granularity))?;
    let unet = measure.unet(&model)?;
    let budget = |step: u32| Budget::params_ratio(args.ratio * f64::from(step) / f64::from(args.steps));
    let score =
        ScoreOptions::new(0..points.used).batch(measure.batch).seed(points.set.seed).settings(points.settings(unet.device(), unet.kind()));
    let options = StepOptions::new(OUTPUT_LOSS, (1..=args.steps).map(budget), score)
        .constraints(Constraints::none().keep(args.keep.iter().map(String::as_str)));
    let path = |step: usize| step_path(&args.measure.out, step);
    let mut passes = UNetPasses::model(&unet, &table, points.set.calibration()?, &[OUTPUT_LOSS])?;
    let earlier = earlier(args, &table)?;
    let all = u64::from(args.steps) * table.len() as u64;
    let steps = with_progress(|on_event| {
        prune_in_steps_with(&mut passes, &options, earlier, |step, event| match event {
            ScoreEvent::Batch { .. } => on_event(ScoringEvent::Batch),
            ScoreEvent::Layer { layers, scores, .. } => {
                scores.iter().try_for_each(|scores| scores.write(&path(step)))?;
                on_event(ScoringEvent::Progress { what: "plan-iterative", done: (step * table.len() + layers.0) as u64, all })
            }
            _ => Ok(()),
        })
    });
    let steps = steps?.map_err(|e| advise(explain(e), &path(0)))?;
    for (number, step) in steps.iter().enumerate() {
        step.scores[0].write(&path(number))?;
    }
    // There is at least one step.
    let plan = &steps[steps.len() - 1].plan;
    plan.write(&measure.out)?;
    if measure.json {
        println!("{}", plan.to_json()?.trim_end());
        return Ok(());
    }
    print(&steps, &table, passes.forwards());
    println!("written     {}", measure.out.display());
    Ok(())
}

fn step_path(out: &Path, step: usize) -> PathBuf {
    out.with_file_name(format!("{}.step-{}.json", unet::plan_name(out), step + 1))
}

/// The scores of the steps that an earlier run began.
fn earlier(args: &Args, table: &LayerTable) -> anyhow::Result<Vec<Vec<Scores>>> {
    let paths = (0..args.steps as usize).map(|step| step_path(&args.measure.out, step));
    paths.take_while(|path| path.is_file()).map(|path| Ok(vec![Scores::read_for(&path, table)?])).collect()
}

fn print(steps: &[Step], table: &LayerTable, passes: f64) {
    let mut rows = Table::new([">step", ">layers", ">parameters gone", ">sum of scores", "goes in this step"]);
    let mut before = prune_core::RemovalSet::empty();
    for (number, step) in steps.iter().enumerate() {
        let plan = &step.plan;
        let new = plan.removed.iter().filter(|id| !before.contains(id.as_str())).count();
        let predicted = plan.predicted.map_or(String::new(), |sum| format!("{sum:.4e}"));
        let share = format!("{:.2} %", 100.0 * plan.params_ratio);
        rows.row([(number + 1).to_string(), plan.removed.len().to_string(), share, predicted, format!("{new} layers")]);
        before = plan.removal_set();
    }
    print!("{rows}");
    println!();
    println!("layers      {} of {} go", before.len(), table.len());
    println!("work        as much as {passes:.0} forward passes of one sample");
}
