//! Settings of a small text-to-image model trained from nothing, as their TOML file holds them (configs/train-tiny.toml).

use std::path::PathBuf;

use serde::Deserialize;

use super::{ClipTaskConfig, DenoiserTaskConfig, GroundingTaskConfig, VaeTaskConfig};
use crate::error::{Error, Result};
use crate::train::TrainerConfig;

/// The settings file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScratchSettings {
    /// Folder of the networks' configurations, relative to the settings file.
    pub architectures: PathBuf,
    /// Seed of fresh weights.
    pub seed: u64,
    /// What is trained on.
    pub data: ScratchData,
    /// The autoencoder.
    pub vae: Section<VaeTaskConfig>,
    /// The image tower and the text towers.
    pub clip: Section<ClipTaskConfig>,
    /// The U-Net.
    pub unet: UnetSection,
}

/// Settings of the data.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScratchData {
    /// Seed of the stream of images.
    pub seed: u64,
    /// Their width and height in pixels.
    pub size: usize,
    /// Images encoded once for the U-Net.
    pub latents: u64,
    /// Tokens of a caption, at most.
    pub max_tokens: usize,
}

/// One stage's task and loop.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section<T> {
    /// What is trained.
    pub task: T,
    /// The loop.
    pub trainer: TrainerConfig,
}

/// Settings of the U-Net's stage.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnetSection {
    /// Grounding of the first text encoder.
    pub grounding: Section<GroundingTaskConfig>,
    /// Phases of the training; each starts from the averaged weights of the one before, with a fresh optimizer.
    pub phases: Vec<Phase>,
}

/// One phase.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// Which first text encoder the U-Net is conditioned on.
    pub text_encoder: FirstTextEncoder,
    /// What is trained.
    pub task: DenoiserTaskConfig,
    /// The loop.
    pub trainer: TrainerConfig,
}

/// A state of the first text encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstTextEncoder {
    /// As contrast with images leaves it.
    Contrastive,
    /// After grounding.
    Grounded,
}

impl ScratchSettings {
    /// Former names of keys and their present ones, for messages to whom has an old file.
    pub const RENAMED: [(&'static str, &'static str); 2] = [("schedule", "lr_schedule"), ("stretches", "phases")];

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first setting out of range.
    pub fn check(&self) -> Result<()> {
        let stages = [&self.vae.trainer, &self.clip.trainer, &self.unet.grounding.trainer];
        stages.into_iter().chain(self.unet.phases.iter().map(|phase| &phase.trainer)).try_for_each(TrainerConfig::check)?;
        if self.unet.phases.is_empty() {
            return Err(Error::Config { key: "unet.phases".into(), expected: "at least one".into(), got: "none".into() });
        }
        self.clip.task.check(self.clip.trainer.batch)
    }
}
