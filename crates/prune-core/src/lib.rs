//! Layer importance, exact selection and additivity for pruning any layered model.
//!
//! This crate is the middle of the data flow weights -> **scores -> plan** -> pruned model -> distillation ->
//! evaluation -> report. It knows no tensor, no device and no file of weights: a layer is an id with two integer costs,
//! what its removal does is a number. A model joins by implementing [`Ablate`]; everything else is plain data and pure
//! functions over it. The method is that of LAPTOP-Diff (arXiv 2404.11098): score every layer alone, add the scores up,
//! choose the set exactly.
//!
//! 1. [`LayerTable`]: what can be removed and what it costs.
//! 2. [`Ablate`], or [`Resume`] with [`Resuming`]; [`score_all`] -> [`Scores`]: what each removal does, alone.
//! 3. [`Budget`], [`Limit`], [`Constraints`], [`solve`], [`Front`], [`Problem`] -> [`Plan`]: which layers go.
//! 4. [`draw_removal_sets`], [`measure_sets`], [`audit`] -> [`AuditFile`]: whether the sum of scores told the truth.
//! 5. [`refine()`] -> [`Refined`]: a plan that loses less together, at the same budget.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

// The words.
mod layer;
mod table;

// Measuring.
mod ablate;
mod resume;
mod score;

// Choosing.
mod budget;
mod search;

mod baselines;
mod plan;

// Doubting, and doing better.
mod audit;
mod pairs;
mod refine;
mod steps;

// Helpers.
mod error;
pub mod file;
mod random;
mod stats;

pub use ablate::{Ablate, Gaps};
pub use audit::{
    Audit, AuditFile, AuditStats, DrawnSet, JointGap, MeasureEvent, MeasureOptions, MeasuredSet, PartSlope, SetSize, audit,
    draw_removal_sets, measure_sets,
};
pub use baselines::{greedy, lowest_first, random};
pub use budget::{Budget, Constraints, Limit, Precedence};
pub use error::{AblateError, Error};
pub use layer::{Cost, Layer, LayerId, RemovalSet, Shell};
pub use pairs::{interactions, strongest_pairs};
pub use plan::{Plan, PlanBudget, PlanLimit};
pub use refine::{RefineEvent, RefineMethod, RefineOptions, RefineOutcome, RefineRecord, RefineStep, Refined, SetGaps, refine};
pub use resume::{Resume, Resuming, Segment};
pub use score::{
    AdaptiveEvent, AdaptiveOptions, AdaptiveScores, BinWeights, Certificate, LayerScore, Population, ScoreEvent, ScoreOptions, Scores,
    ScoresParts, Shard, certify, merge_scores, score_adaptively, score_all, score_layers, weigh_bins,
};
pub use search::{Front, FrontPoint, Interaction, Problem, Resource, Solution, solve};
pub use stats::{LinearFit, fit_line, mean, pearson, slope_through_origin, spearman, standard_error};
pub use steps::{Given, Step, StepOptions, prune_in_steps};
pub use table::{LayerTable, TableParts};

/// The example of the README is compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
