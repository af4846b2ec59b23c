//! `laptop-diff inspect`: the table of removable layers, their costs and shares. First stage of the flow.

use std::path::{Path, PathBuf};

use artifact::Document;
use prune_core::LayerTable;
use prune_core::table::Cost;
use unet::{Granularity, Inspection, ModelSource, TableSizes};

use crate::common::prepare_file;
use crate::model::ModelArg;
use crate::table::Table;

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory, its unet/ folder, a single file (.safetensors, .ckpt), a config.json alone, or org/name on the Hugging Face Hub.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Height and width of the latents that multiply-accumulates are counted for [default: the model's own].
    #[arg(long)]
    latent_size: Option<i64>,
    /// Text tokens that multiply-accumulates are counted for [default: the model's own].
    #[arg(long)]
    tokens: Option<i64>,
    /// What one item is: branch, block or transformer2d.
    #[arg(long, default_value = "branch")]
    granularity: Granularity,
    /// Also write the bytes of activations that training keeps for each layer (one sample, f32) to this file, for
    /// `plan --resource FILE --at-least activation_bytes=30%`.
    #[arg(long, value_name = "FILE")]
    activations: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write the JSON to this file.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Prints the table. Only files ask for the weights' hash, for which every byte is read: the table comes first.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for out in args.out.iter().chain(&args.activations) {
        prepare_file(out)?;
    }
    let model = args.model.open()?;
    let sizes = TableSizes { latent: args.latent_size, tokens: args.tokens, granularity: args.granularity };
    let activations = model.activations(sizes)?;
    if !args.json {
        print(&model, sizes, &model.costs(sizes)?, activations.total);
    }
    if let Some(out) = &args.activations {
        model.activation_file(sizes)?.write(out)?;
    }
    if !args.json && args.out.is_none() {
        return Ok(());
    }
    let inspection = diffusion::inspect(&model, sizes)?;
    if let Some(out) = &args.out {
        inspection.write(out)?;
    }
    if args.json {
        print!("{}", inspection.to_text(Path::new(Inspection::FILE))?);
    }
    Ok(())
}

/// Bytes of a number.
const F32: u64 = 4;

fn print(model: &ModelSource, sizes: TableSizes, table: &LayerTable, activations: u64) {
    let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    let mut rows = Table::new(["id", "kind", ">parameters", ">share", ">MACs", ">share"]);
    for layer in table.layers() {
        let share = |part: u64, whole: u64| format!("{:.2}%", percent(part, whole));
        let params = [layer.params.to_string(), share(layer.params, table.total_params())];
        let macs = [layer.macs.to_string(), share(layer.macs, table.total_macs())];
        rows.row([layer.id.to_string(), layer.kind.clone()].into_iter().chain(params).chain(macs));
    }
    print!("{rows}");
    let sum = |cost: Cost| -> u64 {
        table.layers().iter().map(|l| l.cost(cost)).sum::<u64>() + table.shared_costs().iter().map(|s| s.cost(cost)).sum::<u64>()
    };
    let (h, w) = sizes.latent.map_or(model.latent_size(), |n| (n, n));
    println!();
    println!("model       {} ({}, latents {h} x {w})", model.name(), model.family());
    println!("parameters  {}", table.total_params());
    println!("MACs        {} ({:.3} GFLOP per forward pass)", table.total_macs(), 2e-9 * table.total_macs() as f64);
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "activations {:.1} MB per sample kept for training in f32, {:.1} MB in bf16",
        megabytes(F32 * activations),
        megabytes(F32 / 2 * activations)
    );
    println!("items       {} removable, {} shared costs that go with their last item", table.len(), table.shared_costs().len());
    println!(
        "removable   {:.1} % of the parameters, {:.1} % of the MACs",
        percent(sum(Cost::Params), table.total_params()),
        percent(sum(Cost::Macs), table.total_macs())
    );
}
