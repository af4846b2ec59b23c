//! An index of images with captions, so that training finds any of them at once: where each one is, its caption and its bucket.
//! Made once per run and kept beside its checkpoints, because the order of the data depends on it. Images -> **index** -> training.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Cursor};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use artifact::{Document, file_sha256, sha256};
use diffusion::images::{self, Size, nearest_size};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::encoders::decode;
use crate::error::{Error, Result};
use crate::image_samples::{Image, ImageSource};
use crate::image_text::{ByteRange, ImageText, Located, Rejected};
use crate::place::{FilePath, same_place, text};

/// Name of the index in a run's work folder.
const FILE: &str = "images.json";
/// The name that the first version had.
const FIRST_FILE: &str = "pictures.json";
/// Images whose headers are read together.
const TOGETHER: usize = 256;

/// The index file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    made_from: MadeFrom,
    /// What the order of the data depends on, wherever the sources are. Versions 1 and 2 had the hash of the file for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    /// Files that hold images.
    files: Vec<FilePath>,
    images: Vec<Entry>,
    /// Names of images that were left out, and why.
    bad: Vec<(String, String)>,
}

/// What the index depends on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MadeFrom {
    /// As paths of the whole system, without links; as they were named in versions 1 and 2.
    sources: Vec<FilePath>,
    /// Bytes of each tar; nothing for a folder.
    bytes: Vec<Option<u64>>,
    buckets: Vec<Size>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    file: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<(u64, u64)>,
    bucket: u32,
    caption: String,
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
            Some(kept) => kept,
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

/// The index that is there and was made from the same, under whatever name.
fn kept(work: &Path, made_from: &MadeFrom) -> Result<Option<(PathBuf, Index)>> {
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

fn free(work: &Path) -> PathBuf {
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
    fn identify(&self) -> String {
        let inner = |file: &FilePath| {
            let sources = self.made_from.sources.iter().enumerate();
            let found = sources.filter_map(|(n, source)| Some((n, text(file.0.strip_prefix(&source.0).ok()?)))).next();
            found.unwrap_or_else(|| (usize::MAX, text(&file.0)))
        };
        let files: Vec<(usize, String)> = self.files.iter().map(inner).collect();
        let content = serde_json::json!({ "buckets": self.made_from.buckets, "files": files, "images": self.images });
        sha256(&content.to_string())
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use image::RgbImage;

    use super::*;

    const BUCKETS: [Size; 3] = [(16, 16), (8, 16), (16, 8)];

    fn png(w: u32, h: u32, n: u8) -> Vec<u8> {
        diffusion::images::encode_png(&RgbImage::from_pixel(w, h, image::Rgb([n, 0, 0])), &BTreeMap::new()).unwrap()
    }

    // A folder with four images and a tar with three, one of each without a caption.
    fn sources(dir: &Path) -> [PathBuf; 2] {
        let (folder, tar) = (dir.join("folder"), dir.join("part.tar"));
        std::fs::create_dir_all(folder.join("deep")).unwrap();
        for (name, (w, h), n) in [("a", (30, 30), 1), ("deep/b", (40, 20), 2), ("c", (20, 21), 3), ("d", (9, 9), 4)] {
            std::fs::write(folder.join(format!("{name}.png")), png(w, h, n)).unwrap();
            if name != "d" {
                std::fs::write(folder.join(format!("{name}.txt")), format!("number {n}\n")).unwrap();
            }
        }
        let mut out = tar::Builder::new(std::fs::File::create(&tar).unwrap());
        let mut append = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            out.append_data(&mut header, name, bytes).unwrap();
        };
        for (n, (w, h)) in [(5u8, (20, 40)), (6, (10, 10)), (7, (10, 10))] {
            append(&format!("{n:04}.png"), &png(w, h, n));
            if n != 6 {
                append(&format!("{n:04}.txt"), format!("number {n}").as_bytes());
            }
        }
        out.finish().unwrap();
        [folder, tar]
    }

    fn open(work: &Path, sources: &[PathBuf], max_bad: usize) -> Result<ImageIndex> {
        ImageIndex::open(work, &ImageText::open(sources)?, &BUCKETS, max_bad, &mut |_| Ok(()))
    }

    fn seen(images: &ImageIndex) -> Vec<(usize, String, u8)> {
        let places = images.buckets().into_iter().enumerate().flat_map(|(b, n)| (0..n).map(move |i| (b, i)));
        places.map(|(b, i)| images.image(b, i).map(|p| (b, p.caption, p.rgb[0])).unwrap()).collect()
    }

    #[test]
    fn images_of_folders_and_tars_are_found_in_their_buckets_and_read_from_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let sources = sources(dir.path());
        let images = open(dir.path(), &sources, 2).unwrap();
        assert_eq!(images.buckets(), [3, 1, 1]);
        let expected = [(0, 1), (0, 3), (0, 7), (1, 2), (2, 5)].map(|(b, n)| (b, format!("number {n}"), n));
        assert_eq!(seen(&images), expected);
        let first = images.image(1, 0).unwrap();
        assert_eq!((first.size.original_size, first.size.target_size, first.rgb.len()), ((20, 40), (8, 16), 3 * 8 * 16));
        // Another opening takes the index as it is, even when the folder has changed; a longer tar is indexed anew.
        std::fs::copy(sources[0].join("a.png"), sources[0].join("e.png")).unwrap();
        std::fs::copy(sources[0].join("a.txt"), sources[0].join("e.txt")).unwrap();
        assert_eq!(seen(&open(dir.path(), &sources, 2).unwrap()), expected);
        let only: Vec<PathBuf> = vec![sources[0].clone()];
        assert_eq!(open(dir.path(), &only, 2).unwrap().buckets(), [3, 1, 0]);
        let err = open(dir.path(), &sources, 1).unwrap_err();
        assert!(err.to_string().contains("max_bad") && err.to_string().contains("0006"), "{err}");
    }

    #[test]
    fn an_image_that_turns_out_damaged_is_replaced_until_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let sources = sources(dir.path());
        let whole = std::fs::read(sources[0].join("c.png")).unwrap();
        // The header is whole, the pixels are not.
        std::fs::write(sources[0].join("c.png"), &whole[..whole.len() - 24]).unwrap();
        let images = open(dir.path(), &sources, 3).unwrap();
        assert_eq!(images.image(0, 1).unwrap().caption, "number 7");
        std::fs::remove_file(sources[0].join("a.png")).unwrap();
        let err = images.image(0, 0).unwrap_err();
        assert!(matches!(&err, Error::Format { hint, .. } if hint.contains("data.max_bad")), "{err}");
    }

    #[test]
    fn the_index_of_an_earlier_version_is_read_and_keeps_its_identity() {
        let dir = tempfile::tempdir().unwrap();
        let sources = sources(dir.path());
        let expected = seen(&open(dir.path(), &sources, 2).unwrap());
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        let first = text.replace("laptop-diff/image-index", "laptop-diff/picture-index").replace("\"version\": 2", "\"version\": 1");
        let first = first.replace("\"images\"", "\"pictures\"");
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        std::fs::write(dir.path().join(FIRST_FILE), &first).unwrap();
        let index = open(dir.path(), &sources, 2).unwrap();
        assert_eq!(seen(&index), expected);
        assert_eq!(index.sha256(), artifact::sha256(&first));
        assert!(!dir.path().join(FILE).exists(), "what is there is used");
    }
}
