//! How much rounding alone changes a U-Net's output: what a layer's output loss must exceed to mean something.
//!
//! Calibration set -> **rounding** -> settings of a score file.

use data::{CalibrationBatch, CalibrationSet};
use tch::{Kind, Tensor};
use unet::UNet;

use crate::common::describe;
use crate::device::kind_name;
use crate::out_of_memory;

/// Key of the settings in a score file: mean square of the difference between the outputs of the whole U-Net in the number type of the
/// scores and of the same weights in f32.
pub const ROUNDING: &str = "rounding_output_loss";

/// The most points that it is measured on: few beside the passes that score as many layers as a network has. Rounding has heavy tails
/// over points, as a layer's loss has.
const POINTS: usize = 64;

/// Measures it on the first of `samples` points; none in f32, or where there is no room for the network in f32 as well. The weights and inputs are those that `unet`
/// has, since rounding them is no part of a difference between two networks that have both rounded them.
///
/// # Errors
/// Those of running `unet`.
pub fn measure(unet: &UNet, set: &CalibrationSet, samples: usize) -> anyhow::Result<Option<f64>> {
    if unet.kind() == Kind::Float {
        return Ok(None);
    }
    let points = (0..POINTS.min(samples)).map(|i| set.batch(i, 1, unet.device(), unet.kind()));
    let points = points.collect::<Result<Vec<CalibrationBatch>, _>>()?;
    let rounded = outputs(unet, &points)?;
    let exact = match out_of_memory::attempt(|| outputs(&unet.to(unet.device(), Kind::Float)?, &points)) {
        Ok(exact) => exact,
        Err(e) => {
            tracing::warn!(
                "how much {} rounds was not measured, since the U-Net did not run in f32: {}",
                kind_name(unet.kind()),
                describe(&e)
            );
            return Ok(None);
        }
    };
    let gaps = exact.iter().zip(&rounded).map(|(a, b)| (a - b).square().mean(Kind::Double).double_value(&[]));
    let mean = gaps.sum::<f64>() / exact.len() as f64;
    // Two digits: shards of one score, made on several devices, then agree.
    Ok(format!("{mean:.1e}").parse().ok())
}

/// Layers that score no more than that.
pub fn small(rounding: f64, values: &[f64]) -> usize {
    values.iter().filter(|v| **v <= rounding).count()
}

/// Says so if there are any.
pub fn warn_of_small(kind: Kind, rounding: f64, values: &[f64]) {
    let small = small(rounding, values);
    if small > 0 {
        tracing::warn!(
            "{small} of {} layers have an output loss of at most {rounding:.1e}, which is what rounding in {} changes: their order means \
             little, and --compute f32 tells them apart",
            values.len(),
            kind_name(kind)
        );
    }
}

/// The whole U-Net's output for each point, in f32.
fn outputs(unet: &UNet, points: &[CalibrationBatch]) -> anyhow::Result<Vec<Tensor>> {
    let kind = unet.kind();
    let output = |p: &CalibrationBatch| tch::no_grad(|| unet.forward(&p.x_t.to_kind(kind), &p.timesteps, &p.cond.to_kind(kind)));
    points.iter().map(|p| Ok(output(p)?.to_kind(Kind::Float))).collect()
}
