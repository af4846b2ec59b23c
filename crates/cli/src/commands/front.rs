//! `laptop-diff front`: the plans of all budgets, measured. Scores and calibration set -> **measured front** -> `plan --measured`.

use prune_core::Constraints;
use prune_core::measured_front::{FrontEvent, FrontOptions, MeasuredFront, measured_front_with};
use prune_core::refine::RefineMethod;
use unet::scoring::{ScoringEvent, UNetPasses};

use crate::scoring::{MeasureArgs, Points, SearchArgs, advise, explain, with_progress};
use crate::table::{Table, thousands, with_error};

/// Arguments of `front`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) measure: MeasureArgs,
    #[command(flatten)]
    search: SearchArgs,
    /// What budgets count: params, macs, or a resource that was given.
    #[arg(long, value_name = "RESOURCE", default_value = "params")]
    by: String,
    /// Search on by swaps around this many of the winners, with half of the evaluations.
    #[arg(long, value_name = "WINNERS", default_value_t = 0)]
    refine: usize,
    /// A layer that stays; may be repeated.
    #[arg(long = "keep", value_name = "ID")]
    keep: Vec<String>,
}

/// Measures, writes and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (measure, search) = (&args.measure, &args.search);
    let model = measure.open()?;
    let scores = model.scores(&search.scores)?;
    let points = Points::open(&measure.calibration, None)?;
    let (samples, held_out) = search.halves(points.used)?;
    let problem = search.problem(&scores, &Constraints::none().keep(args.keep.iter().map(String::as_str)))?;
    let mut options = FrontOptions::new(search.criterion.id, samples, held_out)
        .resource(&args.by)
        .first_samples(search.first_samples)
        .max_forwards(search.max_forwards)
        .batch(measure.batch)
        .seed(search.seed)
        .search(search.limits());
    options.refine = (args.refine > 0).then_some((RefineMethod::Swaps { candidates: 24 }, args.refine));
    let unet = measure.unet(&model)?;
    let mut passes = UNetPasses::model(&unet, scores.table(), points.set.calibration()?, &[search.criterion.id])?;
    let earlier = measure.out.is_file().then(|| MeasuredFront::read(&measure.out, scores.table())).transpose()?;
    let front = with_progress(|on_event| {
        measured_front_with(&mut passes, &problem, &options, earlier, |event| match event {
            FrontEvent::Batch { forwards } => on_event(ScoringEvent::Progress { what: "front", done: forwards.0, all: forwards.1 }),
            FrontEvent::Measured { record } => Ok(record.write(&measure.out)?),
            _ => Ok(()),
        })
    });
    let front = front?.map_err(|e| advise(explain(e), &measure.out))?;
    front.write(&measure.out)?;
    if measure.json {
        println!("{}", front.to_json()?.trim_end());
        return Ok(());
    }
    print(&front, scores.table().total_params());
    println!("work        {} evaluations of {} sets", front.forwards, front.measured.len());
    println!("written     {}", measure.out.display());
    Ok(())
}

fn print(front: &MeasuredFront, total: u64) {
    let mut rows = Table::new([">parameters gone", ">share", ">layers", ">predicted", ">points that chose", ">held-out points"]);
    for plan in &front.plans {
        let params = plan.cost("params");
        let losses = [&plan.loss, &plan.held_out].map(|loss| with_error(loss.mean, loss.standard_error));
        let about = [thousands(params), format!("{:.2} %", 100.0 * params as f64 / total as f64), plan.removed.len().to_string()];
        rows.row(about.into_iter().chain([format!("{:.3e}", plan.predicted)]).chain(losses));
    }
    print!("{rows}");
}
