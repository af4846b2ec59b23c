//! The losses of retraining: task, output distillation, and feature distillation. Stands between the networks' outputs and the
//! trainer: [`crate::DistillTask`] calls it once per micro-batch.
//!
//! Notation: `eps_T`, `eps_S` outputs of teacher and student, `f_i^T`, `f_i^S` their features at tap i; `E` is the mean over all
//! elements and samples, as in BK-SDM (arXiv 2305.15798, equations 2 to 4).

mod settings;
mod error;
mod feature;
mod plain;
mod normalized;
#[cfg(test)]
mod tests;

pub(crate) use error::{SMALLEST_ALPHA, snr_weights};
pub use error::{mse, mse_per_sample};
pub(crate) use feature::feature_terms;
pub use feature::{FeatureLoss, FeatureLossEntry, FeatureLosses};
pub use settings::{LossConfig, NormScope};
