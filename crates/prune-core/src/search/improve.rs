//! Good sets and good bounds without a search, for the instances on which lists grow: where scores follow costs closely, what a
//! budget costs depends on how many units go and on how exactly they fill it.
//!
//! The bound by the number of units is Martello and Toth's (1997, doi 10.1287/opre.45.5.768); the exchanges are the usual ones.

use crate::search::instance::Instance;
use crate::search::selection::Selection;

/// Units without links or bonuses, which may be exchanged freely.
fn loose(instance: &Instance) -> Vec<usize> {
    let is_loose = |unit: &usize| {
        let parts = &instance.units[*unit];
        parts.needs.is_empty() && parts.needed_by.is_empty() && parts.bonuses.is_empty()
    };
    (0..instance.units.len()).filter(is_loose).collect()
}

/// Units that may be added to a set before it counts as hopeless.
const ADDED: usize = 64;

/// Brings a set to the budget by removing more, each time what costs least for what is lacking, then puts back what is too much,
/// dearest first.
pub(super) fn complete(set: &mut Selection<'_>, instance: &Instance, resource: usize, needed: u64) {
    for _ in 0..ADDED {
        let lacking = needed.saturating_sub(set.cost(resource));
        if lacking == 0 {
            break;
        }
        let rate = |unit: usize| {
            let closure = instance.closure(unit, set.gone());
            let brings: u64 = closure.iter().map(|unit| instance.units[*unit].costs[resource]).sum();
            let score: i128 = closure.iter().map(|unit| instance.units[*unit].score).sum();
            (brings > 0).then(|| score as f64 / brings.min(lacking) as f64)
        };
        let open = (0..instance.units.len()).filter(|unit| !set.gone()[*unit]).filter_map(|unit| Some((rate(unit)?, unit)));
        let Some((_, unit)) = open.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))) else { return };
        set.remove_with_needs(unit);
    }
    let mut gone: Vec<usize> = (0..instance.units.len()).filter(|unit| set.gone()[*unit] && instance.units[*unit].score > 0).collect();
    gone.sort_by(|a, b| instance.units[*b].score.cmp(&instance.units[*a].score).then(a.cmp(b)));
    for unit in gone {
        if set.is_free_to_return(unit) {
            set.restore(unit);
            if set.cost(resource) < needed {
                set.remove(unit);
            }
        }
    }
}

/// Exchanges of one unit that a set may take before it counts as good enough.
const EXCHANGES: usize = 400;

/// Brings a set to the budget, and to a lower score, by exchanging one removed unit for one that stays.
pub(super) fn exchange(set: &mut Selection<'_>, instance: &Instance, resource: usize, needed: u64) {
    let units = loose(instance);
    for _ in 0..EXCHANGES {
        let (cost, score) = (|unit: usize| instance.units[unit].costs[resource], |unit: usize| instance.units[unit].score);
        let lacking = i128::from(needed) - i128::from(set.cost(resource));
        // Those that stay, heaviest first, each with the cheapest of those at least as heavy.
        let mut kept: Vec<usize> = units.iter().copied().filter(|unit| !set.gone()[*unit]).collect();
        kept.sort_by(|a, b| cost(*b).cmp(&cost(*a)).then(score(*a).cmp(&score(*b))).then(a.cmp(b)));
        let mut cheapest = Vec::with_capacity(kept.len());
        for unit in &kept {
            let before = cheapest.last().copied().unwrap_or(*unit);
            cheapest.push(if score(*unit) < score(before) { *unit } else { before });
        }
        // (change of score, what stays from now on, what goes instead)
        let mut best: Option<(i128, usize, Option<usize>)> = None;
        for unit in units.iter().copied().filter(|unit| set.gone()[*unit]) {
            let least = i128::from(cost(unit)) + lacking;
            if least <= 0 {
                let change = -score(unit);
                if best.is_none_or(|(other, ..)| change < other) {
                    best = Some((change, unit, None));
                }
            }
            let heavy = kept.partition_point(|other| i128::from(cost(*other)) >= least);
            if let Some(other) = heavy.checked_sub(1).map(|at| cheapest[at]) {
                let change = score(other) - score(unit);
                if best.is_none_or(|(other, ..)| change < other) {
                    best = Some((change, unit, Some(other)));
                }
            }
        }
        match best {
            // Anything that brings the set to the budget is worth it.
            Some((change, back, out)) if change < 0 || lacking > 0 => {
                set.restore(back);
                out.into_iter().for_each(|unit| set.remove(unit));
            }
            _ if lacking > 0 => {
                // No single exchange suffices: the lightest removed unit for the heaviest that stays.
                let lightest = units.iter().copied().filter(|unit| set.gone()[*unit]).min_by_key(|unit| (cost(*unit), *unit));
                match (lightest, kept.first()) {
                    (Some(light), Some(heavy)) if cost(*heavy) > cost(light) => {
                        set.restore(light);
                        set.remove(*heavy);
                    }
                    _ => return,
                }
            }
            _ => return,
        }
    }
}
