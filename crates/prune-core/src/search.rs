//! Choosing the set: the exact covering knapsack over scores and integer costs. Third arrow of the flow:
//! `scores.json` -> `plan.json`.
//!
//! `min sum_i c_i x_i  s.t.  sum_i w_i x_i >= P` (arXiv 2404.11098, with w in parameters), where a shell's cost counts
//! once all its members are gone. Read `exact` (sums of scores without rounding), `problem` (what is free to choose),
//! `front` (the search), `bound` and `solve` (the shortcut for a single budget).

mod exact;
mod problem;

mod front;

mod bound;
mod solve;

pub use front::{Front, FrontPoint};
pub(crate) use problem::check_feasible;
pub use solve::solve;
