//! Whole files: a temporary file of the same folder, synced to disk, then renamed.

use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};

pub use prune_core::file::write_whole;

/// Writes `bytes` to `path`, whole or not at all.
///
/// # Errors
/// [`Error::Write`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, |file| file.write_all(bytes)).map_err(|source| Error::Write { path: path.into(), source })
}

/// Writes `value` to `path` as JSON, whole or not at all: objects indented, lists of numbers on one line, a line end.
///
/// # Errors
/// [`Error::Write`]; [`Error::Format`] for a value that JSON cannot hold.
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    write_bytes(path, to_json(path, value)?.as_bytes())
}

/// Writes the settings of a model to `path`, whole or not at all, as Python's `json.dump(value, file, indent=2)` lays them out: a
/// `config.json` looks like those that diffusers and transformers write.
///
/// # Errors
/// [`Error::Write`].
pub fn write_config(path: &Path, value: &Value) -> Result<()> {
    write_bytes(path, format!("{value:#}\n").as_bytes())
}

/// The text that [`write_json`] writes; `path` only names the file in errors.
pub(crate) fn to_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<String> {
    prune_core::file::to_json(value).map_err(|e| Error::Format {
        path: path.into(),
        problem: format!("cannot be written as JSON ({e})"),
        hint: "keep the values plain".into(),
    })
}
