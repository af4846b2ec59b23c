//! Plans with their words, what additivity predicts for them and what they really lose. Plans, joint losses -> **results**.

use std::collections::BTreeSet;

use prune_core::audit::JointLoss;
use prune_core::table::Cost;
use prune_core::{LayerId, Plan, Scores};
use serde::Serialize;
use unet::JointFile;
use unet::scoring::OUTPUT_LOSS;

use crate::error::Result;

/// One plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanRow {
    /// Unique machine name, such as `output_loss-0.5`: that of its file.
    pub name: String,
    /// Name for people, such as `output loss, exact`.
    pub label: String,
    /// Share of the U-Net's parameters that had to go, to three digits, so that plans of one budget stand together.
    pub ratio: f64,
    /// Sum of the layers' single output losses: what additivity predicts for `joint`.
    pub predicted_output_loss: Option<f64>,
    /// The true joint output loss.
    pub joint: Option<JointLoss>,
    /// The plan.
    pub plan: Plan,
}

impl PlanRow {
    /// Gives a plan its words.
    ///
    /// # Errors
    /// When the plan removes a layer that `output`, the scores by output loss, does not have.
    pub fn new(name: String, plan: Plan, total_params: u64, output: Option<&Scores>, joint: Option<&JointFile>) -> Result<Self> {
        let predicted_output_loss = output.map(|scores| scores.predicted(&plan.removal_set())).transpose()?;
        let measured = joint.and_then(|file| file.plans.iter().find(|p| p.plan == name)?.losses.get(OUTPUT_LOSS).copied());
        let mut row = Self { name, label: String::new(), ratio: ratio(&plan, total_params), predicted_output_loss, joint: measured, plan };
        row.label = row.words();
        Ok(row)
    }

    /// How it was found: `exact`, `greedy`, `random`, `hand-crafted`, `refined`.
    pub fn method(&self) -> &str {
        if hand_crafted(&self.plan.method) { "hand-crafted" } else { &self.plan.method }
    }

    /// Random and hand-crafted plans carry the criterion they were priced by, but do not minimise it.
    fn chosen_by_scores(&self) -> bool {
        !matches!(self.method(), "random" | "hand-crafted")
    }

    /// The criterion that the plan minimises; none for a random or hand-crafted one.
    pub fn criterion(&self) -> Option<&str> {
        self.plan.criterion.as_deref().filter(|_| self.chosen_by_scores())
    }

    /// Sum of the scores of that criterion.
    pub fn predicted(&self) -> Option<f64> {
        self.plan.predicted.filter(|_| self.chosen_by_scores())
    }

    /// The ids of the layers that go.
    pub(crate) fn removed(&self) -> BTreeSet<&str> {
        self.plan.removed.iter().map(LayerId::as_str).collect()
    }

    fn words(&self) -> String {
        match (self.plan.method.as_str(), self.criterion()) {
            ("bk-sdm", _) => "BK-SDM style".into(),
            // SSD-1B, KOALA-700M, BK-SDM-TINY.
            (published, _) if hand_crafted(published) => published.to_uppercase(),
            (method, Some(criterion)) => format!("{}, {method}", super::scores::label(criterion)),
            (method, None) => method.into(),
        }
    }
}

/// What a plan was asked to remove; what it removes where it had another kind of budget.
fn ratio(plan: &Plan, total_params: u64) -> f64 {
    let budget = plan.budget.as_ref();
    let asked = budget.and_then(|b| b.ratio).or_else(|| {
        let b = budget.filter(|b| b.cost == Cost::Params)?;
        Some(b.required as f64 / total_params.max(1) as f64)
    });
    // Nobody asks for more digits, and nobody reads them.
    (1e3 * asked.unwrap_or(plan.params_ratio)).round() / 1e3
}

/// Does a way to choose look at no scores, but at what people chose?
fn hand_crafted(method: &str) -> bool {
    method == "bk-sdm" || unet::Published::named(method).is_some()
}
