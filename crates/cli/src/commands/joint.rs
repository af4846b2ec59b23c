//! `laptop-diff joint`: the true joint loss of plans, on samples that scoring did not use. Plans -> **joint losses** -> report.

use std::path::PathBuf;

use artifact::Document;
use data::CalibrationSet;
use prune_core::{DrawnSet, MeasureOptions, Plan};
use unet::{Granularity, JointFile, JointRow, UNet, plan_name};

use super::audit::{Partial, measure};
use super::score::samples_of;
use crate::ablation::{ForwardGaps, OUTPUT_LOSS, TASK_LOSS_DELTA};
use crate::common::{BadInput, file_hash, prepare_file};
use crate::device::{Place, PlaceArgs};
use crate::hub::ModelArg;
use crate::model::TableSizes;

/// Arguments of `joint`.
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
    place: PlaceArgs,
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
    let set = CalibrationSet::open(&args.calibration)?;
    let samples = samples_of(args.samples, &set)?;
    let plans: Vec<(String, Plan)> = args.plan.iter().map(|p| Ok((plan_name(p), model.plan(p)?))).collect::<anyhow::Result<_>>()?;
    let mut names: Vec<&String> = plans.iter().map(|(n, _)| n).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
        return Err(BadInput(format!("--plan: two files are named {}.json; rename one", twice[0])).into());
    }
    let Place { device, kind } = args.place.open_to_compare()?;
    let unet = UNet::open(model.unet(), device, kind)?;
    // Plans of any granularity are measured branch by branch.
    let table = model.table(TableSizes::own(Granularity::Branch))?;
    let sets: Vec<DrawnSet> = plans
        .iter()
        .map(|(name, plan)| Ok(DrawnSet { stratum: name.clone(), removed: unet.layout().expand(&plan.removal_set())? }))
        .collect::<anyhow::Result<_>>()?;

    let calibration_sha256 = file_hash(&args.calibration)?;
    let mut forward = ForwardGaps::new(&unet, &set, &table, ForwardGaps::possible(&set))?;
    let partial = Partial::beside(&args.out, "plans", &format!("{calibration_sha256} {samples}"));
    let measured = measure(&mut forward, "joint", &sets, &MeasureOptions { samples: 0..samples, batch: args.batch }, &partial)?;

    let rows = measured.into_iter().zip(&plans).zip(&args.plan).map(|((set, (name, plan)), path)| {
        Ok(JointRow {
            plan: name.clone(),
            plan_sha256: file_hash(path)?,
            params_ratio: plan.params_ratio,
            criterion: plan.criterion.clone(),
            predicted: plan.predicted,
            gaps: set.gaps,
        })
    });
    let plans = rows.collect::<anyhow::Result<_>>()?;
    let file = JointFile { fingerprint: table.fingerprint().into(), calibration_sha256, samples, plans };
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
    let wide = file.plans.iter().map(|p| p.plan.len()).max().unwrap_or(4).max(4);
    println!("{:wide$} {:>8} {:>22} {:>22} {:>12}", "plan", "removed", "joint output loss", "joint task loss change", "predicted");
    for row in &file.plans {
        let gap = |name: &str| {
            row.gaps.get(name).map_or("-".to_string(), |g| match g.standard_error {
                Some(se) => format!("{:.3e} ± {se:.1e}", g.mean),
                None => format!("{:.3e}", g.mean),
            })
        };
        let predicted = row.predicted.map_or("-".to_string(), |p| format!("{p:.3e}"));
        println!(
            "{:wide$} {:>7.2}% {:>22} {:>22} {predicted:>12}",
            row.plan,
            100.0 * row.params_ratio,
            gap(OUTPUT_LOSS),
            gap(TASK_LOSS_DELTA)
        );
    }
}
