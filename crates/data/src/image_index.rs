//! An index of images with captions, so that training finds any of them at once: where each one is, its caption and its bucket.
//! Made once per run and kept beside its checkpoints, because the order of the data depends on it. Images -> **index** -> training.

mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Cursor};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use artifact::{Document, file_sha256};
use diffusion::images::{self, Size, nearest_size};
use rayon::prelude::*;

use file::{Entry, Index, MadeFrom, free, kept};

use crate::encoders::decode;
use crate::error::{Error, Result};
use crate::image_samples::{Image, ImageSource};
use crate::image_text::{ByteRange, ImageText, Located, Rejected};
use crate::place::FilePath;

/// Images whose headers are read together.
const TOGETHER: usize = 256;

/// Images with captions in buckets, ready to be read in any order.
#[derive(Debug)]
pub struct ImageIndex {
    index: Index,
    hash: String,
    buckets: Vec<Vec<u32>>,
    max_bad: usize,
    damaged: Mutex<BTreeSet<u32>>,
}

impl ImageIndex {
    /// The images of `source` (folders and tars), from the index in the folder `work` when it was made from them, else from a new one
    /// that is written there. At most `max_bad` images may be damaged or without a caption. While it is made, `progress` hears how many
    /// images were found.
    ///
    /// # Errors
    /// [`Error::Format`] for a source that cannot be read and when there is no good image, [`Error::TooManyBad`],
    /// [`Error::Artifact`] for a damaged index; what `progress` fails with.
    pub fn open<E: From<Error>>(
        work: &Path,
        source: &ImageText,
        buckets: &[Size],
        max_bad: usize,
        progress: &mut dyn FnMut(u64) -> std::result::Result<(), E>,
    ) -> std::result::Result<Self, E> {
        let bytes = |source: &Path| source.metadata().ok().filter(|m| m.is_file()).map(|m| m.len());
        let sources = source.places().map(|place| FilePath(place.into())).collect();
        let made_from = MadeFrom { sources, bytes: source.places().map(bytes).collect(), buckets: buckets.to_vec() };
        let (path, index) = match kept(work, &made_from)? {
            Some((path, index)) => {
                let bad: Vec<Rejected> =
                    index.bad.iter().map(|(name, reason)| Rejected { name: name.clone(), reason: reason.clone() }).collect();
                Error::check_bad(&path, &bad, max_bad)?;
                (path, index)
            }
            None => {
                let path = free(work);
                let index = make(made_from, source, max_bad, progress)?;
                index.write(&path).map_err(Error::from)?;
                (path, index)
            }
        };
        Ok(Self::new(&path, index, max_bad)?)
    }

    fn new(path: &Path, index: Index, max_bad: usize) -> Result<Self> {
        let bad = |path: &Path, problem: String, hint: &str| Error::Format { path: path.into(), problem, hint: hint.into() };
        let mut buckets = vec![Vec::new(); index.made_from.buckets.len()];
        for (n, entry) in index.images.iter().enumerate() {
            let damaged = || bad(path, format!("image {n} has the bucket {}", entry.bucket), Index::HINT);
            buckets.get_mut(entry.bucket as usize).ok_or_else(damaged)?.push(n as u32);
        }
        if index.images.is_empty() {
            let source = index.made_from.sources.first().map_or(path, |source| &source.0);
            let first = index.bad.first().map(|(name, reason)| Rejected { name: name.clone(), reason: reason.clone() });
            return Err(Error::all_bad(source, first.as_slice()));
        }
        let hash = index.identity.clone().map_or_else(|| file_sha256(path), Ok)?;
        Ok(Self { hash, index, buckets, max_bad, damaged: Mutex::new(BTreeSet::new()) })
    }

    /// The identity of the data: a hash of all images by their places in the sources, their captions and their buckets.
    pub fn sha256(&self) -> &str {
        &self.hash
    }

    fn bytes(&self, entry: &Entry) -> ByteRange {
        ByteRange { file: self.index.files[entry.file as usize].0.clone(), part: entry.part }
    }

    fn read(&self, number: u32) -> std::result::Result<Image, String> {
        let entry = &self.index.images[number as usize];
        let bytes = self.bytes(entry).read().map_err(|e| e.to_string())?;
        let bucket = self.index.made_from.buckets[entry.bucket as usize];
        let (image, size) = decode(&bytes, &[bucket])?;
        Ok(Image { rgb: image.into_raw(), caption: entry.caption.clone(), size })
    }

    // Notes an image that turned out to be damaged; true when there are too many.
    fn note(&self, number: u32, reason: &str) -> bool {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if damaged.insert(number) {
            tracing::warn!("{} is left out: {reason}", self.bytes(&self.index.images[number as usize]));
        }
        damaged.len() + self.index.bad.len() > self.max_bad
    }
}

impl ImageSource for ImageIndex {
    fn buckets(&self) -> Vec<u64> {
        self.buckets.iter().map(|b| b.len() as u64).collect()
    }

    /// A damaged image is replaced by the next one of its bucket: a long run must not end for it.
    fn image(&self, bucket: usize, index: u64) -> Result<Image> {
        let numbers = &self.buckets[bucket];
        let mut last = String::new();
        for step in 0..numbers.len() {
            let number = numbers[(index as usize + step) % numbers.len()];
            match self.read(number) {
                Ok(image) => return Ok(image),
                Err(reason) => last = reason,
            }
            if self.note(number, &last) {
                break;
            }
        }
        let path = self.bytes(&self.index.images[numbers[index as usize] as usize]).file;
        let (problem, hint) = (format!("damaged images, the last one: {last}"), "repair them, or allow more with data.max_bad".into());
        Err(Error::Format { path, problem, hint })
    }
}

/// Finds all images and reads their sizes.
fn make<E: From<Error>>(
    made_from: MadeFrom,
    source: &ImageText,
    max_bad: usize,
    progress: &mut dyn FnMut(u64) -> std::result::Result<(), E>,
) -> std::result::Result<Index, E> {
    let mut making = Making {
        index: Index { made_from, identity: None, files: Vec::new(), images: Vec::new(), bad: Vec::new() },
        waiting: Vec::new(),
        max_bad,
    };
    let _all = source.locate(&mut |source, found| -> std::result::Result<_, E> {
        match found {
            Ok(located) => making.waiting.push((source.into(), located)),
            Err(Rejected { name, reason }) => making.leave_out(source, format!("{}/{name}", source.display()), reason)?,
        }
        if making.waiting.len() == TOGETHER {
            making.add()?;
        }
        progress(making.index.images.len() as u64)?;
        Ok(ControlFlow::Continue(()))
    })?;
    making.add()?;
    Ok(Index { identity: Some(making.index.identify()), ..making.index })
}

/// An index that is being made.
struct Making {
    index: Index,
    // With their sources.
    waiting: Vec<(PathBuf, Located)>,
    max_bad: usize,
}

impl Making {
    fn add(&mut self) -> Result<()> {
        let read = |(source, located): (PathBuf, Located)| {
            let size = dimensions(&located.bytes);
            (source, located, size)
        };
        let read: Vec<_> = std::mem::take(&mut self.waiting).into_par_iter().map(read).collect();
        for (source, Located { caption, bytes, .. }, size) in read {
            let size = size.and_then(|(w, h)| nearest_size(&self.index.made_from.buckets, h, w).ok_or("there is no bucket".into()));
            match size {
                Err(reason) => self.leave_out(&source, bytes.to_string(), reason)?,
                Ok(bucket) => {
                    let path = FilePath(bytes.file);
                    if self.index.files.last() != Some(&path) {
                        self.index.files.push(path);
                    }
                    let file = self.index.files.len() as u32 - 1;
                    self.index.images.push(Entry { file, part: bytes.part, bucket: bucket as u32, caption });
                }
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, source: &Path, name: String, reason: String) -> Result<()> {
        tracing::warn!("{name} is left out: {reason}");
        self.index.bad.push((name.clone(), reason.clone()));
        let count = self.index.bad.len();
        if count > self.max_bad { Err(Error::TooManyBad { path: source.into(), count, name, reason }) } else { Ok(()) }
    }
}

/// Width and height of the upright image, from its header where it is a file of its own.
fn dimensions(bytes: &ByteRange) -> std::result::Result<(u32, u32), String> {
    let size = match bytes.part {
        None => images::dimensions(BufReader::new(File::open(&bytes.file).map_err(|e| e.to_string())?)),
        Some(_) => images::dimensions(Cursor::new(bytes.read().map_err(|e| e.to_string())?)),
    };
    size.map_err(|e| e.to_string())
}
