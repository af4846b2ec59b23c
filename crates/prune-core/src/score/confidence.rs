//! How sure a plan is: intervals around the scores, and the change of the plan that they still allow.
//!
//! A plan S is the best for every score inside the intervals if it is the best where they speak most against it: its own
//! layers at the upper ends, all others at the lower ends. One more exact solve answers that (the oracle step of
//! CLUCB, Chen, Lin, King, Lyu and Chen 2014, "Combinatorial Pure Exploration of Multi-Armed Bandits").
//!
//! LossDeltas have heavy tails: a few points carry most of a layer's mean, and a layer whose few samples hold none of them looks surer
//! than it is. So no layer counts as less spread, for its mean, than the median layer with as many samples. Where the tail of all
//! layers' samples together is so heavy that single ones carry a mean, no interval of few samples is honest, and none is given.

use std::collections::BTreeMap;
use std::fmt;

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

/// What is done where the tails of the losses are so heavy that single samples carry the means ([`Certificate::heavy_tail`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeavyTails {
    /// Nothing but seen samples is taken for known, so that what matters is measured in full.
    TakeAll,
    /// The intervals are used all the same: fewer evaluations, but `delta` is not promised.
    Trust,
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
    /// The index of the samples' tail where it is so heavy that samples not seen may change anything, and some were not seen. Absent
    /// where tails are light enough for intervals, and from older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heavy_tail: Option<f64>,
}

/// Whether the plan is decided, at which delta; if not, the change that is open.
impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delta = self.delta;
        match (self.decided, self.heavy_tail) {
            (true, None) => return write!(f, "decided at delta {delta}: no other plan could be better"),
            (true, Some(index)) => {
                return write!(f, "decided if tails are lighter than seen (index {index:.1}); delta {delta} is not kept");
            }
            (false, Some(index)) => {
                let why = format!("single samples carry the means (tail index {index:.1}), so no interval holds");
                return write!(f, "undecided at delta {delta}: {why}; it is the plan of all that was measured");
            }
            (false, None) => {}
        }
        let ids = |ids: &[LayerId]| ids.iter().map(LayerId::as_str).collect::<Vec<_>>().join(", ");
        let (out, back) = (ids(&self.out), ids(&self.back));
        write!(f, "undecided at delta {delta}: at most {:.2e} less if {out} went and {back} came back", self.at_stake)
    }
}

/// Asks whether the plan for a budget could still change within the intervals of the scores.
///
/// Intervals are Student's, over the logarithm of the mean where all samples of a layer are positive, and are widened so that
/// by Bonferroni's bound all hold at once with a chance of `1 - delta`. They take the samples of a layer as independent draws
/// and their mean as close to normal, which some ten samples are enough for unless tails are heavy. Where Hill's index of all layers'
/// samples, each in parts of its layer's median, says that single samples carry the means ([`Certificate::heavy_tail`]), nothing but the
/// seen samples of a layer is taken for known. What is so rare that no layer's samples show it stays unknown. Of layers with positive samples none counts as less spread, for its mean, than their median at the same number of
/// samples. Losses that repeat, with zeros or negative ones among them, get the wider intervals of bounded numbers.
/// Scores without samples count as exact.
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
    let level = Level { delta, intervals: scores.table().len(), tails: HeavyTails::TakeAll };
    certify_at(scores, budget, constraints, level, population)
}

/// How sure all is to be at once.
#[derive(Clone, Copy)]
pub(super) struct Level {
    pub(super) delta: f64,
    /// Intervals that are to hold at once.
    pub(super) intervals: usize,
    pub(super) tails: HeavyTails,
}

pub(super) fn check_delta(delta: f64) -> Result<(), Error> {
    if delta > 0.0 && delta < 1.0 {
        return Ok(());
    }
    Err(Error::OutOfRange { key: "delta", expected: "a number between 0 and 1".to_owned(), got: delta.to_string() })
}

/// [`certify`] at another level.
pub(super) fn certify_at(
    scores: &Scores,
    budget: &Budget,
    constraints: &Constraints,
    level: Level,
    population: Population,
) -> Result<Certificate, Error> {
    let table = scores.table();
    let plan = solve(scores, budget, constraints)?;
    let chosen = plan.removal_set();
    let heavy_tail = heavy_tail(scores).filter(|_| population == Population::Expectation || !all_known(scores));
    let mut intervals = Intervals {
        scores,
        level: level.delta / level.intervals as f64,
        population,
        unknown: heavy_tail.is_some() && level.tails == HeavyTails::TakeAll,
        spreads: BTreeMap::new(),
    };
    let mut worst = Vec::with_capacity(table.len());
    for layer in table.layers() {
        // `solve` has seen that every layer has a score.
        let Some(score) = scores.layer(layer.id.as_str()) else { continue };
        let (low, high) = intervals.around(score, &layer.id)?;
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
        delta: level.delta,
        decided,
        back: none(without(&plan, &|id| rival.contains(id.as_str()))),
        out: none(without(&rival_plan, &|id| chosen.contains(id.as_str()))),
        at_stake: if decided { 0.0 } else { at_stake },
        heavy_tail,
        removed: plan.removed,
    })
}

/// Makes the intervals of all layers.
struct Intervals<'a> {
    scores: &'a Scores,
    /// Chance that one of them misses.
    level: f64,
    population: Population,
    /// Nothing is known of samples not seen.
    unknown: bool,
    /// Median relative spread by number of samples.
    spreads: BTreeMap<usize, f64>,
}

impl Intervals<'_> {
    fn around(&mut self, score: &LayerScore, id: &LayerId) -> Result<(f64, f64), Error> {
        let (mean, count, total) = (score.value(), score.samples().len(), self.scores.bins().len());
        let seen = match self.population {
            Population::Samples => count as f64 / total as f64,
            Population::Expectation => 0.0,
        };
        if count == 0 || seen == 1.0 {
            return Ok((mean, mean));
        }
        let Some(error) = score.standard_error() else {
            let got = format!("1 for `{id}`");
            return Err(Error::OutOfRange { key: "samples per layer", expected: "at least 2".to_owned(), got });
        };
        if self.unknown {
            // Unseen samples may be as many times larger as the seen ones are counted.
            let reach = mean.abs() * UNKNOWN;
            return Ok(if is_positive(score.samples()) { (mean * seen, mean + reach) } else { (mean - reach, mean + reach) });
        }
        if repeats(score.samples()) {
            let half = self.bernstein(error * (count as f64).sqrt(), count, total);
            return Ok((mean - half, mean + half));
        }
        // Of a finite number of samples the unseen share alone is unsure.
        let errors = stats::student_quantile(self.level, count - 1) * (1.0 - seen).sqrt();
        if !is_positive(score.samples()) {
            return Ok((mean - errors * error, mean + errors * error));
        }
        let spread = *self.spreads.entry(count).or_insert_with(|| median_spread(self.scores, count));
        // The delta method on ln(mean); the bound keeps the ends within the range that sums of scores allow.
        let factor = |half: f64| half.min(30.0).exp();
        let half = errors * (error / mean).max(spread);
        // Whatever the unseen samples are, the seen ones stay in the mean.
        let low = mean * (seen + (1.0 - seen) / factor(half / (1.0 - seen)));
        Ok((low, mean * factor(half)))
    }
}

impl Intervals<'_> {
    /// Half of the interval for losses of few values, such as flips of an answer or many zeros: few samples that happen to be equal
    /// say little, so the bound counts with the range of all layers' samples. The empirical Bernstein-Serfling inequality (Bardenet
    /// and Maillard 2015, doi 10.3150/14-BEJ605, theorem 4.3), on both sides.
    fn bernstein(&self, deviation: f64, count: usize, total: usize) -> f64 {
        let all = self.scores.table().layers().iter().filter_map(|layer| self.scores.layer(layer.id.as_str()));
        let (least, most) =
            all.flat_map(|score| score.samples()).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(*x), b.max(*x)));
        let (n, all) = (count as f64, total as f64);
        let unseen = match self.population {
            Population::Expectation => 1.0,
            Population::Samples if 2 * count <= total => 1.0 - (n - 1.0) / all,
            Population::Samples => (1.0 - n / all) * (1.0 + 1.0 / n),
        };
        let log = (10.0 / self.level).ln();
        let kappa = 7.0 / 3.0 + 3.0 / std::f64::consts::SQRT_2;
        deviation * (2.0 * unseen * log / n).sqrt() + kappa * (most - least) * log / n
    }
}

/// Parts of its mean that a layer's score may change by where tails are heavy: more than any seen sample could.
const UNKNOWN: f64 = 1e6;

/// The largest twentieth and fiftieth of the samples, and the index of the tail below which intervals were found not to hold: single
/// samples carry a mean there, whose variance is infinite below 2. The few largest alone show outliers that are rare.
const HEAVY: [(usize, f64); 2] = [(20, 1.7), (50, 1.3)];

/// A single sample that exceeds the mean of `n` by this times `sqrt(n)` shifts it by more than their spread explains: an outlier so rare
/// that the index does not show it.
const CARRIES: f64 = 1.5;

/// The index of the tail of all layers' samples, each in parts of its layer's median, where it is heavy.
fn heavy_tail(scores: &Scores) -> Option<f64> {
    let mut relative = Vec::new();
    for score in scores.table().layers().iter().filter_map(|layer| scores.layer(layer.id.as_str())) {
        let mut sizes: Vec<f64> = score.samples().iter().map(|loss| loss.abs()).collect();
        sizes.sort_by(f64::total_cmp);
        // Where most samples are 0, the rest is measured by the bounds for such losses.
        let Some(median) = sizes.get(sizes.len() / 2).copied().filter(|median| *median > 0.0) else { continue };
        relative.extend(sizes.into_iter().map(|size| size / median));
    }
    let heavy = |(part, least): (usize, f64)| {
        let count = (relative.len() / part).max(10);
        stats::tail_index(relative.clone(), count).filter(|index| *index < least)
    };
    HEAVY.into_iter().find_map(heavy).or_else(|| {
        let largest = relative.iter().copied().fold(0.0, f64::max);
        let carries = largest > CARRIES * stats::sum(relative.iter().copied()) / (relative.len() as f64).sqrt();
        carries.then(|| stats::tail_index(relative.clone(), 10)).flatten()
    })
}

/// Whether every layer has all samples of the run.
fn all_known(scores: &Scores) -> bool {
    let all = scores.bins().len();
    scores.table().layers().iter().all(|layer| scores.layer(layer.id.as_str()).is_some_and(|score| score.samples().len() == all))
}

/// Whether a tenth of the samples or more repeat another.
fn repeats(losses: &[f64]) -> bool {
    let mut sorted = losses.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.dedup();
    !is_positive(losses) && 10 * sorted.len() < 9 * losses.len()
}

fn is_positive(losses: &[f64]) -> bool {
    losses.iter().all(|loss| *loss > 0.0)
}

/// Standard error over mean at a number of samples: the lower median of the layers that have as many, all positive.
fn median_spread(scores: &Scores, count: usize) -> f64 {
    let layers = scores.table().layers().iter().filter_map(|layer| scores.layer(layer.id.as_str())?.samples().get(..count));
    let spread = |losses: &[f64]| Some(stats::standard_error(losses)? / stats::mean(losses)?);
    let mut spreads: Vec<f64> = layers.filter(|losses| is_positive(losses)).filter_map(spread).collect();
    spreads.sort_by(f64::total_cmp);
    spreads.get(spreads.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}
