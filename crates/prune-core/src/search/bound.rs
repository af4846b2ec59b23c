//! How cheap the rest of a budget can be at best: the continuous relaxation of what is still undecided, for the search
//! with a single budget. In `f64` with a margin, since it only decides what need not be looked at.

use crate::search::front::State;
use crate::search::instance::Instance;

/// A unit of the relaxation. A bonus's weight, and its score where that is negative, are spread over its members: a subset
/// then counts for at least what it really removes and costs at most what it really costs, so the relaxed optimum is never
/// above the true one. Needs are ignored for the same reason.
struct Relaxed {
    /// Position in the order of the search.
    order: usize,
    weight: f64,
    score: f64,
}

/// Prunes the states that cannot lead to a set as good as one known already.
pub(super) struct Bound {
    /// Ascending in score per weight.
    units: Vec<Relaxed>,
    needed: u64,
    /// Cost by which rounding may have made the rest of a budget look harder to meet than it is.
    slack: f64,
    /// Score of the best set known, with a margin for rounding.
    limit: f64,
}

impl Bound {
    /// `known` is the score of some set that meets the budget.
    pub(super) fn new(instance: &Instance, resource: usize, needed: u64, known: i128) -> Self {
        let mut scale = (instance.forced_score as f64).abs();
        let mut spread = vec![(0.0, 0.0); instance.units.len()];
        for bonus in &instance.bonuses {
            let weight_of = |unit: &usize| instance.units[*unit].costs[resource] as f64;
            let own: f64 = bonus.members.iter().map(weight_of).sum();
            let even = 1.0 / bonus.members.len() as f64;
            let score = (bonus.score as f64).min(0.0);
            scale += (bonus.score as f64).abs();
            for unit in &bonus.members {
                let share = if own > 0.0 { weight_of(unit) / own } else { even };
                spread[*unit].0 += bonus.costs[resource] as f64 * share;
                spread[*unit].1 += score * even;
            }
        }
        let mut units = Vec::with_capacity(instance.units.len());
        for unit in instance.blocks.iter().flat_map(|block| &block.units) {
            let (parts, (weight, score)) = (&instance.units[*unit], spread[*unit]);
            let (weight, score) = (parts.costs[resource] as f64 + weight, parts.score as f64 + score);
            units.push(Relaxed { order: units.len(), weight, score });
            scale += (parts.score as f64).abs();
        }
        // Units without weight stand first if they pay and last if they cost; 0/0 is neither, its place is free.
        let rate = |unit: &Relaxed| {
            let rate = unit.score / unit.weight;
            if rate.is_nan() { f64::MAX } else { rate }
        };
        units.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
        // Each of n summands and the sum so far may be off by a rounding error; four times that is plenty.
        let rounding = 4.0 * f64::EPSILON * (units.len() + instance.bonuses.len() + 4) as f64;
        let total: f64 = units.iter().map(|unit| unit.weight).sum();
        Self { units, needed, slack: rounding * (total + needed as f64), limit: known as f64 + rounding * scale }
    }

    /// Drops hopeless states once the first `done` units are decided.
    pub(super) fn prune(&self, done: usize, states: &mut Vec<State>) {
        let rest = || self.units.iter().filter(|unit| unit.order >= done);
        let most: f64 = rest().map(|unit| unit.weight).sum();
        let mut rest = rest();
        // The relaxation so far: all units before `next` are taken.
        let (mut weight, mut score) = (0.0, 0.0);
        let mut next = rest.next();
        while let Some(unit) = next.filter(|unit| unit.score < 0.0) {
            weight += unit.weight;
            score += unit.score;
            next = rest.next();
        }
        // States come with weights descending, so what they lack only grows.
        states.retain(|state| {
            let lacking = self.needed.saturating_sub(state.weight) as f64 - self.slack;
            if lacking > most {
                return false;
            }
            while let Some(unit) = next.filter(|unit| weight + unit.weight < lacking) {
                weight += unit.weight;
                score += unit.score;
                next = rest.next();
            }
            let fraction = match next {
                Some(unit) if weight < lacking => unit.score * ((lacking - weight) / unit.weight),
                _ => 0.0,
            };
            state.score as f64 + score + fraction <= self.limit
        });
    }
}
