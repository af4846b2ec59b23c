//! `front.json`: the measured front as a file, with all that was measured. An unfinished one can be resumed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::audit::JointLoss;
use crate::budget::{Budget, Constraints};
use crate::error::Error;
use crate::file::{self, Format};
use crate::layer::{LayerId, RemovalSet};
use crate::ledger::{Record, SetLoss, same_run};
use crate::measured_front::FrontOptions;
use crate::plan::Plan;
use crate::refine::RefineMethod;
use crate::search::Problem;
use crate::table::LayerTable;

const FORMAT: Format = Format { name: "prune-core/measured-front", version: 1, older: &[] };

/// The plans that no other measured one dominates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MeasuredFront {
    format: String,
    version: u32,
    /// Name of the model.
    pub model: String,
    /// Fingerprint of the model.
    pub fingerprint: String,
    /// The criterion that was measured.
    pub criterion: String,
    /// The criterion whose scores named the candidates.
    pub scores: String,
    /// What budgets counted.
    pub resource: String,
    /// The layers that were not chosen freely.
    pub constraints: Constraints,
    /// The samples that chose.
    pub samples: Range<usize>,
    /// The samples that tell what the chosen plans lose.
    pub held_out: Range<usize>,
    /// Samples on which all plans were compared first.
    pub first_samples: usize,
    /// Evaluations allowed.
    pub max_forwards: u64,
    /// How the search went on around winners, and around how many.
    pub refine: Option<(RefineMethod, usize)>,
    /// Seed of an evolution.
    pub seed: u64,
    /// Evaluations done: samples times sets.
    pub forwards: u64,
    /// The plans, ascending in what they remove and in loss; none in an unfinished file.
    pub plans: Vec<MeasuredPlan>,
    /// All measurements on the samples that chose.
    pub measured: Vec<SetLoss>,
}

/// One plan of a measured front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredPlan {
    /// What goes, by resource.
    pub costs: BTreeMap<String, u64>,
    /// Sum of the layers' scores.
    pub predicted: f64,
    /// Joint loss on the samples that chose: optimistic, since it was chosen by it.
    pub loss: JointLoss,
    /// Joint loss on the held-out samples, which chose nothing.
    pub held_out: JointLoss,
    /// The layers that go, in the order of the forward pass.
    pub removed: Vec<LayerId>,
}

impl MeasuredPlan {
    /// The layers that go, as a set.
    pub fn removal_set(&self) -> RemovalSet {
        self.removed.iter().cloned().collect()
    }

    /// What goes of a resource; 0 for one that was not counted.
    pub fn cost(&self, resource: &str) -> u64 {
        self.costs.get(resource).copied().unwrap_or(0)
    }
}

impl Record for MeasuredFront {
    fn enter(&mut self, forwards: u64, measured: Vec<SetLoss>) {
        (self.forwards, self.measured) = (forwards, measured);
    }
}

impl MeasuredFront {
    pub(super) fn new(problem: &Problem<'_>, options: &FrontOptions<'_>) -> Self {
        let table = problem.table();
        Self {
            format: FORMAT.name.to_owned(),
            version: FORMAT.version,
            model: table.model().to_owned(),
            fingerprint: table.fingerprint().to_owned(),
            criterion: options.criterion.clone(),
            scores: problem.scores.criterion().to_owned(),
            resource: options.resource.clone(),
            constraints: problem.constraints.clone(),
            samples: options.samples.clone(),
            held_out: options.held_out.clone(),
            first_samples: options.first_samples,
            max_forwards: options.max_forwards,
            refine: options.refine,
            seed: options.seed,
            forwards: 0,
            plans: Vec::new(),
            measured: Vec::new(),
        }
    }

    /// The best measured plan that removes at least so much of a resource; `None` where none does.
    pub fn best(&self, resource: &str, at_least: u64) -> Option<&MeasuredPlan> {
        let enough = self.plans.iter().filter(|plan| plan.cost(resource) >= at_least);
        enough.min_by(|a, b| a.loss.mean.total_cmp(&b.loss.mean))
    }

    /// The best measured plan for a budget, as a plan.
    ///
    /// # Errors
    /// [`Error::OtherModel`]; [`Error::OutOfRange`] (ratio); [`Error::Infeasible`] where no measured plan removes as much.
    pub fn plan(&self, table: &LayerTable, budget: &Budget) -> Result<Plan, Error> {
        table.check_fingerprint(&self.model, &self.fingerprint)?;
        let (resource, needed) = (budget.cost().name(), budget.required(table)?);
        let Some(best) = self.best(resource, needed) else {
            let available = self.plans.iter().map(|plan| plan.cost(resource)).max().unwrap_or(0);
            let largest_ratio = available as f64 / table.total(budget.cost()).max(1) as f64;
            return Err(Error::Infeasible { cost: budget.cost(), needed, available, largest_ratio });
        };
        let mut plan = Plan::from_removed(table, "measured-front", best.removed.iter().cloned())?;
        plan.set_budget(budget, table)?;
        plan.constraints = self.constraints.clone();
        plan.criterion = Some(self.scores.clone());
        plan.predicted = Some(best.predicted);
        Ok(plan)
    }

    /// The measurements, if they belong to the run that `now` opens. More evaluations may be allowed than before.
    pub(super) fn checked_for(self, now: &Self, table: &LayerTable) -> Result<Vec<SetLoss>, Error> {
        self.check(table)?;
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        let fields = [("criterion", text(&now.criterion), text(&self.criterion)), ("samples", text(&now.samples), text(&self.samples))];
        same_run(&fields, self.measured)
    }

    /// Checks that the front belongs to this model, that its ids exist, its costs follow from them, and its numbers are finite.
    ///
    /// # Errors
    /// [`Error::OtherModel`], [`Error::UnknownLayer`], [`Error::DuplicateId`], [`Error::Inconsistent`], [`Error::NotFinite`],
    /// [`Error::Length`] (more losses than samples).
    pub fn check(&self, table: &LayerTable) -> Result<(), Error> {
        table.check_fingerprint(&self.model, &self.fingerprint)?;
        self.measured.iter().flat_map(|set| &set.removed).try_for_each(|id| table.require(id).map(drop))?;
        SetLoss::check(&self.measured, self.samples.len())?;
        for (number, plan) in self.plans.iter().enumerate() {
            let fresh = Plan::from_removed(table, "measured", plan.removed.iter().cloned())?;
            for (resource, expected) in [("params", fresh.params_removed), ("macs", fresh.macs_removed)] {
                let got = plan.cost(resource);
                if got != expected {
                    let (key, expected) = (format!("plans.{number}.costs.{resource}"), expected.to_string());
                    return Err(Error::Inconsistent { key, expected, got: got.to_string() });
                }
            }
            let numbers = [plan.predicted, plan.loss.mean, plan.held_out.mean];
            if let Some(bad) = numbers.into_iter().find(|number| !number.is_finite()) {
                return Err(Error::NotFinite { what: format!("a number of `plans.{number}`"), got: bad.to_string() });
            }
        }
        Ok(())
    }

    /// The file as text.
    ///
    /// # Errors
    /// [`Error::Serialize`].
    pub fn to_json(&self) -> Result<String, Error> {
        file::to_json(self)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Serialize`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        file::write_json(path, self)
    }

    /// Reads the text of a measured front and checks it against its model.
    ///
    /// # Errors
    /// [`Error::Parse`], [`Error::WrongFormat`], [`Error::WrongVersion`], and those of [`MeasuredFront::check`].
    pub fn from_json(text: &[u8], table: &LayerTable) -> Result<Self, Error> {
        let front: Self = file::parse(text, FORMAT)?;
        front.check(table)?;
        Ok(front)
    }

    /// Reads a measured front and checks it against its model.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::InFile`] around those of [`MeasuredFront::from_json`].
    pub fn read(path: &Path, table: &LayerTable) -> Result<Self, Error> {
        file::read(path, |text| Self::from_json(text, table))
    }
}
