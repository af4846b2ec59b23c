//! `laptop-diff measure-plans`: the true joint loss of plans, on samples that scoring did not use. Plans -> **joint losses** -> report.

use std::path::PathBuf;

use artifact::Document;
use prune_core::audit::MeasureOptions;
use unet::scoring::{NamedPlans, OUTPUT_LOSS, PartialSets, TASK_LOSS_DELTA, UNetPasses};
use unet::{Granularity, JointFile, TableSizes, UNet};

use crate::common::{BadInput, prepare_file};
use crate::device::{DeviceArgs, DeviceDtype};
use crate::model::ModelArg;
use crate::scoring::{Points, measure};
use crate::table::{Table, with_error};

/// Arguments of `measure-plans`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Calibration set that scoring did not use (written by `calibrate` with another seed).
    #[arg(long)]
    calibration: PathBuf,
    /// Plans to measure; the file's name without .json names the plan.
    #[arg(long, required = true, num_args = 1..)]
    plan: Vec<PathBuf>,
    /// The file to write; an interrupted run goes on from a file beside it.
    #[arg(long)]
    out: PathBuf,
    /// Points of the calibration set to use, from its start [default: all].
    #[arg(long)]
    samples: Option<usize>,
    /// Points per U-Net call.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    #[command(flatten)]
    place: DeviceArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Measures and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.batch == 0 {
        return Err(BadInput("--batch 0: expected at least 1".into()).into());
    }
    prepare_file(&args.out)?;
    let model = args.model.open()?;
    let points = Points::open(&args.calibration, args.samples)?;
    let plans = NamedPlans::open(&model, &args.plan)?;
    let DeviceDtype { device, kind } = args.place.open_to_compare()?;
    let unet = UNet::open(model.unet(), device, kind)?;
    // Plans of any granularity are measured branch by branch.
    let table = model.table(TableSizes::own(Granularity::Branch))?;
    let sets = plans.sets(unet.layout())?;
    let mut passes = UNetPasses::model(&unet, &table, points.set.calibration()?, points.criteria())?;
    let partial = PartialSets::beside(&args.out, "plans", &points.identity());
    let measured = measure(&mut passes, "plans", &sets, &MeasureOptions::new(0..points.used).batch(args.batch), &partial)?;

    let (fingerprint, plans) = (table.fingerprint().into(), plans.rows(measured));
    let file = JointFile { fingerprint, calibration_sha256: points.sha256, samples: points.used, plans };
    file.write(&args.out)?;
    partial.remove();
    if args.json {
        print!("{}", file.to_text(&args.out)?);
    } else {
        print(&file);
        println!("written     {}", args.out.display());
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
