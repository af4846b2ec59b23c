//! How cheap the rest of a budget can be at best, for the search with a single budget. Two relaxations: a price on the cost
//! lets every block decide for itself (Lagrange; Fisher 1981, doi 10.1287/mnsc.27.1.1), and what is still undecided may be
//! taken in part. In `f64` with a margin, since they only decide what need not be looked at.

use std::ops::Range;

use crate::search::instance::{BlockKind, Instance};
use crate::search::linked::Linked;
use crate::search::lists::State;
use crate::search::relax::Fix;

/// A unit of a relaxation.
#[derive(Clone, Copy)]
struct Relaxed {
    /// Position in the order of the search.
    order: usize,
    weight: f64,
    score: f64,
}

impl Relaxed {
    /// What removing it costs once its weight is paid for.
    fn gain(&self, price: f64) -> f64 {
        self.score - price * self.weight
    }

    /// Units without weight stand first if they pay and last if they cost; 0/0 is neither, its place is free.
    fn rate(&self) -> f64 {
        let rate = self.score / self.weight;
        if rate.is_nan() { f64::MAX } else { rate }
    }
}

/// Units side by side in the order of the search, and the weight on top once all are gone.
struct Block {
    units: Range<usize>,
    whole: Option<f64>,
    tree: Option<Tree>,
}

/// Units that need their parents, or their children, in preorder: the place behind the subtree of each.
struct Tree {
    ends: Vec<usize>,
    needs_parent: bool,
}

impl Tree {
    /// Least priced score of what is left of the tree at each place, and the weight that goes for it.
    fn least(&self, units: &[Relaxed], price: f64) -> Vec<(f64, f64)> {
        let mut totals = vec![(0.0, 0.0); units.len() + 1];
        for (at, unit) in units.iter().enumerate() {
            totals[at + 1] = (totals[at].0 + unit.gain(price), totals[at].1 + unit.weight);
        }
        let mut least = vec![(0.0, 0.0); units.len() + 1];
        for (at, unit) in units.iter().enumerate().rev() {
            let end = self.ends[at];
            let plus = |a: (f64, f64), b: (f64, f64)| (a.0 + b.0, a.1 + b.1);
            let (stays, goes) = if self.needs_parent {
                (least[end], plus((unit.gain(price), unit.weight), least[at + 1]))
            } else {
                let subtree = (totals[end].0 - totals[at].0, totals[end].1 - totals[at].1);
                (least[at + 1], plus(subtree, least[end]))
            };
            least[at] = if goes.0 < stays.0 { goes } else { stays };
        }
        least
    }
}

/// The relaxations of a problem with one budget.
pub(super) struct Relaxation {
    blocks: Vec<Block>,
    /// In the order of the search. What counts on top is left to the block.
    units: Vec<Relaxed>,
    /// Ascending in score per weight. What counts on top is spread over the members.
    spread: Vec<Relaxed>,
    /// The instance's numbers of the units, in the order of the search.
    numbers: Vec<usize>,
    needed: u64,
    /// What is needed beyond what goes in any case.
    lacking: f64,
    forced_score: f64,
    price: f64,
    /// Scale of scores, and of scores with priced weights: what a rounding error is relative to.
    scale: f64,
    priced_scale: f64,
    total: f64,
    rounding: f64,
}

impl Relaxation {
    pub(super) fn new(instance: &Instance, resource: usize, needed: u64) -> Self {
        let spread = spread(instance, resource);
        let forced = instance.forced_costs[resource] as f64;
        let mut scale = (instance.forced_score as f64).abs();
        scale += instance.bonuses.iter().map(|bonus| (bonus.score as f64).abs()).sum::<f64>();
        let (mut blocks, mut numbers) = (Vec::with_capacity(instance.blocks.len()), Vec::with_capacity(instance.units.len()));
        let (mut units, mut spread_units) = (Vec::with_capacity(instance.units.len()), Vec::with_capacity(instance.units.len()));
        for block in &instance.blocks {
            let first = units.len();
            let whole = match block.kind {
                BlockKind::Shared(bonus) => Some(instance.bonuses[bonus].costs[resource] as f64),
                _ => None,
            };
            for number in block.order() {
                let (parts, (weight, score)) = (&instance.units[*number], spread[*number]);
                let own = Relaxed { order: units.len(), weight: parts.costs[resource] as f64, score: parts.score as f64 };
                let with_share = Relaxed { weight: own.weight + weight, score: own.score + score, ..own };
                scale += own.score.abs();
                units.push(if whole.is_some() { own } else { with_share });
                spread_units.push(with_share);
                numbers.push(*number);
            }
            let tree = block.linked.as_ref().and_then(Linked::tree_ends).map(|(ends, needs_parent)| Tree { ends, needs_parent });
            blocks.push(Block { units: first..units.len(), whole, tree });
        }
        spread_units.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
        let total: f64 = spread_units.iter().map(|unit| unit.weight).sum();
        let lacking = needed as f64 - forced;
        // Each of n summands and the sum so far may be off by a rounding error; four times that is plenty.
        let rounding = 4.0 * f64::EPSILON * (units.len() + instance.bonuses.len() + 4) as f64;
        let forced_score = instance.forced_score as f64;
        let mut relaxation = Self {
            blocks,
            units,
            spread: spread_units,
            numbers,
            needed,
            lacking,
            forced_score,
            price: 0.0,
            scale,
            priced_scale: 0.0,
            total,
            rounding,
        };
        relaxation.price = relaxation.best_price();
        relaxation.priced_scale = scale + relaxation.price * (total + needed as f64 + forced);
        relaxation
    }

    /// A price at which no set that meets the budget is known to score much less than the priced optimum. Any price gives a
    /// valid bound; where the optimum removes too little the price is too low.
    fn best_price(&self) -> f64 {
        /// Halvings of the range of prices.
        const STEPS: usize = 12;
        let guess = fractional_price(&self.spread, self.lacking);
        let weight_at = |price: f64| self.blocks.iter().map(|block| self.best(block, price).1).sum::<f64>();
        let (mut low, mut high) = (0.0, 2.0 * guess);
        // Needs make the price of the last units higher than what each costs alone.
        let linked = self.blocks.iter().any(|block| block.tree.is_some());
        let mut doublings = if linked && guess > 0.0 { 40 } else { 0 };
        while doublings > 0 && weight_at(high) < self.lacking {
            (low, high, doublings) = (high, 2.0 * high, doublings - 1);
        }
        for _ in 0..if linked { 3 * STEPS } else { STEPS } {
            let middle = 0.5 * (low + high);
            *(if weight_at(middle) < self.lacking { &mut low } else { &mut high }) = middle;
        }
        [guess, low, high].into_iter().max_by(|a, b| self.least_at(*a).total_cmp(&self.least_at(*b))).unwrap_or(guess)
    }

    /// Least priced score of a block, and the weight that goes for it.
    fn best(&self, block: &Block, price: f64) -> (f64, f64) {
        if let Some(tree) = &block.tree {
            return tree.least(&self.units[block.units.clone()], price)[0];
        }
        let (mut some, mut weight, mut all, mut all_weight) = (0.0, 0.0, 0.0, 0.0);
        for unit in &self.units[block.units.clone()] {
            let gain = unit.gain(price);
            all += gain;
            all_weight += unit.weight;
            if gain < 0.0 {
                some += gain;
                weight += unit.weight;
            }
        }
        match block.whole {
            Some(shared) if all - price * shared < some => (all - price * shared, all_weight + shared),
            _ => (some, weight),
        }
    }

    fn least_at(&self, price: f64) -> f64 {
        self.forced_score + price * self.lacking + self.blocks.iter().map(|block| self.best(block, price).0).sum::<f64>()
    }

    /// The units that go at the price found, and at one a little higher, at which the budget is met.
    pub(super) fn at_price(&self) -> [Vec<usize>; 2] {
        [self.price, self.price * (1.0 + 1e-6)].map(|price| {
            let mut gone = Vec::new();
            for block in &self.blocks {
                let units = &self.units[block.units.clone()];
                let all = block.whole.map(|shared| units.iter().map(|unit| unit.gain(price)).sum::<f64>() - price * shared);
                let whole = all.is_some_and(|all| all < units.iter().map(|unit| unit.gain(price).min(0.0)).sum());
                let least = block.tree.as_ref().map(|tree| (tree, tree.least(units, price)));
                let mut at = 0;
                while at < units.len() {
                    let (goes, next) = match &least {
                        None => (whole || units[at].gain(price) < 0.0, at + 1),
                        Some((tree, least)) => {
                            let stays = least[at].0 == least[if tree.needs_parent { tree.ends[at] } else { at + 1 }].0;
                            (!stays, if stays == tree.needs_parent { tree.ends[at] } else { at + 1 })
                        }
                    };
                    // Of a tree in which units need their children, all of a subtree goes.
                    let together = if goes && least.as_ref().is_some_and(|(tree, _)| !tree.needs_parent) { next } else { at + 1 };
                    if goes {
                        gone.extend(units[at..together].iter().map(|unit| self.numbers[unit.order]));
                    }
                    at = next;
                }
            }
            gone
        })
    }

    /// No set that meets the budget scores less: the better of the price alone and of the number of units, taken at the two
    /// whole numbers around the relaxed one (Martello and Toth 1997). With these numbers come the units that look best at the
    /// price found for them. The least score by number of units is convex, so no other number is better than both.
    pub(super) fn by_count(&self) -> (f64, Vec<Vec<usize>>) {
        let (mut weight, mut count) = (0.0, 0.0);
        for unit in &self.spread {
            if unit.score >= 0.0 && weight >= self.lacking {
                break;
            }
            let part = if unit.score >= 0.0 && unit.weight > 0.0 { ((self.lacking - weight) / unit.weight).min(1.0) } else { 1.0 };
            weight += part * unit.weight;
            count += part;
        }
        // Near a whole number the sum may have been rounded across it.
        let counts = [(count - 1e-6).floor().max(0.0), (count + 1e-6).ceil().min(self.spread.len() as f64)];
        let counts = (counts[0] as usize)..=(counts[1] as usize);
        let found: Vec<(f64, Vec<usize>)> = counts.map(|count| self.at_count(count)).collect();
        let least = found.iter().map(|(bound, _)| *bound).fold(f64::INFINITY, f64::min);
        let by_price = self.least_at(self.price) - self.rounding * self.priced_scale;
        let bound = if least.is_finite() { by_price.max(self.forced_score + least - self.rounding * self.scale) } else { by_price };
        (bound, found.into_iter().filter(|(bound, _)| bound.is_finite()).map(|(_, units)| units).collect())
    }

    /// Bound on the score of what is chosen where that are so many units, less what rounding with prices may do, and the units
    /// at the best price. Infinite where so many never suffice.
    fn at_count(&self, count: usize) -> (f64, Vec<usize>) {
        /// Halvings of the range of prices.
        const STEPS: usize = 50;
        let mut units = self.spread.clone();
        let mut choose = |price: f64| -> (f64, f64, Vec<usize>) {
            let order = |a: &Relaxed, b: &Relaxed| a.gain(price).total_cmp(&b.gain(price)).then(a.order.cmp(&b.order));
            if count > 0 && count < units.len() {
                units.select_nth_unstable_by(count - 1, order);
            }
            let chosen = &units[..count];
            let margin = self.rounding * price * (self.total + self.needed as f64);
            let value = price * self.lacking - margin + chosen.iter().map(|unit| unit.gain(price)).sum::<f64>();
            (value, chosen.iter().map(|unit| unit.weight).sum(), chosen.iter().map(|unit| self.numbers[unit.order]).collect())
        };
        let (mut low, mut high) = (0.0, 2.0 * self.price.max(1e-9 * self.scale / self.total.max(1.0)));
        let mut best = choose(0.0);
        if best.1 >= self.lacking {
            return (best.0, best.2);
        }
        let mut doublings = 0;
        while doublings < 60 {
            let tried = choose(high);
            if tried.1 >= self.lacking {
                break;
            }
            (high, doublings) = (4.0 * high, doublings + 1);
        }
        if doublings == 60 {
            // Not even the heaviest suffice.
            return (f64::INFINITY, Vec::new());
        }
        for _ in 0..STEPS {
            let middle = 0.5 * (low + high);
            let tried = choose(middle);
            *(if tried.1 < self.lacking { &mut low } else { &mut high }) = middle;
            if tried.0 > best.0 {
                best = tried;
            }
        }
        (best.0, best.2)
    }

    /// What a limit on the score leaves open. A unit whose other choice alone exceeds the limit is decided (fixing by reduced
    /// cost; Nemhauser and Wolsey 1988, doi 10.1002/9781118627372).
    pub(super) fn within(&self, limit: i128) -> Bound {
        let limit = limit as f64 + self.rounding * self.scale;
        let priced_limit = limit + self.rounding * self.priced_scale;
        let room = priced_limit - self.least_at(self.price);
        let mut fixes = vec![Fix::Free; self.numbers.len()];
        let mut certain = vec![(0.0, 0.0); self.units.len() + 1];
        let mut behind = vec![0.0; self.units.len() + 1];
        let mut after = 0.0;
        for block in self.blocks.iter().rev() {
            let best = self.best(block, self.price).0;
            let units = &self.units[block.units.clone()];
            let some: f64 = units.iter().map(|unit| unit.gain(self.price).min(0.0)).sum();
            let all = block.whole.map(|shared| units.iter().map(|unit| unit.gain(self.price)).sum::<f64>() - self.price * shared);
            let (mut some_left, mut all_left) = (0.0, block.whole.map(|shared| -self.price * shared));
            for unit in units.iter().rev() {
                let gain = unit.gain(self.price);
                let kept = some - gain.min(0.0);
                let gone = all.map_or(kept + gain, |all| all.min(kept + gain));
                if gone - best > room {
                    fixes[self.numbers[unit.order]] = Fix::Keep;
                } else if kept - best > room {
                    fixes[self.numbers[unit.order]] = Fix::Gone;
                }
                some_left += gain.min(0.0);
                all_left = all_left.map(|all| all + gain);
                behind[unit.order] = after + all_left.map_or(some_left, |all: f64| all.min(some_left));
            }
            if let Some(tree) = &block.tree {
                let least = tree.least(units, self.price);
                block.units.clone().zip(least).for_each(|(order, least)| behind[order] = after + least.0);
            }
            after += best;
        }
        let mut free = Vec::with_capacity(self.units.len());
        for unit in &self.spread {
            match fixes[self.numbers[unit.order]] {
                Fix::Free => free.push(*unit),
                Fix::Gone => certain[unit.order] = (unit.weight, unit.score),
                Fix::Keep => {}
            }
        }
        for at in (0..self.units.len()).rev() {
            let later = certain[at + 1];
            certain[at] = (certain[at].0 + later.0, certain[at].1 + later.1);
        }
        let slack = self.rounding * (self.total + self.needed as f64);
        Bound { free, certain, behind, fixes, needed: self.needed, price: self.price, slack, limit, priced_limit }
    }
}

/// Weight and score to add to each unit so that a subset counts for at least what it really removes and costs at most what it
/// really costs: a bonus's weight, and its score where that is negative, are shared among its members. Needs are ignored for the
/// same reason.
fn spread(instance: &Instance, resource: usize) -> Vec<(f64, f64)> {
    let mut spread = vec![(0.0, 0.0); instance.units.len()];
    for bonus in &instance.bonuses {
        let weight_of = |unit: &usize| instance.units[*unit].costs[resource] as f64;
        let own: f64 = bonus.members.iter().map(weight_of).sum();
        let even = 1.0 / bonus.members.len() as f64;
        for unit in &bonus.members {
            let share = if own > 0.0 { weight_of(unit) / own } else { even };
            spread[*unit].0 += bonus.costs[resource] as f64 * share;
            spread[*unit].1 += (bonus.score as f64).min(0.0) * even;
        }
    }
    spread
}

/// Score per weight at which units taken in part meet the budget; 0 where nothing is lacking.
fn fractional_price(ascending: &[Relaxed], lacking: f64) -> f64 {
    let mut weight = 0.0;
    for unit in ascending {
        weight += unit.weight;
        if weight >= lacking {
            return if unit.rate().is_finite() && unit.weight > 0.0 { unit.rate().max(0.0) } else { 0.0 };
        }
    }
    0.0
}

/// Prunes the states that cannot lead to a set within a limit on the score.
pub(super) struct Bound {
    /// What is still open, ascending in score per weight.
    free: Vec<Relaxed>,
    /// By the number of units decided: weight and score of those behind that go for certain.
    certain: Vec<(f64, f64)>,
    /// By the number of units decided: least priced score of those behind.
    behind: Vec<f64>,
    /// By unit of the instance.
    fixes: Vec<Fix>,
    needed: u64,
    price: f64,
    /// Cost by which rounding may have made the rest of a budget look harder to meet than it is.
    slack: f64,
    /// The limit, with margins for rounding without and with prices.
    limit: f64,
    priced_limit: f64,
}

impl Bound {
    /// What every set within the limit does with a unit.
    pub(super) fn fix(&self, unit: usize) -> Fix {
        self.fixes[unit]
    }

    /// Drops hopeless states once the first `done` units are decided.
    pub(super) fn prune(&self, done: usize, states: &mut Vec<State>) {
        let behind = self.behind[done];
        states.retain(|state| {
            let lacking = self.needed as f64 - state.weight as f64;
            state.score as f64 + self.price * lacking + behind <= self.priced_limit
        });
        let (sure_weight, sure_score) = self.certain[done];
        let rest = || self.free.iter().filter(|unit| unit.order >= done);
        let most: f64 = rest().map(|unit| unit.weight).sum();
        let mut rest = rest();
        // The relaxation so far: all units before `next` are taken.
        let (mut weight, mut score) = (0.0, sure_score);
        let mut next = rest.next();
        while let Some(unit) = next.filter(|unit| unit.score < 0.0) {
            weight += unit.weight;
            score += unit.score;
            next = rest.next();
        }
        // States come with weights descending, so what they lack only grows.
        states.retain(|state| {
            let lacking = self.needed.saturating_sub(state.weight) as f64 - sure_weight - self.slack;
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
