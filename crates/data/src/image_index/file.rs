//! The index file: what it holds, what it was made from, and which of those in a folder is the one that is looked for.

use std::path::{Path, PathBuf};

use artifact::{Document, sha256};
use diffusion::images::Size;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Result;
use crate::place::{FilePath, same_place, text};

/// Name of the index in a run's work folder.
pub(super) const FILE: &str = "images.json";
/// The name that the first version had.
pub(super) const FIRST_FILE: &str = "pictures.json";

/// The index file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    pub made_from: MadeFrom,
    /// What the order of the data depends on, wherever the sources are. Versions 1 and 2 had the hash of the file for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Files that hold images.
    pub files: Vec<FilePath>,
    pub images: Vec<Entry>,
    /// Names of images that were left out, and why.
    pub bad: Vec<(String, String)>,
}

/// What the index depends on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MadeFrom {
    /// As paths of the whole system, without links; as they were named in versions 1 and 2.
    pub sources: Vec<FilePath>,
    /// Bytes of each tar; nothing for a folder.
    pub bytes: Vec<Option<u64>>,
    pub buckets: Vec<Size>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub file: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<(u64, u64)>,
    pub bucket: u32,
    pub caption: String,
}

impl Document for Index {
    const FORMAT: &'static str = "laptop-diff/image-index";
    const FORMER_FORMATS: &'static [&'static str] = &["laptop-diff/picture-index"];
    const VERSION: u32 = 3;
    const HINT: &'static str = "delete it; it will be made again";

    // Version 1 said `pictures`; version 2 had no identity.
    fn upgrade(_: u32, keys: Map<String, Value>) -> Option<Map<String, Value>> {
        Some(keys.into_iter().map(|(key, value)| (if key == "pictures" { "images".into() } else { key }, value)).collect())
    }
}

/// The index that is there and was made from the same, under whatever name.
pub(super) fn kept(work: &Path, made_from: &MadeFrom) -> Result<Option<(PathBuf, Index)>> {
    let later = names(work).take_while(|path| path.is_file());
    for path in [work.join(FIRST_FILE)].into_iter().filter(|path| path.is_file()).chain(later) {
        let mut index = Index::read(&path)?;
        if index.made_from.is(made_from) {
            index.move_to(&made_from.sources);
            return Ok(Some((path, index)));
        }
    }
    Ok(None)
}

/// Names of indexes: one that was made from other sources is kept, since a run may go on with it.
fn names(work: &Path) -> impl Iterator<Item = PathBuf> {
    std::iter::once(work.join(FILE)).chain((2..).map(move |n| work.join(format!("images-{n}.json"))))
}

pub(super) fn free(work: &Path) -> PathBuf {
    names(work).find(|path| !path.exists()).expect("there is always a next number")
}

impl MadeFrom {
    /// Whether this, of whatever version, names what `now` names.
    fn is(&self, now: &Self) -> bool {
        let same = |(was, is): (&FilePath, &FilePath)| same_place(&was.0, &is.0);
        self.sources.len() == now.sources.len()
            && self.sources.iter().zip(&now.sources).all(same)
            && self.bytes == now.bytes
            && self.buckets == now.buckets
    }
}

impl Index {
    /// Files that stand where the sources were when this was made stand where they are now.
    fn move_to(&mut self, sources: &[FilePath]) {
        for file in &mut self.files {
            let mut moved = self.made_from.sources.iter().zip(sources).filter_map(|(was, is)| {
                let inner = file.0.strip_prefix(&was.0).ok()?;
                Some(if inner.as_os_str().is_empty() { is.0.clone() } else { is.0.join(inner) })
            });
            if let Some(path) = moved.next() {
                file.0 = path;
            }
        }
    }

    /// As [`Index::identity`].
    pub fn identify(&self) -> String {
        let inner = |file: &FilePath| {
            let sources = self.made_from.sources.iter().enumerate();
            let found = sources.filter_map(|(n, source)| Some((n, text(file.0.strip_prefix(&source.0).ok()?)))).next();
            found.unwrap_or_else(|| (usize::MAX, text(&file.0)))
        };
        let files: Vec<(usize, String)> = self.files.iter().map(inner).collect();
        let content = serde_json::json!({ "buckets": self.made_from.buckets, "files": files, "images": self.images });
        sha256(content.to_string())
    }
}
