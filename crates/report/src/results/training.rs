//! Retraining runs: settings and the loss curve with each feature term. Records and logs -> **results** -> charts.

use distill::{FeatureLosses, LogRow, LossConfig, Record, TrainerConfig};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::results::PlanRow;
use crate::run_dir::Training;

/// One retraining run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DistillRun {
    /// Unique machine name, such as `normalized`: that of its folder.
    pub name: String,
    /// Name for people.
    pub label: String,
    /// The plan whose student was trained.
    pub plan: String,
    /// Settings of the loss.
    pub losses: LossConfig,
    /// Settings of the loop.
    pub trainer: TrainerConfig,
    /// Names of the feature terms, in the order of [`LossPoint::terms`].
    pub terms: Vec<String>,
    /// The curve, by ascending step.
    pub curve: Vec<LossPoint>,
}

/// One point of a loss curve (the mean since the last one).
#[derive(Debug, Clone, PartialEq, Serialize)]
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

impl DistillRun {
    /// What a training's record and log say.
    ///
    /// # Errors
    /// [`Error::File`] when its plan is not among `plans`, or its log is damaged.
    pub fn of(training: &Training, plans: &[PlanRow]) -> Result<Self> {
        let bad = |problem: String| Error::file(&training.dir, problem, "give `distill` a plan of this run's plans/ folder");
        let name = training.record.plan.clone().ok_or_else(|| bad("its record names no plan".into()))?;
        let plan = plans.iter().find(|p| p.name == name).ok_or_else(|| bad(format!("its plan `{name}` is not among plans/")))?;
        let mut log = training.log()?;
        // Of rows without a finite step there is nothing to draw.
        log.retain(|row| row.loss.is_finite());
        let (losses, trainer) = settings(training)?;
        let last = log.last().map_or(Vec::new(), |row| row.terms.keys().cloned().collect());
        let terms: Vec<String> = last.iter().filter_map(|key| key.strip_prefix("feat.")).map(str::to_string).collect();
        Ok(Self {
            label: label(plan, &losses),
            curve: log.iter().map(|row| point(row, &losses, &terms)).collect(),
            name: training.name.clone(),
            plan: name,
            losses,
            trainer,
            terms,
        })
    }
}

/// A row of the log, which holds weighted terms.
fn point(row: &LogRow, losses: &LossConfig, terms: &[String]) -> LossPoint {
    let plain = |key: &str, weight: f64| {
        let value = row.terms.get(key).copied().unwrap_or(0.0);
        if weight > 0.0 { value / weight } else { 0.0 }
    };
    let of_terms: Vec<f64> = terms.iter().map(|t| plain(&format!("feat.{t}"), losses.feature_weight)).collect();
    LossPoint {
        step: row.step,
        total: row.loss,
        task: plain("task", losses.task_weight),
        out_kd: plain("out", losses.output_weight),
        feat_kd: of_terms.iter().sum(),
        terms: of_terms,
    }
}

/// The settings of a training, which its record was read with.
pub(super) fn settings(training: &Training) -> Result<(LossConfig, TrainerConfig)> {
    let bad = |e: serde_json::Error| Error::file(training.dir.join(Record::FILE), e.to_string(), "let `distill` write it again");
    Ok((training.record.losses().map_err(bad)?, training.record.trainer().map_err(bad)?))
}

/// A student in words.
pub(super) fn label(plan: &PlanRow, losses: &LossConfig) -> String {
    format!("{} {}, {}", plan.label, plan.ratio, feature_loss_words(&losses.feature_loss))
}

/// A feature loss in words; a caller's own has its name.
fn feature_loss_words(name: &str) -> String {
    FeatureLosses::builtin().entry(name).map_or_else(|_| format!("{name} features"), |entry| entry.words.into())
}
