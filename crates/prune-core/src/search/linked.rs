//! The dominance lists of a block whose units need each other or share several bonuses.
//!
//! A tree in which every unit needs its parent (or every unit its children) takes one list per unit: a unit that stays takes
//! its whole subtree along, so the list moves behind the subtree at once (Johnson and Niemi 1983, doi 10.1287/moor.8.1.1).
//! Anything else takes one list for each state of the frontier, that is, for what the decided units ask of the undecided ones (as
//! in pathwidth-bounded dynamic programmes, Bodlaender 1998, doi 10.1016/S0304-3975(97)00228-4). Both are exact; the number of
//! lists grows with the width of the frontier, not with the size of the block.

use std::collections::BTreeMap;

use crate::search::components::narrow_order;
use crate::search::instance::{Instance, Unit};
use crate::search::lists::{Lists, State, group};
use crate::search::relax::Fix;

/// The order in which the units of a linked block are decided, and how.
#[derive(Debug)]
pub(crate) struct Linked {
    pub(crate) order: Vec<usize>,
    tree: Option<Tree>,
}

/// A tree in preorder.
#[derive(Debug)]
struct Tree {
    /// Number of units in the subtree of each, itself included.
    sizes: Vec<usize>,
    /// Units need their parents; otherwise they need their children.
    needs_parent: bool,
}

impl Linked {
    /// For units that hang together, in descending order of ids.
    pub(super) fn new(units: &[Unit], block: &[usize], members: impl Fn(usize) -> Vec<usize>) -> Self {
        let plain = block.iter().all(|unit| units[*unit].bonuses.is_empty());
        let at_most_one = |links: &dyn Fn(&Unit) -> usize| block.iter().all(|unit| links(&units[*unit]) <= 1);
        for needs_parent in [true, false] {
            let up = |unit: &Unit| if needs_parent { unit.needs.len() } else { unit.needed_by.len() };
            if plain && at_most_one(&up) {
                return Self::tree(units, block, needs_parent);
            }
        }
        let place: BTreeMap<usize, usize> = block.iter().copied().zip(0..).collect();
        let neighbours = block.iter().map(|unit| {
            let parts = &units[*unit];
            let shared = parts.bonuses.iter().flat_map(|bonus| members(*bonus));
            let all = parts.needs.iter().chain(&parts.needed_by).copied().chain(shared).filter(|other| other != unit);
            let mut places: Vec<usize> = all.filter_map(|other| place.get(&other).copied()).collect();
            places.sort_unstable();
            places.dedup();
            places
        });
        let neighbours: Vec<Vec<usize>> = neighbours.collect();
        Self { order: narrow_order(&neighbours).into_iter().map(|at| block[at]).collect(), tree: None }
    }

    /// Without circles (these are single units), a connected block with at most one link up per unit is a tree.
    fn tree(units: &[Unit], block: &[usize], needs_parent: bool) -> Self {
        let up = |unit: usize| if needs_parent { &units[unit].needs } else { &units[unit].needed_by };
        let down = |unit: usize| if needs_parent { &units[unit].needed_by } else { &units[unit].needs };
        let mut order = Vec::with_capacity(block.len());
        let mut open: Vec<usize> = block.iter().copied().filter(|unit| up(*unit).is_empty()).collect();
        while let Some(unit) = open.pop() {
            order.push(unit);
            open.extend(down(unit));
        }
        let place: BTreeMap<usize, usize> = order.iter().copied().zip(0..).collect();
        let mut sizes = vec![1; order.len()];
        for at in (0..order.len()).rev() {
            if let Some(parent) = up(order[at]).first().and_then(|parent| place.get(parent)) {
                sizes[*parent] += sizes[at];
            }
        }
        Self { order, tree: Some(Tree { sizes, needs_parent }) }
    }

    /// What may go or stay at least, whatever the weights: for each place the place behind its subtree, and whether units need their
    /// parents. Exact for a tree; other blocks have none.
    pub(super) fn tree_ends(&self) -> Option<(Vec<usize>, bool)> {
        let tree = self.tree.as_ref()?;
        Some((tree.sizes.iter().enumerate().map(|(at, size)| at + size).collect(), tree.needs_parent))
    }

    /// Positions of the subtrees that go as one step.
    pub(super) fn subtrees(&self) -> &[usize] {
        self.tree.as_ref().filter(|tree| !tree.needs_parent).map_or(&[], |tree| &tree.sizes)
    }

    /// Replaces the states by those after all units of the block are decided; false where the search gives up.
    /// `first_group` is the number of the group that is the first subtree.
    pub(super) fn run(&self, instance: &Instance, states: &mut Vec<State>, lists: &mut Lists<'_, '_>, first_group: usize) -> bool {
        match &self.tree {
            Some(tree) => self.run_tree(tree, instance, states, lists, first_group),
            None => self.run_frontier(instance, states, lists),
        }
    }

    fn run_tree(&self, tree: &Tree, instance: &Instance, states: &mut Vec<State>, lists: &mut Lists<'_, '_>, first_group: usize) -> bool {
        let n = self.order.len();
        let mut totals: Vec<(u64, i128)> = Vec::with_capacity(n + 1);
        totals.push((0, 0));
        for unit in &self.order {
            let (parts, before) = (&instance.units[*unit], totals[totals.len() - 1]);
            totals.push((before.0 + parts.costs[lists.resource], before.1 + parts.score));
        }
        // The states that wait before each position.
        let mut waiting: BTreeMap<usize, Vec<State>> = BTreeMap::from([(0, std::mem::take(states))]);
        for here in 0..n {
            let Some(mut list) = waiting.remove(&here) else { continue };
            lists.tidy(here, &mut list);
            let behind = here + tree.sizes[here];
            let (unit, parts) = (self.order[here], &instance.units[self.order[here]]);
            // The last unit of a subtree leads on to the same place either way.
            let (stay_to, go_to) = if tree.needs_parent { (behind, here + 1) } else { (here + 1, behind) };
            if lists.fix(unit) != Fix::Keep {
                let (weight, score, step) = if tree.needs_parent || behind == here + 1 {
                    (parts.costs[lists.resource], parts.score, unit as u32)
                } else {
                    let (from, to) = (totals[here], totals[behind]);
                    (to.0 - from.0, to.1 - from.1, group(first_group + here))
                };
                let moved = lists.moved(&list, weight, score, step);
                waiting.entry(go_to).or_default().extend(moved);
            }
            if lists.fix(unit) != Fix::Gone {
                waiting.entry(stay_to).or_default().append(&mut list);
            }
            if !lists.checkpoint(here + 1, &mut waiting.values_mut().collect::<Vec<_>>()) {
                return false;
            }
        }
        *states = waiting.remove(&n).unwrap_or_default();
        lists.tidy(n, states);
        true
    }

    fn run_frontier(&self, instance: &Instance, states: &mut Vec<State>, lists: &mut Lists<'_, '_>) -> bool {
        let place: BTreeMap<usize, usize> = self.order.iter().copied().zip(0..).collect();
        let at = |links: &[usize]| links.iter().filter_map(|unit| place.get(unit).copied()).collect::<Vec<_>>();
        let needs: Vec<Vec<usize>> = self.order.iter().map(|unit| at(&instance.units[*unit].needs)).collect();
        let needed_by: Vec<Vec<usize>> = self.order.iter().map(|unit| at(&instance.units[*unit].needed_by)).collect();
        let mut spans: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        for (here, unit) in self.order.iter().enumerate() {
            for bonus in &instance.units[*unit].bonuses {
                spans.entry(*bonus).or_insert((here, here)).1 = here;
            }
        }
        let mut all: BTreeMap<Frontier, Vec<State>> = BTreeMap::from([(Frontier::default(), std::mem::take(states))]);
        for (here, number) in self.order.iter().enumerate() {
            let unit = &instance.units[*number];
            let mut next: BTreeMap<Frontier, Vec<State>> = BTreeMap::new();
            for (frontier, list) in all {
                for goes in [false, true] {
                    let asked = frontier.asks.get(&here).copied();
                    let fixed = lists.fix(*number);
                    if asked == Some(!goes) || fixed == if goes { Fix::Keep } else { Fix::Gone } {
                        continue;
                    }
                    let mut after = frontier.clone();
                    after.asks.remove(&here);
                    // What is removed asks for what it needs, and what stays keeps what needs it.
                    if !after.ask(here, goes, &needs, &needed_by) {
                        continue;
                    }
                    let (mut weight, mut score) = if goes { (unit.costs[lists.resource], unit.score) } else { (0, 0) };
                    for bonus in &unit.bonuses {
                        let (first, last) = spans[bonus];
                        let alive = goes && (first == here || frontier.alive.contains(bonus));
                        after.alive.retain(|other| other != bonus);
                        if alive && last == here {
                            weight += instance.bonuses[*bonus].costs[lists.resource];
                            score += instance.bonuses[*bonus].score;
                        } else if alive {
                            after.alive.push(*bonus);
                        }
                    }
                    after.alive.sort_unstable();
                    let moved = if goes { lists.moved(&list, weight, score, *number as u32) } else { list.clone() };
                    next.entry(after).or_default().extend(moved);
                }
            }
            next.values_mut().for_each(|list| lists.tidy(here + 1, list));
            next.retain(|_, list| !list.is_empty());
            if !lists.checkpoint(here + 1, &mut next.values_mut().collect::<Vec<_>>()) {
                return false;
            }
            all = next;
        }
        // With nothing undecided the frontier is empty, so one list is left.
        *states = all.into_values().next().unwrap_or_default();
        true
    }
}

/// What the decided units ask of those that are not.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Frontier {
    /// Undecided units, by place, that must go (true) or stay.
    asks: BTreeMap<usize, bool>,
    /// The bonuses of which every member decided so far is gone, ascending.
    alive: Vec<usize>,
}

impl Frontier {
    /// Adds what follows for units behind `here` from its going or staying; false where that contradicts what is asked already.
    fn ask(&mut self, here: usize, goes: bool, needs: &[Vec<usize>], needed_by: &[Vec<usize>]) -> bool {
        let links = if goes { needs } else { needed_by };
        let mut open = vec![here];
        while let Some(at) = open.pop() {
            for other in links[at].iter().filter(|other| **other > here) {
                match self.asks.insert(*other, goes) {
                    None => open.push(*other),
                    Some(before) if before != goes => return false,
                    Some(_) => {}
                }
            }
        }
        true
    }
}
