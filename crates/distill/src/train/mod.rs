//! The training loop and what it keeps: settings, parameters, optimizer, checkpoints, log, curves. [`Task`]s come to it from
//! distillation, from layer-wise warm-up and from training from nothing; it knows none of them.

mod config;
mod task;
mod trainer;
mod log;
mod params;
mod zero;
mod checkpoint;
mod finite;
mod events;
mod logged;

pub(crate) use checkpoint::check as check_checkpoints;
pub(crate) use config::same_settings;
pub use config::{LrSchedule, TrainerConfig};
pub use events::EventWriter;
pub(crate) use finite::{check_stored, storable_in_f16};
pub use log::{LogRow, shares};
pub use logged::{LoggedRun, Validation};
pub use task::{Average, StepLoss, Task};
pub use trainer::{Control, Outcome, Progress, Trainer};
