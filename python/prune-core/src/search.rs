//! `solve`, `front` and `certify`: choosing the set.

use prune_core::score::Population;
use prune_core::{Budget, Front as Points, Limit, Scores as Values};
use pyo3::prelude::*;
use self_cell::self_cell;

use crate::errors::raise;
use crate::plan::Plan;
use crate::request::{BudgetRequest, Effort, LimitRequest, Rules};
use crate::scores::Scores;
use crate::table::html;

/// The best set for a budget, for several limits, or for both; with its proof, or the best that was found with its gap.
#[pyfunction]
pub fn solve(
    py: Python<'_>,
    scores: &Scores,
    budget: Option<BudgetRequest>,
    limits: Vec<LimitRequest>,
    rules: Rules,
    effort: Effort,
) -> PyResult<Plan> {
    let scores = &scores.0;
    let budget = budget.map(|budget| budget.budget()).transpose()?;
    let mut limits: Vec<Limit> = limits.iter().map(LimitRequest::limit).collect();
    let plan = effort.search(py, |options| {
        let problem = rules.problem(scores)?;
        let solution = match &budget {
            Some(budget) if limits.is_empty() => problem.solve_budget_with(budget, options),
            _ => {
                if let Some(budget) = &budget {
                    limits.insert(0, Limit::from_budget(budget, scores.table()).map_err(raise)?);
                }
                problem.solve(&limits, *options)
            }
        };
        Ok(solution.map_err(raise)?.plan)
    })?;
    Ok(Plan { plan, table: scores.table().clone() })
}

self_cell! {
    struct Built {
        owner: Values,
        #[covariant]
        dependent: Points,
    }
}

/// Every set worth removing under one resource: for any budget the optimum is a look-up.
#[pyclass(frozen, module = "prune_core")]
pub struct Front(Built);

#[pymethods]
impl Front {
    /// What the front counts.
    #[getter]
    fn resource(&self) -> &str {
        self.0.borrow_dependent().resource()
    }

    /// By how much the scores of all points may lie above the least ones: 0 for an exact front.
    #[getter]
    fn error(&self) -> f64 {
        self.0.borrow_dependent().error()
    }

    /// The points by ascending cost: what goes, and the least sum of scores for which as much can go.
    #[getter]
    fn points(&self) -> Vec<(u64, f64)> {
        self.0.borrow_dependent().points().into_iter().map(|point| (point.removed, point.score)).collect()
    }

    /// The scores behind it.
    #[getter]
    fn scores(&self) -> Scores {
        Scores(self.0.borrow_owner().clone())
    }

    /// The plan for a budget of parameters or multiply-accumulates.
    fn budget_plan(&self, budget: BudgetRequest) -> PyResult<Plan> {
        let budget: Budget = budget.budget()?;
        let plan = self.0.borrow_dependent().plan(&budget).map_err(raise)?;
        Ok(Plan { plan, table: self.0.borrow_owner().table().clone() })
    }

    /// The index in `points` of the best one that removes at least `needed`; None where that is too much.
    fn find(&self, needed: u64) -> Option<usize> {
        self.0.borrow_dependent().find(needed)
    }

    /// The layers behind the point with this index; None where there is no such point.
    fn removed(&self, index: usize) -> Option<Vec<String>> {
        let set = self.0.borrow_dependent().removal(index)?;
        let ids = self.0.borrow_owner().table().in_order(&set).ok()?;
        Some(ids.iter().map(|id| id.as_str().to_owned()).collect())
    }

    fn __len__(&self) -> usize {
        self.0.borrow_dependent().points().len()
    }

    fn __repr__(&self) -> String {
        let error = match self.error() {
            0.0 => String::new(),
            error => format!(", scores within {error}"),
        };
        format!("Front({} points over {}{error})", self.__len__(), self.resource())
    }

    fn _repr_html_(slf: Bound<'_, Self>) -> PyResult<String> {
        html(slf.py(), "front", &slf)
    }
}

/// The whole front over one resource.
#[pyfunction]
pub fn front(py: Python<'_>, scores: &Scores, resource: &str, rules: Rules, effort: Effort) -> PyResult<Front> {
    let owned = scores.0.clone();
    effort.search(py, |options| {
        Built::try_new(owned, |scores| rules.problem(scores)?.front_with(resource, options).map_err(raise)).map(Front)
    })
}

/// Whether the plan for a budget could still change within the intervals of the scores: the certificate as JSON.
#[pyfunction]
pub fn certify(py: Python<'_>, scores: &Scores, budget: BudgetRequest, rules: Rules, delta: f64, of_samples: bool) -> PyResult<String> {
    let budget = budget.budget()?;
    let population = if of_samples { Population::Samples } else { Population::Expectation };
    py.detach(|| {
        let constraints = rules.constraints();
        let certificate = prune_core::score::certify(&scores.0, &budget, &constraints, delta, population).map_err(raise)?;
        prune_core::file::to_json(&certificate).map_err(raise)
    })
}
