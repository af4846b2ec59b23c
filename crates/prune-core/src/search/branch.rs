//! Several limits at once: branch and bound over the Lagrangian bound of `relax` (Fisher 1981, doi 10.1287/mnsc.27.1.1; the
//! fixing of variables by their reduced costs as in Nemhauser and Wolsey 1988, doi 10.1002/9781118627372). Depth first, so
//! that a good set is known early; ends with a proof, or at a number of nodes with the gap that is left.
//!
//! Two searches: the first finds the least score, the second the first set with that score in the order of ids.

use crate::search::dominance::Dominance;
use crate::search::effort::Watch;
use crate::search::exact::grain;
use crate::search::instance::{BlockKind, Instance};
use crate::search::relax::{Fix, Range, Relaxation, Relaxed};
use crate::search::selection::Selection;
use crate::search::solve::single;
use crate::table::LayerTable;

/// What the search has found.
pub(super) struct Outcome {
    /// Score and removed units of the best set known.
    pub(super) best: Option<(i128, Vec<bool>)>,
    /// No set scores less, in the scale of the scores; the best score itself where that is proven.
    pub(super) bound: f64,
    /// Nothing is left open: the best set is optimal, or there is none.
    pub(super) complete: bool,
    /// The set is the first in the order of ids among those of its score.
    pub(super) ordered: bool,
    pub(super) nodes: u64,
}

/// Steps of the search for prices: at the root and below.
const ROOT_STEPS: usize = 300;
const NODE_STEPS: usize = 16;

/// Rounds of mending, and units up to which each change gets a round of its own.
const ROUNDS: usize = 256;
const FEW: usize = 256;
/// Exchanges after a new best set, and units on either side of the border that are tried.
const EXCHANGES: usize = 40;
const BORDER: usize = 100;

struct Node {
    fixes: Vec<Fix>,
    prices: Vec<f64>,
    /// Bound of the parent.
    bound: f64,
}

/// The best score known, and the set where it was found in this search.
type Best = Option<(i128, Option<Vec<bool>>)>;

/// A search of this size is worth being rewritten once half of its units are decided.
const REWRITTEN: usize = 24;

struct Search<'a, 'w, 'o> {
    instance: &'a Instance,
    ranges: &'a [Range],
    table: &'a LayerTable,
    relaxation: Relaxation<'a>,
    /// Units in ascending order of their smallest ids.
    by_id: Vec<usize>,
    dominance: Dominance,
    /// Whether fixing one unit by its reduced cost is sound, that is, unless its block is linked.
    fixable: Vec<bool>,
    /// Sets differ in score by a multiple of this.
    grain: i128,
    /// No set scores more than this.
    worst: f64,
    best: Best,
    /// Scores less what costs are paid at the root's prices.
    root_reduced: Option<Vec<f64>>,
    nodes: u64,
    watch: &'w mut Watch<'o>,
}

pub(super) fn run(instance: &Instance, ranges: &[Range], table: &LayerTable, watch: &mut Watch<'_>) -> Outcome {
    // The lists of a search with one budget find and prove most of what has one lower limit.
    let found = match ranges {
        [Range { resource, low, high: u64::MAX }] => Some(single(instance, *resource, *low, table, watch)),
        _ => None,
    };
    let known = found.as_ref().map(|found| {
        let mut gone = vec![false; instance.units.len()];
        found.units.iter().for_each(|unit| gone[*unit] = true);
        (found.score, Some(gone))
    });
    let mut search = Search::new(instance, ranges, table, known, watch);
    let root = search.root();
    let bound = if found.is_some_and(|found| found.score == found.bound) { None } else { search.least_score(root) };
    let complete = bound.is_none();
    let mut ordered = complete;
    let value = search.best.as_ref().map(|(score, _)| *score);
    if let (true, Some(value)) = (complete, value) {
        let root = search.root();
        match search.first_by_id(root, value) {
            Some(gone) => search.best = Some((value, Some(gone))),
            None => ordered = false,
        }
    }
    let proven = value.map_or(search.worst, |value| search.relaxation.scaled(value));
    let bound = search.relaxation.unscaled(bound.map_or(proven, |bound| bound.min(proven)));
    let best = search.best.and_then(|(score, gone)| Some((score, gone?)));
    Outcome { best, bound, complete, ordered, nodes: search.nodes }
}

impl<'a, 'w, 'o> Search<'a, 'w, 'o> {
    fn new(instance: &'a Instance, ranges: &'a [Range], table: &'a LayerTable, best: Best, watch: &'w mut Watch<'o>) -> Self {
        let mut by_id: Vec<usize> = (0..instance.units.len()).collect();
        by_id.sort_by_key(|unit| instance.first_rank(*unit, table));
        let mut fixable = vec![true; instance.units.len()];
        for block in instance.blocks.iter().filter(|block| block.kind == BlockKind::Linked) {
            block.units.iter().for_each(|unit| fixable[*unit] = false);
        }
        let all = instance.units.iter().map(|unit| unit.score).chain(instance.bonuses.iter().map(|bonus| bonus.score));
        let relaxation = Relaxation::new(instance, ranges);
        let highest: i128 = instance.forced_score + all.clone().filter(|score| *score > 0).sum::<i128>();
        Self {
            instance,
            ranges,
            table,
            worst: relaxation.scaled(highest),
            relaxation,
            by_id,
            dominance: Dominance::new(instance, ranges),
            fixable,
            grain: grain(all),
            best,
            root_reduced: None,
            nodes: 0,
            watch,
        }
    }

    fn root(&self) -> Node {
        Node { fixes: vec![Fix::Free; self.instance.units.len()], prices: vec![0.0; self.ranges.len()], bound: f64::NEG_INFINITY }
    }

    /// The score above which a node cannot improve on the best set.
    fn limit(&self) -> f64 {
        self.best.as_ref().map_or(self.worst, |(score, _)| self.relaxation.scaled(score - self.grain))
    }

    /// Finds the least score below a node; the bound of what is left open where the nodes run out, `None` where nothing is.
    fn least_score(&mut self, root: Node) -> Option<f64> {
        let mut open = vec![root];
        while let Some(node) = open.pop() {
            if self.out_of_work() {
                let bounds = open.iter().map(|node| node.bound).chain([node.bound]);
                return Some(bounds.fold(f64::INFINITY, f64::min));
            }
            let Some((node, relaxed)) = self.examine(node, None) else { continue };
            if self.is_worth_rewriting(&node) {
                if let Some(bound) = self.rewritten(&node, |below, root| below.least_score(root)) {
                    let bounds = open.iter().map(|node| node.bound).chain([bound.max(node.bound)]);
                    return Some(bounds.fold(f64::INFINITY, f64::min));
                }
                continue;
            }
            let free = (0..node.fixes.len()).filter(|unit| node.fixes[*unit] == Fix::Free);
            // The unit about which the prices are least sure.
            let Some(unit) = free.min_by(|a, b| relaxed.reduced[*a].abs().total_cmp(&relaxed.reduced[*b].abs())) else { continue };
            let likely = if relaxed.gone[unit] { Fix::Gone } else { Fix::Keep };
            let unlikely = if relaxed.gone[unit] { Fix::Keep } else { Fix::Gone };
            open.extend(self.child(&node, unit, unlikely, true));
            open.extend(self.child(&node, unit, likely, true));
        }
        None
    }

    fn is_worth_rewriting(&self, node: &Node) -> bool {
        let (units, free) = (node.fixes.len(), node.fixes.iter().filter(|fix| **fix == Fix::Free).count());
        units > REWRITTEN && free > 0 && 2 * free <= units
    }

    /// Searches below a node as an instance of its own, of the free units alone; answers the bound of what is left open.
    fn rewritten(&mut self, node: &Node, search: impl FnOnce(&mut Search<'_, '_, 'o>, Node) -> Option<f64>) -> Option<f64> {
        let (instance, units) = self.instance.restricted(&node.fixes, self.table);
        let known = self.best.as_ref().map(|(score, _)| (*score, None));
        let mut below = Search::new(&instance, self.ranges, self.table, known, self.watch);
        below.nodes = self.nodes;
        // Prices carry over; the bound does too, but the first look at the new root is to take more steps.
        let prices = below.relaxation.scaled_prices(&self.relaxation.unscaled_prices(&node.prices));
        let root = Node { prices, ..below.root() };
        let bound = search(&mut below, root).map(|bound| below.relaxation.unscaled(bound));
        let (nodes, best) = (below.nodes, below.best);
        self.nodes = nodes;
        if let Some((score, Some(gone))) = best {
            let mut whole: Vec<bool> = node.fixes.iter().map(|fix| *fix == Fix::Gone).collect();
            units.iter().zip(gone).for_each(|(unit, gone)| whole[*unit] = gone);
            self.best = Some((score, Some(whole)));
        }
        bound.map(|bound| self.relaxation.scaled_bound(bound))
    }

    /// The set with this score, which is the least, that holds the smallest id on which it differs from any other.
    fn first_by_id(&mut self, root: Node, value: i128) -> Option<Vec<bool>> {
        let mut open = vec![root];
        while let Some(node) = open.pop() {
            if self.out_of_work() {
                return None;
            }
            let Some((node, _)) = self.examine(node, Some(value)) else { continue };
            if self.is_worth_rewriting(&node) {
                let before = self.best.take();
                let left = self.rewritten(&node, |below, root| match below.first_by_id(root, value) {
                    Some(gone) => {
                        below.best = Some((value, Some(gone)));
                        None
                    }
                    None => below.out_of_work().then_some(0.0),
                });
                match std::mem::replace(&mut self.best, before) {
                    Some((_, Some(gone))) => return Some(gone),
                    _ if left.is_some() => return None,
                    _ => continue,
                }
            }
            match self.by_id.iter().find(|unit| node.fixes[**unit] == Fix::Free) {
                Some(unit) => {
                    open.extend(self.child(&node, *unit, Fix::Keep, false));
                    open.extend(self.child(&node, *unit, Fix::Gone, false));
                }
                None => {
                    let gone: Vec<bool> = node.fixes.iter().map(|fix| *fix == Fix::Gone).collect();
                    let set = self.select(&gone);
                    if self.meets(set.costs()) && set.score() == value {
                        return Some(gone);
                    }
                }
            }
        }
        None
    }

    fn out_of_work(&mut self) -> bool {
        let (nodes, most) = (self.nodes, self.watch.node_limit());
        nodes >= most || !self.watch.tick(NODE_STEPS as u64 * self.instance.units.len() as u64, nodes, || nodes as f64 / most as f64)
    }

    /// `any`: one of the best sets is wanted, whichever.
    fn child(&self, node: &Node, unit: usize, fix: Fix, any: bool) -> Option<Node> {
        let mut fixes = node.fixes.clone();
        self.fix(&mut fixes, unit, fix, any).then(|| Node { fixes, prices: node.prices.clone(), bound: node.bound })
    }

    /// Fixes a unit and what follows from it; false where that contradicts an earlier fix.
    fn fix(&self, fixes: &mut [Fix], unit: usize, fix: Fix, any: bool) -> bool {
        let mut open = vec![unit];
        while let Some(at) = open.pop() {
            if fixes[at] == fix {
                continue;
            }
            if fixes[at] != Fix::Free {
                return false;
            }
            fixes[at] = fix;
            let unit = &self.instance.units[at];
            open.extend(if fix == Fix::Gone { &unit.needs } else { &unit.needed_by });
            if any {
                open.extend(self.dominance.implied(at, fix));
            }
        }
        true
    }

    /// Bounds a node and fixes what can be; `None` where nothing better (or, with a value, nothing as good) can be below it.
    fn examine(&mut self, mut node: Node, value: Option<i128>) -> Option<(Node, Relaxed)> {
        self.nodes += 1;
        let is_root = node.bound == f64::NEG_INFINITY;
        if value.is_none() && self.best.is_some() && node.bound > self.limit() {
            return None;
        }
        loop {
            if !self.could_meet(&node.fixes) {
                return None;
            }
            let limit = |search: &Self| value.map_or_else(|| search.limit(), |value| search.relaxation.scaled(value));
            let target = value.or(self.best.as_ref().map(|best| best.0)).map_or(self.worst, |score| self.relaxation.scaled(score));
            let (steps, length) = if node.bound == f64::NEG_INFINITY { (ROOT_STEPS, 1.5) } else { (NODE_STEPS, 1.0) };
            if is_root && value.is_none() {
                // A first set gives the prices something to aim at.
                let relaxed = self.relaxation.evaluate(&node.prices, &node.fixes);
                self.repair(&relaxed.gone, &node.fixes, false);
            }
            let relaxed = self.relaxation.maximise(&mut node.prices, &node.fixes, target, limit(self), steps, length);
            if value.is_none() && (is_root || self.nodes.is_multiple_of(32) || self.best.is_none()) {
                if is_root {
                    self.root_reduced = Some(relaxed.reduced.clone());
                }
                self.repair(&relaxed.gone, &node.fixes, is_root);
            } else if value.is_none() {
                self.offer(&relaxed.gone, &node.fixes);
            }
            let sure = relaxed.bound - relaxed.margin;
            node.bound = node.bound.max(sure);
            if sure > limit(self) {
                return None;
            }
            let mut fixed = 0;
            for unit in 0..node.fixes.len() {
                let other = relaxed.reduced[unit].abs();
                if node.fixes[unit] == Fix::Free && self.fixable[unit] && sure + other - 4.0 * relaxed.margin > limit(self) {
                    node.fixes[unit] = if relaxed.gone[unit] { Fix::Gone } else { Fix::Keep };
                    fixed += 1;
                }
            }
            // Many fixes may allow more; few are left to the children.
            let free = node.fixes.iter().filter(|fix| **fix == Fix::Free).count();
            if fixed == 0 || (free > 0 && fixed * 8 < free) {
                return Some((node, relaxed));
            }
            if free == 0 {
                if value.is_none() {
                    self.offer(&relaxed.gone, &node.fixes);
                }
                return Some((node, relaxed));
            }
        }
    }

    /// Whether the limits could be met by the free units, resource by resource.
    fn could_meet(&self, fixes: &[Fix]) -> bool {
        self.ranges.iter().all(|range| {
            let (mut least, mut most) = (self.instance.forced_costs[range.resource], self.instance.forced_costs[range.resource]);
            for (unit, fix) in self.instance.units.iter().zip(fixes) {
                least += if *fix == Fix::Gone { unit.costs[range.resource] } else { 0 };
                most += if *fix != Fix::Keep { unit.costs[range.resource] } else { 0 };
            }
            for bonus in &self.instance.bonuses {
                let all = |fix: &dyn Fn(Fix) -> bool| bonus.members.iter().all(|unit| fix(fixes[*unit]));
                least += if all(&|fix| fix == Fix::Gone) { bonus.costs[range.resource] } else { 0 };
                most += if all(&|fix| fix != Fix::Keep) { bonus.costs[range.resource] } else { 0 };
            }
            least <= range.high && most >= range.low
        })
    }

    fn meets(&self, costs: &[u64]) -> bool {
        self.ranges.iter().all(|range| (range.low..=range.high).contains(&costs[range.resource]))
    }

    fn select(&self, gone: &[bool]) -> Selection<'_> {
        let mut set = Selection::new(self.instance);
        (0..gone.len()).filter(|unit| gone[*unit]).for_each(|unit| set.remove(unit));
        set
    }

    /// The units that go in a relaxed set, less those whose needs stay.
    fn closed(&self, gone: &[bool], fixes: &[Fix]) -> Vec<bool> {
        let mut closed: Vec<bool> =
            (0..gone.len()).map(|unit| gone[unit] && fixes[unit] != Fix::Keep || fixes[unit] == Fix::Gone).collect();
        let mut open: Vec<usize> = (0..closed.len()).filter(|unit| !closed[*unit]).collect();
        while let Some(unit) = open.pop() {
            for other in &self.instance.units[unit].needed_by {
                if std::mem::replace(&mut closed[*other], false) {
                    open.push(*other);
                }
            }
        }
        closed
    }

    fn keep_if_better(&mut self, score: i128, gone: &[bool]) {
        if self.best.as_ref().is_none_or(|best| score < best.0) {
            self.best = Some((score, Some(gone.to_vec())));
        }
    }

    /// Keeps the relaxed set where it meets the limits and is the best.
    fn offer(&mut self, gone: &[bool], fixes: &[Fix]) {
        let closed = self.closed(gone, fixes);
        let set = self.select(&closed);
        if self.meets(set.costs()) {
            let score = set.score();
            self.keep_if_better(score, &closed);
        }
    }

    /// Changes the relaxed set one unit at a time until the limits are met, those first that cost least for what they mend, then
    /// takes back what was not needed and exchanges units.
    fn repair(&mut self, gone: &[bool], fixes: &[Fix], thorough: bool) {
        let closed = self.closed(gone, fixes);
        let instance = self.instance;
        let mut set = Selection::new(instance);
        (0..closed.len()).filter(|unit| closed[*unit]).for_each(|unit| set.remove(unit));
        for _ in 0..if closed.len() <= FEW { ROUNDS } else { 4 } {
            let missing = self.missing(set.costs());
            if missing == 0.0 {
                break;
            }
            let mut rates: Vec<(f64, usize)> =
                (0..closed.len()).filter_map(|unit| Some((self.rate(&mut set, unit, missing)?, unit))).collect();
            rates.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            // Few units are looked at again after each change, many only once per round.
            let before = missing;
            for (_, unit) in rates.into_iter().take(if closed.len() <= FEW { 1 } else { usize::MAX }) {
                let missing = self.missing(set.costs());
                if missing == 0.0 {
                    break;
                }
                if self.rate(&mut set, unit, missing).is_some() {
                    flip(instance, &mut set, unit);
                }
            }
            if self.missing(set.costs()) >= before {
                return;
            }
        }
        if !self.meets(set.costs()) {
            return;
        }
        let mut order: Vec<usize> = (0..closed.len()).collect();
        order.sort_by(|a, b| instance.units[*b].score.abs().cmp(&instance.units[*a].score.abs()).then(a.cmp(b)));
        for unit in order {
            let (before, was_gone) = (set.score(), set.gone()[unit]);
            let changed = flip(instance, &mut set, unit);
            if set.score() >= before || !self.meets(set.costs()) {
                changed.iter().for_each(|unit| if was_gone { set.remove(*unit) } else { set.restore(*unit) });
            }
        }
        let better = self.best.as_ref().is_none_or(|best| set.score() < best.0);
        if thorough || better {
            self.exchange(&mut set);
        }
        let (score, gone) = (set.score(), set.gone().to_vec());
        self.keep_if_better(score, &gone);
    }

    /// What it costs to flip a unit for what that mends; `None` where it mends nothing.
    fn rate(&self, set: &mut Selection<'_>, unit: usize, missing: f64) -> Option<f64> {
        let (before, was_gone) = (set.score(), set.gone()[unit]);
        let changed = flip(self.instance, set, unit);
        let mended = missing - self.missing(set.costs());
        let rate = self.relaxation.scaled(set.score() - before) / mended;
        changed.iter().for_each(|unit| if was_gone { set.remove(*unit) } else { set.restore(*unit) });
        (mended > 0.0).then_some(rate)
    }

    /// Exchanges removed units for others, one for one, as long as that lowers the score within the limits.
    fn exchange(&mut self, set: &mut Selection<'_>) {
        let instance = self.instance;
        let n = instance.units.len();
        for _ in 0..EXCHANGES {
            // Of many units only those near the border between going and staying.
            let mut border: Vec<usize> = (0..n).collect();
            if n > 2 * BORDER {
                let Some(reduced) = &self.root_reduced else { return };
                border.sort_by(|a, b| reduced[*a].abs().total_cmp(&reduced[*b].abs()).then(a.cmp(b)));
                border.truncate(2 * BORDER);
            }
            let (gone, kept): (Vec<usize>, Vec<usize>) = border.into_iter().partition(|unit| set.gone()[*unit]);
            let mut best: Option<(i128, usize, usize)> = None;
            for back in gone {
                let start = set.score();
                let restored = flip(instance, set, back);
                for out in &kept {
                    // Removing what was just restored changes nothing.
                    if set.gone()[*out] || instance.units[*out].score + set.score() >= best.map_or(start, |best| best.0 + start) {
                        continue;
                    }
                    let removed = flip(instance, set, *out);
                    let change = set.score() - start;
                    if change < best.map_or(0, |best| best.0) && self.meets(set.costs()) {
                        best = Some((change, back, *out));
                    }
                    removed.iter().for_each(|unit| set.restore(*unit));
                }
                restored.iter().for_each(|unit| set.remove(*unit));
            }
            let Some((_, back, out)) = best else { return };
            flip(instance, set, back);
            flip(instance, set, out);
            if !self.watch.tick((n * n) as u64, self.nodes, || 0.0) {
                return;
            }
        }
    }

    /// How far costs are from the limits, in parts of what can go; 0 where they are met.
    fn missing(&self, costs: &[u64]) -> f64 {
        let far = |range: &Range| {
            let (cost, whole) = (costs[range.resource], self.instance.available[range.resource].max(1));
            (range.low.saturating_sub(cost).max(cost.saturating_sub(range.high))) as f64 / whole as f64
        };
        self.ranges.iter().map(far).sum()
    }
}

/// Removes a unit with what it needs, or restores it with what needs it; answers what changed.
fn flip(instance: &Instance, set: &mut Selection<'_>, unit: usize) -> Vec<usize> {
    if set.gone()[unit] {
        let back = instance.dependents(unit, set.gone());
        back.iter().for_each(|unit| set.restore(*unit));
        back
    } else {
        set.remove_with_needs(unit)
    }
}
