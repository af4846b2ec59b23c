//! The networks whose scores people publish, from their published weights: images and prompts -> numbers. Evaluation stage.
//!
//! docs/metrics.md says for each where its definition, its weights and their licence are.

mod aesthetic;
mod blip;
mod clip_judge;
mod cmmd;
mod image_reward;
mod inception;
mod lpips;

use std::path::Path;

use image::RgbImage;
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, Weights};

use crate::error::{Error, Result};

pub use aesthetic::Aesthetic;
pub use clip_judge::{ClipJudge, ClipScale};
pub use cmmd::cmmd;
pub use image_reward::{ImageReward, PromptWords};
pub use inception::{Inception, InceptionResize};
pub use lpips::{Lpips, LpipsTrunk};

/// Opens one weight file with its keys renamed; keys for which `rename` gives nothing are left out.
fn weights(path: &Path, device: Device, rename: impl Fn(&str) -> Option<String>) -> Result<Weights> {
    let mut file = TensorFile::open(path)?;
    file.retain(rename);
    Ok(Weights::from_file(file, device, Kind::Float))
}

/// `tensors` with the names that `rename` gives.
fn named(tensors: Tensors, rename: impl Fn(&str) -> Option<String>) -> Weights {
    Weights::from_tensors(tensors.into_iter().filter_map(|(key, t)| Some((rename(&key)?, t))).collect())
}

/// One prompt per image, and at least one image.
fn paired(images: usize, prompts: usize) -> Result<()> {
    if images == 0 || images != prompts {
        return Err(Error::input("images", format!("{} images, one per prompt, at least one", prompts), images.to_string()));
    }
    Ok(())
}

/// The finite values of a tensor, in order.
fn finite_values(what: &str, x: &Tensor) -> Result<Vec<f64>> {
    let values = Vec::<f64>::try_from(x.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_flatten(0, -1)?)?;
    if values.iter().all(|v| v.is_finite()) {
        return Ok(values);
    }
    Err(Error::NotFinite { what: what.into(), hint: "look at the weights of this metric and their number type".into() })
}

/// Bytes of images of one size as numbers in 0..=255: `[B, 3, H, W]`.
fn bytes(images: &[&RgbImage], device: Device) -> Result<Tensor> {
    let (w, h) = images.first().map_or((0, 0), |p| p.dimensions());
    if w == 0 || h == 0 || images.iter().any(|p| p.dimensions() != (w, h)) {
        return Err(Error::input("images", "at least one, all of one size", format!("{} images", images.len())));
    }
    let all = images.iter().map(|p| p.as_raw().as_slice()).collect::<Vec<_>>().concat();
    let x = Tensor::f_from_slice(&all)?.f_view([images.len() as i64, i64::from(h), i64::from(w), 3])?;
    Ok(x.f_permute([0, 3, 1, 2])?.f_to_device(device)?.f_to_kind(Kind::Float)?.f_contiguous()?)
}
