//! The U-Nets that made images, with their roles, and what others published. Evaluation, plans and trainings -> **results**.

use artifact::{Contradiction, Document};
use eval::{EvalFile, EvalRow, KindAccuracy, MetricValue};
use serde::{Deserialize, Serialize};

use super::training::{self, settings};
use crate::error::{Error, Result};
use crate::results::PlanRow;
use crate::run_dir::{RunDir, Training};

/// What a U-Net is in the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The unpruned model.
    Teacher,
    /// Pruned, not retrained.
    Pruned,
    /// Pruned and retrained.
    Student,
}

/// One U-Net that made images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UNetResult {
    /// Unique machine name.
    pub name: String,
    /// Name for people.
    pub label: String,
    /// Its role.
    pub role: Role,
    /// The plan it was pruned by.
    pub plan: Option<String>,
    /// The run that retrained it.
    pub distillation: Option<String>,
    /// Parameters.
    pub params: u64,
    /// Multiply-accumulates of one forward, batch 1.
    pub macs: u64,
    /// One entry per metric.
    pub metrics: Vec<MetricValue>,
    /// Checker accuracy by kind of attribute.
    pub by_kind: Vec<KindAccuracy>,
}

impl UNetResult {
    /// The names under which it was timed: its own, or that of the plan.
    pub fn names(&self) -> Vec<&str> {
        [Some(self.name.as_str()), self.plan.as_deref()].into_iter().flatten().collect()
    }

    /// The value of one metric.
    pub fn metric(&self, id: &str) -> Option<&MetricValue> {
        self.metrics.iter().find(|m| m.metric == id)
    }

    /// The rows of an evaluation: its first U-Net is the teacher, the others are named after a training or a plan.
    ///
    /// # Errors
    /// [`Error::File`] for a U-Net whose name is neither.
    pub(super) fn all(run: &RunDir, eval: &EvalFile, plans: &[PlanRow], trainings: &[Training]) -> Result<Vec<Self>> {
        let mut rows = Vec::new();
        for (i, row) in eval.unets.iter().enumerate() {
            if i == 0 {
                rows.push(Self::of(run, row, "teacher".into(), Role::Teacher, None, None));
                continue;
            }
            let trained = trainings.iter().find(|training| training.name == row.name);
            let name = trained.and_then(|training| training.record.plan.as_deref()).unwrap_or(&row.name);
            let plan = plans.iter().find(|plan| plan.name == name).ok_or_else(|| {
                let problem = format!("`{}` is neither a plan in plans/ nor a run in distill/", row.name);
                Error::file(run.path().join("eval.json"), problem, "name the images after the plan or the run that made them")
            })?;
            rows.push(match trained {
                Some(training) => {
                    Self::of(run, row, training::label(plan, &settings(training)?.0), Role::Student, Some(plan), Some(training))
                }
                None => Self::of(run, row, format!("{} {}, not retrained", plan.label, plan.ratio), Role::Pruned, Some(plan), None),
            });
        }
        Ok(rows)
    }

    fn of(run: &RunDir, row: &EvalRow, label: String, role: Role, plan: Option<&PlanRow>, training: Option<&Training>) -> Self {
        let removed = plan.map_or((0, 0), |row| (row.plan.params_removed, row.plan.macs_removed));
        Self {
            name: row.name.clone(),
            label,
            role,
            plan: plan.map(|plan| plan.name.clone()),
            distillation: training.map(|training| training.name.clone()),
            params: run.table().total_params() - removed.0,
            macs: run.table().total_macs() - removed.1,
            metrics: row.metrics.clone(),
            by_kind: row.by_kind.clone(),
        }
    }
}

/// A relative decline that others published, to be set beside the run's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedDecline {
    /// What was pruned, and how.
    pub name: String,
    /// The metric's id.
    pub metric: String,
    /// Share of the U-Net's parameters that went.
    pub ratio: f64,
    /// Relative decline against the teacher in per cent.
    pub decline_percent: f64,
    /// Where it stands, and what it is a bound of.
    pub source: String,
}

/// `published.json`: results of others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedFile {
    /// In the order of the report.
    pub results: Vec<PublishedDecline>,
}

impl Document for PublishedFile {
    const FORMAT: &'static str = "laptop-diff/published";
    const VERSION: u32 = 1;
    const HINT: &'static str = "correct it, or remove it";

    fn check(&self) -> std::result::Result<(), Contradiction> {
        let problem = |p: &PublishedDecline| Contradiction {
            key: format!("published `{}`: ratio", p.name),
            expected: "a share between 0 and 1".into(),
            got: p.ratio.to_string(),
        };
        self.results.iter().find(|p| !(0.0..=1.0).contains(&p.ratio)).map_or(Ok(()), |p| Err(problem(p)))
    }
}
