//! One budget at a time: the lists of `front`, without every state that cannot beat a good set.
//!
//! First with few states, which suffices for most networks. Where these run out, a better set and a better bound come from `improve`
//! and `bound`; they may meet. If not, the lists get all the memory and time there is.

use crate::baselines::greedy_units;
use crate::budget::{Budget, Constraints};
use crate::error::Error;
use crate::plan::Plan;
use crate::score::Scores;
use crate::search::bound::Relaxation;
use crate::search::effort::{SearchOptions, Watch};
use crate::search::exact::{Exact, grain};
use crate::search::front::Search;
use crate::search::improve::{complete, exchange};
use crate::search::instance::Instance;
use crate::search::limits::Solution;
use crate::search::problem::{Problem, check_feasible};
use crate::search::selection::Selection;
use crate::table::LayerTable;

/// The set of layers with the least sum of scores among all that meet the budget, exactly.
///
/// Costs are integers and never rounded; scores add up without rounding too (see [`Error::ScoreSpread`]). A layer with
/// a negative score is always removed unless a constraint binds it. Ties are broken by, in this order: the lower sum of scores; the
/// larger cost removed; holding the smallest id on which two sets differ, where layers that are linked by a shared cost or by
/// constraints are compared side by side. The plan therefore does not depend on the order of rows in the table. Magnitude,
/// Taylor and other criteria are solved by the same rule over their own scores.
///
/// Work is bounded by 256 MiB of memory ([`Problem::solve_budget_with`] sets other limits). An instance that does not fit, which
/// takes hundreds of layers whose scores follow their costs, gets a plan with `optimal` false and the bound that was proven;
/// or an optimal one whose ties were not compared.
///
/// # Errors
/// [`Error::Infeasible`]; [`Error::OutOfRange`] (ratio); [`Error::IncompleteScores`]; [`Error::UnknownLayer`] and
/// [`Error::Contradiction`] (constraints); [`Error::ScoreSpread`]; [`Error::Overflow`].
pub fn solve(scores: &Scores, budget: &Budget, constraints: &Constraints) -> Result<Plan, Error> {
    Problem::new(scores, constraints)?.solve_budget(budget)
}

impl Problem<'_> {
    /// [`solve`] for a problem with more to it, such as interactions of layers.
    ///
    /// # Errors
    /// As [`solve`].
    pub fn solve_budget(&self, budget: &Budget) -> Result<Plan, Error> {
        Ok(self.solve_budget_with(budget, &SearchOptions::new())?.plan)
    }

    /// [`solve`] within limits on time and memory: whatever ends the search, the best set so far comes with what no set undercuts.
    ///
    /// # Errors
    /// As [`solve`].
    pub fn solve_budget_with(&self, budget: &Budget, options: &SearchOptions<'_>) -> Result<Solution, Error> {
        let (instance, exact) = self.instance()?;
        let table = self.table();
        let needed = budget.required(table)?;
        let resource = self.resource(budget.cost().name())?;
        check_feasible(budget.cost(), needed, instance.available[resource], table.total(budget.cost()))?;
        let found = single(&instance, resource, needed, table, &mut options.watch());
        let layers = instance.layers_of(found.units.into_iter());
        let plan = exact.plan(self.scores, budget, &self.constraints, (found.score, found.bound), &layers)?;
        Ok(Solution { gap: exact.to_f64(found.score - found.bound), plan, ordered: found.ordered, nodes: found.work })
    }
}

/// The best set for one budget that was found.
pub(super) struct Found {
    pub(super) score: i128,
    pub(super) units: Vec<usize>,
    /// No set scores less.
    pub(super) bound: i128,
    /// Ties were compared.
    pub(super) ordered: bool,
    pub(super) work: u64,
}

/// States of the first, cheap attempt: some milliseconds.
const FEW: usize = 1 << 16;

/// Searches for the cheapest set that removes at least `needed`, which can be reached.
pub(super) fn single(instance: &Instance, resource: usize, needed: u64, table: &LayerTable, watch: &mut Watch<'_>) -> Found {
    let mut known = greedy_units(instance, resource, needed, table);
    let relaxation = Relaxation::new(instance, resource, needed);
    let bound = relaxation.within(known.score());
    if let Some(search) = Search::run(instance, resource, Some(&bound), watch, Some(FEW))
        && let Some((score, units)) = search.best(needed)
        && search.error == Some(0)
    {
        return Found { score, units, bound: score, ordered: true, work: watch.work() };
    }
    let (least, starts) = relaxation.by_count();
    for start in starts.into_iter().chain(relaxation.at_price()) {
        let mut set = Selection::new(instance);
        start.into_iter().for_each(|unit| drop(set.remove_with_needs(unit)));
        complete(&mut set, instance, resource, needed);
        exchange(&mut set, instance, resource, needed);
        if set.cost(resource) >= needed && set.score() < known.score() {
            known = set;
        }
    }
    exchange(&mut known, instance, resource, needed);
    let least = whole(least, instance);
    let gone = |set: &Selection<'_>| (0..set.gone().len()).filter(|unit| set.gone()[*unit]).collect();
    if least >= known.score() {
        return Found { score: known.score(), units: gone(&known), bound: known.score(), ordered: false, work: watch.work() };
    }
    let bound = relaxation.within(known.score());
    let search = Search::run(instance, resource, Some(&bound), watch, None);
    let (error, best) = search.map_or((None, None), |search| (search.error, search.best(needed)));
    let (score, units) = best.filter(|(score, _)| *score <= known.score()).unwrap_or_else(|| (known.score(), gone(&known)));
    let bound = error.map_or(least, |error| least.max(score - error)).min(score);
    Found { score, units, bound, ordered: error == Some(0), work: watch.work() }
}

/// The least score that a set can have, by a bound in `f64`: scores differ by multiples of their greatest common divisor.
fn whole(bound: f64, instance: &Instance) -> i128 {
    let parts = instance.units.iter().map(|unit| unit.score).chain(instance.bonuses.iter().map(|bonus| bonus.score));
    let grain = grain(parts);
    // Beyond 2^53 the bound itself is rounded, which its margin covers.
    let above = bound.ceil() as i128 - instance.forced_score;
    instance.forced_score + above.div_euclid(grain).saturating_mul(grain) + if above.rem_euclid(grain) == 0 { 0 } else { grain }
}

impl Exact {
    /// The plan that removes these layers, by position, for a budget; with its score and what no plan undercuts.
    pub(super) fn plan(
        &self,
        scores: &Scores,
        budget: &Budget,
        constraints: &Constraints,
        (score, bound): (i128, i128),
        layers: &[usize],
    ) -> Result<Plan, Error> {
        let table = scores.table();
        let method = if score == bound { "exact" } else { "bounded" };
        let mut plan = Plan::from_positions(table, method.to_owned(), layers);
        plan.set_budget(budget, table)?;
        plan.constraints = constraints.clone();
        let value = self.to_f64(score);
        plan.set_proof(scores.criterion(), value, self.to_f64(bound).min(value));
        plan.optimal = score == bound;
        Ok(plan)
    }
}
