//! What a U-Net is trained on, from settings: rendered scenes, a cache, or images encoded in the step. Settings -> **batches** ->
//! noise and losses.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::{file_sha256, sha256};
use diffusion::Pipeline;
use serde::{Deserialize, Serialize};

use crate::encoders::{bucket_sizes, encoder_identity};
use crate::error::{Error, Result};
use crate::image_index::ImageIndex;
use crate::image_samples::{ImageSamples, ImageSource};
use crate::image_text::ImageText;
use crate::latent_cache::{LatentCache, LatentCacheSamples};
use crate::latent_set::LatentSet;
use crate::order::Shuffle;
use crate::samples::{Conditioner, LatentSetSamples, Posterior, ReadOptions, Samples};
use crate::scene_source::SceneSource;

/// Training data. Relative paths start at the folder of the settings file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum TrainingData {
    /// Rendered scenes of the training split.
    Scenes(SceneData),
    /// A folder that [`LatentCache::build`] made with this model's autoencoder and text encoders.
    Cache(CacheData),
    /// Images with captions, encoded in the step that trains on them.
    Images(ImageData),
}

/// `source = "scenes"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SceneData {
    /// Seed of the stream of scenes.
    pub seed: u64,
    /// Images encoded once.
    pub count: u64,
    /// Share of captions dropped, so that guidance keeps working.
    pub caption_dropout: f64,
    /// Strength of a noise that is one number per sample and channel.
    #[serde(default)]
    pub offset_noise: f64,
}

/// `source = "cache"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheData {
    /// The folder.
    pub path: PathBuf,
    /// `sample` draws each latent from the autoencoder's answer anew, `mean` takes the middle.
    #[serde(default = "sample")]
    pub latents: Posterior,
    /// Threads that read ahead; they change no bit.
    #[serde(default = "two")]
    pub workers: usize,
    /// As [`SceneData::caption_dropout`].
    pub caption_dropout: f64,
    /// As [`SceneData::offset_noise`].
    #[serde(default)]
    pub offset_noise: f64,
}

/// `source = "images"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageData {
    /// Folders and WebDataset tars: 0001.jpg beside 0001.txt.
    pub paths: Vec<PathBuf>,
    /// As in [`bucket_sizes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// As in [`bucket_sizes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i64>,
    /// The run stops when more images than this are damaged or have no caption.
    #[serde(default = "hundred")]
    pub max_bad: usize,
    /// As [`CacheData::latents`].
    #[serde(default = "sample")]
    pub latents: Posterior,
    /// As [`CacheData::workers`].
    #[serde(default = "two")]
    pub workers: usize,
    /// As [`SceneData::caption_dropout`].
    pub caption_dropout: f64,
    /// As [`SceneData::offset_noise`].
    #[serde(default)]
    pub offset_noise: f64,
}

fn sample() -> Posterior {
    Posterior::Sample
}

fn two() -> usize {
    2
}

fn hundred() -> usize {
    100
}

const MOST_WORKERS: usize = 256;

impl TrainingData {
    /// Refuses settings out of range.
    ///
    /// # Errors
    /// [`Error::Input`] with the key, beginning with `data.`
    pub fn check(&self) -> Result<()> {
        let refuse =
            |key: &str, expected: &str, got: String| Err(Error::Input { name: format!("data.{key}"), expected: expected.into(), got });
        match self {
            Self::Scenes(s) if s.count == 0 => return refuse("count", "at least 1", "0".into()),
            Self::Images(i) if i.paths.is_empty() => return refuse("paths", "at least one folder or tar", "none".into()),
            Self::Scenes(_) | Self::Cache(_) | Self::Images(_) => {}
        }
        if self.workers() > MOST_WORKERS {
            return refuse("workers", &format!("at most {MOST_WORKERS}"), self.workers().to_string());
        }
        let (dropout, offset) = (self.caption_dropout(), self.offset_noise());
        if !(0.0..=1.0).contains(&dropout) {
            return refuse("caption_dropout", "0 to 1", dropout.to_string());
        }
        if !(offset >= 0.0 && offset.is_finite()) {
            return refuse("offset_noise", "0 or more", offset.to_string());
        }
        Ok(())
    }

    /// As [`SceneData::caption_dropout`].
    pub fn caption_dropout(&self) -> f64 {
        match self {
            Self::Scenes(s) => s.caption_dropout,
            Self::Cache(c) => c.caption_dropout,
            Self::Images(i) => i.caption_dropout,
        }
    }

    /// As [`SceneData::offset_noise`].
    pub fn offset_noise(&self) -> f64 {
        match self {
            Self::Scenes(s) => s.offset_noise,
            Self::Cache(c) => c.offset_noise,
            Self::Images(i) => i.offset_noise,
        }
    }

    fn workers(&self) -> usize {
        match self {
            Self::Scenes(_) => 0,
            Self::Cache(c) => c.workers,
            Self::Images(i) => i.workers,
        }
    }

    fn posterior(&self) -> Posterior {
        match self {
            Self::Scenes(_) => Posterior::Mean,
            Self::Cache(c) => c.latents,
            Self::Images(i) => i.latents,
        }
    }

    // What of the settings decides about the numbers of a run: a folder may move, and threads change nothing.
    fn identity(&self) -> String {
        let mut settings = serde_json::to_value(self).expect("settings are JSON");
        if let Some(table) = settings.as_object_mut() {
            table.retain(|key, _| !matches!(key.as_str(), "path" | "paths" | "workers" | "max_bad"));
        }
        settings.to_string()
    }
}

/// What is told while training data are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenEvent {
    /// Images found so far, for an index.
    Indexed(u64),
    /// Scenes encoded so far. What is encoded is lost when the callback fails here.
    Encoded(u64),
}

/// Training data, opened.
#[derive(Debug)]
pub struct TrainingSource {
    source: Source,
    identity: String,
    posterior: Posterior,
    workers: usize,
}

#[derive(Debug)]
enum Source {
    Scenes(LatentSet),
    Cache(Arc<LatentCache>),
    Images(Arc<ImageIndex>),
}

impl TrainingSource {
    /// Opens the data of settings whose paths start at the folder `base`; what must be computed or looked up once is kept in `work`.
    ///
    /// # Errors
    /// Those of [`TrainingData::check`], [`LatentCache::open`] and [`ImageIndex::open`]; what `progress` fails with.
    pub fn open<E: From<Error>>(
        data: &TrainingData,
        pipeline: &Pipeline,
        base: &Path,
        work: &Path,
        progress: &mut dyn FnMut(OpenEvent) -> std::result::Result<(), E>,
    ) -> std::result::Result<Self, E> {
        data.check()?;
        let (source, content) = match data {
            TrainingData::Scenes(scenes) => (Source::Scenes(encode_scenes(scenes, pipeline, work, progress)?), None),
            TrainingData::Cache(cached) => {
                let cache = open_cache(cached, pipeline, base)?;
                let hash = sha256(cache.manifest());
                (Source::Cache(Arc::new(cache)), Some(hash))
            }
            TrainingData::Images(images) => {
                let buckets = bucket_sizes(images.size, images.step, pipeline.unet().config(), pipeline.vae().config())?;
                let source = ImageText::open(images.paths.iter().map(|path| base.join(path)))?;
                let progress = &mut |n| progress(OpenEvent::Indexed(n));
                let index = ImageIndex::open(work, &source, &buckets.sizes, images.max_bad, progress)?;
                let hash = index.sha256().to_string();
                (Source::Images(Arc::new(index)), Some(hash))
            }
        };
        let settings = data.identity();
        let identity = match content {
            None => settings,
            Some(hash) => format!("{settings} of content {hash}"),
        };
        Ok(Self { source, identity, posterior: data.posterior(), workers: data.workers() })
    }

    /// What the numbers of a run depend on.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Images in an epoch.
    pub fn images(&self) -> u64 {
        match &self.source {
            Source::Scenes(set) => set.len(),
            Source::Cache(cache) => cache.len(),
            Source::Images(index) => index.buckets().iter().sum(),
        }
    }

    /// Batches of `batch` samples in the order of `seed`, for one of `ranks` ranks that share the data. `conditioner` is used for scenes
    /// alone.
    ///
    /// # Errors
    /// [`Error::Input`] for a batch of nothing.
    pub fn samples<'a>(
        &'a self,
        pipeline: &'a Pipeline,
        conditioner: &'a Conditioner<'a>,
        batch: u64,
        seed: u64,
        ranks: u64,
    ) -> Result<Box<dyn Samples + 'a>> {
        let device = pipeline.device();
        let reading = ReadOptions { batch, seed, posterior: self.posterior, workers: self.workers, stride: ranks, device };
        Ok(match &self.source {
            Source::Scenes(set) => Box::new(LatentSetSamples { set, order: Shuffle::new(set.len(), seed), conditioner, batch, device }),
            Source::Cache(cache) => Box::new(LatentCacheSamples::new(cache.clone(), pipeline.vae().config().scaling_factor, reading)?),
            Source::Images(index) => Box::new(ImageSamples::new(index.clone(), pipeline.vae(), pipeline.text(), reading)?),
        })
    }
}

fn open_cache(cached: &CacheData, pipeline: &Pipeline, base: &Path) -> Result<LatentCache> {
    let pooled = pipeline.unet().config().added.is_some();
    LatentCache::open(&base.join(&cached.path), &encoder_identity(pipeline.dir())?, pooled)
}

/// The encoded scenes, from the work folder when they are there already.
fn encode_scenes<E: From<Error>>(
    data: &SceneData,
    pipeline: &Pipeline,
    work: &Path,
    progress: &mut dyn FnMut(OpenEvent) -> std::result::Result<(), E>,
) -> std::result::Result<LatentSet, E> {
    let (height, width) = pipeline.native_size().unwrap_or((512, 512));
    if height != width {
        let got = format!("a model that makes {height} x {width} pixels, and scenes are square");
        return Err(Error::Input { name: "data.source".into(), expected: "\"cache\" or \"images\"".into(), got }.into());
    }
    let (path, made_from) = (work.join("latents.safetensors"), scenes_identity(data, pipeline, height)?);
    if let Some(set) = LatentSet::open(&path, &made_from)? {
        return Ok(set);
    }
    let source = SceneSource::new(data.seed, height as usize)?;
    let progress = &mut |n| progress(OpenEvent::Encoded(n));
    let set = LatentSet::encode(&source, pipeline.vae(), data.count, pipeline.device(), progress)?;
    set.save(&path, &made_from)?;
    Ok(set)
}

fn scenes_identity(data: &SceneData, pipeline: &Pipeline, size: i64) -> Result<String> {
    let vae = file_sha256(&pipeline.dir().encoder_files()?[0])?;
    Ok(format!("scenes seed {} size {size} count {} VAE {vae} in {:?}", data.seed, data.count, pipeline.vae().kind()))
}
