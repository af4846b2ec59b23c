//! How long a model's passes take on a device, from a short measurement that needs no weights. config.json -> **seconds per pass**.
//!
//! A shallow U-Net of the same widths is timed and scales by multiply-accumulates; the autoencoder scales by pixels.

use std::time::Instant;

use diffusion::{AutoencoderKl, VaeConfig};
use serde::Serialize;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use unet::{Compute, Granularity, LayerTable, RemovalSet, TableOptions, UNet, UNetConfig, layer_table_with};

use super::inputs::UNetInputs;
use super::latency::wait_for;
use crate::error::Result;
use crate::hardware::device_name;

/// Seconds for one sample, and the sizes that they follow from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CostEstimate {
    /// Device.
    pub device: String,
    /// Number type.
    pub compute: &'static str,
    /// Side of the images in pixels.
    pub size: i64,
    /// Side of their latents.
    pub latent_size: i64,
    /// Channels of their latents.
    pub latent_channels: i64,
    /// Numbers that the text conditioning of one image has.
    pub text_features: i64,
    /// Parameters of the U-Net.
    pub params: u64,
    /// Multiply-accumulates of one forward pass.
    pub macs: u64,
    /// Multiply-accumulates per second in a forward pass, measured.
    pub macs_per_second: f64,
    /// Whole forward passes that scoring all layers by ablation takes, per point.
    pub scoring_passes: f64,
    /// Layers that can be removed.
    pub layers: usize,
    /// A forward pass.
    pub forward_s: f64,
    /// Forward and backward.
    pub train_s: f64,
    /// An image into latents.
    pub encode_s: f64,
    /// Latents into an image.
    pub decode_s: f64,
}

const TOKENS: i64 = 77;
/// Sides of the latents and images that are measured on a CPU; more would not be a short measurement.
const CPU_LATENTS: i64 = 32;
const CPU_IMAGE: i64 = 128;
const IMAGE: i64 = 512;
/// Calls that are counted, fewer where they take long.
const ROUNDS: usize = 3;
const ENOUGH_S: f64 = 2.0;

/// The cost of a U-Net and its autoencoder for images of `size` pixels a side; none for the U-Net's own size.
///
/// # Errors
/// Those of a configuration that no network can be made from, and of running it.
pub fn estimate_cost(config: &UNetConfig, vae: &VaeConfig, size: Option<i64>, device: Device, kind: Kind) -> Result<CostEstimate> {
    let factor = vae.downscale();
    let size = size.unwrap_or_else(|| config.sample_size.map_or(64, |(h, _)| h) * factor);
    let latent_size = size / factor;
    let whole = table(config, latent_size)?;
    let probe = shallow(config)?;
    let side = if device.is_cuda() { latent_size } else { latent_size.min(CPU_LATENTS) };
    let probe_macs = table(&probe, side)?.total_macs() as f64;
    let (forward, train) = unet_seconds(&probe, side, device, kind)?;
    let image = size.min(if device.is_cuda() { IMAGE } else { CPU_IMAGE });
    let (encode, decode) = vae_seconds(vae, image, device, kind)?;
    let (pixels, per_mac) = ((size as f64 / image as f64).powi(2), whole.total_macs() as f64 / probe_macs);
    Ok(CostEstimate {
        device: device_name(device),
        compute: Compute::of(kind).name(),
        size,
        latent_size,
        latent_channels: vae.latent_channels,
        text_features: TOKENS * config.text_width,
        params: whole.total_params(),
        macs: whole.total_macs(),
        macs_per_second: probe_macs / forward,
        scoring_passes: unet::scoring_passes(&whole),
        layers: whole.len(),
        forward_s: forward * per_mac,
        train_s: train * per_mac,
        encode_s: encode * pixels,
        decode_s: decode * pixels,
    })
}

fn table(config: &UNetConfig, side: i64) -> Result<LayerTable> {
    let options = TableOptions {
        latent_h: side,
        latent_w: side,
        tokens: TOKENS,
        granularity: Granularity::Branch,
        removed: RemovalSet::empty(),
        model: "estimate".into(),
        fingerprint: config.hash(),
    };
    Ok(layer_table_with(config, &options)?)
}

/// The same widths and heads with one ResNet and one transformer block wherever there are several.
fn shallow(config: &UNetConfig) -> Result<UNetConfig> {
    let mut json = config.to_json();
    if let Some(map) = json.as_object_mut() {
        map.insert("layers_per_block".into(), json!(1));
        map.insert("transformer_layers_per_block".into(), json!(1));
        map.remove("reverse_transformer_layers_per_block");
    }
    Ok(UNetConfig::parse(&json.to_string(), "the shallow U-Net of the measurement")?)
}

/// Seconds of a forward pass, and of one with backward.
fn unet_seconds(config: &UNetConfig, side: i64, device: Device, kind: Kind) -> Result<(f64, f64)> {
    let unet = UNet::random(config, 0, device, kind)?;
    let UNetInputs { x, t, cond } = UNetInputs::random(config, 1, (side, side), TOKENS, device);
    let forward = seconds(device, || Ok(tch::no_grad(|| unet.forward(&x, &t, &cond)).map(drop)?))?;
    for parameter in unet.parameters().values() {
        let _ = parameter.set_requires_grad(true);
    }
    let train = seconds(device, || {
        unet.forward(&x, &t, &cond)?.to_kind(Kind::Float).square().mean(Kind::Float).backward();
        Ok(())
    })?;
    Ok((forward, train))
}

/// The median of some calls after one that is not counted.
fn seconds(device: Device, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
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

/// Seconds of encoding and of decoding an image.
fn vae_seconds(config: &VaeConfig, size: i64, device: Device, kind: Kind) -> Result<(f64, f64)> {
    let vae = AutoencoderKl::random(config, 0, device, kind)?;
    let x = Tensor::rand([1, config.in_channels, size, size], (Kind::Float, device));
    let side = size / config.downscale();
    let z = Tensor::rand([1, config.latent_channels, side, side], (Kind::Float, device));
    let encode = seconds(device, || Ok(tch::no_grad(|| vae.encode(&x)).map(drop)?))?;
    let decode = seconds(device, || Ok(tch::no_grad(|| vae.decode(&z)).map(drop)?))?;
    Ok((encode, decode))
}
