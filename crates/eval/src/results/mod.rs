//! `results.json`: everything that the report says, as plain rows. The arrow between evaluation and report.
//!
//! The file knows neither plan nor training files: whoever drives the pipeline copies their rows in here. It holds nothing that
//! differs between two runs of the same commands on the same machine (no time, no date, no path outside the run directory), so
//! two runs can be compared byte by byte; what the clock measured stands in `timings.json` ([`Timings`](crate::Timings)), what every single
//! prompt scored in `per_prompt.json` ([`PerPrompt`](crate::PerPrompt)).

mod claims;
mod io;
mod model;
mod quality;
mod run;
mod training;

use serde::{Deserialize, Serialize};

use crate::file::{CategoryRow, Comparison, Gallery, MetricInfo, Protocol};

pub(crate) use claims::largest_share;
pub use claims::{Claim, Outcome, assess};
pub use io::{Versioned, write_whole};
pub use model::{
    Audit, AuditPoint, AuditStats, BinTable, CriterionScores, FrontCurve, LayerRow, Measured, ModelInfo, PartSlope, PlanRow, ScoreRow,
    SetGroup,
};
pub use quality::{PublishedDecline, PublishedFile, Role, UNetResult};
pub use run::{Command, Provenance};
pub use training::{DistillRun, FeatureLoss, LossPoint};

/// The whole record of one run, in the order in which the report tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Always [`Results::FORMAT`](Versioned::FORMAT).
    pub format: String,
    /// Always [`Results::VERSION`](Versioned::VERSION).
    pub version: u32,
    /// One line that names the run.
    pub title: String,
    /// The model that was compressed.
    pub model: ModelInfo,
    /// Every removable layer, in the order of execution.
    pub layers: Vec<LayerRow>,
    /// The scores of all layers, one entry per criterion; the first is the paper's.
    pub criteria: Vec<CriterionScores>,
    /// The additivity audits, one per criterion.
    pub audits: Vec<Audit>,
    /// What the best plan of every budget is predicted to lose, by the paper's criterion; none where it has no scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front: Option<FrontCurve>,
    /// All plans that were made, with their measured joint loss.
    pub plans: Vec<PlanRow>,
    /// The name of the plan that the summary speaks of; one of `plans`.
    pub headline_plan: Option<String>,
    /// The retraining runs.
    pub distillations: Vec<DistillRun>,
    /// How pictures were made and compared; none when nothing was generated.
    pub protocol: Option<Protocol>,
    /// What each metric is.
    pub metrics: Vec<MetricInfo>,
    /// The teacher first, then every other U-Net that made pictures.
    pub unets: Vec<UNetResult>,
    /// The same by category of prompts, where the prompts have categories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_category: Vec<CategoryRow>,
    /// Direct paired comparisons of two U-Nets.
    pub comparisons: Vec<Comparison>,
    /// What others published, to be set beside `unets`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedDecline>,
    /// Pictures of the same prompts and seeds by all U-Nets; none when nothing was generated.
    pub gallery: Option<Gallery>,
    /// Which statements of the paper held here; see [`assess`].
    pub claims: Vec<Claim>,
    /// Commands, seeds, versions and hashes.
    pub provenance: Provenance,
}

impl Versioned for Results {
    const FORMAT: &'static str = "laptop-diff/results";
    const VERSION: u32 = 1;

    fn stamp(&self) -> (&str, u32) {
        (&self.format, self.version)
    }

    fn check(&self) -> crate::error::Result<()> {
        io::check_results(self)
    }
}

impl Results {
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
}
