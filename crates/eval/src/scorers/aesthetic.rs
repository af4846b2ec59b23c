//! LAION's aesthetic predictor: five linear layers on the unit image features of OpenAI's ViT-L/14; it sees no prompt.

use std::path::Path;

use image::RgbImage;
use tch::{Device, Kind, Tensor, no_grad};
use unet::nn::Linear;
use unet::weights::{Cursor, Weights};

use super::{finite_values, paired, weights};
use crate::clip_score::ClipScorer;
use crate::error::Result;
use crate::metric::ImageScorer;

/// Places of the linear layers in the published `layers`, which counts dropout in between, and their outputs.
const LAYERS: [(usize, i64); 5] = [(0, 1024), (2, 128), (4, 64), (6, 16), (7, 1)];

/// Five linear layers without activations between them, as published: ImageReward's head has the same shape.
pub(super) struct Head(Vec<Linear>);

impl Head {
    pub fn new(at: &Cursor, width: i64) -> Self {
        let mut width = width;
        let layers = LAYERS.iter().map(|(place, out)| Linear::new(&at.pp(place), std::mem::replace(&mut width, *out), *out, true));
        Self(layers.collect())
    }

    /// `[B, width]` -> `[B, 1]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.0.iter().fold(x.shallow_clone(), |x, layer| layer.forward(&x))
    }
}

/// The predictor with its CLIP model.
pub struct Aesthetic {
    clip: ClipScorer,
    head: Head,
}

impl Aesthetic {
    /// Opens the published `sac+logos+ava1-l14-linearMSE.pth` (or another of that form) for a CLIP ViT-L/14.
    ///
    /// # Errors
    /// [`crate::Error::Unet`] when the file does not fit the CLIP model's features.
    pub fn open(head: &Path, clip: ClipScorer) -> Result<Self> {
        Self::build(weights(head, Device::Cpu, |key| Some(key.into()))?, clip)
    }

    fn build(weights: Weights, clip: ClipScorer) -> Result<Self> {
        let head = Head::new(&weights.root().pp("layers"), clip.projected_width());
        weights.finish()?;
        Ok(Self { clip, head })
    }

    /// The scores of unit features `[B, P]`, about 1 to 10.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] when the network gives NaN.
    pub fn score_features(&self, features: &Tensor) -> Result<Vec<f64>> {
        finite_values("an aesthetic score", &no_grad(|| self.head.forward(&features.to_kind(Kind::Float))))
    }
}

impl ImageScorer for Aesthetic {
    fn score(&self, images: &[RgbImage], prompts: &[&str]) -> Result<Vec<f64>> {
        paired(images.len(), prompts.len())?;
        self.score_features(&self.clip.images(images)?.features)
    }
}
