//! `laptop-diff portability`: which programs load what a plan leaves, and what comes back there as zeros. `plan.json` -> a table,
//! before any training.

use std::path::PathBuf;

use unet::{ExportFormat, Portability, portability};

use crate::model::ModelArg;
use crate::table::{Table, thousands};

/// Arguments of `portability`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory, its unet/ folder or a single file; may be pruned already.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// The plan to look at.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Prints the table.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.model.open()?;
    let plan = args.plan.as_ref().map(|path| model.plan(path)).transpose()?;
    let rows = portability(&model, plan.as_ref())?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    Ok(())
}

fn print(rows: &[Portability]) {
    const SHOWN: usize = 5;
    let number = |n: Option<u64>| n.map_or("-".to_string(), thousands);
    let mut table = Table::new(["format", ">parameters", ">of them zero", "loads in"]);
    for row in rows {
        table.row([row.format.name().to_string(), number(row.params), number(row.padded), row.loads_in.to_string()]);
    }
    print!("{table}");
    for row in rows.iter().filter(|row| row.impossible.is_some() || (!row.padding.is_empty() && row.format != ExportFormat::Neutral)) {
        println!("\n{}", row.format.name());
        if let Some(reason) = &row.impossible {
            println!("  cannot be made: {reason}");
        }
        for place in row.padding.iter().take(SHOWN) {
            println!("  {} ({} parameters): {}", place.at, thousands(place.params), place.reason);
        }
        if row.padding.len() > SHOWN {
            println!("  and {} more (--json lists all)", row.padding.len() - SHOWN);
        }
    }
}
