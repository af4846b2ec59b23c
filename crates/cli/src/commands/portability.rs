//! `laptop-diff portability`: which programs load what a plan leaves, and what comes back there as zeros. `plan.json` -> a table,
//! before any training.

use std::path::PathBuf;

use clap::ValueEnum;
use prune_core::RemovalSet;
use serde::Serialize;
use unet::{Host, Layout};

use super::prune::Format;
use crate::hub::ModelArg;
use crate::model::{Model, TableSizes};
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

/// One form of the pruned model.
#[derive(Debug, Serialize)]
struct Row {
    /// Value of `prune --format`.
    format: String,
    loads_in: &'static str,
    /// Parameters of the file's U-Net; none where it cannot be made.
    params: Option<u64>,
    /// Those among them that are zero because the form cannot do without.
    padded: Option<u64>,
    padding: Vec<Place>,
    impossible: Option<String>,
}

#[derive(Debug, Serialize)]
struct Place {
    at: String,
    params: u64,
    reason: &'static str,
}

/// Prints the table.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.model.open()?;
    // Either way the weights are hashed once.
    let (gone, left) = match &args.plan {
        Some(path) => {
            let plan = model.plan(path)?;
            (Layout::new(&model.config).expand(&plan.removal_set())?, plan.params_left)
        }
        None => (RemovalSet::empty(), model.table(TableSizes::own(unet::Granularity::Branch))?.total_params()),
    };
    let removed: RemovalSet = model.removed()?.iter().chain(&gone).cloned().collect();
    let rows: Vec<Row> =
        Format::value_variants().iter().map(|format| row(*format, &model, &removed, left)).collect::<anyhow::Result<_>>()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    Ok(())
}

fn row(format: Format, model: &Model, removed: &RemovalSet, left: u64) -> anyhow::Result<Row> {
    let name = format.to_possible_value().map_or_else(String::new, |v| v.get_name().to_string());
    let loads_in = match format {
        Format::Own => "laptop-diff",
        Format::DiffusersLoader => "diffusers, with the Python file beside the weights",
        Format::Diffusers => "diffusers",
        Format::Original => "ComfyUI and other programs that read single files",
        Format::Neutral => "every program that loads the original",
    };
    let whole = Row { format: name, loads_in, params: Some(left), padded: Some(0), padding: Vec::new(), impossible: None };
    let Some(target) = format.target() else { return Ok(whole) };
    Ok(match Host::new(&model.config, removed, target) {
        Ok(host) => {
            let padding = host.padding.iter().map(|p| Place { at: p.at.clone(), params: p.params, reason: p.reason });
            Row { params: Some(left + host.padded_params()), padded: Some(host.padded_params()), padding: padding.collect(), ..whole }
        }
        Err(unet::Error::Portable { reason, .. }) => Row { params: None, padded: None, impossible: Some(reason), ..whole },
        Err(other) => return Err(other.into()),
    })
}

fn print(rows: &[Row]) {
    const SHOWN: usize = 5;
    let number = |n: Option<u64>| n.map_or("-".to_string(), thousands);
    let mut table = Table::new(["format", ">parameters", ">of them zero", "loads in"]);
    for row in rows {
        table.row([row.format.clone(), number(row.params), number(row.padded), row.loads_in.to_string()]);
    }
    print!("{table}");
    for row in rows.iter().filter(|row| row.impossible.is_some() || (!row.padding.is_empty() && row.format != "neutral")) {
        println!("\n{}", row.format);
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
