//! `laptop-diff inspect`: the table of removable layers, their costs and shares. First stage of the flow.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use artifact::Document;
use prune_core::{Cost, LayerId};
use unet::{Granularity, Inspection, ResourceFile};

use crate::common::prepare_file;
use crate::hub::ModelArg;
use crate::model::{Model, TableSizes, parse_granularity};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout, its unet/ folder, or org/name on the Hugging Face Hub.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Height and width of the latents that multiply-accumulates are counted for [default: the model's own].
    #[arg(long)]
    latent_size: Option<i64>,
    /// Text tokens that multiply-accumulates are counted for [default: the model's own].
    #[arg(long)]
    tokens: Option<i64>,
    /// What one item is: branch, block or transformer2d.
    #[arg(long, default_value = "branch", value_parser = parse_granularity)]
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

/// Prints the table.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for out in args.out.iter().chain(&args.activations) {
        prepare_file(out)?;
    }
    let model = args.model.open()?;
    let sizes = TableSizes { latent: args.latent_size, tokens: args.tokens, granularity: args.granularity };
    let table = model.table(sizes)?;
    let activations = model.activations(sizes)?;
    let (h, w) = args.latent_size.map_or(model.latent_size(), |n| (n, n));
    let factor = vae_factor(&model);
    let weights = unet::weight_files(model.unet())?;
    let schedule = diffusion::SchedulerConfig::open(model.path()).ok();
    let inspection = Inspection {
        family: model.family().into(),
        prediction_type: schedule.as_ref().map(|c| c.prediction_type.name().to_string()),
        num_train_timesteps: schedule.as_ref().map(|c| c.num_train_timesteps),
        latent: [h, w],
        picture: factor.map(|f| [h * f, w * f]),
        unet_sha256: crate::common::file_hash(&weights[0])?,
        table,
    };
    if let Some(out) = &args.out {
        inspection.write(out)?;
    }
    if let Some(out) = &args.activations {
        let tokens = args.tokens.unwrap_or_else(|| model.tokens());
        let bytes = |costs: &BTreeMap<LayerId, u64>| costs.iter().map(|(id, n)| (id.clone(), F32 * n)).collect();
        let file = ResourceFile {
            name: "activation_bytes".into(),
            fingerprint: inspection.table.fingerprint().to_string(),
            method: format!("kept for the backward pass of one sample in f32, from the configuration, latents {h} x {w}, {tokens} tokens"),
            total: F32 * activations.total,
            layers: bytes(&activations.layers),
            shells: bytes(&activations.shells),
        };
        file.write(out)?;
    }
    if args.json {
        print!("{}", inspection.to_text(Path::new(Inspection::FILE))?);
    } else {
        print(&model, &inspection, activations.total);
    }
    Ok(())
}

/// Bytes of a number.
const F32: u64 = 4;

/// Pixels per latent, where the model has an autoencoder.
fn vae_factor(model: &Model) -> Option<i64> {
    let config = diffusion::VaeConfig::open(model.path().join("vae")).ok()?;
    Some(config.downscale())
}

fn print(model: &Model, inspection: &Inspection, activations: u64) {
    let table = &inspection.table;
    let percent = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    let wide = table.layers().iter().map(|l| l.id.as_str().len()).max().unwrap_or(0);
    println!("{:wide$}  {:16} {:>13} {:>7} {:>15} {:>7}", "id", "kind", "parameters", "share", "MACs", "share");
    for layer in table.layers() {
        println!(
            "{:wide$}  {:16} {:>13} {:>6.2}% {:>15} {:>6.2}%",
            layer.id,
            layer.kind,
            layer.params,
            percent(layer.params, table.total_params()),
            layer.macs,
            percent(layer.macs, table.total_macs()),
        );
    }
    let sum = |cost: Cost| -> u64 {
        table.layers().iter().map(|l| l.cost(cost)).sum::<u64>() + table.shells().iter().map(|s| s.cost(cost)).sum::<u64>()
    };
    println!();
    println!("model       {} ({}, latents {} x {})", model.name(), inspection.family, inspection.latent[0], inspection.latent[1]);
    println!("parameters  {}", table.total_params());
    println!("MACs        {} ({:.3} GFLOP per forward pass)", table.total_macs(), 2e-9 * table.total_macs() as f64);
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "activations {:.1} MB per sample kept for training in f32, {:.1} MB in bf16",
        megabytes(F32 * activations),
        megabytes(F32 / 2 * activations)
    );
    println!("items       {} removable, {} shells that go with their last item", table.len(), table.shells().len());
    println!(
        "removable   {:.1} % of the parameters, {:.1} % of the MACs",
        percent(sum(Cost::Params), table.total_params()),
        percent(sum(Cost::Macs), table.total_macs())
    );
}
