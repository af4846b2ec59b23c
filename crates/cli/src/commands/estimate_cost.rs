//! `laptop-diff estimate-cost`: how long a model's passes take on this device, from a short measurement that needs no weights.
//! config.json -> **seconds per pass**.

use std::path::PathBuf;

use diffusion::VaeConfig;
use eval::estimate_cost;
use unet::UNetConfig;

use crate::device::DeviceArgs;

/// Arguments of `estimate-cost`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The U-Net's config.json, or a folder with it.
    #[arg(long)]
    unet: PathBuf,
    /// The autoencoder's config.json, or a folder with it.
    #[arg(long)]
    vae: PathBuf,
    /// Height and width of images in pixels [default: the U-Net's own].
    #[arg(long)]
    size: Option<i64>,
    #[command(flatten)]
    place: DeviceArgs,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (unet, vae) = (UNetConfig::open(&args.unet)?, VaeConfig::open(&args.vae)?);
    let place = args.place.open()?;
    let cost = estimate_cost(&unet, &vae, args.size, place.device, place.kind)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&cost)?);
        return Ok(());
    }
    println!("device             {}, {}", cost.device, cost.compute);
    println!("U-Net              {:.2} M parameters, {:.2} G multiply-accumulates", cost.params as f64 / 1e6, cost.macs as f64 / 1e9);
    println!("measured rate      {:.1} G multiply-accumulates per second", cost.macs_per_second / 1e9);
    for (what, s) in [
        ("forward", cost.forward_s),
        ("with backward", cost.train_s),
        ("scoring one point", cost.forward_s * cost.scoring_passes),
        ("encode an image", cost.encode_s),
        ("decode an image", cost.decode_s),
    ] {
        println!("{what:18} {s:.3} s");
    }
    Ok(())
}
