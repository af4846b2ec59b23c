//! An index of pictures with captions, so that training finds any of them at once: where each one stands, its caption and its
//! bucket. Made once per run and kept beside its checkpoints, because the order of the data depends on it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use data::{Picture, PictureSource};
use diffusion::picture::{Size, nearest_size};
use image::ImageReader;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::captioned::{Located, Place, locate};
use crate::common::{BadFile, Interrupted, read_versioned, stop_flag, stopped};
use crate::encoding::decode;
use crate::progress;

const FORMAT: &str = "laptop-diff/picture-index";
const VERSION: u32 = 1;
/// Pictures whose headers are read together.
const TOGETHER: usize = 256;

/// The index file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    format: String,
    version: u32,
    made_from: MadeFrom,
    /// Files that hold pictures.
    files: Vec<PathBuf>,
    pictures: Vec<Entry>,
    /// Names of pictures that were left out, and why.
    bad: Vec<(String, String)>,
}

/// What the index depends on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MadeFrom {
    sources: Vec<PathBuf>,
    /// Bytes of each tar; nothing for a folder.
    bytes: Vec<Option<u64>>,
    buckets: Vec<Size>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    file: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<(u64, u64)>,
    bucket: u32,
    caption: String,
}

/// Pictures in buckets.
#[derive(Debug)]
pub struct Pictures {
    index: Index,
    buckets: Vec<Vec<u32>>,
    max_bad: usize,
    damaged: Mutex<BTreeSet<u32>>,
}

impl Pictures {
    /// The pictures of `sources` (folders and tars), from the index at `path` when it was made from them, else from a new one
    /// that is written there. At most `max_bad` pictures may be damaged or without a caption.
    ///
    /// # Errors
    /// [`BadFile`] for a source that cannot be read, for too many bad pictures, and when there is no good one.
    pub fn open(path: &Path, sources: &[PathBuf], buckets: &[Size], max_bad: usize) -> anyhow::Result<Self> {
        let bytes = |source: &PathBuf| source.metadata().ok().filter(|m| m.is_file()).map(|m| m.len());
        let made_from = MadeFrom { sources: sources.to_vec(), bytes: sources.iter().map(bytes).collect(), buckets: buckets.to_vec() };
        let kept: Option<Index> = if path.is_file() {
            let index: Index = read_versioned(path, FORMAT, VERSION, "delete it; it will be made again")?;
            (index.made_from == made_from).then_some(index)
        } else {
            None
        };
        let index = match kept {
            Some(index) => index,
            None => {
                let index = make(made_from, max_bad)?;
                prune_core::file::write_json(path, &index)?;
                index
            }
        };
        let mut in_buckets = vec![Vec::new(); buckets.len()];
        for (n, entry) in index.pictures.iter().enumerate() {
            let damaged = || BadFile::new(path, format!("picture {n} has the bucket {}", entry.bucket), "delete it; it will be made again");
            in_buckets.get_mut(entry.bucket as usize).ok_or_else(damaged)?.push(n as u32);
        }
        if index.pictures.is_empty() {
            let source = sources.first().map_or(path, PathBuf::as_path);
            return Err(
                BadFile::new(source, "no picture with a caption", "name a folder of pictures with captions, or a tar of them").into()
            );
        }
        Ok(Self { index, buckets: in_buckets, max_bad, damaged: Mutex::new(BTreeSet::new()) })
    }

    fn place(&self, entry: &Entry) -> Place {
        Place { file: self.index.files[entry.file as usize].clone(), part: entry.part }
    }

    fn read(&self, number: u32) -> Result<Picture, String> {
        let entry = &self.index.pictures[number as usize];
        let bytes = self.place(entry).read().map_err(|e| e.to_string())?;
        let bucket = self.index.made_from.buckets[entry.bucket as usize];
        let (picture, size) = decode(&bytes, &[bucket])?;
        Ok(Picture { rgb: picture.into_raw(), caption: entry.caption.clone(), size })
    }

    // Notes a picture that turned out to be damaged; true when there are too many.
    fn note(&self, number: u32, reason: &str) -> bool {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if damaged.insert(number) {
            let place = self.place(&self.index.pictures[number as usize]);
            tracing::warn!("{} is left out: {reason}", shown(&place));
        }
        damaged.len() + self.index.bad.len() > self.max_bad
    }
}

impl PictureSource for Pictures {
    fn buckets(&self) -> Vec<u64> {
        self.buckets.iter().map(|b| b.len() as u64).collect()
    }

    /// A damaged picture is replaced by the next one of its bucket: a long run must not end for it.
    fn picture(&self, bucket: usize, index: u64) -> data::Result<Picture> {
        let numbers = &self.buckets[bucket];
        let mut last = String::new();
        for step in 0..numbers.len() {
            let number = numbers[(index as usize + step) % numbers.len()];
            match self.read(number) {
                Ok(picture) => return Ok(picture),
                Err(reason) => last = reason,
            }
            if self.note(number, &last) {
                break;
            }
        }
        let path = self.place(&self.index.pictures[numbers[index as usize] as usize]).file;
        let (problem, hint) = (format!("damaged pictures, the last one: {last}"), "repair them, or allow more with data.max_bad".into());
        Err(data::Error::Format { path, problem, hint })
    }
}

fn shown(place: &Place) -> String {
    match place.part {
        None => place.file.display().to_string(),
        Some((first, _)) => format!("{} at byte {first}", place.file.display()),
    }
}

/// Finds all pictures and reads their sizes.
fn make(made_from: MadeFrom, max_bad: usize) -> anyhow::Result<Index> {
    let (stop, bar) = (stop_flag()?, progress::bar("index", 0));
    let mut index = Index { format: FORMAT.into(), version: VERSION, made_from, files: Vec::new(), pictures: Vec::new(), bad: Vec::new() };
    let mut waiting: Vec<Located> = Vec::new();
    for source in index.made_from.sources.clone() {
        let _all = locate(&source, &mut |found| {
            match found {
                Ok(located) => waiting.push(located),
                Err((name, reason)) => index.leave_out(&source, format!("{}/{name}", source.display()), reason, max_bad)?,
            }
            if waiting.len() == TOGETHER {
                index.add(&source, &mut waiting, max_bad)?;
                bar.set_position(index.pictures.len() as u64);
            }
            if stopped(&stop) {
                return Err(Interrupted("stopped before the first step; run the same command to begin again".into()).into());
            }
            Ok(std::ops::ControlFlow::Continue(()))
        })?;
        index.add(&source, &mut waiting, max_bad)?;
    }
    bar.finish_and_clear();
    Ok(index)
}

impl Index {
    fn add(&mut self, source: &Path, waiting: &mut Vec<Located>, max_bad: usize) -> anyhow::Result<()> {
        let read = |located: Located| {
            let size = dimensions(&located.place);
            (located, size)
        };
        let read: Vec<_> = std::mem::take(waiting).into_par_iter().map(read).collect();
        for (Located { caption, place, .. }, size) in read {
            let size = size.and_then(|(w, h)| nearest_size(&self.made_from.buckets, h, w).ok_or("there is no bucket".into()));
            match size {
                Err(reason) => self.leave_out(source, shown(&place), reason, max_bad)?,
                Ok(bucket) => {
                    if self.files.last() != Some(&place.file) {
                        self.files.push(place.file);
                    }
                    let file = self.files.len() as u32 - 1;
                    self.pictures.push(Entry { file, part: place.part, bucket: bucket as u32, caption });
                }
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, source: &Path, name: String, reason: String, max_bad: usize) -> anyhow::Result<()> {
        tracing::warn!("{name} is left out: {reason}");
        self.bad.push((name, reason));
        if self.bad.len() > max_bad {
            let problem =
                format!("{} pictures are damaged or have no caption, {} is the last", self.bad.len(), self.bad[self.bad.len() - 1].0);
            return Err(BadFile::new(source, problem, "repair them, or allow more with data.max_bad").into());
        }
        Ok(())
    }
}

/// Width and height of a picture, from its header where it is a file of its own.
fn dimensions(place: &Place) -> Result<(u32, u32), String> {
    let size = match place.part {
        None => ImageReader::open(&place.file).and_then(|r| r.with_guessed_format()).map_err(|e| e.to_string())?.into_dimensions(),
        Some(_) => {
            let bytes = place.read().map_err(|e| e.to_string())?;
            ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?.into_dimensions()
        }
    };
    match size.map_err(|e| e.to_string())? {
        (w, h) if w > 0 && h > 0 => Ok((w, h)),
        _ => Err("an empty picture".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use image::RgbImage;

    use super::*;

    const BUCKETS: [Size; 3] = [(16, 16), (8, 16), (16, 8)];

    fn png(w: u32, h: u32, n: u8) -> Vec<u8> {
        diffusion::picture::encode_png(&RgbImage::from_pixel(w, h, image::Rgb([n, 0, 0])), &BTreeMap::new()).unwrap()
    }

    // A folder with four pictures and a tar with three, one of each without a caption.
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

    fn seen(pictures: &Pictures) -> Vec<(usize, String, u8)> {
        let places = pictures.buckets().into_iter().enumerate().flat_map(|(b, n)| (0..n).map(move |i| (b, i)));
        places.map(|(b, i)| pictures.picture(b, i).map(|p| (b, p.caption, p.rgb[0])).unwrap()).collect()
    }

    #[test]
    fn pictures_of_folders_and_tars_are_found_in_their_buckets_and_read_from_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let (sources, path) = (sources(dir.path()), dir.path().join("index.json"));
        let pictures = Pictures::open(&path, &sources, &BUCKETS, 2).unwrap();
        assert_eq!(pictures.buckets(), [3, 1, 1]);
        let expected = [(0, 1), (0, 3), (0, 7), (1, 2), (2, 5)].map(|(b, n)| (b, format!("number {n}"), n));
        assert_eq!(seen(&pictures), expected);
        let first = pictures.picture(1, 0).unwrap();
        assert_eq!((first.size.original_size, first.size.target_size, first.rgb.len()), ((20, 40), (8, 16), 3 * 8 * 16));
        // Another opening takes the index as it is, even when the folder has changed; a longer tar is indexed anew.
        std::fs::copy(sources[0].join("a.png"), sources[0].join("e.png")).unwrap();
        std::fs::copy(sources[0].join("a.txt"), sources[0].join("e.txt")).unwrap();
        assert_eq!(seen(&Pictures::open(&path, &sources, &BUCKETS, 2).unwrap()), expected);
        let only: Vec<PathBuf> = vec![sources[0].clone()];
        assert_eq!(Pictures::open(&path, &only, &BUCKETS, 2).unwrap().buckets(), [3, 1, 0]);
        let err = Pictures::open(&path, &sources, &BUCKETS, 1).unwrap_err();
        assert!(err.to_string().contains("data.max_bad") && err.to_string().contains("0006"), "{err}");
    }

    #[test]
    fn a_picture_that_turns_out_damaged_is_replaced_until_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let (sources, path) = (sources(dir.path()), dir.path().join("index.json"));
        let whole = std::fs::read(sources[0].join("c.png")).unwrap();
        // The header is whole, the pixels are not.
        std::fs::write(sources[0].join("c.png"), &whole[..whole.len() - 24]).unwrap();
        let pictures = Pictures::open(&path, &sources, &BUCKETS, 3).unwrap();
        assert_eq!(pictures.picture(0, 1).unwrap().caption, "number 7");
        std::fs::remove_file(sources[0].join("a.png")).unwrap();
        let err = pictures.picture(0, 0).unwrap_err();
        assert!(matches!(&err, data::Error::Format { hint, .. } if hint.contains("data.max_bad")), "{err}");
    }
}
