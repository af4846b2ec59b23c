//! `laptop-diff refine`: a plan that loses less together, at the same budget. Plan and calibration set -> **plan**.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use clap::builder::TypedValueParser;
use prune_core::audit::JointLoss;
use prune_core::refine::{RefineEvent, RefineMethod, RefineOptions, RefineOutcome, RefineRecord, refine_with};
use prune_core::table::Cost;
use prune_core::{Limit, Problem};
use unet::UNet;
use unet::scoring::{CRITERIA, Criterion, OUTPUT_LOSS, ScoringEvent, TASK_LOSS_DELTA, UNetPasses};

use crate::common::{BadInput, prepare_file};
use crate::device::{DeviceArgs, DeviceDtype};
use crate::model::ModelArg;
use crate::one_of::one_of;
use crate::scoring::{Points, advise, explain, with_progress};
use crate::table::{Table, with_error};

/// Arguments of `refine`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: a directory in diffusers' layout, its unet/ folder or a single file.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Scores that the plan was made by (written by `score`); they tell which changes are worth a look.
    #[arg(long)]
    scores: PathBuf,
    /// The plan to begin with (written by `plan`).
    #[arg(long)]
    plan: PathBuf,
    /// Calibration set (written by `calibrate`). Its last points are held out and decide at the end.
    #[arg(long)]
    calibration: PathBuf,
    /// Number of points held out [default: half of them].
    #[arg(long)]
    held_out: Option<usize>,
    /// What is to become small.
    #[arg(long, value_parser = criterion(), default_value = OUTPUT_LOSS)]
    criterion: &'static Criterion,
    /// How to look for better sets.
    #[arg(long, value_enum, default_value_t = Method::Swaps)]
    method: Method,
    /// Sets measured per step.
    #[arg(long, default_value_t = 24)]
    candidates: usize,
    /// beam: sets kept.
    #[arg(long, default_value_t = 4)]
    width: usize,
    /// Points on which many sets are compared first; then twice as many, and so on.
    #[arg(long, default_value_t = 16)]
    first_samples: usize,
    /// Evaluations allowed: points times sets. Shared beginnings make each cheaper than a forward pass.
    #[arg(long, default_value_t = 20_000)]
    max_forwards: u64,
    /// Further costs that the plan's limits name (written by `measure`); may be repeated.
    #[arg(long = "resource", value_name = "FILE")]
    resources: Vec<PathBuf>,
    /// Points per U-Net call.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Seed of the evolution.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    place: DeviceArgs,
    /// The plan to write. All measurements go to a file beside it, `<name>.refinement.json`, from which an interrupted run goes on.
    #[arg(long)]
    out: PathBuf,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

fn criterion() -> impl TypedValueParser<Value = &'static Criterion> {
    let measured = CRITERIA.iter().filter(|criterion| [OUTPUT_LOSS, TASK_LOSS_DELTA].contains(&criterion.id));
    one_of(measured.map(|criterion| (criterion, criterion.id, criterion.meaning)), &[])
}

/// Ways to look for better sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// From one set to the next better one.
    Swaps,
    /// The same over the best sets known.
    Beam,
    /// Random changes of the best set known.
    Evolution,
}

/// Refines, writes and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for (flag, value) in [("--batch", args.batch), ("--candidates", args.candidates), ("--width", args.width)] {
        if value == 0 {
            return Err(BadInput(format!("{flag} 0: expected at least 1")).into());
        }
    }
    prepare_file(&args.out)?;
    let model = args.model.open()?;
    let scores = model.scores(&args.scores)?;
    let table = scores.table();
    let start = prune_core::Plan::read(&args.plan, table)?;
    let points = Points::open(&args.calibration, None)?;
    let options = args.options(points.used)?;
    let mut problem = Problem::new(&scores, &start.constraints)?;
    for path in &args.resources {
        problem = problem.with_resource(&unet::ResourceFile::read_for(path, table)?.resource())?;
    }
    let limits = limits(&start);
    let DeviceDtype { device, kind } = args.place.open_to_compare()?;
    let unet = UNet::open(model.unet(), device, kind)?;
    let mut passes = UNetPasses::model(&unet, table, points.set.calibration()?, &[&options.criterion])?;
    let record_path = record_path(&args.out);
    let earlier = if record_path.is_file() { Some(RefineRecord::read(&record_path, table)?) } else { None };
    let refined = with_progress(|on_event| {
        refine_with(&mut passes, &problem, &limits, &start, &options, earlier, |event| match event {
            RefineEvent::Batch { forwards } => {
                on_event(ScoringEvent::Progress { what: "refine", done: forwards.0, all: args.max_forwards })
            }
            RefineEvent::Measured { record } => Ok(record.write(&record_path)?),
            _ => Ok(()),
        })
    });
    let refined = refined?.map_err(|e| advise(explain(e), &record_path))?;
    refined.record.write(&record_path)?;
    refined.plan.write(&args.out)?;
    if args.json {
        println!("{}", refined.plan.to_json()?.trim_end());
        return Ok(());
    }
    if let Some(outcome) = &refined.record.outcome {
        print(outcome, &refined.record, passes.forwards());
    }
    println!("written     {}", args.out.display());
    Ok(())
}

impl Args {
    fn options(&self, points: usize) -> anyhow::Result<RefineOptions> {
        let held_out = self.held_out.unwrap_or(points / 2);
        if held_out == 0 || held_out >= points {
            let expected = format!("expected 1 to {}, fewer than the calibration set's points", points - 1);
            return Err(BadInput(format!("--held-out {held_out}: {expected}")).into());
        }
        let method = match self.method {
            Method::Swaps => RefineMethod::Swaps { candidates: self.candidates },
            Method::Beam => RefineMethod::Beam { width: self.width, candidates: self.candidates },
            Method::Evolution => RefineMethod::Evolution { offspring: self.candidates },
        };
        Ok(RefineOptions::new(self.criterion.id, 0..points - held_out, points - held_out..points)
            .method(method)
            .first_samples(self.first_samples)
            .max_forwards(self.max_forwards)
            .batch(self.batch)
            .seed(self.seed))
    }
}

/// What the start was made for: its limits, or its budget.
fn limits(start: &prune_core::Plan) -> Vec<Limit> {
    if !start.limits.is_empty() {
        return start.limits.iter().map(|limit| limit.limit.clone()).collect();
    }
    match &start.budget {
        Some(budget) => vec![Limit::at_least(budget.cost.name(), budget.required)],
        // A hand-made plan asks for as much as it removes.
        None => vec![Limit::at_least(Cost::Params.name(), start.params_removed)],
    }
}

fn record_path(out: &Path) -> PathBuf {
    out.with_file_name(format!("{}.refinement.json", unet::plan_name(out)))
}

fn print(outcome: &RefineOutcome, record: &RefineRecord, passes: f64) {
    let loss = |loss: &JointLoss| with_error(loss.mean, loss.standard_error);
    let mut rows = Table::new([record.criterion.as_str(), ">points of the search", ">held-out points"]);
    rows.row(["given plan".to_string(), loss(&outcome.start_search), loss(&outcome.start_held_out)]);
    rows.row(["refined".to_string(), loss(&outcome.search), loss(&outcome.held_out)]);
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
