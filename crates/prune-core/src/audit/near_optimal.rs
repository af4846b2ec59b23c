//! Does the sum tell where plans are chosen? Random sets are carried by a few heavy layers; plans come from the other end, where
//! the sum has been made small. So the plans of many budgets are measured, and the next best sets at each.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use crate::audit::{Audit, AuditFile, DrawnSet, SetSize};
use crate::budget::{Budget, Constraints};
use crate::error::Error;
use crate::layer::{Cost, LayerId, RemovalSet};
use crate::plan::Plan;
use crate::score::Scores;
use crate::search::solve;
use crate::table::LayerTable;

/// Every tenth of the parameters that can go, and the largest share that can, to two digits.
pub fn plan_ratios(table: &LayerTable) -> Vec<f64> {
    let everything: Vec<usize> = (0..table.len()).collect();
    let largest = table.cost_of(&everything, Cost::Params) as f64 / table.total_params().max(1) as f64;
    let last = (100.0 * largest).floor() / 100.0;
    let tenths = (1..10).map(|tenth| f64::from(tenth) / 10.0).filter(|ratio| *ratio < last);
    tenths.chain((last > 0.0).then_some(last)).collect()
}

/// For each ratio the plan with the least sum of scores and the next best sets for the same budget, `per_ratio` in all, or fewer
/// where there are no more. The next best are the optima with one layer of the plan kept, or one more forced out.
///
/// # Errors
/// As [`solve`].
pub fn near_optimal_sets(scores: &Scores, ratios: &[f64], per_ratio: usize) -> Result<Vec<DrawnSet>, Error> {
    let mut drawn = Vec::new();
    for ratio in ratios {
        let budget = Budget::params_ratio(*ratio);
        let best = solve(scores, &budget, &Constraints::none())?;
        let rivals = rivals(scores, &budget, &best)?;
        let sets = std::iter::once(best.removal_set()).chain(rivals).take(per_ratio);
        drawn.extend(sets.map(|removed| DrawnSet { stratum: SetSize::NearOptimal(*ratio).stratum(), removed }));
    }
    Ok(drawn)
}

/// The sets that a plan is preferred to, by their sum of scores.
fn rivals(scores: &Scores, budget: &Budget, best: &Plan) -> Result<Vec<RemovalSet>, Error> {
    let taken = best.removal_set();
    let other = |id: &LayerId| match taken.contains(id.as_str()) {
        true => Constraints::none().keep([id.clone()]),
        false => Constraints::none().remove([id.clone()]),
    };
    let mut found = Vec::new();
    for layer in scores.table().layers() {
        match solve(scores, budget, &other(&layer.id)) {
            Ok(plan) => found.push((plan.predicted.unwrap_or(f64::INFINITY), plan.removal_set())),
            // Without this layer there is not enough to remove.
            Err(Error::Infeasible { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
    let mut seen = BTreeSet::from([taken]);
    Ok(found.into_iter().map(|(_, set)| set).filter(|set| seen.insert(set.clone())).collect())
}

/// Measured over predicted loss within which the sum tells how much is lost.
pub const TELLS: RangeInclusive<f64> = 0.8..=1.25;

/// What the sum of scores is worth at one ratio where plans are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct AtRatio {
    /// Share of the parameters that must go.
    pub ratio: f64,
    /// Measured over predicted loss of the best plan and the next best sets, by least squares through the origin.
    pub slope: Option<f64>,
    /// Whether the plan of this ratio loses more than another near-optimal set that removes at least as much, by more than two
    /// standard errors of the difference: the sum has chosen wrongly.
    pub beaten: bool,
}

impl AtRatio {
    /// Whether measured and predicted losses agree, within [`TELLS`].
    pub fn tells(&self) -> bool {
        self.slope.is_some_and(|slope| TELLS.contains(&slope))
    }
}

impl AuditFile {
    /// What the sum is worth at each ratio for which near-optimal sets were measured, ascending; empty where none were.
    pub fn at_ratios(&self, audit: &Audit) -> Vec<AtRatio> {
        let ratio = |stratum: &str| match SetSize::of_stratum(stratum) {
            Some(SetSize::NearOptimal(ratio)) => Some(ratio),
            _ => None,
        };
        let error = |set: usize| self.sets[set].losses.get(&audit.against).and_then(|loss| loss.standard_error).unwrap_or(0.0);
        // In each stratum the plan comes first.
        let sets: Vec<(f64, usize)> = (0..self.sets.len()).filter_map(|set| Some((ratio(&self.sets[set].stratum)?, set))).collect();
        let beats = |a: usize, b: usize| audit.measured[b] - audit.measured[a] > 2.0 * error(a).hypot(error(b));
        let mut rows: Vec<AtRatio> = Vec::new();
        for (ratio, plan) in &sets {
            if rows.iter().all(|row| row.ratio != *ratio) {
                rows.push(AtRatio {
                    ratio: *ratio,
                    slope: audit.strata.get(&self.sets[*plan].stratum).and_then(|stats| stats.slope),
                    beaten: sets.iter().any(|(other, set)| other >= ratio && beats(*set, *plan)),
                });
            }
        }
        rows.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
        rows
    }

    /// The ratios at which the sum misleads near the best plans, in words; `None` where it does not, or is held against another criterion.
    pub fn misled(&self, audit: &Audit) -> Option<String> {
        let wrong = self.at_ratios(audit).into_iter().filter(|at| at.beaten || !at.tells());
        let ratios: Vec<String> = wrong.map(|at| at.ratio.to_string()).collect();
        (audit.against == audit.criterion && !ratios.is_empty()).then(|| ratios.join(", "))
    }
}
