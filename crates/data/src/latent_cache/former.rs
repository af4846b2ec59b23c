//! Names of images in caches of the first version: a source as somebody wrote it, and a path without its ending.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::shards::Kept;
use crate::place::same_place;

/// Images that are not yet known by their places.
#[derive(Debug, Default)]
pub(super) struct Former {
    images: BTreeMap<PathBuf, Kept>,
    // Source -> what it was called.
    spellings: BTreeMap<PathBuf, Vec<PathBuf>>,
}

impl Former {
    pub fn add(&mut self, name: &str, kept: Kept) {
        self.images.insert(plain(Path::new(name)), kept);
    }

    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// The image `name` of a source, which goes by its place from now on.
    pub fn take(&mut self, source: &Path, name: &str) -> Option<Kept> {
        if self.images.is_empty() {
            return None;
        }
        let images = &self.images;
        let spellings = self.spellings.entry(source.to_path_buf()).or_insert_with(|| spellings(images, source));
        // Of images that differ in their endings alone the first was taken.
        let inner = plain(&Path::new(name).with_extension(""));
        let found = spellings.iter().map(|spelling| spelling.join(&inner)).find(|path| images.contains_key(path))?;
        self.images.remove(&found)
    }
}

fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

/// How `source` is called in the names.
fn spellings(images: &BTreeMap<PathBuf, Kept>, source: &Path) -> Vec<PathBuf> {
    let Ok(place) = source.canonicalize() else { return Vec::new() };
    let mut folders: Vec<&Path> = images.keys().flat_map(|path| path.ancestors().skip(1)).collect();
    folders.sort_unstable();
    folders.dedup();
    // A source that was called `.` left no name.
    let named = |folder: &Path| if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_path_buf() };
    folders.into_iter().filter(|folder| same_place(&named(folder), &place)).map(Path::to_path_buf).collect()
}
