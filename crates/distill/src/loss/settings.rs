//! Which losses there are in a run, and how much each counts: the table `[losses]` of the settings.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Over what the teacher's norm is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormScope {
    /// Each sample by its own norm.
    Sample,
    /// The whole batch by one norm.
    Batch,
    /// A moving average of the batch norms of the steps before (decay 0.99); in the first step the batch's own.
    Running,
}

/// Weights and forms of the terms of `L = task_weight * L_task + output_weight * L_outKD + feature_weight * L_featKD`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of the task loss `E||target - eps_S||^2`.
    pub task_weight: f64,
    /// Weight of the output distillation `E||eps_T - eps_S||^2`.
    pub output_weight: f64,
    /// Weight of the feature distillation.
    pub feature_weight: f64,
    /// Its form: the name of one of the run's [`crate::FeatureLosses`].
    pub feature_loss: String,
    /// 2: `alpha_i = mean(f^2)`, a relative squared error. 1: `alpha_i = sqrt(mean(f^2))`.
    pub norm_power: u8,
    /// What the mean runs over.
    pub norm_scope: NormScope,
    /// For `masked`: an element is left out when the teacher's feature exceeds this many times its root mean square, taken over
    /// the sample or the batch as `norm_scope` says.
    #[serde(default = "default_mask_threshold")]
    pub mask_threshold: f64,
    /// Weighs each sample of the task and output terms by min(SNR, gamma) in x0 terms (Min-SNR, arXiv 2303.09556);
    /// 0 weighs all alike. Feature terms are not weighed.
    #[serde(default)]
    pub min_snr_gamma: f64,
}

// Three standard deviations of a centred feature.
fn default_mask_threshold() -> f64 {
    3.0
}

impl LossConfig {
    /// Checks the ranges. That `feature_loss` is known is checked where it is looked up, by [`crate::FeatureLosses::entry`].
    ///
    /// # Errors
    /// [`Error::Config`] naming the first setting out of range.
    pub fn check(&self) -> Result<()> {
        if !matches!(self.norm_power, 1 | 2) {
            return Err(Error::Config { key: "norm_power".into(), expected: "1 or 2".into(), got: self.norm_power.to_string() });
        }
        if !(self.mask_threshold >= 1.0 && self.mask_threshold.is_finite()) {
            let (key, got) = ("mask_threshold".into(), self.mask_threshold.to_string());
            return Err(Error::Config { key, expected: "a number from 1 on".into(), got });
        }
        let weights = [
            ("task_weight", self.task_weight),
            ("output_weight", self.output_weight),
            ("feature_weight", self.feature_weight),
            ("min_snr_gamma", self.min_snr_gamma),
        ];
        for (key, w) in weights {
            if !(w >= 0.0 && w.is_finite()) {
                return Err(Error::Config { key: key.into(), expected: "a number of 0 or more".into(), got: w.to_string() });
            }
        }
        Ok(())
    }
}
