//! Layer importance, exact selection and additivity for pruning any layered model.
//!
//! You have a score per layer, from wherever? Ten lines give the best set to remove:
//!
//! ```
//! use prune_core::{Budget, Constraints, LayerTable, Scores, solve};
//!
//! let table = LayerTable::builder().layer("blocks.0", 30).layer("blocks.1", 25).layer("blocks.2", 25).build()?;
//! let scores = Scores::from_values(&table, "importance", [("blocks.0", 0.5), ("blocks.1", 0.1), ("blocks.2", 0.3)])?;
//! let plan = solve(&scores, &Budget::params_ratio(0.5), &Constraints::none())?;
//! assert_eq!(plan.removed, ["blocks.1", "blocks.2"].map(Into::into));
//! assert_eq!((plan.params_removed, plan.optimal), (50, true));
//! # Ok::<(), prune_core::Error>(())
//! ```
//!
//! This crate is the middle of the data flow weights -> **scores -> plan** -> pruned model -> distillation ->
//! evaluation -> report. It knows no tensor, no device and no file of weights: a layer is an id with two integer costs,
//! what its removal does is a number. A model joins by implementing [`Ablate`]; everything else is plain data and pure
//! functions over it. The method is that of LAPTOP-Diff (arXiv 2404.11098): score every layer alone, add the scores up,
//! choose the set exactly.
//!
//! 1. [`LayerTable`]: what can be removed and what it costs ([`table`]).
//! 2. [`Ablate`] or [`from_fn`], [`Scorer`] -> [`Scores`]: what each removal does, alone ([`score`]).
//! 3. [`Budget`], [`Limit`], [`Constraints`], [`solve`], [`Front`], [`Problem`] -> [`Plan`]: which layers go ([`search`]).
//! 4. [`audit()`] -> whether the sum of scores told the truth ([`mod@audit`]).
//! 5. [`refine()`] -> a plan that loses less together, at the same budget ([`mod@refine`]);
//!    [`measured_front()`] -> the best measured plan at every budget ([`mod@measured_front`]).
//!
//! [`guide`] says what each part guarantees, what it costs and when to use which.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod layer;
pub mod table;

// Measuring.
mod ablate;
pub mod score;
mod segmented;

// Choosing.
mod budget;
pub mod search;

mod baselines;
mod plan;

// Checking and refining.
pub mod audit;
mod ledger;
pub mod measured_front;
mod pairs;
pub mod refine;
mod steps;

// Helpers.
mod error;
pub mod file;
mod random;
mod stats;

pub use ablate::{Ablate, from_fn};
pub use audit::audit;
pub use budget::{Budget, Constraints, Limit};
pub use error::Error;
pub use layer::{LayerId, RemovalSet};
pub use measured_front::measured_front;
pub use plan::Plan;
pub use refine::refine;
pub use score::{Scorer, Scores};
pub use search::{Front, Problem, solve};
pub use table::LayerTable;

#[doc = include_str!("../docs/guide.md")]
pub mod guide {}

/// The example of the README is compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
