//! Captions beside images: files of the same name, or entries of a table. Image -> **caption**.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ByteRange;
use super::names::{Form, key};
use super::table::{CAPTIONS, Columns};
use crate::text;

/// Where a caption is written.
pub(super) enum Written {
    At(ByteRange),
    Here(Vec<u8>),
}

/// All captions of a folder or a tar.
pub(super) struct Captions<'a> {
    columns: &'a Columns,
    // Path without ending -> files in the order of their forms.
    files: BTreeMap<PathBuf, BTreeMap<Form, Written>>,
    // Everything before the first dot -> keys of `files`, for tars.
    keys: Option<BTreeMap<PathBuf, Vec<PathBuf>>>,
    // Path -> caption, from tables.
    entries: BTreeMap<PathBuf, String>,
    tables: Vec<PathBuf>,
}

impl<'a> Captions<'a> {
    /// None yet. `by_key`: files belong together whose names are the same up to the first dot, as in WebDataset.
    pub fn new(columns: &'a Columns, by_key: bool) -> Self {
        let keys = by_key.then(BTreeMap::new);
        Self { columns, files: BTreeMap::new(), keys, entries: BTreeMap::new(), tables: Vec::new() }
    }

    /// Adds a file; the first of its name counts.
    pub fn add_file(&mut self, path: &Path, form: Form, written: Written) {
        let stem = path.with_extension("");
        if let Some(keys) = &mut self.keys {
            keys.entry(key(path)).or_default().push(stem.clone());
        }
        self.files.entry(stem).or_default().entry(form).or_insert(written);
    }

    /// Adds the entries of the table `path`; those of a folder further in count more.
    pub fn add_table(&mut self, path: PathBuf, entries: BTreeMap<PathBuf, String>) {
        self.entries.extend(entries);
        self.tables.push(path);
    }

    /// The first image that a table names and that is not among `images`, and how many there are.
    pub fn absent(&self, images: &[PathBuf]) -> Option<(&Path, usize)> {
        let mut absent = self.entries.keys().filter(|path| images.binary_search(path).is_err());
        let first = absent.next()?;
        Some((first, 1 + absent.count()))
    }

    /// The caption of an image, in one line; or why there is none.
    pub fn of(&self, image: &Path) -> Result<String, String> {
        let stem = image.with_extension("");
        let beside = [&stem, image].into_iter().filter_map(|name: &Path| self.files.get(name));
        let same_key = self.keys.iter().filter_map(|keys| keys.get(&key(image))).flatten().filter_map(|stem| self.files.get(stem));
        let mut problem = None;
        for (form, written) in beside.chain(same_key).flatten() {
            match self.read(*form, written) {
                Ok(caption) => return Ok(caption),
                Err(why) => problem = problem.or(Some(why)),
            }
        }
        let entry = self.entries.get(image).and_then(|caption| one_line(caption));
        entry.ok_or_else(|| problem.map_or_else(|| self.missing(&stem), |why| format!("no caption: {why}")))
    }

    fn missing(&self, stem: &Path) -> String {
        let name = stem.file_name().unwrap_or_default().to_string_lossy();
        match self.tables.as_slice() {
            [] => format!("no caption: no {name}.txt, .caption or .json beside it"),
            [table] => format!("no caption in {}, and no {name}.txt beside it", table.display()),
            tables => format!("no caption in {} tables of metadata, and no {name}.txt beside it", tables.len()),
        }
    }

    fn read(&self, form: Form, written: &Written) -> Result<String, String> {
        let (bytes, name) = match written {
            Written::At(range) => (range.read().map_err(|e| format!("{}: {e}", range.file.display()))?, range.to_string()),
            Written::Here(bytes) => (bytes.clone(), "its file".into()),
        };
        let text = text::decode(bytes).map_err(|e| format!("{name} is {e}"))?;
        match form {
            Form::Txt | Form::Caption => one_line(&text).ok_or_else(|| format!("{name} is empty")),
            Form::Json => {
                let value = serde_json::from_str(&text).map_err(|e| format!("{name} is no valid JSON ({e})"))?;
                in_json(&value, self.columns).ok_or_else(|| format!("{name} has no text under {}", expected(self.columns)))
            }
        }
    }
}

/// The keys that a caption may have.
pub(super) fn expected(columns: &Columns) -> String {
    columns.caption.clone().unwrap_or_else(|| CAPTIONS.join(", "))
}

/// The caption in an object, in one line; the first of several.
pub(super) fn in_json(value: &Value, columns: &Columns) -> Option<String> {
    let of = |key: &str| first_text(value.get(key)?);
    match &columns.caption {
        Some(key) => of(key),
        None => CAPTIONS.iter().find_map(|key| of(key)),
    }
}

fn first_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => one_line(text),
        Value::Array(list) => list.iter().find_map(first_text),
        _ => None,
    }
}

/// A caption without line ends; `None` for one of nothing but blanks.
pub(super) fn one_line(caption: &str) -> Option<String> {
    let caption = caption.split_whitespace().collect::<Vec<_>>().join(" ");
    (!caption.is_empty()).then_some(caption)
}
