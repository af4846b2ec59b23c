//! The exact Pareto front of (cost removed, summed score) in one pass over the layers, by dominance lists (Nemhauser
//! and Ullmann 1969, doi 10.1287/mnsc.15.9.494). Any budget is then a look-up.

use crate::baselines::greedy_units;
use crate::budget::{Budget, Constraints};
use crate::error::Error;
use crate::layer::{Cost, RemovalSet};
use crate::plan::Plan;
use crate::score::Scores;
use crate::search::bound::{Bound, Relaxation};
use crate::search::effort::{SearchOptions, Watch};
use crate::search::exact::Exact;
use crate::search::instance::{BlockKind, Instance};
use crate::search::lists::{Lists, State, Steps, group, merge};
use crate::search::problem::{Problem, check_feasible};
use crate::search::relax::Fix;

/// The undominated states, with weights and scores both strictly descending, and the steps that led to them.
pub(super) struct Search {
    states: Vec<State>,
    steps: Steps,
    /// How much less than these states some set may score that was given up on the way: 0 where nothing was, `None` where
    /// nothing is known.
    pub(super) error: Option<i128>,
}

impl Search {
    /// Runs over all blocks; with a bound, without the states that lead nowhere; `None` where more than `most` states would be
    /// kept.
    pub(super) fn run(
        instance: &Instance,
        resource: usize,
        bound: Option<&Bound>,
        watch: &mut Watch<'_>,
        most: Option<usize>,
    ) -> Option<Self> {
        let mut lists = Lists::new(instance, resource, bound, watch, most);
        let mut states = vec![State { score: instance.forced_score, weight: instance.forced_costs[resource], node: 0 }];
        let mut first_subtree = instance.blocks.len();
        for (position, block) in instance.blocks.iter().enumerate() {
            let goes_on = match (&block.linked, block.kind) {
                (Some(linked), _) => linked.run(instance, &mut states, &mut lists, first_subtree),
                (None, BlockKind::Shared(bonus)) => {
                    side_by_side(instance, position, instance.bonuses[bonus].costs[resource], &mut states, &mut lists)
                }
                _ => side_by_side(instance, position, 0, &mut states, &mut lists),
            };
            if !goes_on {
                return None;
            }
            first_subtree += block.subtrees().len();
            lists.before += block.units.len();
        }
        let Lists { steps, error, .. } = lists;
        Some(Self { states, steps, error })
    }

    /// Position of the cheapest state that removes at least `needed`; of equal scores the one that removes most.
    fn find(&self, needed: u64) -> Option<usize> {
        self.states.partition_point(|state| state.weight >= needed).checked_sub(1)
    }

    /// Score and units of the cheapest state that removes at least `needed`.
    pub(super) fn best(&self, needed: u64) -> Option<(i128, Vec<usize>)> {
        let state = self.states[self.find(needed)?];
        Some((state.score, self.steps.units(state.node)))
    }
}

/// Decides units that share at most a cost, which goes with the last of them.
fn side_by_side(instance: &Instance, position: usize, shared: u64, states: &mut Vec<State>, lists: &mut Lists<'_, '_>) -> bool {
    let (units, resource) = (&instance.blocks[position].units, lists.resource);
    let whole = shared > 0 && units.iter().all(|unit| lists.fix(*unit) != Fix::Keep);
    let mut before = if whole { states.clone() } else { Vec::new() };
    let mut next = Vec::new();
    for (done, at) in units.iter().enumerate() {
        let unit = &instance.units[*at];
        match lists.fix(*at) {
            Fix::Keep => {}
            Fix::Gone => *states = lists.moved(states, unit.costs[resource], unit.score, *at as u32),
            Fix::Free => {
                merge(states, states, (unit.costs[resource], unit.score, *at as u32), &mut lists.steps, &mut next);
                std::mem::swap(states, &mut next);
                lists.prune(done + 1, states);
            }
        }
        if !lists.checkpoint(done + 1, &mut [&mut *states, &mut before]) {
            return false;
        }
    }
    if whole {
        // Removing every unit is one more option, with the shared cost's weight on top.
        let weight = shared + units.iter().map(|unit| instance.units[*unit].costs[resource]).sum::<u64>();
        let score = units.iter().map(|unit| instance.units[*unit].score).sum();
        merge(states, &before, (weight, score, group(position)), &mut lists.steps, &mut next);
        std::mem::swap(states, &mut next);
        lists.prune(units.len(), states);
        return lists.checkpoint(units.len(), &mut [states]);
    }
    true
}

/// A point of a [`Front`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrontPoint {
    /// Cost removed, shared costs included.
    pub removed: u64,
    /// Sum of the scores of the removed layers; no set that removes as much scores less, up to [`Front::error`].
    pub score: f64,
}

/// Every set of layers worth removing under one cost: for any budget the exact optimum is a look-up.
pub struct Front<'a> {
    scores: &'a Scores,
    constraints: Constraints,
    resource: String,
    index: usize,
    instance: Instance,
    exact: Exact,
    search: Search,
}

impl<'a> Front<'a> {
    /// Computes the whole front. Its size is bounded by the number of distinct sums of costs: a few thousand points
    /// for networks made of equal blocks, more where every layer has a cost of its own. Beyond 256 MiB it gets coarser; see
    /// [`Front::error`], and [`Problem::front_with`] for other limits.
    ///
    /// # Errors
    /// [`Error::IncompleteScores`], [`Error::UnknownLayer`] and [`Error::Contradiction`] (constraints),
    /// [`Error::ScoreSpread`], [`Error::Overflow`].
    pub fn build(scores: &'a Scores, cost: Cost, constraints: &Constraints) -> Result<Self, Error> {
        Problem::new(scores, constraints)?.front(cost.name())
    }

    /// What the front counts.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// By how much the scores of all points may lie above the least ones: 0 for an exact front, infinite where the search had to
    /// give up so much that only a plan's own bound tells.
    pub fn error(&self) -> f64 {
        self.search.error.map_or(f64::INFINITY, |error| self.exact.to_f64(error))
    }

    /// The points, ascending in both coordinates.
    pub fn points(&self) -> Vec<FrontPoint> {
        let point = |state: &State| FrontPoint { removed: state.weight, score: self.exact.to_f64(state.score) };
        self.search.states.iter().rev().map(point).collect()
    }

    /// The index in [`Front::points`] of the best point that removes at least `needed`; `None` where that is too much.
    pub fn find(&self, needed: u64) -> Option<usize> {
        self.search.find(needed).map(|position| self.search.states.len() - 1 - position)
    }

    /// The layers behind the point of [`Front::points`] with this index.
    pub fn removal(&self, index: usize) -> Option<RemovalSet> {
        let position = self.search.states.len().checked_sub(index.checked_add(1)?)?;
        let units = self.search.steps.units(self.search.states[position].node);
        let layers = self.scores.table().layers();
        Some(self.instance.layers_of(units.into_iter()).into_iter().map(|layer| layers[layer].id.clone()).collect())
    }

    /// The optimal plan for a budget, the same as [`crate::solve`]'s, where the front is exact; otherwise one with its bound.
    ///
    /// # Errors
    /// [`Error::OtherCost`], [`Error::OutOfRange`] (ratio), [`Error::Infeasible`].
    pub fn plan(&self, budget: &Budget) -> Result<Plan, Error> {
        if budget.cost().name() != self.resource {
            return Err(Error::OtherCost { expected: self.resource.clone(), got: budget.cost() });
        }
        let table = self.scores.table();
        let needed = budget.required(table)?;
        check_feasible(budget.cost(), needed, self.instance.available[self.index], table.total(budget.cost()))?;
        let greedy = || greedy_units(&self.instance, self.index, needed, table);
        let (score, units) = self.search.best(needed).unwrap_or_else(|| {
            let set = greedy();
            (set.score(), (0..set.gone().len()).filter(|unit| set.gone()[*unit]).collect())
        });
        let by_price = || Relaxation::new(&self.instance, self.index, needed).by_count().0.ceil() as i128;
        let bound = match self.search.error {
            Some(0) => score,
            error => error.map_or(i128::MIN, |error| score - error).max(by_price()).min(score),
        };
        let layers = self.instance.layers_of(units.into_iter());
        self.exact.plan(self.scores, budget, &self.constraints, (score, bound), &layers)
    }
}

impl<'a> Problem<'a> {
    /// Computes the whole front over one resource: the optimum for every least amount of it, other resources left free.
    ///
    /// # Errors
    /// As [`Front::build`], and [`Error::UnknownResource`].
    pub fn front(&self, resource: &str) -> Result<Front<'a>, Error> {
        self.front_with(resource, &SearchOptions::new())
    }

    /// [`Problem::front`] within limits on time and memory.
    ///
    /// # Errors
    /// As [`Problem::front`].
    pub fn front_with(&self, resource: &str, options: &SearchOptions<'_>) -> Result<Front<'a>, Error> {
        let index = self.resource(resource)?;
        let (instance, exact) = self.instance()?;
        let nothing = || Search { states: Vec::new(), steps: Steps::new(&instance), error: None };
        let search = Search::run(&instance, index, None, &mut options.watch(), None).unwrap_or_else(nothing);
        Ok(Front {
            scores: self.scores,
            constraints: self.constraints.clone(),
            resource: resource.to_owned(),
            index,
            instance,
            exact,
            search,
        })
    }
}
