//! `laptop-diff refine`: a plan that loses less together, at the same budget. Plan and calibration set -> **plan**.

use std::path::{Path, PathBuf};

use prune_core::Plan;
use prune_core::audit::JointLoss;
use prune_core::refine::{Decision, RefineEvent, RefineMethod, RefineOptions, RefineOutcome, RefineRecord, refine_with};
use unet::scoring::{ScoringEvent, UNetPasses};

use crate::common::BadInput;
use crate::sampling::positive;
use crate::scoring::{MeasureArgs, Points, SearchArgs, advise, explain, with_progress};
use crate::table::{Table, with_error};

/// Arguments of `refine`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) measure: MeasureArgs,
    #[command(flatten)]
    search: SearchArgs,
    /// The plan to begin with (written by `plan`).
    #[arg(long)]
    plan: PathBuf,
    /// How to look for better sets: swaps from one to the next, swaps over the best known (beam), random changes (evolution), or the exact
    /// search over scores and measured pairs of layers (interactions).
    #[arg(long, value_parser = ["swaps", "beam", "evolution", "interactions"], default_value = "swaps")]
    method: String,
    /// Sets, or pairs, measured per step.
    #[arg(long, default_value_t = 24, value_parser = positive)]
    candidates: usize,
    /// beam: sets kept.
    #[arg(long, default_value_t = 4, value_parser = positive)]
    width: usize,
}

/// Refines, writes and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (measure, search) = (&args.measure, &args.search);
    let model = measure.open()?;
    let scores = model.scores(&search.scores)?;
    let table = scores.table();
    let start = Plan::read(&args.plan, table)?;
    let points = Points::open(&measure.calibration, None)?;
    let options = args.options(points.used)?;
    let (problem, limits) = (search.problem(&scores, &start.constraints)?, start.asked());
    let unet = measure.unet(&model)?;
    let mut passes = UNetPasses::model(&unet, table, points.set.calibration()?, &[&options.criterion])?;
    let record_path = record_path(&measure.out);
    let earlier = record_path.is_file().then(|| RefineRecord::read(&record_path, table)).transpose()?;
    let refined = with_progress(|on_event| {
        refine_with(&mut passes, &problem, &limits, &start, &options, earlier, |event| match event {
            RefineEvent::Batch { forwards } => {
                on_event(ScoringEvent::Progress { what: "refine", done: forwards.0, all: search.max_forwards })
            }
            RefineEvent::Measured { record } => Ok(record.write(&record_path)?),
            _ => Ok(()),
        })
    });
    let refined = refined?.map_err(|e| advise(explain(e), &record_path))?;
    refined.record.write(&record_path)?;
    refined.plan.write(&measure.out)?;
    if measure.json {
        println!("{}", refined.plan.to_json()?.trim_end());
        return Ok(());
    }
    if let Some(outcome) = &refined.record.outcome {
        print(outcome, &refined.record, passes.forwards());
    }
    println!("written     {}", measure.out.display());
    Ok(())
}

impl Args {
    fn options(&self, points: usize) -> anyhow::Result<RefineOptions<'_>> {
        let (search, (samples, held_out)) = (&self.search, self.search.halves(points)?);
        let method = RefineMethod::named(&self.method, self.candidates, self.width);
        let method = method.ok_or_else(|| BadInput(format!("--method {}: there is no such method", self.method)))?;
        Ok(RefineOptions::new(search.criterion.id, samples, held_out)
            .method(method)
            .first_samples(search.first_samples)
            .max_forwards(search.max_forwards)
            .batch(self.measure.batch)
            .seed(search.seed)
            .search(search.limits()))
    }
}

fn record_path(out: &Path) -> PathBuf {
    out.with_file_name(format!("{}.refinement.json", unet::plan_name(out)))
}

fn print(outcome: &RefineOutcome, record: &RefineRecord, passes: f64) {
    let loss = |loss: &JointLoss| with_error(loss.mean, loss.standard_error);
    let mut rows = Table::new([record.criterion.as_str(), ">points of the search", ">points that decided", ">other held-out points"]);
    let decided = |of: fn(&Decision) -> &JointLoss| outcome.decision.as_ref().map_or("-".into(), |decision| loss(of(decision)));
    rows.row(["given plan".to_string(), loss(&outcome.start_search), decided(|d| &d.start), loss(&outcome.start_held_out)]);
    rows.row(["refined".to_string(), loss(&outcome.search), decided(|d| &d.chosen), loss(&outcome.held_out)]);
    print!("{rows}");
    println!();
    if outcome.removed == record.start {
        println!("no better plan stood on the held-out points; the given one is kept");
    } else {
        let change =
            outcome.held_out_change.as_ref().map_or(String::new(), |change| format!("; difference point by point {}", loss(change)));
        println!("held-out    {:.3} of the given plan's loss{change}", outcome.held_out.mean / outcome.start_held_out.mean);
        let out = outcome.removed.iter().filter(|id| !record.start.contains(id.as_str())).map(ToString::to_string);
        let back = record.start.iter().filter(|id| !outcome.removed.contains(id.as_str())).map(ToString::to_string);
        println!("goes        {}", out.collect::<Vec<_>>().join(", "));
        println!("comes back  {}", back.collect::<Vec<_>>().join(", "));
    }
    println!("work        {} evaluations, {} steps, as much as {passes:.0} forward passes", record.forwards, record.steps.len());
}
