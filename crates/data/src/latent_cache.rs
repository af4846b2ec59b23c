//! Images that were encoded before: the folder of shards that `laptop-diff cache` writes, read row by row from the memory map.
//!
//! Shapes: `B` batch, `L` latent channels, `h` `w` height and width of the latents, `S` tokens, `D` text width, `P` pooled width.

mod build;
mod former;
mod manifest;
mod shards;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use artifact::Document;
use tch::{Device, Kind, Tensor};
use unet::weights::TensorFile;
use unet::{AddedConditioning, Conditioning};

use manifest::Manifest;

use crate::buckets::BucketOrder;
use crate::error::{Error, Result};
use crate::prefetch::Prefetch;
use crate::samples::{Batch, Posterior, ReadOptions, Samples, draw};

pub use build::{CacheEvent, CacheOptions, CacheReport, Changed};
pub use manifest::{CACHE_FORMAT, CACHE_MANIFEST, SHARD_VERSION};

const MOMENTS: [&str; 2] = ["mean", "logvar"];
const STATES: &str = "encoder_hidden_states";
const POOLED: &str = "text_embeds";
const SIZES: &str = "time_ids";

/// A complete cache folder. Opening reads headers only.
#[derive(Debug)]
pub struct LatentCache {
    shards: Vec<TensorFile>,
    // Each bucket's samples: shard and row.
    buckets: Vec<Vec<(u32, u32)>>,
    manifest: String,
}

impl LatentCache {
    /// Opens `dir`, which must have been made with the parts `model` (as [`crate::encoder_identity`]). `pooled`: whether the U-Net takes pooled text.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Artifact`] or [`Error::Format`] when something is missing, damaged, unfinished, or made with another model.
    pub fn open(dir: &Path, model: &BTreeMap<String, String>, pooled: bool) -> Result<Self> {
        let path = dir.join(CACHE_MANIFEST);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let bad = |problem: String, hint: &str| Error::Format { path: path.clone(), problem, hint: hint.into() };
        let manifest = Manifest::parse(text.as_bytes(), &path)?;
        if !manifest.complete {
            return Err(bad("the cache is not complete".into(), "run the same `cache` command again; it goes on where it stopped"));
        }
        if let Some(problem) = difference(&manifest.settings.model, model) {
            return Err(bad(problem, "name the model that the cache was made with, or make a cache with this one"));
        }
        let mut cache = Self { shards: Vec::new(), buckets: Vec::new(), manifest: text };
        let mut sizes: BTreeMap<Vec<i64>, usize> = BTreeMap::new();
        for name in &manifest.shards {
            let file = TensorFile::open(dir.join(name))?;
            let (rows, latent) = check(&file, pooled)?;
            let buckets = cache.buckets.len();
            let bucket = *sizes.entry(latent).or_insert(buckets);
            if bucket == buckets {
                cache.buckets.push(Vec::new());
            }
            let shard = cache.shards.len() as u32;
            cache.buckets[bucket].extend((0..rows).map(|row| (shard, row)));
            cache.shards.push(file);
        }
        if cache.is_empty() {
            return Err(bad("the cache has no image".into(), "let `cache` make one of a folder with images and captions"));
        }
        Ok(cache)
    }

    /// Number of images.
    pub fn len(&self) -> u64 {
        self.buckets.iter().map(|b| b.len() as u64).sum()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of images of each bucket.
    pub fn buckets(&self) -> Vec<u64> {
        self.buckets.iter().map(|b| b.len() as u64).collect()
    }

    /// The manifest's text, which names the model, the settings and every shard: the identity of the data.
    pub fn manifest(&self) -> &str {
        &self.manifest
    }

    /// The given rows of a bucket, one tensor per name; nothing else of the shards is read.
    fn rows(&self, bucket: usize, rows: &[u64]) -> Result<Rows> {
        let column = |name: &str| -> Result<Option<Tensor>> {
            let mut all = Vec::with_capacity(rows.len());
            for &row in rows {
                let (shard, row) = self.buckets[bucket][row as usize];
                all.extend(self.shards[shard as usize].rows(name, &[u64::from(row)])?);
            }
            Ok(if all.is_empty() { None } else { Some(Tensor::f_cat(&all, 0)?) })
        };
        let needed = |name: &str| {
            column(name)?.ok_or_else(|| Error::Input { name: name.into(), expected: "a tensor of the shard".into(), got: "nothing".into() })
        };
        Ok(Rows {
            mean: needed(MOMENTS[0])?,
            logvar: needed(MOMENTS[1])?,
            states: needed(STATES)?,
            pooled: column(POOLED)?,
            sizes: needed(SIZES)?,
        })
    }
}

/// The first part in which two models differ, in words.
fn difference(cached: &BTreeMap<String, String>, model: &BTreeMap<String, String>) -> Option<String> {
    let short = |hash: Option<&String>| hash.map_or("absent".to_string(), |h| h.chars().take(12).collect());
    let names = cached.keys().chain(model.keys());
    let name = names.filter(|name| cached.get(*name) != model.get(*name)).min()?;
    let (was, is) = (short(cached.get(name)), short(model.get(name)));
    Some(format!("made with another model: {name} was {was} there and is {is} here (SHA-256)"))
}

/// Rows of a shard, and the shape of one latent.
fn check(file: &TensorFile, pooled: bool) -> Result<(u32, Vec<i64>)> {
    let bad = |problem: String| Error::Format { path: file.path().into(), problem, hint: "let `cache` write the folder again".into() };
    let meta = |key: &str| file.metadata().get(key).map(String::as_str);
    let version = meta("version").and_then(|version| version.parse().ok());
    if meta("format") != Some(CACHE_FORMAT) || !version.is_some_and(|version| (1..=SHARD_VERSION).contains(&version)) {
        return Err(bad(format!("not a shard of {CACHE_FORMAT} version 1 to {SHARD_VERSION}")));
    }
    let names: Vec<&str> = MOMENTS.into_iter().chain([STATES, SIZES]).chain(pooled.then_some(POOLED)).collect();
    let mut rows = None;
    for name in names {
        let shape = file.shape(name).ok_or_else(|| bad(format!("no tensor `{name}`")))?;
        let dims = if MOMENTS.contains(&name) { 4 } else { 2 };
        if shape.len() < dims || *rows.get_or_insert(shape[0]) != shape[0] {
            return Err(bad(format!("tensor `{name}` has the shape {shape:?}, which is not of as many images as the others")));
        }
    }
    let latent = file.shape(MOMENTS[0]).map(|s| s[1..].to_vec()).unwrap_or_default();
    if file.shape(MOMENTS[1]).map(|s| &s[1..]) != Some(latent.as_slice()) {
        return Err(bad(format!("`{}` and `{}` differ in shape", MOMENTS[0], MOMENTS[1])));
    }
    Ok((rows.unwrap_or(0) as u32, latent))
}

/// A batch as it stands in the files.
struct Rows {
    // [B, L, h, w]
    mean: Tensor,
    logvar: Tensor,
    // [B, S, D]
    states: Tensor,
    // [B, P]
    pooled: Option<Tensor>,
    // [B, 6], i64
    sizes: Tensor,
}

/// Training samples from a cache.
pub struct LatentCacheSamples {
    rows: Prefetch<Rows>,
    posterior: Posterior,
    scaling: f64,
    seed: u64,
    device: Device,
}

impl LatentCacheSamples {
    /// Samples of `cache` in batches of one bucket; `scaling` is the VAE's scaling factor.
    ///
    /// # Errors
    /// As [`BucketOrder::new`].
    pub fn new(cache: Arc<LatentCache>, scaling: f64, reading: ReadOptions) -> Result<Self> {
        let order = BucketOrder::new(&cache.buckets(), reading.batch, reading.seed)?;
        let read = Arc::new(move |bucket: usize, rows: &[u64]| cache.rows(bucket, rows));
        let ReadOptions { seed, posterior, workers, stride, device, .. } = reading;
        Ok(Self { rows: Prefetch::new(order, read, workers, stride), posterior, scaling, seed, device })
    }
}

impl Samples for LatentCacheSamples {
    fn batch(&mut self, micro: u64) -> Result<Batch> {
        let Rows { mean, logvar, states, pooled, sizes } = self.rows.get(micro)?;
        let here = |t: &Tensor| t.to_device(self.device).to_kind(Kind::Float);
        let latents = draw(&here(&mean), &here(&logvar), self.posterior, self.seed, micro) * self.scaling;
        let added = pooled.map(|pooled| AddedConditioning { text_embeds: here(&pooled), time_ids: here(&sizes) });
        Ok(Batch { latents, cond: Conditioning { encoder_hidden_states: here(&states), added, guidance: None } })
    }
}
