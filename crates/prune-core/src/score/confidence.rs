//! How sure a plan is: intervals around the scores, and the change of the plan that they still allow.
//!
//! A plan S is the best for every score inside the intervals if it is the best where they speak most against it: its own
//! layers at the upper ends, all others at the lower ends. One more exact solve answers that (the oracle step of
//! CLUCB, Chen, Lin, King, Lyu and Chen 2014, "Combinatorial Pure Exploration of Multi-Armed Bandits").

use serde::{Deserialize, Serialize};

use crate::budget::{Budget, Constraints};
use crate::error::Error;
use crate::layer::LayerId;
use crate::plan::{Plan, PlanBudget};
use crate::score::{LayerScore, Scores};
use crate::search::solve;
use crate::stats;

/// What the intervals are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Population {
    /// The mean over all samples of the run: nothing is unsure about a layer that has them all.
    Samples,
    /// The mean over everything that the samples were drawn from.
    Expectation,
}

/// Whether a plan could still change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// The budget of the plan.
    pub budget: PlanBudget,
    /// What the intervals are about.
    pub population: Population,
    /// Chance allowed that some interval misses.
    pub delta: f64,
    /// Whether the plan is the best for all scores inside the intervals.
    pub decided: bool,
    /// The plan: what goes by the scores as they are.
    pub removed: Vec<LayerId>,
    /// The change that may be most worth it: these layers would come back ...
    pub back: Vec<LayerId>,
    /// ... and these would go.
    pub out: Vec<LayerId>,
    /// By how much the sum of scores could become less with that change; 0 for a decided plan.
    pub at_stake: f64,
}

/// Asks whether the plan for a budget could still change within the intervals of the scores.
///
/// Intervals are Student's, over the logarithm of the mean where all samples of a layer are positive, and are widened so that
/// by Bonferroni's bound all hold at once with a chance of `1 - delta`. They take the samples of a layer as independent draws
/// and their mean as close to normal: good from some ten samples on. Scores without samples count as exact.
///
/// # Errors
/// [`Error::OutOfRange`] for a delta outside 0..1 or a layer with a single sample; those of [`solve`].
pub fn certify(
    scores: &Scores,
    budget: &Budget,
    constraints: &Constraints,
    delta: f64,
    population: Population,
) -> Result<Certificate, Error> {
    check_delta(delta)?;
    certify_at(scores, budget, constraints, delta, scores.table().len(), population)
}

pub(super) fn check_delta(delta: f64) -> Result<(), Error> {
    if delta > 0.0 && delta < 1.0 {
        return Ok(());
    }
    Err(Error::OutOfRange { key: "delta", expected: "a number between 0 and 1".to_owned(), got: delta.to_string() })
}

/// [`certify`] with a number of intervals that are to hold at once.
pub(super) fn certify_at(
    scores: &Scores,
    budget: &Budget,
    constraints: &Constraints,
    delta: f64,
    intervals: usize,
    population: Population,
) -> Result<Certificate, Error> {
    let table = scores.table();
    let plan = solve(scores, budget, constraints)?;
    let chosen = plan.removal_set();
    let level = delta / intervals as f64;
    let mut worst = Vec::with_capacity(table.len());
    for layer in table.layers() {
        // `solve` has seen that every layer has a score.
        let Some(score) = scores.layer(layer.id.as_str()) else { continue };
        let (low, high) = interval(score, &layer.id, scores.bins().len(), level, population)?;
        worst.push((layer.id.clone(), if chosen.contains(layer.id.as_str()) { high } else { low }));
    }
    let worst = Scores::from_values(table, scores.criterion(), worst)?;
    let rival = solve(&worst, budget, constraints)?.removal_set();
    let at_stake = worst.predicted(&chosen)? - worst.predicted(&rival)?;
    let decided = rival == chosen || at_stake <= 0.0;
    let without = |ids: &Plan, other: &dyn Fn(&LayerId) -> bool| ids.removed.iter().filter(|id| !other(id)).cloned().collect();
    let rival_plan = Plan::from_removed(table, "rival", rival.iter().cloned())?;
    let none = |ids: Vec<LayerId>| if decided { Vec::new() } else { ids };
    Ok(Certificate {
        budget: PlanBudget { cost: budget.cost(), ratio: budget.ratio(), required: budget.required(table)? },
        population,
        delta,
        decided,
        back: none(without(&plan, &|id| rival.contains(id.as_str()))),
        out: none(without(&rival_plan, &|id| chosen.contains(id.as_str()))),
        at_stake: if decided { 0.0 } else { at_stake },
        removed: plan.removed,
    })
}

/// The interval that misses a layer's score with a chance of `level`.
fn interval(score: &LayerScore, id: &LayerId, total: usize, level: f64, population: Population) -> Result<(f64, f64), Error> {
    let (mean, count) = (score.value(), score.samples().len());
    let finite = population == Population::Samples;
    if count == 0 || (finite && count == total) {
        return Ok((mean, mean));
    }
    let Some(error) = score.standard_error() else {
        let got = format!("1 for `{id}`");
        return Err(Error::OutOfRange { key: "samples per layer", expected: "at least 2".to_owned(), got });
    };
    // Of a finite number of samples the unseen share alone is unsure.
    let unseen = if finite { (1.0 - count as f64 / total as f64).sqrt() } else { 1.0 };
    let half = stats::student_quantile(level, count - 1) * error * unseen;
    if score.samples().iter().all(|gap| *gap > 0.0) {
        // The delta method on ln(mean); the bound keeps the ends within the range that sums of scores allow.
        let factor = (half / mean).min(30.0).exp();
        return Ok((mean / factor, mean * factor));
    }
    Ok((mean - half, mean + half))
}
