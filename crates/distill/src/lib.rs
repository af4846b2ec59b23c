//! Normalized feature distillation of pruned U-Nets, and training from nothing by the same loop: pruned model -> distillation.
//!
//! A [`Task`] turns parameters and a step number into a loss; a [`Trainer`] does the rest. Nothing here knows plans or metrics.

mod adamw;
mod checkpoint;
mod config;
mod distillation;
mod error;
mod events;
mod from_scratch;
mod local;
mod lora;
mod losses;
mod noise;
mod params;
mod shards;
mod trainer;

pub use config::{Compute, LrSchedule, TrainerConfig};
pub use distillation::{DistillTask, shares};
pub use error::{Error, Result};
pub use events::EventWriter;
pub use from_scratch::{
    ClipTask, ClipTaskConfig, DenoiserTask, DenoiserTaskConfig, GroundingTask, GroundingTaskConfig, VaeTask, VaeTaskConfig, below,
    initial_unet,
};
pub use local::LocalTask;
pub use lora::{Lora, LoraConfig, LoraTarget};
pub use losses::{FeatureLoss, FeatureTerms, LossConfig, NormScope, mse, mse_per_sample};
pub use noise::{EmptyPrompt, LatentData, StepNoise};
pub use trainer::{Average, Control, LogRow, Outcome, Progress, StepLoss, Task, Trainer};
