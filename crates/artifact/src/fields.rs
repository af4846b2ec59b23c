//! The settings of a foreign config.json, read with errors that name file and key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The settings of one JSON object. A key that is missing or null takes the default of the library that published the
/// format; a key of the wrong type is an error.
#[derive(Debug, Clone)]
pub struct Fields {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    /// The object `map`, read from `path`.
    pub fn new(map: Map<String, Value>, path: &Path) -> Self {
        Self { path: path.into(), map }
    }

    /// The object in `text`, which was read from `path`.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no JSON object.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        // Editors on Windows put this mark before the text.
        let map = serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|e| Error::Format {
            path: path.into(),
            problem: format!("not a JSON object ({e})"),
            hint: match text.starts_with("version https://git-lfs") {
                true => "this is a Git LFS pointer; fetch the file itself".into(),
                false => "is the file truncated? fetch it again".into(),
            },
        })?;
        Ok(Self::new(map, path))
    }

    /// The settings in the file `path`.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`Fields::parse`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(&std::fs::read_to_string(path).map_err(Error::io(path))?, path)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every key with its value, in the file's order.
    pub fn map(&self) -> &Map<String, Value> {
        &self.map
    }

    /// Every key with its value, taken out.
    pub fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// The value of `key`, `None` when it is missing or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The object at `key`, `None` when there is none.
    pub fn section(&self, key: &str) -> Option<Fields> {
        Some(Self::new(self.get(key)?.as_object()?.clone(), &self.path))
    }

    /// An [`Error::Setting`] about `key` as it stands in the file.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        self.error(key, expected, self.map.get(key).map_or("nothing".into(), short))
    }

    /// An [`Error::Setting`] about `key`, or about a part `got` of it.
    pub fn error(&self, key: &str, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Setting { path: self.path.clone(), key: key.into(), expected: expected.into(), got: got.into() }
    }

    /// The value of `key` as `read` takes it, `None` when it is missing or null.
    ///
    /// # Errors
    /// [`Error::Setting`] where `read` takes it not.
    pub fn typed<T>(&self, key: &str, expected: &str, read: impl FnOnce(&Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key).map(|v| read(v).ok_or_else(|| self.wrong(key, expected))).transpose()
    }

    /// A whole number of at least `least`.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn int(&self, key: &str, default: i64, least: i64) -> Result<i64> {
        let expected = format!("a whole number of at least {least}");
        Ok(self.typed(key, &expected, |v| v.as_i64().filter(|&n| n >= least))?.unwrap_or(default))
    }

    /// A number.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn float(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.typed(key, "a number", Value::as_f64)?.unwrap_or(default))
    }

    /// True or false.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        self.typed(key, "a string", |v| v.as_str().map(str::to_string))
    }

    /// A list of positive whole numbers.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let read = |v: &Value| v.as_array()?.iter().map(|n| n.as_i64().filter(|&n| n > 0)).collect();
        self.typed(key, "a list of positive whole numbers", read)
    }

    /// A list of strings.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        self.typed(key, "a list of strings", |v| v.as_array()?.iter().map(|s| s.as_str().map(str::to_string)).collect())
    }

    /// A list of exactly `N` numbers.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn floats<const N: usize>(&self, key: &str) -> Result<Option<[f64; N]>> {
        let read = |v: &Value| v.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<_>>>()?.try_into().ok();
        self.typed(key, &format!("{N} numbers"), read)
    }
}

/// A value for a message, which stays one line: long ones are cut.
pub fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { format!("{}...", text.chars().take(57).collect::<String>()) } else { text }
}
