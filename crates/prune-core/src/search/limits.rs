//! The public face of the search with several limits: limits by name in, a plan with its proof or its gap out.

use crate::budget::Limit;
use crate::error::Error;
use crate::plan::{Plan, PlanLimit};
use crate::search::branch;
use crate::search::effort::SearchOptions;
use crate::search::problem::Problem;
use crate::search::relax::Range;

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Solution {
    /// The best set known. Its `predicted` is the sum of scores and interactions, its `lower_bound` what no set that meets the
    /// limits undercuts; the two are equal, and `optimal` is true, where the search came to its end.
    pub plan: Plan,
    /// `predicted - lower_bound`; 0 for a proven optimum.
    pub gap: f64,
    /// Whether the plan is the one among all of its score that holds the smallest id on which two differ. Where the nodes ran
    /// out it is still the same plan in every run.
    pub ordered: bool,
    /// Nodes of the search tree, or steps over the lists of a search with one budget, that were done.
    pub nodes: u64,
}

impl Solution {
    /// The gap in parts of the plan's score; 0 for a proven optimum.
    pub fn relative_gap(&self) -> f64 {
        if self.gap == 0.0 { 0.0 } else { self.gap / self.plan.predicted.unwrap_or(0.0).abs() }
    }
}

impl Problem<'_> {
    /// The set of layers with the least score among all that meet every limit: branch and bound, exact in integers.
    ///
    /// `options` says how far to search; a plain number is one of nodes. Without a time limit and a flag the work is bounded by
    /// that count, so that the same call gives the same answer. Whatever ends the search, the best set found so far comes back with
    /// its gap. A tree of some thousand nodes is usual for a few hundred layers. Ties are broken towards the smallest id on
    /// which two sets differ. A resource may be named by several limits.
    ///
    /// # Errors
    /// [`Error::LimitsInfeasible`] where it is proven that no set meets the limits, [`Error::NoneFound`] where the nodes ran
    /// out before one was found; [`Error::UnknownResource`]; [`Error::OutOfRange`] for a node limit of 0;
    /// [`Error::Contradiction`] and [`Error::UnknownLayer`] (constraints); [`Error::ScoreSpread`]; [`Error::Overflow`].
    pub fn solve<'a>(&self, limits: &[Limit], options: impl Into<SearchOptions<'a>>) -> Result<Solution, Error> {
        let options = options.into();
        if options.node_limit == 0 {
            return Err(Error::OutOfRange { key: "node_limit", expected: "at least 1".to_owned(), got: "0".to_owned() });
        }
        let (instance, exact) = self.instance()?;
        let mut ranges = self.ranges(limits)?;
        let infeasible =
            |reason: String| Error::LimitsInfeasible { limits: limits.iter().map(Limit::to_string).collect::<Vec<_>>().join(", "), reason };
        for range in &ranges {
            let (name, available, forced) =
                (&self.names[range.resource], instance.available[range.resource], instance.forced_costs[range.resource]);
            if range.low > range.high {
                return Err(infeasible(format!("{name} would have to be at least {} and at most {}", range.low, range.high)));
            }
            if range.low > available {
                return Err(infeasible(format!("at most {available} {name} can go")));
            }
            if range.high < forced {
                return Err(infeasible(format!("{forced} {name} go in any case")));
            }
        }
        // Limits that every set meets need no price.
        ranges.retain(|range| range.low > instance.forced_costs[range.resource] || range.high < instance.available[range.resource]);
        let outcome = branch::run(&instance, &ranges, self.table(), &mut options.watch());
        let Some((score, gone)) = outcome.best else {
            return Err(match outcome.complete {
                true => infeasible("they cannot be met at once".to_owned()),
                false => Error::NoneFound { nodes: outcome.nodes },
            });
        };
        let layers = instance.layers_of((0..gone.len()).filter(|unit| gone[*unit]));
        let ids = layers.iter().map(|layer| self.table().layers()[*layer].id.clone());
        let method = if outcome.complete { "exact" } else { "branch-and-bound" };
        let mut plan = Plan::from_removed(self.table(), method, ids)?;
        plan.constraints = self.constraints.clone();
        let value = exact.to_f64(score);
        // A float bound below an integer one in all but the last bit is that integer.
        let bound = if outcome.complete { value } else { (outcome.bound * exact.unit()).min(value) };
        plan.set_proof(self.scores.criterion(), value, bound);
        plan.optimal = outcome.complete;
        plan.limits = self.plan_limits(limits, &layers)?;
        Ok(Solution { plan, gap: value - bound, ordered: outcome.ordered, nodes: outcome.nodes })
    }

    /// The limits by resource, those on one resource taken together.
    pub(crate) fn ranges(&self, limits: &[Limit]) -> Result<Vec<Range>, Error> {
        let mut ranges: Vec<Range> = Vec::new();
        for limit in limits {
            let resource = self.resource(&limit.resource)?;
            let (low, high) = (limit.at_least.unwrap_or(0), limit.at_most.unwrap_or(u64::MAX));
            match ranges.iter_mut().find(|range| range.resource == resource) {
                Some(range) => (range.low, range.high) = (range.low.max(low), range.high.min(high)),
                None => ranges.push(Range { resource, low, high }),
            }
        }
        Ok(ranges)
    }

    /// The limits with what these layers, given by ascending position, remove of each resource.
    pub(crate) fn plan_limits(&self, limits: &[Limit], layers: &[usize]) -> Result<Vec<PlanLimit>, Error> {
        let row = |limit: &Limit| {
            let removed = self.removed(self.resource(&limit.resource)?, layers);
            Ok(PlanLimit { limit: limit.clone(), removed })
        };
        limits.iter().map(row).collect()
    }

    /// What goes of one resource with these layers, shared costs included.
    pub(crate) fn removed(&self, resource: usize, layers: &[usize]) -> u64 {
        let costs = &self.costs[resource];
        let gone = |shared: &usize| self.table().shared_members(*shared).iter().all(|layer| layers.binary_search(layer).is_ok());
        let shared_costs = (0..self.table().shared_costs().len()).filter(gone).map(|shared| costs.shared_costs[shared]);
        layers.iter().map(|layer| costs.layers[*layer]).chain(shared_costs).sum()
    }
}
