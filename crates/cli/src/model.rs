//! Arguments that name models: `--model`, and `NAME=DIR`. Start of the flow: weights -> layer table -> scores and plans.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use unet::ModelSource;

use crate::common::BadInput;
use crate::hub;

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
