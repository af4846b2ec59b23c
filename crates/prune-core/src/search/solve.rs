//! One budget at a time: the search of `front`, which drops every state that cannot beat a greedy plan.

use crate::baselines::greedy_layers;
use crate::budget::{Budget, Constraints};
use crate::error::Error;
use crate::plan::Plan;
use crate::score::Scores;
use crate::search::bound::Bound;
use crate::search::front::Search;
use crate::search::problem::Problem;

/// The set of layers with the least sum of scores among all that meet the budget, exactly.
///
/// Costs are integers and never rounded; scores add up without rounding too (see [`Error::ScoreSpread`]). A layer with
/// a negative score always goes. Ties are broken by, in this order: the lower sum of scores; the larger cost removed;
/// holding the smallest id on which two sets differ, where the members of one shell are compared side by side.
/// The plan therefore does not depend on the order of rows in the table. Magnitude, Taylor and other criteria are
/// solved by the same rule over their own scores.
///
/// # Errors
/// [`Error::Infeasible`]; [`Error::OutOfRange`] (ratio); [`Error::IncompleteScores`]; [`Error::UnknownLayer`] and
/// [`Error::Contradiction`] (constraints); [`Error::ScoreSpread`]; [`Error::Overflow`].
pub fn solve(scores: &Scores, budget: &Budget, constraints: &Constraints) -> Result<Plan, Error> {
    let problem = Problem::new(scores, budget.cost(), constraints)?;
    let needed = budget.required(scores.table())?;
    problem.check_feasible(needed, scores.table().total(budget.cost()))?;
    let known = greedy_layers(scores, budget, constraints)?;
    let known = known.into_iter().map(|layer| problem.exact.integers[layer]).sum();
    let bound = Bound::new(&problem, needed, known);
    Search::run(problem, |done, states| bound.prune(done, states)).plan(budget, scores)
}
