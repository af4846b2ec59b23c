//! How much rounding alone changes a U-Net's output: what a layer's output loss must exceed to mean something.
//!
//! Calibration set -> **number noise** -> settings of a score file.

use tch::{Kind, Tensor};

use super::calibration::Calibration;
use crate::error::Result;
use crate::unet::{Conditioning, UNet};

/// Key of the settings in a score file: mean square of the difference between the outputs of the whole U-Net in the number type of the
/// scores and of the same weights in f32.
pub const NUMBER_NOISE: &str = "rounding_output_loss";

/// The most points that it is measured on: few beside the passes that score as many layers as a network has. Rounding has heavy tails
/// over points, as a layer's loss has.
const POINTS: usize = 64;

/// Measures it on the first points; `None` in f32. The weights and inputs are those that `unet` has, since rounding them is no part of
/// a difference between two networks that have both rounded them.
///
/// # Errors
/// Those of running `unet`; where there is no room for the network in f32 as well, libtorch's.
pub fn number_noise(unet: &UNet, data: &Calibration) -> Result<Option<f64>> {
    if unet.kind() == Kind::Float {
        return Ok(None);
    }
    let points: Vec<_> = (0..POINTS.min(data.num_samples())).map(|i| data.inputs(unet, i..i + 1)).collect();
    let rounded = outputs(unet, unet.kind(), &points)?;
    let exact = outputs(&unet.to(unet.device(), Kind::Float)?, unet.kind(), &points)?;
    let squares = exact.iter().zip(&rounded).map(|(a, b)| (a - b).square().mean(Kind::Double).double_value(&[]));
    let mean = squares.sum::<f64>() / exact.len() as f64;
    // Two digits: shards of one score, made on several devices, then agree.
    Ok(format!("{mean:.1e}").parse().ok())
}

/// Layers that score no more than `noise`.
pub fn below_noise(noise: f64, scores: &[f64]) -> usize {
    scores.iter().filter(|score| **score <= noise).count()
}

/// The whole U-Net's output for each point, in f32. `[1, C, H, W]` each
fn outputs(unet: &UNet, rounded_to: Kind, points: &[(Tensor, Tensor, Conditioning)]) -> Result<Vec<Tensor>> {
    let kind = unet.kind();
    let rounded = |t: &Tensor| t.to_kind(rounded_to).to_kind(kind);
    let output = |(x_t, timesteps, cond): &(Tensor, Tensor, Conditioning)| {
        tch::no_grad(|| unet.forward(&rounded(x_t), timesteps, &cond.to_kind(rounded_to).to_kind(kind)))
    };
    points.iter().map(|point| Ok(output(point)?.to_kind(Kind::Float))).collect()
}
