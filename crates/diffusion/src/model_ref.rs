//! A model as its user names it: a path, and what takes the place of the model's own parts. Stands before the model directory.

use std::path::{Path, PathBuf};

use crate::scheduler_config::PredictionType;

/// What takes the place of a model's own parts, or stands for what a checkpoint does not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The autoencoder: a folder in diffusers' layout, or a file that holds one.
    pub vae: Option<PathBuf>,
    /// The tokenizer's folder, or a model directory with the tokenizers of all its text encoders.
    pub tokenizer: Option<PathBuf>,
    /// What the U-Net predicts.
    pub prediction_type: Option<PredictionType>,
}

/// A model directory in diffusers' layout, or a whole checkpoint in the original one, with overrides. A path is one without any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRef {
    /// The directory or file.
    pub path: PathBuf,
    /// What is not taken from there.
    pub overrides: Overrides,
}

impl ModelRef {
    /// Its name for people, with what is not its own: images of another autoencoder are other images.
    pub fn name(&self) -> String {
        let Overrides { vae, tokenizer, prediction_type } = &self.overrides;
        let other = [("VAE", vae), ("tokenizer", tokenizer)].into_iter();
        let other = other.filter_map(|(part, path)| Some(format!("{part} {}", path.as_ref()?.display())));
        let other: Vec<String> = other.chain(prediction_type.map(|predicted| predicted.name().to_string())).collect();
        let name = unet::model_name(&self.path);
        if other.is_empty() { name } else { format!("{name} with {}", other.join(", ")) }
    }
}

impl<P: AsRef<Path>> From<P> for ModelRef {
    fn from(path: P) -> Self {
        Self { path: path.as_ref().into(), overrides: Overrides::default() }
    }
}

impl From<&ModelRef> for ModelRef {
    fn from(model: &ModelRef) -> Self {
        model.clone()
    }
}
