//! The settings of a published config.json, read with errors that name file and key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::read_json;

/// The settings of one JSON object. A key that is missing or null takes the default of the library that published the
/// format; a key of the wrong type is an error.
#[derive(Debug, Clone)]
pub(crate) struct Fields {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    /// The object `map`, read from `path`.
    pub(crate) fn new(map: Map<String, Value>, path: &Path) -> Self {
        Self { path: path.into(), map }
    }

    /// The settings in the file `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self::new(read_json(path)?, path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The value of `key`, `None` when it is missing or null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The object at `key`, `None` when there is none.
    pub(crate) fn section(&self, key: &str) -> Option<Fields> {
        Some(Self::new(self.get(key)?.as_object()?.clone(), &self.path))
    }

    /// An [`Error::Config`] about `key`.
    pub(crate) fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.clone(),
            key: key.into(),
            expected: expected.into(),
            got: self.map.get(key).map_or("nothing".into(), short),
        }
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key).map(|v| read(v).ok_or_else(|| self.wrong(key, expected))).transpose()
    }

    /// A whole number of at least `least`.
    pub(crate) fn int(&self, key: &str, default: i64, least: i64) -> Result<i64> {
        let expected = format!("a whole number of at least {least}");
        Ok(self.typed(key, &expected, |v| v.as_i64().filter(|&n| n >= least))?.unwrap_or(default))
    }

    pub(crate) fn float(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.typed(key, "a number", Value::as_f64)?.unwrap_or(default))
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(crate) fn text(&self, key: &str, default: &str) -> Result<String> {
        Ok(self.typed(key, "a string", |v| v.as_str().map(str::to_string))?.unwrap_or_else(|| default.into()))
    }

    /// A list of positive whole numbers.
    pub(crate) fn ints(&self, key: &str, default: &[i64]) -> Result<Vec<i64>> {
        let read = |v: &Value| v.as_array()?.iter().map(|n| n.as_i64().filter(|&n| n > 0)).collect();
        Ok(self.typed(key, "a list of positive whole numbers", read)?.unwrap_or_else(|| default.to_vec()))
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.typed(key, "a list of strings", |v| v.as_array()?.iter().map(|s| s.as_str().map(str::to_string)).collect())
    }

    /// A list of exactly three numbers.
    pub(crate) fn rgb(&self, key: &str, default: [f64; 3]) -> Result<[f64; 3]> {
        let read = |v: &Value| v.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<_>>>()?.try_into().ok();
        Ok(self.typed(key, "three numbers", read)?.unwrap_or(default))
    }
}

// Long values are cut, so that a message stays one line.
fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { format!("{}...", text.chars().take(57).collect::<String>()) } else { text }
}
