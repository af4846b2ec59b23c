//! What `distill` trains on: rendered scenes, a cache of encoded pictures, or pictures encoded in the step.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::{CachedSamples, Conditioner, LatentCache, PictureSamples, PictureSource, Posterior, Reading, ShardCache, ShardSamples, Shuffle};
use diffusion::picture::aspect_sizes;
use diffusion::{NoiseSchedule, Pipeline};
use distill::{EmptyPrompt, LatentData, TrainerConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use unet::weights::{TensorFile, hex};

use crate::common::{BadInput, Interrupted, file_hash, stop_flag, stopped};
use crate::encoding::{encoder_identity, settle_size};
use crate::picture_index::Pictures;
use crate::progress;
use crate::scene_source::SceneSource;

/// Training data. Relative paths start at the folder of the settings file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Data {
    /// Rendered scenes of the training split.
    Scenes(Scenes),
    /// A folder that `cache` wrote with this model's autoencoder and text encoders.
    Cache(Cached),
    /// Pictures with captions, encoded in the step that trains on them.
    Images(Images),
}

/// `source = "scenes"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenes {
    /// Seed of the stream of scenes.
    pub seed: u64,
    /// Pictures encoded once.
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
pub struct Cached {
    /// The folder.
    pub path: PathBuf,
    /// `sample` draws each latent from the autoencoder's answer anew, `mean` takes the middle.
    #[serde(default = "sample")]
    pub latents: Posterior,
    /// Threads that read ahead; they change no bit.
    #[serde(default = "two")]
    pub workers: usize,
    /// As [`Scenes::caption_dropout`].
    pub caption_dropout: f64,
    /// As [`Scenes::offset_noise`].
    #[serde(default)]
    pub offset_noise: f64,
}

/// `source = "images"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// Folders and WebDataset tars: 0001.jpg beside 0001.txt.
    pub paths: Vec<PathBuf>,
    /// Side in pixels of the square that every bucket has the area of [default: the model's own].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// Sides of buckets are multiples of this [default: 64 from 512 pixels on, else the least that the model takes].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i64>,
    /// The run stops when more pictures than this are damaged or have no caption.
    #[serde(default = "hundred")]
    pub max_bad: usize,
    /// As [`Cached::latents`].
    #[serde(default = "sample")]
    pub latents: Posterior,
    /// As [`Cached::workers`].
    #[serde(default = "two")]
    pub workers: usize,
    /// As [`Scenes::caption_dropout`].
    pub caption_dropout: f64,
    /// As [`Scenes::offset_noise`].
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

impl Data {
    /// Refuses settings out of range.
    pub fn check(&self, file: &Path) -> anyhow::Result<()> {
        let refuse = |key: &str, expected: &str, got: String| -> anyhow::Result<()> {
            Err(BadInput(format!("{}: data.{key}: expected {expected}, got {got}", file.display())).into())
        };
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

    fn caption_dropout(&self) -> f64 {
        match self {
            Self::Scenes(s) => s.caption_dropout,
            Self::Cache(c) => c.caption_dropout,
            Self::Images(i) => i.caption_dropout,
        }
    }

    fn offset_noise(&self) -> f64 {
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

    // What of the settings decides about the numbers of a run: a folder may move, and threads change nothing.
    fn identity(&self) -> serde_json::Result<serde_json::Value> {
        let mut settings = serde_json::to_value(self)?;
        if let Some(table) = settings.as_object_mut() {
            table.retain(|key, _| !matches!(key.as_str(), "path" | "paths" | "workers" | "max_bad"));
        }
        Ok(settings)
    }
}

/// Training data, opened.
pub struct Opened {
    source: Source,
    identity: String,
}

enum Source {
    Scenes(LatentCache),
    Cache(Arc<ShardCache>),
    Images(Arc<Pictures>),
}

impl Opened {
    /// Opens the data of a settings file in the folder `base`; what must be computed or looked up once is kept in `work`.
    pub fn new(data: &Data, pipeline: &Pipeline, base: &Path, work: &Path) -> anyhow::Result<Self> {
        let settings = data.identity()?;
        let (source, content) = match data {
            Data::Scenes(scenes) => (Source::Scenes(latents(scenes, pipeline, work)?), None),
            Data::Cache(cached) => {
                let pooled = pipeline.unet().config().added.is_some();
                let cache = ShardCache::open(&base.join(&cached.path), &encoder_identity(pipeline.dir())?, pooled)?;
                let hash = hex(&Sha256::digest(cache.manifest()));
                (Source::Cache(Arc::new(cache)), Some(hash))
            }
            Data::Images(images) => {
                let (size, step) = settle_size(images.size, images.step, pipeline.unet().config(), pipeline.vae().config())?;
                let (index, sources) = (work.join("pictures.json"), images.paths.iter().map(|p| base.join(p)).collect::<Vec<_>>());
                let pictures = Pictures::open(&index, &sources, &aspect_sizes(size, step), images.max_bad)?;
                (Source::Images(Arc::new(pictures)), Some(file_hash(&index)?))
            }
        };
        let identity = match content {
            None => settings.to_string(),
            Some(hash) => format!("{settings} of content {hash}"),
        };
        Ok(Self { source, identity })
    }

    /// What the numbers of a run depend on.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Pictures in an epoch.
    pub fn pictures(&self) -> u64 {
        match &self.source {
            Source::Scenes(cache) => cache.len(),
            Source::Cache(cache) => cache.len(),
            Source::Images(pictures) => pictures.buckets().iter().sum(),
        }
    }

    /// The data as training takes them, for one of `ranks` ranks that share them. `conditioner` is used for scenes alone.
    pub fn training<'a>(
        &'a self,
        data: &Data,
        trainer: &TrainerConfig,
        pipeline: &'a Pipeline,
        conditioner: &'a Conditioner<'a>,
        ranks: u64,
    ) -> anyhow::Result<LatentData<'a>> {
        let (device, batch, seed) = (pipeline.device(), trainer.batch, trainer.seed);
        let reading = |posterior| Reading { batch, seed, posterior, workers: data.workers(), stride: ranks, device };
        let schedule: &NoiseSchedule = pipeline.schedule();
        Ok(LatentData {
            samples: match (&self.source, data) {
                (Source::Cache(cache), Data::Cache(c)) => {
                    Box::new(ShardSamples::new(cache.clone(), pipeline.vae().config().scaling_factor, reading(c.latents))?)
                }
                (Source::Images(pictures), Data::Images(i)) => {
                    Box::new(PictureSamples::new(pictures.clone(), pipeline.vae(), pipeline.text(), reading(i.latents))?)
                }
                (Source::Scenes(cache), _) => {
                    Box::new(CachedSamples { cache, order: Shuffle::new(cache.len(), seed), conditioner, batch, device })
                }
                (Source::Cache(_) | Source::Images(_), _) => return Err(BadInput("data.source: not what was opened".into()).into()),
            },
            schedule,
            caption_dropout: data.caption_dropout(),
            empty: EmptyPrompt::new(pipeline.text(), pipeline.dir().force_zeros_for_empty_prompt())?,
            offset_noise: data.offset_noise(),
            seed,
            device,
            compute: trainer.compute,
        })
    }
}

/// The encoded scenes, from the work folder when they are there already.
fn latents(data: &Scenes, pipeline: &Pipeline, work: &Path) -> anyhow::Result<LatentCache> {
    let (height, width) = pipeline.native_size().unwrap_or((512, 512));
    if height != width {
        return Err(BadInput(format!("data.source = \"scenes\": scenes are square, this model makes {height} x {width} pixels")).into());
    }
    let files = unet::weights::component_files(&pipeline.dir().vae(), "diffusion_pytorch_model")?;
    let vae = TensorFile::open(&files[0])?.sha256();
    let kind = pipeline.vae().kind();
    let made_from = format!("scenes seed {} size {height} count {} VAE {vae} in {kind:?}", data.seed, data.count);
    let path = work.join("latents.safetensors");
    if let Some(cache) = LatentCache::open(&path, &made_from)? {
        return Ok(cache);
    }
    let source = SceneSource::new(data.seed, height as usize)?;
    let (stop, bar) = (stop_flag()?, progress::bar("latents", data.count));
    let cache = LatentCache::encode(&source, pipeline.vae(), 0, data.count, pipeline.device(), &mut |n| bar.set_position(n))?;
    bar.finish_and_clear();
    cache.save(&path, &made_from)?;
    if stopped(&stop) {
        return Err(Interrupted("stopped before the first step; run the same command to go on".into()).into());
    }
    Ok(cache)
}
