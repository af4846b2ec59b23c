//! How cheap the rest of a budget can be at best: the continuous relaxation of what is still undecided, for the search
//! with a single budget. In `f64` with a margin, since it only decides what need not be looked at.

use crate::search::front::State;
use crate::search::problem::Problem;

/// A free item of the relaxation. A shell's weight is spread over its items in proportion to their own: a subset then
/// counts for at least what it really removes, so the relaxed optimum is never above the true one.
struct Relaxed {
    /// Position in the order of the search.
    order: usize,
    weight: f64,
    score: f64,
}

/// Prunes the states that cannot lead to a set as good as one known already.
pub(super) struct Bound {
    /// Ascending in score per weight.
    items: Vec<Relaxed>,
    needed: u64,
    /// Cost by which rounding may have made the rest of a budget look harder to meet than it is.
    slack: f64,
    /// Score of the best set known, with a margin for rounding.
    limit: f64,
}

impl Bound {
    /// `known` is the score of some set that meets the budget.
    pub(super) fn new(problem: &Problem, needed: u64, known: i128) -> Self {
        let mut items = Vec::new();
        let mut scale = (problem.forced_score as f64).abs();
        for group in &problem.groups {
            let own: u64 = group.whole_weight() - group.shell;
            // A shell around items without weight gives its weight to the first.
            let share = if own > 0 { group.shell as f64 / own as f64 } else { 0.0 };
            for (place, item) in group.items.iter().enumerate() {
                let lump = if own == 0 && place == 0 { group.shell as f64 } else { 0.0 };
                items.push(Relaxed { order: items.len(), weight: item.weight as f64 * (1.0 + share) + lump, score: item.score as f64 });
                scale += (item.score as f64).abs();
            }
        }
        // Items without weight stand first if they pay and last if they cost; 0/0 is neither, its place is free.
        let rate = |item: &Relaxed| {
            let rate = item.score / item.weight;
            if rate.is_nan() { f64::MAX } else { rate }
        };
        items.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
        // Each of n summands and the sum so far may be off by a rounding error; four times that is plenty.
        let rounding = 4.0 * f64::EPSILON * (items.len() + 4) as f64;
        let total: f64 = items.iter().map(|item| item.weight).sum();
        Self { items, needed, slack: rounding * (total + needed as f64), limit: known as f64 + rounding * scale }
    }

    /// Drops hopeless states once the first `done` items are decided.
    pub(super) fn prune(&self, done: usize, states: &mut Vec<State>) {
        let rest = || self.items.iter().filter(|item| item.order >= done);
        let most: f64 = rest().map(|item| item.weight).sum();
        let mut rest = rest();
        // The relaxation so far: all items before `next` are taken.
        let (mut weight, mut score) = (0.0, 0.0);
        let mut next = rest.next();
        while let Some(item) = next.filter(|item| item.score < 0.0) {
            weight += item.weight;
            score += item.score;
            next = rest.next();
        }
        // States come with weights descending, so what they lack only grows.
        states.retain(|state| {
            let lacking = self.needed.saturating_sub(state.weight) as f64 - self.slack;
            if lacking > most {
                return false;
            }
            while let Some(item) = next.filter(|item| weight + item.weight < lacking) {
                weight += item.weight;
                score += item.score;
                next = rest.next();
            }
            let fraction = match next {
                Some(item) if weight < lacking => item.score * ((lacking - weight) / item.weight),
                _ => 0.0,
            };
            state.score as f64 + score + fraction <= self.limit
        });
    }
}
