//! `laptop-diff interactions`: measure which layers of a plan lose more, or less, together than their scores say. Scores and plan ->
//! **interactions**, for `plan --interactions`.

use std::path::PathBuf;

use prune_core::Plan;
use prune_core::audit::{AuditFile, MeasureOptions};
use prune_core::refine::{interactions, strongest_pairs};
use prune_core::search::Interaction;
use unet::scoring::{PartialSets, UNetPasses};

use crate::common::BadInput;
use crate::sampling::positive;
use crate::scoring::{MeasureArgs, Points, measure};

/// Arguments of `interactions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    // The calibration set is the one behind the scores: a pair is the joint value less the two scores, so the points must be the same.
    #[command(flatten)]
    pub(super) measure: MeasureArgs,
    /// Scores that the plan was made by (written by `score`): output_loss or task_loss_delta.
    #[arg(long)]
    scores: PathBuf,
    /// The plan whose pairs are measured (written by `plan`).
    #[arg(long)]
    plan: PathBuf,
    /// How many pairs: those with the largest bound on what their changes of the output can have in common.
    #[arg(long, default_value_t = 64, value_parser = positive)]
    count: usize,
    /// Pairs measured before (written by `interactions`), to which the new ones are added.
    #[arg(long)]
    known: Option<PathBuf>,
}

/// Measures, writes and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.measure.open()?;
    let scores = model.scores(&args.scores)?;
    let table = scores.table();
    let plan = Plan::read(&args.plan, table)?;
    let points = scores.samples();
    if points.start != 0 || points.is_empty() {
        let problem = format!("--scores {}: expected scores measured from the first point on", args.scores.display());
        return Err(BadInput(problem).into());
    }
    let points = Points::open(&args.measure.calibration, Some(points.end))?;
    let (mut sets, known) = match &args.known {
        Some(path) => {
            let sets = AuditFile::read(path, table)?.sets;
            let known = interactions(&scores, &sets).map_err(|e| e.in_file(path))?;
            (sets, known)
        }
        None => Default::default(),
    };
    let drawn = strongest_pairs(&scores, &plan, &known, args.count)?;
    let unet = args.measure.unet(&model)?;
    let mut passes = UNetPasses::model(&unet, table, points.set.calibration()?, &[scores.criterion()])?;
    let partial = PartialSets::beside(&args.measure.out, "pairs", &points.identity());
    let options = MeasureOptions::new(0..points.used).batch(args.measure.batch);
    sets.extend(measure(&mut passes, "interactions", &drawn, &options, &partial)?);
    let mut found = interactions(&scores, &sets)?;
    AuditFile::new(table, 0, 0..points.used, Vec::new(), sets).write(&args.measure.out)?;
    partial.remove();
    found.sort_by(|a, b| b.score.abs().total_cmp(&a.score.abs()));
    if args.measure.json {
        let row = |i: &Interaction| serde_json::json!({"first": i.first, "second": i.second, "score": i.score});
        println!("{}", serde_json::to_string_pretty(&found.iter().map(row).collect::<Vec<_>>())?);
        return Ok(());
    }
    println!("{:>12}  pair (the {} strongest of {})", "interaction", found.len().min(SHOWN), found.len());
    for pair in found.iter().take(SHOWN) {
        println!("{:>12.3e}  {} + {}", pair.score, pair.first, pair.second);
    }
    println!("written     {}", args.measure.out.display());
    Ok(())
}

/// Pairs printed.
const SHOWN: usize = 10;
