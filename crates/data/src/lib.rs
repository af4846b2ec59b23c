//! What models are measured and trained on: images with captions -> calibration sets, latent caches, batches.
//!
//! - [`ImageText`]: folders, tars and Parquet tables of images with captions. [`SceneSource`]: a rendered world of them.
//! - [`calibrate`], [`CalibrationSet`]: the points on which layers are scored and plans are measured.
//! - [`LatentCache`], [`ImageIndex`], [`LatentSet`]: what is encoded or looked up once; [`TrainingData`] chooses among them by settings.
//! - [`Samples`]: clean batches in a seeded order, whatever they come from.
//!
//! Knows encoders and schedules; knows neither scores nor losses. Progress is told to callbacks, which may fail with the caller's own
//! error and so stop the work.

mod error;
mod text;
mod place;
mod image_text;
mod prompts;
mod pairs;
mod scene_source;
mod scene_files;
mod encoders;
mod calibration;
mod order;
mod buckets;
mod prefetch;
mod samples;
mod latent_set;
mod latent_cache;
mod image_samples;
mod image_index;
mod training;

pub use buckets::BucketOrder;
pub use calibration::{
    CalibrationBatch, CalibrationBuilder, CalibrationOptions, CalibrationPoints, CalibrationSet, CalibrationSource, TrajectoryOptions,
    calibrate,
};
pub use encoders::{Buckets, Encoders, bucket_sizes, encoder_identity};
pub use error::{Error, Result};
pub use image_index::ImageIndex;
pub use image_samples::{Image, ImageSamples, ImageSource};
pub use image_text::{ByteRange, Columns, Found, ImageFile, ImageText, Located, Rejected, Visit};
pub use latent_cache::{
    CACHE_FORMAT, CACHE_MANIFEST, CacheEvent, CacheOptions, CacheReport, Changed, LatentCache, LatentCacheSamples, SHARD_VERSION,
};
pub use latent_set::LatentSet;
pub use order::{Shuffle, mix};
pub use pairs::{Pair, PairSource, image_batch, neighbor_batch};
pub use prompts::{Prompt, read_prompts};
pub use samples::{Batch, Conditioner, LatentSetSamples, Posterior, ReadOptions, Samples};
pub use scene_files::{SCENES_FILE, SceneChoice, SceneOptions, image_file_name, render_scenes};
pub use scene_source::SceneSource;
pub use training::{CacheData, ImageData, OpenEvent, SceneData, TrainingData, TrainingSource};
