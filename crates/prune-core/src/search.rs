//! Choosing the set: the exact covering knapsack over scores and integer costs. Third arrow of the flow:
//! `scores.json` -> `plan.json`.
//!
//! `min sum_i c_i x_i  s.t.  sum_i w_i x_i >= P` (arXiv 2404.11098, with w in parameters), where a shared cost's cost counts
//! once all its members are gone. Read `problem` (what is asked), `instance` (what is left to choose, in plain numbers) and
//! `exact` (sums of scores without rounding); then `front` with `linked` (all budgets in one pass), `bound` and `solve` (the
//! shortcut for a single budget), `relax`, `branch` and `limits` (several limits at once).

mod problem;

mod components;
mod exact;
mod instance;
mod selection;

mod effort;
mod front;
mod linked;
mod lists;

mod bound;
mod improve;
mod solve;

mod branch;
mod dominance;
mod limits;
mod relax;

pub use crate::baselines::{greedy, lowest_first, random};
pub use crate::budget::{Budget, Constraints, Limit, Precedence};
pub use crate::plan::{Plan, PlanBudget, PlanLimit};
pub(crate) use effort::Watch;
pub use effort::{Progress, SearchOptions};
pub use front::{Front, FrontPoint};
pub(crate) use instance::{Instance, ResourceCosts};
pub use limits::Solution;
pub use problem::{Interaction, Problem, Resource};
pub(crate) use problem::{check_feasible, exact_scores};
pub(crate) use relax::Range;
pub(crate) use selection::Selection;
pub use solve::solve;
