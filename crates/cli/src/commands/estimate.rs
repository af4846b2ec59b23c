//! `laptop-diff estimate`: how long a model's passes take on this device, from a short measurement that needs no weights.
//! config.json -> **seconds per pass**.

use std::path::PathBuf;
use std::time::Instant;

use diffusion::{AutoencoderKl, VaeConfig};
use serde::Serialize;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use unet::{Granularity, RemovalSet, TableOptions, UNet, UNetConfig, layer_table_with};

use super::speed::{device_name, inputs};
use eval::wait_for;

use crate::device::{Place, PlaceArgs, kind_name};

/// Arguments of `estimate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The U-Net's config.json, or a folder with it.
    #[arg(long)]
    unet: PathBuf,
    /// The autoencoder's config.json, or a folder with it.
    #[arg(long)]
    vae: PathBuf,
    /// Height and width of pictures in pixels [default: the U-Net's own].
    #[arg(long)]
    size: Option<i64>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Seconds for one sample, and the sizes that they follow from.
#[derive(Debug, Serialize)]
struct Estimate {
    device: String,
    compute: &'static str,
    /// Side of the pictures in pixels, and of their latents.
    size: i64,
    latent_size: i64,
    latent_channels: i64,
    /// Numbers that the text conditioning of one picture has.
    text_features: i64,
    params: u64,
    /// Multiply-accumulates of one forward pass.
    macs: u64,
    /// Multiply-accumulates per second in a forward pass, measured.
    macs_per_second: f64,
    /// Whole forward passes that scoring all layers by ablation takes, per point.
    scoring_passes: f64,
    layers: usize,
    forward_s: f64,
    /// Forward and backward.
    train_s: f64,
    encode_s: f64,
    decode_s: f64,
}

const TOKENS: i64 = 77;
/// Sides of the latents and pictures that are measured on a CPU; more would not be a short measurement.
const CPU_LATENTS: i64 = 32;
const CPU_PICTURE: i64 = 128;
const PICTURE: i64 = 512;
/// Calls that are counted, fewer where they take long.
const ROUNDS: usize = 3;
const ENOUGH_S: f64 = 2.0;

/// Measures a shallow U-Net of the same widths and scales by multiply-accumulates; the autoencoder scales by pixels.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = UNetConfig::open(&args.unet)?;
    let vae_config = VaeConfig::open(&args.vae)?;
    let factor = vae_config.downscale();
    let size = args.size.unwrap_or_else(|| config.sample_size.map_or(64, |(h, _)| h) * factor);
    let latent_size = size / factor;
    let place @ Place { device, kind } = args.place.open()?;

    let table = |config: &UNetConfig, side: i64| {
        let options = TableOptions {
            latent_h: side,
            latent_w: side,
            tokens: TOKENS,
            granularity: Granularity::Branch,
            removed: RemovalSet::empty(),
            model: "estimate".into(),
            fingerprint: config.hash(),
        };
        layer_table_with(config, &options)
    };
    let whole = table(&config, latent_size)?;
    let probe = shallow(&config)?;
    let side = if device.is_cuda() { latent_size } else { latent_size.min(CPU_LATENTS) };
    let probe_macs = table(&probe, side)?.total_macs() as f64;
    let unet = UNet::random(&probe, 0, device, kind)?;
    let (x, t, cond) = inputs(&probe, 1, (side, side), TOKENS, device);
    let forward = seconds(device, || Ok(tch::no_grad(|| unet.forward(&x, &t, &cond)).map(drop)?))?;
    for parameter in unet.parameters().values() {
        let _ = parameter.set_requires_grad(true);
    }
    let train = seconds(device, || {
        unet.forward(&x, &t, &cond)?.to_kind(Kind::Float).square().mean(Kind::Float).backward();
        Ok(())
    })?;
    drop(unet);
    let picture = size.min(if device.is_cuda() { PICTURE } else { CPU_PICTURE });
    let (encode, decode) = vae_seconds(&vae_config, picture, place)?;
    let pixels = (size as f64 / picture as f64).powi(2);

    let macs = whole.total_macs();
    let per_mac = macs as f64 / probe_macs;
    let estimate = Estimate {
        device: device_name(device),
        compute: kind_name(kind),
        size,
        latent_size,
        latent_channels: vae_config.latent_channels,
        text_features: TOKENS * config.text_width,
        params: whole.total_params(),
        macs,
        macs_per_second: probe_macs / forward,
        scoring_passes: unet::scoring_passes(&whole),
        layers: whole.len(),
        forward_s: forward * per_mac,
        train_s: train * per_mac,
        encode_s: encode * pixels,
        decode_s: decode * pixels,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&estimate)?);
        return Ok(());
    }
    println!("device             {}, {}", estimate.device, estimate.compute);
    println!("U-Net              {:.2} M parameters, {:.2} G multiply-accumulates", estimate.params as f64 / 1e6, macs as f64 / 1e9);
    println!("measured rate      {:.1} G multiply-accumulates per second", estimate.macs_per_second / 1e9);
    for (what, s) in [
        ("forward", estimate.forward_s),
        ("with backward", estimate.train_s),
        ("scoring one point", estimate.forward_s * estimate.scoring_passes),
        ("encode a picture", estimate.encode_s),
        ("decode a picture", estimate.decode_s),
    ] {
        println!("{what:18} {s:.3} s");
    }
    Ok(())
}

/// The same widths and heads with one ResNet and one transformer block wherever there are several.
fn shallow(config: &UNetConfig) -> anyhow::Result<UNetConfig> {
    let mut json = config.to_json();
    if let Some(map) = json.as_object_mut() {
        map.insert("layers_per_block".into(), json!(1));
        map.insert("transformer_layers_per_block".into(), json!(1));
        map.remove("reverse_transformer_layers_per_block");
    }
    Ok(UNetConfig::parse(&json.to_string(), "the shallow U-Net of the measurement")?)
}

/// The median of some calls after one that is not counted.
fn seconds(device: Device, mut call: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    let begin = Instant::now();
    for round in 0..=ROUNDS {
        let start = Instant::now();
        call()?;
        wait_for(device);
        if round > 0 {
            times.push(start.elapsed().as_secs_f64());
            if begin.elapsed().as_secs_f64() > ENOUGH_S {
                break;
            }
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn vae_seconds(config: &VaeConfig, size: i64, Place { device, kind }: Place) -> anyhow::Result<(f64, f64)> {
    let vae = AutoencoderKl::random(config, 0, device, kind)?;
    let x = Tensor::rand([1, config.in_channels, size, size], (Kind::Float, device));
    let side = size / config.downscale();
    let z = Tensor::rand([1, config.latent_channels, side, side], (Kind::Float, device));
    let encode = seconds(device, || Ok(tch::no_grad(|| vae.encode(&x)).map(drop)?))?;
    let decode = seconds(device, || Ok(tch::no_grad(|| vae.decode(&z)).map(drop)?))?;
    Ok((encode, decode))
}
