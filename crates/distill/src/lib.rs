//! Normalized feature distillation of pruned U-Nets, and training from nothing by the same loop: pruned model -> distillation.
//!
//! A [`Task`] turns parameters and a step number into a loss; a [`Trainer`] does the rest. Nothing here knows plans or metrics.

mod buckets;
mod checkpoint;
mod config;
mod data;
mod distillation;
mod error;
mod events;
mod from_scratch;
mod latents;
mod local;
mod lora;
mod losses;
mod params;
mod shards;
mod picture_samples;
mod prefetch;
mod shard_cache;
mod trainer;

pub use buckets::BucketOrder;
pub use config::{Compute, LrSchedule, TrainerConfig};
pub use data::{Pair, PairSource, Shuffle, StepNoise, mix, picture_batch};
pub use distillation::{DistillTask, shares};
pub use error::{Error, Result};
pub use events::EventWriter;
pub use from_scratch::{
    ClipTask, ClipTaskConfig, DenoiserTask, DenoiserTaskConfig, GroundingTask, GroundingTaskConfig, VaeTask, VaeTaskConfig, below,
    initial_unet,
};
pub use latents::{Batch, CachedSamples, Conditioner, EmptyPrompt, LatentCache, LatentData, Posterior, Samples};
pub use local::LocalTask;
pub use lora::{Lora, LoraConfig, LoraTarget};
pub use losses::{FeatureLoss, FeatureTerms, LossConfig, NormScope, mse, mse_per_sample};
pub use picture_samples::{Picture, PictureSamples, PictureSource};
pub use shard_cache::{CACHE_FORMAT, CACHE_MANIFEST, CACHE_VERSION, Reading, ShardCache, ShardSamples};
pub use trainer::{Average, Control, LogRow, Outcome, Progress, StepLoss, Task, Trainer};
