//! The plan: which layers go, what that saves and what it is predicted to cost. Fourth stage of the flow: `plan.json`
//! goes to whoever cuts the model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::budget::{Budget, Constraints, Limit};
use crate::error::Error;
use crate::file::{self, Format};
use crate::layer::{Cost, LayerId, RemovalSet, SharedCost};
use crate::score::Scores;
use crate::table::LayerTable;

const FORMAT: Format = Format { name: "prune-core/plan", version: 3, older: &[("laptop-diff/plan", 2)] };

/// The budget a plan was made for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanBudget {
    /// What is counted.
    pub cost: Cost,
    /// The ratio asked for, where it was one.
    pub ratio: Option<f64>,
    /// The integer that had to go at least.
    pub required: u64,
}

/// A limit that a plan was made for, and what the plan removes of its resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanLimit {
    /// What was asked for.
    pub limit: Limit,
    /// What goes.
    pub removed: u64,
}

/// A set of layers to remove from one model, with everything a reader of the file needs to judge it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Plan {
    /// Name of the model.
    pub model: String,
    /// Fingerprint of the model; the plan fits no other.
    pub fingerprint: String,
    /// How the set was chosen: `exact`, `greedy`, `random`, or the name of a hand-crafted plan.
    pub method: String,
    /// The criterion whose scores were used.
    pub criterion: Option<String>,
    /// The budget it was made for.
    pub budget: Option<PlanBudget>,
    /// The limits it was made for, where there were several.
    pub limits: Vec<PlanLimit>,
    /// The layers that were not chosen freely.
    pub constraints: Constraints,
    /// Seed of a random plan.
    pub seed: Option<u64>,
    /// Sum of the scores of the removed layers: the joint loss if losses add up.
    pub predicted: Option<f64>,
    /// No set that meets the budget has a lower sum; equal to `predicted` for an exact plan.
    pub lower_bound: Option<f64>,
    /// Whether the plan is proven to have the least sum of scores.
    pub optimal: bool,
    /// Parameters that go, shared costs included.
    pub params_removed: u64,
    /// Parameters that stay.
    pub params_left: u64,
    /// Share of the whole model's parameters that goes.
    pub params_ratio: f64,
    /// Multiply-accumulates that go, shared costs included.
    pub macs_removed: u64,
    /// Multiply-accumulates that stay.
    pub macs_left: u64,
    /// Share of the whole model's multiply-accumulates that goes; 0 where they are not counted.
    pub macs_ratio: f64,
    /// The layers that go, in the order of the forward pass.
    pub removed: Vec<LayerId>,
    /// The shared costs that go with their last member, in the order of the table; `removed_shells` in older files.
    #[serde(alias = "removed_shells")]
    pub removed_shared_costs: Vec<LayerId>,
}

/// `plan.json` as it stands in the file. It is read in two steps instead, since serde does not refuse unknown fields
/// of a flattened struct.
#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    version: u32,
    #[serde(flatten)]
    plan: &'a Plan,
}

impl Plan {
    /// The plan that removes exactly these layers, with their costs worked out: the way hand-crafted plans are made.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`], [`Error::DuplicateId`], [`Error::EmptyName`] (method).
    pub fn from_removed(
        table: &LayerTable,
        method: impl Into<String>,
        ids: impl IntoIterator<Item = impl Into<LayerId>>,
    ) -> Result<Self, Error> {
        let method = method.into();
        if method.is_empty() {
            return Err(Error::EmptyName { key: "method".to_owned() });
        }
        let mut set = RemovalSet::empty();
        for id in ids {
            let id = id.into();
            if !set.insert(id.clone()) {
                return Err(Error::DuplicateId { key: "removed".to_owned(), id });
            }
        }
        let positions = table.positions(&set)?;
        Ok(Self::from_positions(table, method, &positions))
    }

    /// [`Plan::from_removed`] by positions in the table, ascending and each once.
    pub(crate) fn from_positions(table: &LayerTable, method: String, positions: &[usize]) -> Self {
        let removed = positions.iter().map(|at| table.layers()[*at].id.clone()).collect();
        let shared_costs = table.shared_costs_without(positions);
        let params_removed = table.cost_of(positions, Cost::Params);
        let macs_removed = table.cost_of(positions, Cost::Macs);
        let ratio = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        Self {
            model: table.model().to_owned(),
            fingerprint: table.fingerprint().to_owned(),
            method,
            criterion: None,
            budget: None,
            limits: Vec::new(),
            constraints: Constraints::none(),
            seed: None,
            predicted: None,
            lower_bound: None,
            optimal: false,
            params_removed,
            params_left: table.total_params() - params_removed,
            params_ratio: ratio(params_removed, table.total_params()),
            macs_removed,
            macs_left: table.total_macs() - macs_removed,
            macs_ratio: ratio(macs_removed, table.total_macs()),
            removed,
            removed_shared_costs: shared_costs.map(|shared: &SharedCost| shared.id.clone()).collect(),
        }
    }

    /// Records the budget, which the plan must meet.
    ///
    /// # Errors
    /// [`Error::OtherModel`]; [`Error::OutOfRange`] for a ratio outside 0..=1; [`Error::BudgetMissed`].
    pub fn set_budget(&mut self, budget: &Budget, table: &LayerTable) -> Result<(), Error> {
        table.check_fingerprint(&self.model, &self.fingerprint)?;
        let (cost, required) = (budget.cost(), budget.required(table)?);
        self.check_budget(cost, required)?;
        self.budget = Some(PlanBudget { cost, ratio: budget.ratio(), required });
        Ok(())
    }

    fn check_budget(&self, cost: Cost, needed: u64) -> Result<(), Error> {
        let removed = self.removed_cost(cost);
        if removed < needed {
            return Err(Error::BudgetMissed { method: self.method.clone(), cost, needed, removed });
        }
        Ok(())
    }

    /// Records the criterion and the sum of its scores over the plan. A proof of optimality recorded before was about
    /// other scores, maybe, and is dropped.
    ///
    /// # Errors
    /// [`Error::OtherModel`], [`Error::UnknownLayer`], [`Error::IncompleteScores`].
    pub fn set_scores(&mut self, scores: &Scores) -> Result<(), Error> {
        scores.table().check_fingerprint(&self.model, &self.fingerprint)?;
        self.predicted = Some(scores.predicted(&self.removal_set())?);
        self.criterion = Some(scores.criterion().to_owned());
        self.lower_bound = None;
        self.optimal = false;
        Ok(())
    }

    /// Records the criterion, the plan's score and what no other plan undercuts.
    pub(crate) fn set_proof(&mut self, criterion: &str, value: f64, bound: f64) {
        self.criterion = Some(criterion.to_owned());
        self.predicted = Some(value);
        self.lower_bound = Some(bound);
        self.optimal = value == bound;
    }

    /// What the plan was made for: its limits, or its budget as a limit; of a hand-made plan the parameters that it removes.
    pub fn asked(&self) -> Vec<Limit> {
        match (&self.limits[..], &self.budget) {
            ([], Some(budget)) => vec![Limit::at_least(budget.cost.name(), budget.required)],
            ([], None) => vec![Limit::at_least(Cost::Params.name(), self.params_removed)],
            (limits, _) => limits.iter().map(|limit| limit.limit.clone()).collect(),
        }
    }

    /// The removed layers as a set.
    pub fn removal_set(&self) -> RemovalSet {
        self.removed.iter().cloned().collect()
    }

    /// What the plan removes of one cost.
    pub fn removed_cost(&self, cost: Cost) -> u64 {
        match cost {
            Cost::Params => self.params_removed,
            Cost::Macs => self.macs_removed,
        }
    }

    /// Share of the whole model's cost that the plan removes.
    pub fn ratio(&self, cost: Cost) -> f64 {
        match cost {
            Cost::Params => self.params_ratio,
            Cost::Macs => self.macs_ratio,
        }
    }

    /// Checks that the plan belongs to this model and that its figures follow from its list of layers.
    ///
    /// # Errors
    /// [`Error::OtherModel`], [`Error::UnknownLayer`], [`Error::DuplicateId`], [`Error::EmptyName`],
    /// [`Error::NotFinite`], [`Error::Contradiction`], [`Error::BudgetMissed`], [`Error::Inconsistent`].
    pub fn check(&self, table: &LayerTable) -> Result<(), Error> {
        table.check_fingerprint(&self.model, &self.fingerprint)?;
        let fresh = Self::from_removed(table, self.method.as_str(), self.removed.iter().cloned())?;
        let text = |ids: &[LayerId]| ids.iter().map(LayerId::as_str).collect::<Vec<_>>().join(", ");
        let number = |x: f64| x.to_string();
        let fields = [
            ("params_removed", fresh.params_removed.to_string(), self.params_removed.to_string()),
            ("params_left", fresh.params_left.to_string(), self.params_left.to_string()),
            ("params_ratio", number(fresh.params_ratio), number(self.params_ratio)),
            ("macs_removed", fresh.macs_removed.to_string(), self.macs_removed.to_string()),
            ("macs_left", fresh.macs_left.to_string(), self.macs_left.to_string()),
            ("macs_ratio", number(fresh.macs_ratio), number(self.macs_ratio)),
            ("removed", text(&fresh.removed), text(&self.removed)),
            ("removed_shared_costs", text(&fresh.removed_shared_costs), text(&self.removed_shared_costs)),
        ];
        for (key, expected, got) in fields {
            if expected != got {
                return Err(Error::Inconsistent { key: key.to_owned(), expected, got });
            }
        }
        for (key, value) in [("predicted", self.predicted), ("lower_bound", self.lower_bound)] {
            if let Some(value) = value.filter(|value| !value.is_finite()) {
                return Err(Error::NotFinite { what: format!("`{key}`"), got: value.to_string() });
            }
        }
        self.constraints.check(table)?;
        if let Some((expected, id)) = self.constraints.first_broken(&self.removal_set()) {
            return Err(Error::Inconsistent {
                key: "removed".to_owned(),
                expected: format!("{expected} `{id}`, as the constraints ask"),
                got: "the opposite".to_owned(),
            });
        }
        for PlanLimit { limit, removed } in &self.limits {
            self.check_limit(limit, *removed)?;
        }
        self.budget.as_ref().map_or(Ok(()), |budget| self.check_budget(budget.cost, budget.required))
    }

    fn check_limit(&self, limit: &Limit, removed: u64) -> Result<(), Error> {
        let known = [Cost::Params, Cost::Macs].into_iter().find(|cost| cost.name() == limit.resource);
        let inconsistent = |expected: String| Error::Inconsistent {
            key: format!("limits.{}.removed", limit.resource),
            expected,
            got: removed.to_string(),
        };
        if let Some(expected) = known.map(|cost| self.removed_cost(cost)).filter(|expected| *expected != removed) {
            return Err(inconsistent(expected.to_string()));
        }
        if limit.at_least.is_some_and(|low| removed < low) || limit.at_most.is_some_and(|high| removed > high) {
            return Err(inconsistent(limit.to_string()));
        }
        Ok(())
    }

    /// The document `plan.json` as text.
    ///
    /// # Errors
    /// [`Error::Serialize`].
    pub fn to_json(&self) -> Result<String, Error> {
        file::to_json(&self.document())
    }

    /// Writes `plan.json`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Serialize`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        file::write_json(path, &self.document())
    }

    /// Reads the text of a `plan.json` and checks it against the model it is meant for.
    ///
    /// # Errors
    /// [`Error::Parse`], [`Error::WrongFormat`], [`Error::WrongVersion`], and those of [`Plan::check`].
    pub fn from_json(text: &[u8], table: &LayerTable) -> Result<Self, Error> {
        let mut fields: serde_json::Map<String, serde_json::Value> = file::parse(text, FORMAT)?;
        for header in ["format", "version"] {
            fields.remove(header);
        }
        let plan: Self = serde_json::from_value(fields.into())
            .map_err(|problem| Error::Parse { format: FORMAT.name.to_owned(), problem: problem.to_string() })?;
        plan.check(table)?;
        Ok(plan)
    }

    /// Reads a `plan.json` and checks it against the model it is meant for.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::InFile`] around those of [`Plan::from_json`].
    pub fn read(path: &Path, table: &LayerTable) -> Result<Self, Error> {
        file::read(path, |text| Self::from_json(text, table))
    }

    fn document(&self) -> Document<'_> {
        Document { format: FORMAT.name, version: FORMAT.version, plan: self }
    }
}
