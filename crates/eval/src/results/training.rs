//! Rows of the results about retraining: settings and the loss curve with each feature term. Evaluation stage.

use serde::{Deserialize, Serialize};

/// Which feature loss a run used (method section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureLoss {
    /// Sum of squared errors, as BK-SDM (arXiv 2305.15798).
    Plain,
    /// Each term divided by the size of the teacher's feature, as LAPTOP-Diff (arXiv 2404.11098).
    Normalized,
    /// Directions of the channels at each position.
    Direction,
    /// Normalized, without the elements that are large in the teacher.
    Masked,
    /// No feature term.
    None,
}

/// One retraining run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DistillRun {
    /// Unique machine name, such as `normalized-0.5`.
    pub name: String,
    /// Name for people.
    pub label: String,
    /// The plan whose student was trained.
    pub plan: String,
    /// The feature loss.
    pub feature_loss: FeatureLoss,
    /// Optimizer steps.
    pub steps: u64,
    /// Samples per step.
    pub batch: u64,
    /// Learning rate (the highest of a schedule).
    pub learning_rate: f64,
    /// Seed of data order, noise and timesteps.
    pub seed: u64,
    /// Weight of the task loss.
    pub weight_task: f64,
    /// Weight of the output distillation loss.
    pub weight_out: f64,
    /// Weight of the feature distillation loss.
    pub weight_feat: f64,
    /// Names of the feature terms, in the order of [`LossPoint::terms`].
    pub terms: Vec<String>,
    /// The curve, by ascending step.
    pub curve: Vec<LossPoint>,
}

/// One point of a loss curve (the mean since the last one).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Step, from 1.
    pub step: u64,
    /// The weighted total.
    pub total: f64,
    /// Task loss, unweighted.
    pub task: f64,
    /// Output distillation loss, unweighted.
    pub out_kd: f64,
    /// Feature distillation loss, unweighted: the sum of `terms`.
    pub feat_kd: f64,
    /// Each feature term as it enters the sum (after normalisation).
    pub terms: Vec<f64>,
}

impl LossPoint {
    /// Each term's share of their sum; all zero when the sum is zero.
    pub fn shares(&self) -> Vec<f64> {
        let sum: f64 = self.terms.iter().sum();
        self.terms.iter().map(|t| if sum > 0.0 { t / sum } else { 0.0 }).collect()
    }
}
