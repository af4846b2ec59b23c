//! What a run found, in the order in which the report tells it. Run folder -> **results** -> page, `results.json`.
//!
//! Scores, plans and audits are prune-core's own types, the evaluation's rows are eval's; here they get labels, an order and the
//! headline. `results.json` ([`Results::write`]) holds nothing that differs between two runs of the same commands on the same
//! machine (no time, no date, no path outside the run folder), so two runs can be compared byte by byte; what the clock measured
//! stands in `timings.json` ([`eval::Timings`]), what every single prompt scored in `per_prompt.json` ([`eval::PerPrompt`]).

mod scores;
mod audit;
mod plans;
mod training;
mod unets;
mod claims;
mod collect;
mod check;
mod file;

use std::collections::BTreeMap;

use eval::{CategoryRow, Comparison, Gallery, MetricInfo, Protocol};
use prune_core::table::Cost;
use serde::Serialize;
use unet::Inspection;

use crate::run_dir::Command;

pub use audit::{AuditPoint, AuditResult};
pub use claims::{Claim, Outcome, assess};
pub(crate) use claims::{NORMALIZED, largest_share};
pub use file::ResultsSummary;
pub(crate) use file::RunsFile;
pub use plans::PlanRow;
pub use scores::{BinTable, CriterionScores, FrontCurve};
pub use training::{DistillRun, LossPoint};
pub use unets::{PublishedDecline, PublishedFile, Role, UNetResult};

/// The whole record of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Results {
    /// One line that names the run.
    pub title: String,
    /// The model that was compressed, with every removable layer in the order of execution.
    pub model: Inspection,
    /// The scores of all layers, one entry per criterion; the first is the paper's.
    pub criteria: Vec<CriterionScores>,
    /// The additivity audits, one per criterion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditResult>,
    /// What the best plan of every budget is predicted to lose, by the paper's criterion; none where it has no scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub front: Option<FrontCurve>,
    /// All plans that were made, with their measured joint loss.
    pub plans: Vec<PlanRow>,
    /// The name of the plan that the summary speaks of; one of `plans`.
    pub headline_plan: Option<String>,
    /// The retraining runs.
    pub distillations: Vec<DistillRun>,
    /// How images were made and compared; none when nothing was generated.
    pub protocol: Option<Protocol>,
    /// What each metric is.
    pub metrics: Vec<MetricInfo>,
    /// The teacher first, then every other U-Net that made images.
    pub unets: Vec<UNetResult>,
    /// The same by category of prompts, where the prompts have categories.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_category: Vec<CategoryRow>,
    /// Direct paired comparisons of two U-Nets.
    pub comparisons: Vec<Comparison>,
    /// What others published, to be set beside `unets`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedDecline>,
    /// Images of the same prompts and seeds by all U-Nets; none when nothing was generated.
    pub gallery: Option<Gallery>,
    /// Which statements of the paper held here; see [`assess`].
    pub claims: Vec<Claim>,
    /// Commands, seeds, versions and hashes.
    pub provenance: Provenance,
}

/// What is needed to run it again; the same bytes every time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Provenance {
    /// The commands, in order.
    pub commands: Vec<Command>,
    /// What each seed is for -> seed.
    pub seeds: BTreeMap<String, u64>,
    /// What was set, beyond the commands: settings file or record -> its content, as JSON.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// Program or library -> version.
    pub versions: BTreeMap<String, String>,
    /// File, relative to the run folder or the model -> SHA-256.
    pub hashes: BTreeMap<String, String>,
}

impl Results {
    /// Every removable layer, in the order of execution.
    pub fn layers(&self) -> &[prune_core::table::Layer] {
        self.model.table.layers()
    }

    /// Parameters of the whole U-Net.
    pub fn params(&self) -> u64 {
        self.model.table.total(Cost::Params)
    }

    /// Multiply-accumulates of one forward pass of the whole U-Net.
    pub fn macs(&self) -> u64 {
        self.model.table.total(Cost::Macs)
    }

    /// The plan with this name.
    pub fn plan(&self, name: &str) -> Option<&PlanRow> {
        self.plans.iter().find(|p| p.name == name)
    }

    /// The U-Net with this name.
    pub fn unet(&self, name: &str) -> Option<&UNetResult> {
        self.unets.iter().find(|u| u.name == name)
    }

    /// The metric with this id.
    pub fn metric(&self, id: &str) -> Option<&MetricInfo> {
        self.metrics.iter().find(|m| m.id == id)
    }

    /// The first U-Net whose role is the teacher's.
    pub fn teacher(&self) -> Option<&UNetResult> {
        self.unets.iter().find(|u| u.role == Role::Teacher)
    }

    /// The plan that the summary speaks of.
    pub fn headline(&self) -> Option<&PlanRow> {
        self.headline_plan.as_deref().and_then(|name| self.plan(name))
    }

    /// The label of a criterion.
    pub(crate) fn label<'a>(&'a self, criterion: &'a str) -> &'a str {
        self.criteria.iter().find(|c| c.id() == criterion).map_or(criterion, |c| c.label.as_str())
    }
}
