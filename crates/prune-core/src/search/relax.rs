//! The Lagrangian relaxation behind the bound of `branch`: limits are paid for at prices instead of being met (Fisher 1981,
//! doi 10.1287/mnsc.27.1.1). What is left falls apart into blocks, each with a minimum in closed form.
//!
//! With price rho_k of resource k, positive where too little goes and negative where too much goes, every set x that meets
//! the limits satisfies `c x >= sum_k rho_k limit_k + min_x (c - sum_k rho_k w_k) x`. All in `f64` with a margin for
//! rounding: a bound only decides what need not be looked at. Scores are in parts of their absolute sum, costs in parts of
//! what can go.

use crate::search::instance::{BlockKind, Instance};

/// What a search knows of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fix {
    Free,
    Keep,
    Gone,
}

/// A limit on one resource of the instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) resource: usize,
    pub(crate) low: u64,
    /// `u64::MAX` for none.
    pub(crate) high: u64,
}

/// The relaxed problem, scaled.
pub(super) struct Relaxation<'a> {
    instance: &'a Instance,
    scores: Vec<f64>,
    bonus_scores: Vec<f64>,
    /// `[unit, range]`
    costs: Vec<f64>,
    /// `[bonus, range]`
    bonus_costs: Vec<f64>,
    /// Per range: lower and upper limit; the upper one is infinite for none.
    limits: Vec<(f64, f64)>,
    forced_score: f64,
    forced_costs: Vec<f64>,
    /// One unit of scaled score.
    scale: f64,
    /// Per range: one unit of scaled cost.
    wholes: Vec<f64>,
    /// Units of each linked block, those that need others before what they need.
    orders: Vec<Vec<usize>>,
}

/// What one evaluation of the relaxation finds.
#[derive(Debug, Clone)]
pub(super) struct Relaxed {
    /// No set that meets the limits and the fixes scores less, up to `margin`.
    pub(super) bound: f64,
    pub(super) margin: f64,
    /// Cost of the relaxed set, by range.
    used: Vec<f64>,
    /// Units of the relaxed set among the free ones.
    pub(super) gone: Vec<bool>,
    /// Score of removing a free unit less what its costs are paid; for a unit of an open shared cost, how much worse the other
    /// choice is, with its sign.
    pub(super) reduced: Vec<f64>,
}

impl<'a> Relaxation<'a> {
    pub(super) fn new(instance: &'a Instance, ranges: &[Range]) -> Self {
        let scores = instance.units.iter().map(|unit| unit.score).chain(instance.bonuses.iter().map(|bonus| bonus.score));
        let total: f64 = scores.chain([instance.forced_score]).map(|score| (score as f64).abs()).sum();
        let scale = if total > 0.0 { total } else { 1.0 };
        let whole = |range: &Range| instance.available[range.resource].max(1) as f64;
        let scaled = |costs: &[u64]| ranges.iter().map(|range| costs[range.resource] as f64 / whole(range)).collect::<Vec<_>>();
        let limit = |range: &Range| {
            let high = if range.high == u64::MAX { f64::INFINITY } else { range.high as f64 / whole(range) };
            (range.low as f64 / whole(range), high)
        };
        let linked = instance.blocks.iter().filter(|block| block.kind == BlockKind::Linked);
        Self {
            instance,
            scores: instance.units.iter().map(|unit| unit.score as f64 / scale).collect(),
            bonus_scores: instance.bonuses.iter().map(|bonus| bonus.score as f64 / scale).collect(),
            costs: instance.units.iter().flat_map(|unit| scaled(&unit.costs)).collect(),
            bonus_costs: instance.bonuses.iter().flat_map(|bonus| scaled(&bonus.costs)).collect(),
            limits: ranges.iter().map(limit).collect(),
            forced_score: instance.forced_score as f64 / scale,
            forced_costs: scaled(&instance.forced_costs),
            scale,
            wholes: ranges.iter().map(whole).collect(),
            orders: linked.map(|block| needing_first(instance, &block.units)).collect(),
        }
    }

    pub(super) fn scaled(&self, score: i128) -> f64 {
        score as f64 / self.scale
    }

    pub(super) fn unscaled(&self, bound: f64) -> f64 {
        bound * self.scale
    }

    pub(super) fn scaled_bound(&self, bound: f64) -> f64 {
        bound / self.scale
    }

    /// Prices in score per unit of the resource.
    pub(super) fn unscaled_prices(&self, prices: &[f64]) -> Vec<f64> {
        prices.iter().zip(&self.wholes).map(|(price, whole)| price * self.scale / whole).collect()
    }

    pub(super) fn scaled_prices(&self, prices: &[f64]) -> Vec<f64> {
        prices.iter().zip(&self.wholes).map(|(price, whole)| price * whole / self.scale).collect()
    }

    /// The best of some prices near the given ones, which are moved there. Stops early once the bound exceeds `enough`.
    pub(super) fn maximise(&self, prices: &mut [f64], fixes: &[Fix], target: f64, enough: f64, steps: usize, first_step: f64) -> Relaxed {
        let mut at = prices.to_vec();
        let mut best = self.evaluate(&at, fixes);
        let (mut now, mut length, mut stalled) = (best.clone(), first_step, 0);
        for _ in 0..steps {
            if best.bound - best.margin > enough {
                break;
            }
            let slope: Vec<f64> =
                self.limits.iter().zip(&now.used).zip(&at).map(|((limits, used), price)| slope(*limits, *used, *price)).collect();
            let square: f64 = slope.iter().map(|g| g * g).sum();
            if square == 0.0 {
                break;
            }
            // Polyak's step (1969) towards the score of the best set known.
            let step = length * (target - now.bound).max(1e-12) / square;
            for ((price, g), (low, high)) in at.iter_mut().zip(&slope).zip(&self.limits) {
                *price += step * g;
                if *low <= 0.0 {
                    *price = price.min(0.0);
                }
                if high.is_infinite() {
                    *price = price.max(0.0);
                }
            }
            now = self.evaluate(&at, fixes);
            if now.bound > best.bound {
                best = now.clone();
                prices.copy_from_slice(&at);
                stalled = 0;
            } else {
                stalled += 1;
                if stalled >= 12 {
                    // Back to the best prices with shorter steps.
                    (length, stalled) = (length * 0.5, 0);
                    at.copy_from_slice(prices);
                    now = best.clone();
                }
            }
        }
        best
    }

    /// The relaxation at one vector of prices.
    pub(super) fn evaluate(&self, prices: &[f64], fixes: &[Fix]) -> Relaxed {
        let (n, m) = (self.scores.len(), self.limits.len());
        let mut found =
            Relaxed { bound: self.forced_score, margin: 0.0, used: self.forced_costs.clone(), gone: vec![false; n], reduced: vec![0.0; n] };
        let paid = |costs: &[f64]| costs.iter().zip(prices).map(|(cost, price)| cost * price).sum::<f64>();
        found.bound -= paid(&self.forced_costs);
        for ((low, high), price) in self.limits.iter().zip(prices) {
            if *price != 0.0 {
                found.bound += price * if *price > 0.0 { *low } else { *high };
            }
        }
        for (unit, fix) in fixes.iter().enumerate() {
            if *fix != Fix::Keep {
                found.reduced[unit] = self.scores[unit] - paid(&self.costs[unit * m..(unit + 1) * m]);
            }
        }
        let mut orders = self.orders.iter();
        for block in &self.instance.blocks {
            match block.kind {
                BlockKind::Single => self.take_if_negative(block.units[0], fixes, &mut found),
                BlockKind::Shared(bonus) => self.shared(&block.units, bonus, &paid, fixes, &mut found),
                BlockKind::Linked => {
                    // There is one order for each linked block.
                    if let Some(order) = orders.next() {
                        self.linked(order, &paid, fixes, &mut found);
                    }
                }
            }
        }
        let moved: f64 = prices
            .iter()
            .zip(&self.limits)
            .map(|(price, (low, high))| price.abs() * (2.0 + low + if high.is_finite() { *high } else { 0.0 }))
            .sum();
        found.margin = 8.0 * f64::EPSILON * (n + self.bonus_scores.len() + 8) as f64 * (2.0 + moved);
        found
    }

    fn take(&self, unit: usize, found: &mut Relaxed) {
        let m = self.limits.len();
        found.gone[unit] = true;
        found.used.iter_mut().zip(&self.costs[unit * m..]).for_each(|(sum, cost)| *sum += cost);
    }

    fn take_bonus(&self, bonus: usize, share: f64, found: &mut Relaxed) {
        let m = self.limits.len();
        found.used.iter_mut().zip(&self.bonus_costs[bonus * m..(bonus + 1) * m]).for_each(|(sum, cost)| *sum += share * cost);
    }

    fn take_if_negative(&self, unit: usize, fixes: &[Fix], found: &mut Relaxed) {
        let reduced = found.reduced[unit];
        if fixes[unit] == Fix::Gone || (fixes[unit] == Fix::Free && reduced < 0.0) {
            found.bound += reduced;
            self.take(unit, found);
        }
    }

    /// Either all go and the shared cost with them, or some stay and each of the others goes where it pays.
    fn shared(&self, units: &[usize], bonus: usize, paid: &impl Fn(&[f64]) -> f64, fixes: &[Fix], found: &mut Relaxed) {
        if units.iter().any(|unit| fixes[*unit] == Fix::Keep) {
            units.iter().for_each(|unit| self.take_if_negative(*unit, fixes, found));
            return;
        }
        let m = self.limits.len();
        let extra = self.bonus_scores[bonus] - paid(&self.bonus_costs[bonus * m..(bonus + 1) * m]);
        let all = extra + units.iter().map(|unit| found.reduced[*unit]).sum::<f64>();
        // The two dearest free units: one of them stays where not all may go.
        let mut dearest: Option<usize> = None;
        let mut second: Option<usize> = None;
        let mut some = 0.0;
        for unit in units {
            let reduced = found.reduced[*unit];
            some += if fixes[*unit] == Fix::Gone { reduced } else { reduced.min(0.0) };
            if fixes[*unit] == Fix::Free {
                if dearest.is_none_or(|other| reduced > found.reduced[other]) {
                    (dearest, second) = (Some(*unit), dearest);
                } else if second.is_none_or(|other| reduced > found.reduced[other]) {
                    second = Some(*unit);
                }
            }
        }
        let at = |unit: Option<usize>, found: &Relaxed| unit.map_or(f64::NEG_INFINITY, |unit| found.reduced[unit]);
        // What it costs that the dearest unit stays although it would pay to remove it.
        let (first_stays, second_stays) = (-at(dearest, found).min(0.0), -at(second, found).min(0.0));
        let not_all = some + first_stays;
        let goes_whole = all <= not_all;
        let minimum = all.min(not_all);
        found.bound += minimum;
        let alternatives: Vec<(usize, f64, bool)> = units
            .iter()
            .filter(|unit| fixes[**unit] == Fix::Free)
            .map(|unit| {
                let reduced = found.reduced[*unit];
                let goes = goes_whole || (reduced < 0.0 && Some(*unit) != dearest);
                let kept = some - reduced.min(0.0);
                let others_stay = if Some(*unit) == dearest { second_stays } else { first_stays };
                let gone = all.min(kept + reduced + others_stay);
                let other = if goes { kept } else { gone };
                (*unit, (other - minimum).max(0.0), goes)
            })
            .collect();
        units.iter().filter(|unit| fixes[**unit] == Fix::Gone).for_each(|unit| self.take(*unit, found));
        if goes_whole {
            self.take_bonus(bonus, 1.0, found);
        }
        for (unit, worse, goes) in alternatives {
            found.reduced[unit] = if goes { -worse } else { worse };
            if goes {
                self.take(unit, found);
            }
        }
    }

    /// Each unit hangs on the first free unit that it needs, other needs are ignored, and a bonus is spread over its free
    /// members where that lowers the bound: a relaxation with a minimum by one pass up the trees.
    fn linked(&self, order: &[usize], paid: &impl Fn(&[f64]) -> f64, fixes: &[Fix], found: &mut Relaxed) {
        let m = self.limits.len();
        let mut seen: Vec<usize> = order.iter().flat_map(|unit| self.instance.units[*unit].bonuses.iter().copied()).collect();
        seen.sort_unstable();
        seen.dedup();
        let mut shared: Vec<(usize, f64)> = Vec::new();
        for bonus in seen {
            let members = &self.instance.bonuses[bonus].members;
            if members.iter().any(|unit| fixes[*unit] == Fix::Keep) {
                continue;
            }
            let extra = self.bonus_scores[bonus] - paid(&self.bonus_costs[bonus * m..(bonus + 1) * m]);
            let free = members.iter().filter(|unit| fixes[**unit] == Fix::Free).count();
            if free == 0 {
                found.bound += extra;
                self.take_bonus(bonus, 1.0, found);
            } else if extra < 0.0 {
                let share = 1.0 / free as f64;
                members.iter().filter(|unit| fixes[**unit] == Fix::Free).for_each(|unit| found.reduced[*unit] += share * extra);
                shared.push((bonus, share));
            }
        }
        let parent = |unit: usize| self.instance.units[unit].needs.iter().copied().find(|other| fixes[*other] == Fix::Free);
        for unit in order {
            match fixes[*unit] {
                Fix::Keep => {}
                Fix::Gone => {
                    found.bound += found.reduced[*unit];
                    self.take(*unit, found);
                }
                Fix::Free => {
                    let tree = found.reduced[*unit].min(0.0);
                    match parent(*unit) {
                        Some(parent) => found.reduced[parent] += tree,
                        None => found.bound += tree,
                    }
                }
            }
        }
        for unit in order.iter().rev().filter(|unit| fixes[**unit] == Fix::Free) {
            if found.reduced[*unit] < 0.0 && parent(*unit).is_none_or(|parent| found.gone[parent]) {
                self.take(*unit, found);
            }
        }
        for (bonus, share) in shared {
            let members = self.instance.bonuses[bonus].members.iter();
            let taken = members.filter(|unit| fixes[**unit] == Fix::Free && found.gone[**unit]).count();
            self.take_bonus(bonus, share * taken as f64, found);
        }
    }
}

/// A supergradient of the bound with respect to one price.
fn slope((low, high): (f64, f64), used: f64, price: f64) -> f64 {
    if price > 0.0 {
        low - used
    } else if price < 0.0 {
        high - used
    } else if low > used {
        low - used
    } else if high < used {
        high - used
    } else {
        0.0
    }
}

/// The units in an order in which each stands before those that it needs.
fn needing_first(instance: &Instance, units: &[usize]) -> Vec<usize> {
    let mut waiting: Vec<usize> = vec![0; instance.units.len()];
    units.iter().for_each(|unit| waiting[*unit] = instance.units[*unit].needed_by.len());
    let mut order: Vec<usize> = units.iter().copied().filter(|unit| waiting[*unit] == 0).collect();
    let mut at = 0;
    while at < order.len() {
        for other in &instance.units[order[at]].needs {
            waiting[*other] -= 1;
            if waiting[*other] == 0 {
                order.push(*other);
            }
        }
        at += 1;
    }
    order
}
