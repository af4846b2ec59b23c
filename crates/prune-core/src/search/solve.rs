//! One budget at a time: the search of `front`, which drops every state that cannot beat a greedy plan.

use crate::baselines::greedy_units;
use crate::budget::{Budget, Constraints};
use crate::error::Error;
use crate::plan::Plan;
use crate::score::Scores;
use crate::search::front::Search;
use crate::search::problem::{Problem, check_feasible};

/// The set of layers with the least sum of scores among all that meet the budget, exactly.
///
/// Costs are integers and never rounded; scores add up without rounding too (see [`Error::ScoreSpread`]). A layer with
/// a negative score is always removed unless a constraint binds it. Ties are broken by, in this order: the lower sum of scores; the
/// larger cost removed; holding the smallest id on which two sets differ, where layers that are linked by a shared cost or by
/// constraints are compared side by side. The plan therefore does not depend on the order of rows in the table. Magnitude,
/// Taylor and other criteria are solved by the same rule over their own scores.
///
/// # Errors
/// [`Error::Infeasible`]; [`Error::OutOfRange`] (ratio); [`Error::IncompleteScores`]; [`Error::UnknownLayer`] and
/// [`Error::Contradiction`] (constraints); [`Error::ScoreSpread`]; [`Error::Overflow`]; [`Error::FrontTooLarge`], where
/// [`Problem::solve`] is the way.
pub fn solve(scores: &Scores, budget: &Budget, constraints: &Constraints) -> Result<Plan, Error> {
    Problem::new(scores, constraints)?.solve_budget(budget)
}

impl Problem<'_> {
    /// [`solve`] for a problem with more to it, such as interactions of layers.
    ///
    /// # Errors
    /// As [`solve`].
    pub fn solve_budget(&self, budget: &Budget) -> Result<Plan, Error> {
        let (instance, exact) = self.instance()?;
        let table = self.table();
        let needed = budget.required(table)?;
        let resource = self.resource(budget.cost().name())?;
        check_feasible(budget.cost(), needed, instance.available[resource], table.total(budget.cost()))?;
        let known = greedy_units(&instance, resource, needed, table).score();
        let search = Search::within(instance, exact, resource, needed, known)?;
        search.plan(budget, &self.constraints, self.scores)
    }
}
