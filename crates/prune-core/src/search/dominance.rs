//! Units of which one is at least as good as the other: where the worse one goes, the better one goes as well, in some best set.
//!
//! A unit is better if it scores less (of equals, comes first), and brings no less of every resource of which some must go and no
//! more of any of which only so much may. Exchanging the worse for the better keeps every limit and does not raise the score, so
//! one best set holds to all these rules at once. Networks are made of equal blocks, which makes them many.

use crate::search::instance::{Instance, Unit};
use crate::search::relax::{Fix, Range};

/// Beyond so many units only those of equal costs are compared.
const MOST: usize = 512;

/// What follows from a choice, by unit.
pub(super) struct Dominance {
    /// Units that go where this one goes.
    better: Vec<Vec<usize>>,
    /// Units that stay where this one stays.
    worse: Vec<Vec<usize>>,
}

impl Dominance {
    pub(super) fn new(instance: &Instance, ranges: &[Range]) -> Self {
        let units = &instance.units;
        let (mut better, mut worse) = (vec![Vec::new(); units.len()], vec![Vec::new(); units.len()]);
        // What hangs together with others cannot be exchanged alone.
        let loose = |unit: &Unit| unit.needs.is_empty() && unit.needed_by.is_empty() && unit.bonuses.is_empty();
        let mut order: Vec<usize> = (0..units.len()).filter(|unit| loose(&units[*unit])).collect();
        order.sort_by(|a, b| units[*a].score.cmp(&units[*b].score).then(a.cmp(b)));
        let mut add = |good: usize, bad: usize| {
            better[bad].push(good);
            worse[good].push(bad);
        };
        if order.len() <= MOST {
            for (at, bad) in order.iter().enumerate() {
                order[..at].iter().filter(|good| serves(&units[**good], &units[*bad], ranges)).for_each(|good| add(*good, *bad));
            }
        } else {
            // Of equal units each implies the next better one.
            let costs = |unit: &usize| ranges.iter().map(|range| units[*unit].costs[range.resource]).collect::<Vec<_>>();
            order.sort_by_cached_key(costs);
            order.windows(2).filter(|pair| costs(&pair[0]) == costs(&pair[1])).for_each(|pair| add(pair[0], pair[1]));
        }
        Self { better, worse }
    }

    pub(super) fn implied(&self, unit: usize, fix: Fix) -> &[usize] {
        match fix {
            Fix::Gone => &self.better[unit],
            Fix::Keep => &self.worse[unit],
            Fix::Free => &[],
        }
    }
}

/// Whether a unit may take the place of another under all limits.
fn serves(good: &Unit, bad: &Unit, ranges: &[Range]) -> bool {
    ranges.iter().all(|range| {
        let (good, bad) = (good.costs[range.resource], bad.costs[range.resource]);
        (good >= bad || range.low == 0) && (good <= bad || range.high == u64::MAX)
    })
}
