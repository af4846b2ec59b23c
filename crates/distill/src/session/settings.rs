//! The settings of a distillation, as its TOML file holds them.

use data::TrainingData;
use serde::{Deserialize, Serialize};
use unet::{Compute, RemovalSet, TapSet, UNetConfig};

use super::validation::ValidationSettings;
use crate::error::Result;
use crate::lora::LoraConfig;
use crate::loss::{FeatureLosses, LossConfig};
use crate::train::TrainerConfig;

/// Settings of a run. Relative paths start at the folder of their file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where features are compared.
    pub taps: Taps,
    /// Computes the student's inner activations again for the backward pass instead of keeping them: less memory, no other bit.
    #[serde(default)]
    pub activation_checkpointing: bool,
    /// Number type that the frozen teacher, the autoencoder and the text encoders compute in, where it is not the trainer's:
    /// without gradients bf16 does them little harm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_compute: Option<Compute>,
    /// The loss.
    pub losses: LossConfig,
    /// The loop.
    pub trainer: TrainerConfig,
    /// The loop of a layer-wise warm-up, in which what surrounds each removed layer learns by itself from the teacher's own inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layerwise: Option<TrainerConfig>,
    /// Trains these adapters instead of the student's own weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// The data.
    pub data: TrainingData,
    /// What is measured and drawn on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationSettings>,
}

impl Settings {
    /// Former names of keys and their present ones, for messages to whom has an old file.
    pub const RENAMED: [(&'static str, &'static str); 7] = [
        ("features", "feature_loss"),
        ("task", "task_weight"),
        ("out", "output_weight"),
        ("feat", "feature_weight"),
        ("schedule", "lr_schedule"),
        ("local", "layerwise"),
        ("cfg", "guidance_scale"),
    ];

    /// Checks the ranges; `known` are the feature losses that may be named.
    ///
    /// # Errors
    /// [`crate::Error::Config`] naming the first setting out of range.
    pub fn check(&self, known: &FeatureLosses) -> Result<()> {
        self.data.check()?;
        self.trainer.check()?;
        self.losses.check()?;
        known.entry(&self.losses.feature_loss)?;
        self.layerwise.as_ref().map_or(Ok(()), TrainerConfig::check)?;
        self.lora.as_ref().map_or(Ok(()), LoraConfig::check)?;
        self.validation.as_ref().map_or(Ok(()), ValidationSettings::check)
    }

    /// The number type of all that is frozen.
    pub fn teacher_compute(&self) -> Compute {
        self.teacher_compute.unwrap_or(self.trainer.compute)
    }
}

/// Sets of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taps {
    /// The end of every stage.
    Stages,
    /// The end of every stage, ResNet and transformer.
    All,
    /// The output of every self-attention; where the layer is removed, the end of its transformer instead.
    SelfAttention,
    /// The end of every ResNet and transformer that lacks a layer.
    Removed,
}

impl Taps {
    /// These taps of a teacher whose student lacks `removed`.
    ///
    /// # Errors
    /// [`crate::Error::Unet`] when the teacher lacks what the student is said to lack.
    pub fn of(self, teacher: &UNetConfig, removed: &RemovalSet) -> Result<TapSet> {
        Ok(match self {
            Taps::Stages => TapSet::stages(teacher),
            Taps::All => TapSet::all(teacher),
            Taps::SelfAttention => TapSet::self_attention(teacher, removed)?,
            Taps::Removed => TapSet::removed(teacher, removed)?,
        })
    }
}
