//! The files of a cache. A bucket's images are written in parts of one batch, and as many parts as make a shard become one file; what
//! the files name is what is done.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use artifact::sha256;
use diffusion::TimeIds;
use diffusion::images::Size;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use unet::weights::{TensorFile, Tensors, save_tensors};

use super::build::encode;
use super::former::Former;
use super::manifest::{CACHE_FORMAT, SHARD_VERSION};
use crate::encoders::Encoders;
use crate::error::{Error, Result};
use crate::image_text::ImageFile;

/// Fingerprints of the image files, from the second version on.
const FILES: &str = "files";

/// An image ready to be encoded.
pub(super) struct Sample {
    /// What it is known by: its [`crate::ImageFile::place`].
    pub name: String,
    pub caption: String,
    pub image: RgbImage,
    pub size: TimeIds,
    pub file: Fingerprint,
}

/// What tells whether an image file is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprint {
    pub bytes: u64,
    /// The first half of the SHA-256.
    pub hash: String,
}

impl Fingerprint {
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, hash: sha256(bytes)[..32].into() }
    }
}

/// What is known of an image in the cache.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    // A hash, since there may be millions.
    caption: u64,
    /// Caches of the first version do not know it.
    pub file: Option<Fingerprint>,
    /// When it was written.
    pub written: Option<SystemTime>,
}

impl Kept {
    /// Whether it was cached with this caption.
    pub fn has_caption(&self, caption: &str) -> bool {
        self.caption == short_hash(caption)
    }
}

fn short_hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The files of the cache and what is not yet in one.
pub(super) struct Shards<'a> {
    out: &'a Path,
    encoders: &'a Encoders,
    // Parts of a shard, and images of a part.
    parts: usize,
    batch: usize,
    done: BTreeMap<String, Kept>,
    // Names of the first version, which were paths as somebody wrote them.
    former: Former,
    // Per bucket: number of the shard that is being filled, how many parts it has, and what waits for the next part.
    open: BTreeMap<Size, (usize, usize, Vec<Sample>)>,
}

impl<'a> Shards<'a> {
    /// Reads what is there.
    pub fn open(out: &'a Path, encoders: &'a Encoders, parts: usize, batch: usize) -> Result<Self> {
        let mut shards = Self { out, encoders, parts, batch, done: BTreeMap::new(), former: Former::default(), open: BTreeMap::new() };
        let files = shard_files(out)?;
        let known: Vec<(PathBuf, Option<Slot>)> = files.into_iter().map(|p| (p.clone(), slot(&p))).collect();
        // A shard was put together, but its parts could not all be removed any more.
        let whole: BTreeSet<(Size, usize)> = known.iter().filter_map(|(_, at)| at.filter(|a| a.2.is_none()).map(|a| (a.0, a.1))).collect();
        for (path, at) in known {
            let Some((size, shard, part)) = at else {
                return Err(damaged(&path, "no shard of a cache".into()));
            };
            if part.is_some() && whole.contains(&(size, shard)) {
                std::fs::remove_file(&path).map_err(Error::io(&path))?;
                continue;
            }
            shards.note(&path)?;
            let entry = shards.open.entry(size).or_insert((0, 0, Vec::new()));
            match part {
                None => *entry = (entry.0.max(shard + 1), 0, Vec::new()),
                Some(part) => *entry = (shard, part + 1, Vec::new()),
            }
        }
        let full: Vec<Size> = shards.open.iter().filter(|(_, s)| s.1 == parts).map(|(size, _)| *size).collect();
        for size in full {
            shards.merge(size)?;
        }
        Ok(shards)
    }

    // What the file at `path` holds is done.
    fn note(&mut self, path: &Path) -> Result<()> {
        let file = TensorFile::open(path)?;
        let (names, captions) = (listed::<String>(&file, path, "names")?, listed::<String>(&file, path, "captions")?);
        let files = file.metadata().contains_key(FILES).then(|| listed::<Fingerprint>(&file, path, FILES)).transpose()?;
        let written = path.metadata().and_then(|m| m.modified()).ok();
        let former = files.is_none();
        let mut files = files.unwrap_or_default().into_iter();
        for (name, caption) in names.into_iter().zip(captions) {
            let kept = Kept { caption: short_hash(&caption), file: files.next(), written };
            if former { self.former.add(&name, kept) } else { drop(self.done.insert(name, kept)) }
        }
        Ok(())
    }

    /// Images in the cache, those of a part that is not yet written included.
    pub fn done(&self) -> usize {
        self.done.len() + self.former.len()
    }

    /// What is known of an image of `source`, where it is among them.
    pub fn find(&mut self, source: &Path, image: &ImageFile) -> Option<Kept> {
        if !self.done.contains_key(&image.place)
            && let Some(kept) = self.former.take(source, &image.name)
        {
            self.done.insert(image.place.clone(), kept);
        }
        self.done.get(&image.place).cloned()
    }

    /// Takes an image, unless one of this name is there; writes where a part is full.
    pub fn add(&mut self, sample: Sample) -> Result<()> {
        let size = sample.size.target_size;
        let kept = Kept { caption: short_hash(&sample.caption), file: Some(sample.file.clone()), written: None };
        if self.done.insert(sample.name.clone(), kept).is_some() {
            return Ok(());
        }
        let (_, parts, waiting) = self.open.entry(size).or_insert((0, 0, Vec::new()));
        waiting.push(sample);
        if waiting.len() < self.batch {
            return Ok(());
        }
        let samples = std::mem::take(waiting);
        *parts += 1;
        let full = *parts == self.parts;
        self.write(size, &samples)?;
        if full { self.merge(size) } else { Ok(()) }
    }

    /// Writes what still waits, and makes shards of all parts.
    pub fn finish(&mut self) -> Result<()> {
        for size in self.open.keys().copied().collect::<Vec<_>>() {
            let (_, parts, waiting) = self.open.get_mut(&size).expect("a key of it");
            let samples = std::mem::take(waiting);
            if !samples.is_empty() {
                *parts += 1;
                self.write(size, &samples)?;
            }
            if self.open[&size].1 > 0 {
                self.merge(size)?;
            }
        }
        Ok(())
    }

    // The bucket's newest part.
    fn write(&self, size: Size, samples: &[Sample]) -> Result<()> {
        let (shard, parts, _) = &self.open[&size];
        let images: Vec<&RgbImage> = samples.iter().map(|s| &s.image).collect();
        let captions: Vec<&str> = samples.iter().map(|s| s.caption.as_str()).collect();
        let sizes: Vec<TimeIds> = samples.iter().map(|s| s.size).collect();
        let tensors = encode(self.encoders, &images, &captions, &sizes)?;
        let names: Vec<&str> = samples.iter().map(|s| s.name.as_str()).collect();
        let files: Vec<&Fingerprint> = samples.iter().map(|s| &s.file).collect();
        let path = self.out.join(part_name(size, *shard, parts - 1));
        Ok(save_tensors(path, &tensors, &metadata(&names, &captions, Some(&files)), None)?)
    }

    // One file instead of the bucket's parts.
    fn merge(&mut self, size: Size) -> Result<()> {
        let (shard, parts, _) = self.open[&size];
        let paths: Vec<PathBuf> = (0..parts).map(|n| self.out.join(part_name(size, shard, n))).collect();
        let (mut names, mut captions, mut files) = (Vec::<String>::new(), Vec::<String>::new(), Some(Vec::<Fingerprint>::new()));
        let mut columns: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for path in &paths {
            let file = TensorFile::open(path)?;
            names.extend(listed(&file, path, "names")?);
            captions.extend(listed(&file, path, "captions")?);
            // A part of the first version makes the shard one.
            let known = file.metadata().contains_key(FILES).then(|| listed(&file, path, FILES)).transpose()?;
            files = files.zip(known).map(|(mut all, some): (Vec<_>, Vec<_>)| {
                all.extend(some);
                all
            });
            for (key, t) in file.tensors()? {
                columns.entry(key).or_default().push(t);
            }
        }
        let tensors: Tensors = columns.into_iter().map(|(key, rows)| (key, Tensor::cat(&rows, 0))).collect();
        let path = self.out.join(format!("{}x{}-{shard:05}.safetensors", size.0, size.1));
        save_tensors(path, &tensors, &metadata(&names, &captions, files.as_deref()), None)?;
        for path in paths {
            std::fs::remove_file(&path).map_err(Error::io(path))?;
        }
        self.open.insert(size, (shard + 1, 0, Vec::new()));
        Ok(())
    }
}

/// The files of the folder, in the order of their names.
pub(super) fn shard_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

fn part_name(size: Size, shard: usize, part: usize) -> String {
    format!("{}x{}-{shard:05}.part-{part:05}.safetensors", size.0, size.1)
}

/// Bucket, shard, and part of a shard that is not whole yet.
type Slot = (Size, usize, Option<usize>);

/// What a file's name tells.
fn slot(path: &Path) -> Option<Slot> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".safetensors")?;
    let (stem, part) = match stem.split_once(".part-") {
        Some((stem, part)) => (stem, Some(part.parse().ok()?)),
        None => (stem, None),
    };
    let (size, shard) = stem.split_once('-')?;
    let (h, w) = size.split_once('x')?;
    Some(((h.parse().ok()?, w.parse().ok()?), shard.parse().ok()?, part))
}

fn metadata<T: Serialize, F: Serialize>(names: &[T], captions: &[T], files: Option<&[F]>) -> BTreeMap<String, String> {
    let list = |list: &[T]| serde_json::to_string(list).expect("strings are JSON");
    let version = if files.is_some() { SHARD_VERSION } else { 1 };
    let own = [("format", CACHE_FORMAT.to_string()), ("version", version.to_string())];
    let lists = [("names", list(names)), ("captions", list(captions))];
    let files = files.map(|files| (FILES, serde_json::to_string(files).expect("fingerprints are JSON")));
    own.into_iter().chain(lists).chain(files).map(|(key, value)| (key.to_string(), value)).collect()
}

fn damaged(path: &Path, problem: String) -> Error {
    Error::Format { path: path.into(), problem, hint: "choose another folder".into() }
}

fn listed<T: serde::de::DeserializeOwned>(file: &TensorFile, path: &Path, key: &str) -> Result<Vec<T>> {
    let text = file.metadata().get(key).map_or("", String::as_str);
    serde_json::from_str(text).map_err(|e| damaged(path, format!("no list of {key} ({e})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_read_back() {
        assert_eq!(slot(Path::new("a/32x48-00003.safetensors")), Some(((32, 48), 3, None)));
        assert_eq!(slot(Path::new(&part_name((32, 48), 3, 7))), Some(((32, 48), 3, Some(7))));
        assert_eq!(slot(Path::new("model.safetensors")), None);
    }
}
