//! `laptop-diff interactions`: measure which layers of a plan lose more, or less, together than their scores say. Scores and plan ->
//! **interactions**, for `plan --interactions`.

use std::path::PathBuf;

use prune_core::Plan;
use prune_core::audit::{AuditFile, MeasureOptions};
use prune_core::refine::{interactions, strongest_pairs};
use prune_core::search::Interaction;
use unet::UNet;
use unet::scoring::{PartialSets, UNetPasses};

use crate::common::{BadInput, prepare_file};
use crate::device::{DeviceArgs, DeviceDtype};
use crate::model::ModelArg;
use crate::scoring::{Points, measure};

/// Arguments of `interactions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: a directory in diffusers' layout, its unet/ folder or a single file.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Scores that the plan was made by (written by `score`): output_loss or task_loss_delta.
    #[arg(long)]
    scores: PathBuf,
    /// The plan whose pairs are measured (written by `plan`).
    #[arg(long)]
    plan: PathBuf,
    /// The calibration set behind the scores: a pair is the joint value less the two scores, so the points must be the same.
    #[arg(long)]
    calibration: PathBuf,
    /// How many pairs: those with the largest bound on what their changes of the output can have in common.
    #[arg(long, default_value_t = 64)]
    count: usize,
    /// Pairs measured before (written by `interactions`), to which the new ones are added.
    #[arg(long)]
    known: Option<PathBuf>,
    /// Points per U-Net call.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    #[command(flatten)]
    place: DeviceArgs,
    /// The pairs to write; an interrupted run goes on from a file beside it.
    #[arg(long)]
    out: PathBuf,
    /// Print the interactions as JSON.
    #[arg(long)]
    json: bool,
}

/// Measures, writes and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.batch == 0 || args.count == 0 {
        return Err(BadInput("--batch and --count: expected at least 1, got 0".into()).into());
    }
    prepare_file(&args.out)?;
    let model = args.model.open()?;
    let scores = model.scores(&args.scores)?;
    let table = scores.table();
    let plan = Plan::read(&args.plan, table)?;
    let points = scores.samples();
    if points.start != 0 || points.is_empty() {
        let problem = format!("--scores {}: expected scores measured from the first point on", args.scores.display());
        return Err(BadInput(problem).into());
    }
    let points = Points::open(&args.calibration, Some(points.end))?;
    let (mut sets, known) = match &args.known {
        Some(path) => {
            let sets = AuditFile::read(path, table)?.sets;
            let known = interactions(&scores, &sets).map_err(|e| e.in_file(path))?;
            (sets, known)
        }
        None => Default::default(),
    };
    let drawn = strongest_pairs(&scores, &plan, &known, args.count)?;
    let DeviceDtype { device, kind } = args.place.open_to_compare()?;
    let unet = UNet::open(model.unet(), device, kind)?;
    let mut passes = UNetPasses::model(&unet, table, points.set.calibration()?, &[scores.criterion()])?;
    let partial = PartialSets::beside(&args.out, "pairs", &points.identity());
    let options = MeasureOptions::new(0..points.used).batch(args.batch);
    sets.extend(measure(&mut passes, "interactions", &drawn, &options, &partial)?);
    let mut found = interactions(&scores, &sets)?;
    AuditFile::new(table, 0, 0..points.used, Vec::new(), sets).write(&args.out)?;
    partial.remove();
    found.sort_by(|a, b| b.score.abs().total_cmp(&a.score.abs()));
    if args.json {
        let row = |i: &Interaction| serde_json::json!({"first": i.first, "second": i.second, "score": i.score});
        println!("{}", serde_json::to_string_pretty(&found.iter().map(row).collect::<Vec<_>>())?);
        return Ok(());
    }
    println!("{:>12}  pair (the {} strongest of {})", "interaction", found.len().min(SHOWN), found.len());
    for pair in found.iter().take(SHOWN) {
        println!("{:>12.3e}  {} + {}", pair.score, pair.first, pair.second);
    }
    println!("written     {}", args.out.display());
    Ok(())
}

/// Pairs printed.
const SHOWN: usize = 10;
