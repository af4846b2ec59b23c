//! CLIP's two towers in one comparable space: the score of an image for a prompt, and image features for the Frechet distance
//! (images -> evaluation).
//!
//! Shapes: `B` batch, `C` channels, `S` side in pixels, `T` tokens, `P` projected width.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use unet::weights::{Cursor, Init, Tensors, Weights, component_files};

use super::config::ClipConfig;
use super::preprocess::ClipPreprocess;
use super::text::{ClipTextModel, is_buffer, save_model};
use super::vision::ClipVisionModel;
use crate::error::Result;

/// `CLIPModel`: both towers, their projections and the temperature.
#[derive(Debug)]
pub struct ClipModel {
    config: ClipConfig,
    text: ClipTextModel,
    vision: ClipVisionModel,
    text_projection: Tensor,
    visual_projection: Tensor,
    logit_scale: Tensor,
    parameters: Tensors,
}

impl ClipModel {
    /// Builds the model from `at`. What does not fit is reported by [`Weights::finish`], and [`ClipModel::parameters`] is
    /// empty until then: see [`ClipModel::from_weights`].
    ///
    /// # Errors
    /// [`crate::Error::Config`] for impossible settings.
    pub fn build(config: &ClipConfig, at: &Cursor) -> Result<Self> {
        let mut text = config.text.clone();
        text.with_projection = false;
        let projection = |name: &str, d: i64| {
            let std = (d as f64).powf(-0.5);
            at.pp(name).tensor("weight", &[config.projection_dim, d], Init::Normal(std))
        };
        Ok(Self {
            text: ClipTextModel::build(&text, at)?,
            vision: ClipVisionModel::build(&config.vision, &at.pp("vision_model"))?,
            text_projection: projection("text_projection", config.text.hidden_size),
            visual_projection: projection("visual_projection", config.vision.hidden_size),
            logit_scale: at.tensor("logit_scale", &[], Init::Zeros),
            config: config.clone(),
            parameters: Tensors::new(),
        })
    }

    /// Builds the model from `weights`, all of which must be used (stored position ids are passed over).
    ///
    /// # Errors
    /// [`crate::Error::Config`] for impossible settings, [`unet::Error::Weights`] when the weights do not fit.
    pub fn from_weights(config: &ClipConfig, weights: Weights) -> Result<Self> {
        weights.ignore(is_buffer);
        let mut model = Self::build(config, &weights.root())?;
        (model.parameters, _) = weights.finish()?;
        Ok(model)
    }

    /// Opens a CLIP folder, or a model directory with one named `clip/`.
    ///
    /// # Errors
    /// As [`ClipConfig::open`] and [`ClipModel::from_weights`].
    pub fn open(dir: impl AsRef<Path>, device: Device, kind: Kind) -> Result<Self> {
        let dir = clip_dir(dir.as_ref());
        Self::from_weights(&ClipConfig::open(&dir)?, Weights::open(&component_files(&dir, "model")?, device, kind)?)
    }

    /// A model with fresh parameters; the temperature starts at `logit_scale_init_value`.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for impossible settings.
    pub fn random(config: &ClipConfig, seed: u64, device: Device, kind: Kind) -> Result<Self> {
        let model = Self::from_weights(config, Weights::random(seed, device, kind))?;
        let _ = model.logit_scale.shallow_clone().f_fill_(config.logit_scale_init_value)?;
        Ok(model)
    }

    /// The settings.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The text tower.
    pub fn text(&self) -> &ClipTextModel {
        &self.text
    }

    /// The image tower.
    pub fn vision(&self) -> &ClipVisionModel {
        &self.vision
    }

    /// The logarithm of the inverse temperature, a scalar.
    pub fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }

    /// Every parameter by its key: the very tensors that the network holds.
    pub fn parameters(&self) -> &Tensors {
        &self.parameters
    }

    /// Pooled features of the image tower before the projection `[B, D]`, for the Frechet distance.
    ///
    /// # Errors
    /// [`crate::Error::Input`] unless `pixels` is `[B, C, S, S]`.
    pub fn image_embedding(&self, pixels: &Tensor) -> Result<Tensor> {
        self.vision.forward(pixels)
    }

    /// Projected features of normalized pixels `[B, C, S, S]`: `[B, P]`, not of unit length.
    ///
    /// # Errors
    /// As [`ClipModel::image_embedding`].
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.vision.forward(pixels)?.f_linear(&self.visual_projection, None::<&Tensor>)?)
    }

    /// Projected features of token ids `[B, T]`: `[B, P]`, not of unit length.
    ///
    /// # Errors
    /// As [`ClipTextModel::forward`].
    pub fn text_features(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.text.forward(ids)?.pooled.f_linear(&self.text_projection, None::<&Tensor>)?)
    }

    /// Writes `dir/config.json`, `dir/model.safetensors` (stored as `kind` when it is given) and `dir/preprocessor_config.json`.
    ///
    /// # Errors
    /// [`crate::Error::Io`] when the folder cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>, kind: Option<Kind>, preprocess: &ClipPreprocess) -> Result<()> {
        let dir = dir.as_ref();
        save_model(dir, &self.parameters, self.config.to_json(), kind)?;
        preprocess.save(dir)
    }
}

/// A CLIP folder is named directly, or by the model directory around it.
pub(super) fn clip_dir(dir: &Path) -> PathBuf {
    if dir.join("clip").join("config.json").is_file() { dir.join("clip") } else { dir.to_path_buf() }
}
