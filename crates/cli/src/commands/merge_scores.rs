//! `laptop-diff merge-scores`: the parts that several processes scored, as one file. `<criterion>.json` of each part ->
//! **`<criterion>.json`**.

use std::path::PathBuf;

use prune_core::Scores;
use prune_core::score::merge_scores;
use serde_json::Value;
use unet::scoring::POINTS;

use crate::common::{BadInput, prepare_file};

/// Arguments of `merge-scores`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Scores of one criterion from all parts (written by `score --shard`), in any order.
    #[arg(long, required = true, num_args = 1..)]
    scores: Vec<PathBuf>,
    /// The file to write: the same as one process would have written.
    #[arg(long)]
    out: PathBuf,
}

/// Merges and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let parts = args.scores.iter().map(|path| Ok(Scores::read(path)?)).collect::<anyhow::Result<Vec<_>>>()?;
    let merged = merge_scores(&parts)?;
    let (got, points) = (merged.samples().len(), merged.settings().get(POINTS).and_then(Value::as_u64));
    if let Some(points) = points.filter(|points| *points != got as u64) {
        return Err(BadInput(format!("--scores: these parts hold {got} of the run's {points} points; name all parts")).into());
    }
    merged.write(&args.out)?;
    println!("{}: {} layers, {} samples from {} parts", args.out.display(), merged.table().len(), merged.samples().len(), parts.len());
    Ok(())
}
