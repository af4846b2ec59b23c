//! The second term of the joint loss: pairs of layers that lose more, or less, together than their scores say. The few that
//! may matter most are measured with [`crate::measure_sets`] and handed to [`crate::Problem::with_interactions`].

use std::collections::BTreeSet;

use crate::audit::{DrawnSet, MeasuredSet};
use crate::error::Error;
use crate::layer::{LayerId, RemovalSet};
use crate::plan::Plan;
use crate::score::Scores;
use crate::search::Interaction;

/// The pairs of layers of a plan whose interaction may be largest, to be measured on the samples behind the scores; `known`
/// pairs are left out.
///
/// With `d_i` the change of the output by layer i, a squared output loss of two layers is
/// `E|d_i + d_j|^2 = c_i + c_j + 2 E<d_i, d_j>` if changes add up, and the last term is at most `2 sqrt(c_i c_j)` (Cauchy and
/// Schwarz): pairs go by that bound, ties by id. Only pairs inside the plan count now; after the next plan, ask again with
/// what is known.
///
/// # Errors
/// [`Error::IncompleteScores`]; [`Error::OtherModel`]; [`Error::UnknownLayer`].
pub fn strongest_pairs(scores: &Scores, plan: &Plan, known: &[Interaction], count: usize) -> Result<Vec<DrawnSet>, Error> {
    let table = scores.table();
    table.check_fingerprint(&plan.model, &plan.fingerprint)?;
    let values = scores.values()?;
    let known: BTreeSet<(&LayerId, &LayerId)> = known.iter().map(|pair| ordered(&pair.first, &pair.second)).collect();
    let layers = plan.removed.iter().map(|id| Ok((id, values[table.require(id)?].max(0.0)))).collect::<Result<Vec<_>, Error>>()?;
    let mut pairs = Vec::new();
    for (at, (first, a)) in layers.iter().enumerate() {
        for (second, b) in &layers[at + 1..] {
            let pair = ordered(first, second);
            if !known.contains(&pair) {
                pairs.push(((a * b).sqrt(), pair));
            }
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    pairs.truncate(count);
    let set = |(_, (first, second)): (f64, (&LayerId, &LayerId))| DrawnSet {
        stratum: "pair".to_owned(),
        removed: RemovalSet::from_iter([first.clone(), second.clone()]),
    };
    Ok(pairs.into_iter().map(set).collect())
}

fn ordered<'a>(a: &'a LayerId, b: &'a LayerId) -> (&'a LayerId, &'a LayerId) {
    if a <= b { (a, b) } else { (b, a) }
}

/// The interactions that measured pairs show: joint loss less the two scores, under the criterion of the scores. Measured
/// sets of other than two layers say nothing about a pair and are left out.
///
/// # Errors
/// [`Error::UnknownCriterion`] where the pairs were not measured under it; [`Error::UnknownLayer`];
/// [`Error::IncompleteScores`].
pub fn interactions(scores: &Scores, measured: &[MeasuredSet]) -> Result<Vec<Interaction>, Error> {
    let mut found = Vec::new();
    for set in measured {
        let mut ids = set.removed.iter();
        let (Some(first), Some(second), None) = (ids.next(), ids.next(), ids.next()) else { continue };
        let loss = set.loss(scores.criterion())?;
        let score = loss.mean - scores.predicted(&set.removed)?;
        found.push(Interaction { first: first.clone(), second: second.clone(), score });
    }
    Ok(found)
}
