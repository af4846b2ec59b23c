//! What a search is asked, as Python hands it over: budget, limits, resources, constraints, and how long it may take.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prune_core::search::{Interaction, Resource, SearchOptions};
use prune_core::table::Cost;
use prune_core::{Budget, Constraints, Limit, Problem, Scores};
use pyo3::prelude::*;

use crate::errors::{invalid, raise};

/// One least amount, of parameters or of multiply-accumulates: a share of the whole model's, or a number.
#[derive(FromPyObject)]
pub struct BudgetRequest(String, Option<f64>, Option<u64>);

impl BudgetRequest {
    pub fn budget(&self) -> PyResult<Budget> {
        let BudgetRequest(cost, ratio, amount) = self;
        let cost = [Cost::Params, Cost::Macs].into_iter().find(|known| known.name() == cost);
        match (cost, ratio, amount) {
            (Some(cost), Some(ratio), None) => Ok(Budget::ratio_of(cost, *ratio)),
            (Some(cost), None, Some(amount)) => Ok(Budget::amount_of(cost, *amount)),
            _ => Err(invalid("a budget is `params` or `macs`, and either a ratio or an amount")),
        }
    }
}

/// Name, costs of layers, costs of shared costs.
#[derive(FromPyObject)]
pub struct ResourceRequest(String, BTreeMap<String, u64>, BTreeMap<String, u64>);

/// What restricts a choice, apart from the budget.
#[derive(FromPyObject, Default)]
#[pyo3(from_item_all)]
pub struct Rules {
    keep: Vec<String>,
    remove: Vec<String>,
    together: Vec<Vec<String>>,
    /// A layer, and what must go with it.
    requires: Vec<(String, String)>,
    resources: Vec<ResourceRequest>,
    /// Two layers, and how much more they lose together.
    interactions: Vec<(String, String, f64)>,
}

impl Rules {
    pub fn constraints(&self) -> Constraints {
        let pinned = Constraints::none().keep(self.keep.iter().map(String::as_str)).remove(self.remove.iter().map(String::as_str));
        let grouped = self.together.iter().fold(pinned, |all, group| all.together(group.iter().map(String::as_str)));
        self.requires.iter().fold(grouped, |all, (layer, needs)| all.requires(layer.as_str(), needs.as_str()))
    }

    pub fn problem<'a>(&self, scores: &'a Scores) -> PyResult<Problem<'a>> {
        let mut problem = Problem::new(scores, &self.constraints()).map_err(raise)?;
        for ResourceRequest(name, layers, shared) in &self.resources {
            let mut resource = Resource::new(name.as_str());
            resource.layers = layers.iter().map(|(id, cost)| (id.as_str().into(), *cost)).collect();
            resource.shared_costs = shared.iter().map(|(id, cost)| (id.as_str().into(), *cost)).collect();
            problem = problem.with_resource(&resource).map_err(raise)?;
        }
        let pair = |(first, second, score): &(String, String, f64)| Interaction {
            first: first.as_str().into(),
            second: second.as_str().into(),
            score: *score,
        };
        let pairs: Vec<Interaction> = self.interactions.iter().map(pair).collect();
        problem.with_interactions(&pairs).map_err(raise)
    }
}

/// Resource, at least, at most.
#[derive(FromPyObject)]
pub struct LimitRequest(String, Option<u64>, Option<u64>);

impl LimitRequest {
    pub fn limit(&self) -> Limit {
        Limit { resource: self.0.clone(), at_least: self.1, at_most: self.2 }
    }
}

/// How much a search may take.
#[derive(FromPyObject, Clone, Copy)]
#[pyo3(from_item_all)]
pub struct Effort {
    time_limit: Option<f64>,
    node_limit: Option<u64>,
    memory_limit: Option<u64>,
}

impl Effort {
    /// Searches without the interpreter's lock; a signal handler that raises (Ctrl-C) ends the search with its exception.
    pub fn search<T: Send>(self, py: Python<'_>, search: impl FnOnce(&SearchOptions<'_>) -> PyResult<T> + Send) -> PyResult<T> {
        let time_limit = match self.time_limit {
            Some(seconds) => Some(
                Duration::try_from_secs_f64(seconds)
                    .map_err(|_| invalid(format!("`time_limit` is {seconds}; expected seconds, 0 or more")))?,
            ),
            None => None,
        };
        py.detach(|| {
            let cancelled = AtomicBool::new(false);
            let raised = RefCell::new(None);
            let look = |_| {
                if let Err(error) = Python::attach(|py| py.check_signals()) {
                    cancelled.store(true, Ordering::Relaxed);
                    raised.replace(Some(error));
                }
            };
            let mut options = SearchOptions::new().cancel(&cancelled).on_progress(&look);
            if let Some(limit) = time_limit {
                options = options.time_limit(limit);
            }
            if let Some(nodes) = self.node_limit {
                options = options.node_limit(nodes);
            }
            if let Some(bytes) = self.memory_limit {
                options = options.memory_limit(bytes);
            }
            let found = search(&options);
            raised.take().map_or(found, Err)
        })
    }
}
