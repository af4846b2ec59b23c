//! `laptop-diff measure-plans`: the true joint loss of plans, on samples that scoring did not use. Plans -> **joint losses** -> report.

use std::path::PathBuf;

use artifact::Document;
use prune_core::audit::MeasureOptions;
use unet::scoring::{NamedPlans, OUTPUT_LOSS, PartialSets, TASK_LOSS_DELTA, UNetPasses};
use unet::{Granularity, JointFile, TableSizes};

use crate::scoring::{MeasureArgs, Points, measure};
use crate::table::{Table, with_error};

/// Arguments of `measure-plans`.
#[derive(Debug, clap::Args)]
pub struct Args {
    // The calibration set is one that scoring did not use (written by `calibrate` with another seed).
    #[command(flatten)]
    pub(super) measure: MeasureArgs,
    /// Plans to measure; the file's name without .json names the plan.
    #[arg(long, required = true, num_args = 1..)]
    plan: Vec<PathBuf>,
    /// Points of the calibration set to use, from its start [default: all].
    #[arg(long)]
    samples: Option<usize>,
}

/// Measures and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.measure.open()?;
    let points = Points::open(&args.measure.calibration, args.samples)?;
    let plans = NamedPlans::open(&model, &args.plan)?;
    let unet = args.measure.unet(&model)?;
    // Plans of any granularity are measured branch by branch.
    let table = model.table(TableSizes::own(Granularity::Branch))?;
    let sets = plans.sets(unet.layout())?;
    let mut passes = UNetPasses::model(&unet, &table, points.set.calibration()?, points.criteria())?;
    let partial = PartialSets::beside(&args.measure.out, "plans", &points.identity());
    let measured = measure(&mut passes, "plans", &sets, &MeasureOptions::new(0..points.used).batch(args.measure.batch), &partial)?;

    let (fingerprint, plans) = (table.fingerprint().into(), plans.rows(measured));
    let file = JointFile { fingerprint, calibration_sha256: points.sha256, samples: points.used, plans };
    file.write(&args.measure.out)?;
    partial.remove();
    if args.measure.json {
        print!("{}", file.to_text(&args.measure.out)?);
    } else {
        print(&file);
        println!("written     {}", args.measure.out.display());
    }
    Ok(())
}

fn print(file: &JointFile) {
    let mut rows = Table::new(["plan", ">removed", ">joint output loss", ">joint task loss change", ">predicted"]);
    for row in &file.plans {
        let loss = |name: &str| row.losses.get(name).map_or("-".to_string(), |loss| with_error(loss.mean, loss.standard_error));
        let removed = format!("{:.2}%", 100.0 * row.params_ratio);
        let predicted = row.predicted.map_or("-".to_string(), |p| format!("{p:.3e}"));
        rows.row([row.plan.clone(), removed, loss(OUTPUT_LOSS), loss(TASK_LOSS_DELTA), predicted]);
    }
    print!("{rows}");
}
