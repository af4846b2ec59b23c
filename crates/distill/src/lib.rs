//! Normalized feature distillation of pruned U-Nets, and training from nothing by the same loop: pruned model -> distillation.
//!
//! 1. [`FeatureLoss`], [`LossConfig`]: what a difference of outputs and features costs.
//! 2. [`Task`], [`Trainer`]: a task turns parameters and the number of a micro-batch into a loss; the trainer does the rest.
//! 3. [`DistillTask`], [`LayerwiseTask`], [`Lora`]: retraining under a teacher.
//! 4. [`Session`]: a whole distillation from settings to [`Record`]. [`ScratchSession`]: a whole model from nothing.
//!
//! Nothing here knows plans or metrics.

mod loss;
mod train;
mod noise;
mod distillation;
mod layerwise;
mod lora;
mod from_scratch;
mod session;
mod record;
mod error;

pub use distillation::DistillTask;
pub use error::{Error, Result};
pub use from_scratch::{
    ClipTask, ClipTaskConfig, DenoiserTask, DenoiserTaskConfig, FirstTextEncoder, GroundingTask, GroundingTaskConfig, Phase, ScratchData,
    ScratchSession, ScratchSettings, Section, UnetSection, VaeTask, VaeTaskConfig, below, initial_unet,
};
pub use layerwise::LayerwiseTask;
pub use lora::{Lora, LoraConfig, LoraTarget};
pub use loss::{FeatureLoss, FeatureLossEntry, FeatureLosses, LossConfig, NormScope, mse, mse_per_sample};
pub use noise::{EmptyPrompt, LatentData, StepNoise};
pub use record::Record;
pub use session::{
    Event, Finished, OnEvent, Session, SessionOptions, Settings, StudentSource, Summary, Taps, ValidationRow, ValidationSettings,
};
pub use train::{
    Average, Control, EventWriter, LogRow, LoggedRun, LrSchedule, Outcome, Progress, StepLoss, Task, Trainer, TrainerConfig, Validation,
    shares,
};
pub use unet::Compute;
