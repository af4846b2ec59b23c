//! Arguments that name models: `--model`, and `NAME=DIR`. Start of the flow: weights -> layer table -> scores and plans.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use diffusion::{ModelRef, Overrides, PredictionType};
use unet::ModelSource;

use crate::common::BadInput;
use crate::hub;

/// A whole model, and what takes the place of its parts.
#[derive(Debug, Clone, clap::Args)]
pub struct WholeModelArgs {
    /// The model: a directory in diffusers' layout, a whole checkpoint (.safetensors, .ckpt), or org/name on the Hugging Face Hub.
    #[arg(long)]
    pub model: ModelArg,
    #[command(flatten)]
    overrides: OverrideArgs,
}

/// What takes the place of a model's parts.
#[derive(Debug, Clone, clap::Args)]
pub struct OverrideArgs {
    /// Take this autoencoder: a folder, or a file that holds one.
    #[arg(long)]
    vae: Option<PathBuf>,
    /// Take this tokenizer: its folder, or a model directory with those of all text encoders [default for files: CLIP's own].
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// epsilon, v_prediction or sample: what the U-Net predicts [default for files: as markers or metadata say, else it is asked].
    #[arg(long, value_parser = |name: &str| PredictionType::from_name(name).ok_or("expected epsilon, v_prediction or sample"))]
    prediction_type: Option<PredictionType>,
}

impl OverrideArgs {
    /// The model with these overrides.
    ///
    /// # Errors
    /// As [`ModelArg::path`].
    pub fn of(&self, model: &ModelArg) -> anyhow::Result<ModelRef> {
        let (vae, tokenizer) = (self.vae.clone(), self.tokenizer.clone());
        Ok(ModelRef { path: model.path()?.into(), overrides: Overrides { vae, tokenizer, prediction_type: self.prediction_type } })
    }
}

impl WholeModelArgs {
    /// As [`OverrideArgs::of`].
    pub fn named(&self) -> anyhow::Result<ModelRef> {
        self.overrides.of(&self.model)
    }
}

/// `--model`: a path, or `org/name` or `org/name:file` of the hub, which is fetched when it is first needed.
#[derive(Debug, Clone)]
pub struct ModelArg {
    named: PathBuf,
    found: OnceLock<PathBuf>,
}

impl From<OsString> for ModelArg {
    fn from(named: OsString) -> Self {
        Self { named: named.into(), found: OnceLock::new() }
    }
}

/// As it was named.
impl fmt::Display for ModelArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.named.display())
    }
}

impl ModelArg {
    /// The directory or file.
    ///
    /// # Errors
    /// As [`hub::weights`].
    pub fn path(&self) -> anyhow::Result<&Path> {
        if self.found.get().is_none() {
            // Nobody else sets it in between.
            let _ = self.found.set(hub::weights(&self.named)?);
        }
        Ok(self.found.get().unwrap_or(&self.named))
    }

    /// The model there.
    ///
    /// # Errors
    /// As [`ModelArg::path`] and [`ModelSource::open`].
    pub fn open(&self) -> anyhow::Result<ModelSource> {
        Ok(ModelSource::open(self.path()?)?)
    }
}

/// The asked height and width of the latents, else the model's own.
///
/// # Errors
/// [`BadInput`] for a size below 1.
pub fn latents(model: &ModelSource, asked: Option<i64>) -> anyhow::Result<(i64, i64)> {
    match asked {
        Some(n) if n < 1 => Err(BadInput(format!("--latent-size {n}: expected at least 1")).into()),
        _ => Ok(asked.map_or(model.latent_size(), |n| (n, n))),
    }
}

/// Splits `NAME=DIR`.
pub fn named_dir(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, dir)) if !name.is_empty() && !dir.is_empty() => Ok((name.to_string(), dir.into())),
        _ => Err("expected NAME=DIR, such as teacher=images/teacher".into()),
    }
}
