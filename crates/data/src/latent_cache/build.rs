//! Making a cache: images with captions -> VAE moments and text features on disk, so that training need not compute them in every
//! epoch. Images -> **shards** -> training.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use artifact::{Document, Lock, write_json};
use diffusion::TimeIds;
use diffusion::images::to_tensor;
use image::RgbImage;
use rayon::prelude::*;
use serde::Serialize;
use tch::{Device, Kind, Tensor};
use unet::weights::Tensors;

use super::LatentCache;
use super::manifest::{CACHE_MANIFEST, Manifest, Settings};
use super::shards::{Fingerprint, Kept, Sample, Shards, shard_files};
use crate::encoders::{Buckets, Encoders, decode, encoder_identity};
use crate::error::{Error, Result};
use crate::image_text::{Found, ImageFile, ImageText, Rejected};

/// Batches whose images are decoded together, on all cores.
const AHEAD: usize = 4;
/// Tells that a process writes the cache.
const LOCK: &str = "cache.lock";
/// The images that are not in the cache.
const BAD: &str = "bad.json";

/// How a cache is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheOptions {
    /// As [`crate::bucket_sizes`].
    pub size: Option<i64>,
    /// As [`crate::bucket_sizes`].
    pub step: Option<i64>,
    /// Images in a shard, a multiple of `batch`.
    pub shard: usize,
    /// Images computed at once.
    pub batch: usize,
    /// The run stops when more images than this are damaged or have no caption.
    pub max_bad: usize,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self { size: None, step: None, shard: 1024, batch: 8, max_bad: 100 }
    }
}

/// What is told while a cache is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CacheEvent {
    /// Before the work: what an image costs.
    Cost {
        /// Height and width.
        size: (i64, i64),
        /// Bytes in the cache.
        bytes: f64,
        /// Images encoded in a second.
        per_second: f64,
    },
    /// Images done so far, before each one that is found.
    Images(u64),
}

/// What a cache was made to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheReport {
    /// Images in the cache.
    pub images: usize,
    /// Those of them that were not in it before.
    pub new: usize,
    /// Files.
    pub shards: usize,
    /// Images that were left out.
    pub bad: Vec<Rejected>,
    /// Images whose captions are others than those in the cache, which stay.
    pub captions: Changed,
    /// Images whose files are others than those that were encoded.
    pub files: Changed,
}

impl std::fmt::Display for CacheReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { images, new, shards, bad, captions, files } = self;
        write!(f, "{images} images in {shards} shards, {new} of them new; {} left out", bad.len())?;
        for (what, changed) in [("captions", captions), ("image files", files)] {
            if let Some(first) = &changed.first {
                let count = changed.count;
                write!(
                    f,
                    "\n{count} {what} have changed since they were cached, {first} is the first; for the new ones choose another folder"
                )?;
            }
        }
        Ok(())
    }
}

/// Images that are not what they were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// How many.
    pub count: usize,
    /// The first of them.
    pub first: Option<String>,
}

impl Changed {
    fn add(&mut self, name: String) {
        self.count += 1;
        self.first.get_or_insert(name);
    }
}

impl LatentCache {
    /// Makes the cache in the folder `out`, or completes it: what its files name is done. An image goes to the bucket with the nearest
    /// proportions. A run that is stopped, by an error of `progress` say, goes on in mid-shard and ends with the same bytes.
    ///
    /// # Errors
    /// [`Error::Input`] for options out of range, [`Error::OtherCache`] for a folder with a cache of other settings,
    /// [`Error::TooManyBad`], [`Error::AllBad`]; what sources, encoders and files report, another process's lock among it; what `progress` fails with.
    pub fn build<E: From<Error>>(
        source: &ImageText,
        encoders: &Encoders,
        out: &Path,
        options: &CacheOptions,
        progress: &mut dyn FnMut(CacheEvent) -> std::result::Result<(), E>,
    ) -> std::result::Result<CacheReport, E> {
        std::fs::create_dir_all(out).map_err(Error::io(out))?;
        let _lock = Lock::take(&out.join(LOCK)).map_err(Error::from)?;
        let mut build = Build::begin(encoders, out, options)?;
        progress(build.cost()?)?;
        let _all = source.visit(&mut |source, found| -> std::result::Result<_, E> {
            progress(CacheEvent::Images(build.shards.done() as u64))?;
            build.add(source, found)?;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(build.finish(source)?)
    }
}

struct Build<'a> {
    encoders: &'a Encoders,
    out: &'a Path,
    options: &'a CacheOptions,
    buckets: Buckets,
    settings: Settings,
    shards: Shards<'a>,
    kept: usize,
    // Source, name in the cache, what was found.
    waiting: Vec<(PathBuf, String, Found)>,
    bad: Vec<Rejected>,
    captions: Changed,
    files: Changed,
}

impl<'a> Build<'a> {
    fn begin(encoders: &'a Encoders, out: &'a Path, options: &'a CacheOptions) -> Result<Self> {
        let CacheOptions { size, step, shard, batch, .. } = *options;
        if batch == 0 || shard == 0 || !shard.is_multiple_of(batch) {
            let expected = "a multiple of the images computed at once, and at least 1".into();
            return Err(Error::Input { name: "shard".into(), expected, got: format!("{shard} with a batch of {batch}") });
        }
        let buckets = encoders.buckets(size, step)?;
        let settings = Settings { model: encoder_identity(encoders.dir())?, size: buckets.size, step: buckets.step, shard, batch };
        let path = out.join(CACHE_MANIFEST);
        if !path.is_file() {
            Manifest { complete: false, settings: settings.clone(), images: None, shards: Vec::new() }.write(&path)?;
        } else if Manifest::read(&path)?.settings != settings {
            return Err(Error::OtherCache { path: out.into() });
        }
        let shards = Shards::open(out, encoders, shard / batch, batch)?;
        let kept = shards.done();
        let (captions, files) = (Changed::default(), Changed::default());
        Ok(Self { encoders, out, options, buckets, settings, shards, kept, waiting: Vec::new(), bad: Vec::new(), captions, files })
    }

    fn cost(&self) -> Result<CacheEvent> {
        let (side, batch) = (self.buckets.size, self.options.batch);
        let image = RgbImage::new(side as u32, side as u32);
        let start = std::time::Instant::now();
        let made = encode(self.encoders, &vec![&image; batch], &vec![""; batch], &vec![TimeIds::uncropped(side, side); batch])?;
        let per_second = batch as f64 / start.elapsed().as_secs_f64();
        let bytes: usize = made.values().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum();
        Ok(CacheEvent::Cost { size: (side, side), bytes: bytes as f64 / batch as f64, per_second })
    }

    fn add(&mut self, source: &Path, found: Found) -> Result<()> {
        let inner = found.as_ref().map_or_else(|bad| &bad.name, |image| &image.name);
        let name = format!("{}/{inner}", source.display());
        if let Ok(image) = &found
            && let Some(kept) = self.shards.find(source, image)
        {
            return self.compare(name, image, &kept);
        }
        self.waiting.push((source.into(), name, found));
        if self.waiting.len() == AHEAD * self.options.batch { self.take() } else { Ok(()) }
    }

    /// Notes what is another than in the cache. Files are read again only where they are younger than it.
    fn compare(&mut self, name: String, image: &ImageFile, kept: &Kept) -> Result<()> {
        if !kept.has_caption(&image.caption) {
            self.captions.add(name.clone());
        }
        let Some(was) = &kept.file else { return Ok(()) };
        let unread = |e| Error::Io { path: PathBuf::from(&name), source: e };
        let other = || -> std::io::Result<bool> {
            let older = image.modified().zip(kept.written).is_some_and(|(file, written)| file < written);
            Ok(image.size()? != was.bytes || (!older && Fingerprint::of(&image.bytes()?) != *was))
        };
        if other().map_err(unread)? {
            self.files.add(name);
        }
        Ok(())
    }

    /// Decodes what waits, on all cores, and hands it on in order.
    fn take(&mut self) -> Result<()> {
        let read = |(source, name, found): (PathBuf, String, Found)| {
            let decoded = found.map_err(|bad| bad.reason).and_then(|image| {
                let bytes = image.bytes().map_err(|e| e.to_string())?;
                let (cut, size) = decode(&bytes, &self.buckets.sizes)?;
                Ok(Sample { name: image.place.clone(), caption: image.caption.clone(), image: cut, size, file: Fingerprint::of(&bytes) })
            });
            (source, decoded.map_err(|reason| Rejected { name, reason }))
        };
        let samples: Vec<_> = std::mem::take(&mut self.waiting).into_par_iter().map(read).collect();
        for (source, sample) in samples {
            match sample {
                Ok(sample) => self.shards.add(sample)?,
                Err(rejected) => {
                    tracing::warn!("{} is left out: {}", rejected.name, rejected.reason);
                    self.bad.push(rejected);
                    Error::check_bad(&source, &self.bad, self.options.max_bad)?;
                }
            }
        }
        Ok(())
    }

    fn finish(mut self, source: &ImageText) -> Result<CacheReport> {
        self.take()?;
        self.shards.finish()?;
        let bad: Vec<Bad> = self.bad.iter().map(|bad| Bad { name: &bad.name, reason: &bad.reason }).collect();
        write_json(&self.out.join(BAD), &bad)?;
        if self.shards.done() == 0 {
            return Err(Error::all_bad(source.paths().next().unwrap_or(self.out), &self.bad));
        }
        let name = |path: PathBuf| Some(path.file_name()?.to_str()?.to_string());
        let shards: Vec<String> = shard_files(self.out)?.into_iter().filter_map(name).collect();
        let (images, files) = (self.shards.done(), shards.len());
        let manifest = Manifest { complete: true, settings: self.settings, images: Some(images as u64), shards };
        manifest.write(&self.out.join(CACHE_MANIFEST))?;
        let new = images - self.kept;
        Ok(CacheReport { images, new, shards: files, bad: self.bad, captions: self.captions, files: self.files })
    }
}

/// An entry of `bad.json`.
#[derive(Serialize)]
struct Bad<'a> {
    name: &'a str,
    reason: &'a str,
}

/// What is stored of some images of one size, and the size of each.
///
/// # Shapes
/// As in [`LatentCache`], on the CPU.
pub(super) fn encode(encoders: &Encoders, images: &[&RgbImage], captions: &[&str], sizes: &[TimeIds]) -> Result<Tensors> {
    let _no_grad = tch::no_grad_guard();
    let x = to_tensor(images)?.to_device(encoders.device()).to_kind(encoders.vae().kind());
    let moments = encoders.vae().encode(&x)?;
    let cond = encoders.text().encode(captions, sizes[0])?;
    let cpu = |t: &Tensor| t.to_device(Device::Cpu).to_kind(Kind::Half);
    let ids: Vec<i64> = sizes.iter().flat_map(|s| s.to_array()).map(|n| n as i64).collect();
    let mut out = Tensors::from([
        ("mean".to_string(), cpu(&moments.mean)),
        ("logvar".to_string(), cpu(&moments.logvar)),
        ("encoder_hidden_states".to_string(), cpu(&cond.encoder_hidden_states)),
        // Whole numbers, which f16 would round.
        ("time_ids".to_string(), Tensor::from_slice(&ids).f_view([sizes.len() as i64, 6])?),
    ]);
    if let Some(added) = &cond.added {
        out.insert("text_embeds".into(), cpu(&added.text_embeds));
    }
    Ok(out)
}
