//! What models are measured and trained on: images with captions -> latents, batches, calibration sets.
//!
//! Knows encoders and schedules; knows neither scores nor losses.

mod error;
mod pairs;
mod order;
mod buckets;
mod prefetch;
mod samples;
mod latents;
mod picture_samples;
mod shard_cache;
mod calibration;

pub use buckets::BucketOrder;
pub use calibration::{CalibrationBatch, CalibrationSet, CalibrationSource, TrajectoryOptions};
pub use error::{Error, Result};
pub use latents::LatentCache;
pub use order::{Shuffle, mix};
pub use pairs::{Pair, PairSource, neighbor_batch, picture_batch};
pub use picture_samples::{Picture, PictureSamples, PictureSource};
pub use samples::{Batch, CachedSamples, Conditioner, Posterior, Samples};
pub use shard_cache::{CACHE_FORMAT, CACHE_MANIFEST, CACHE_VERSION, Reading, ShardCache, ShardSamples};
