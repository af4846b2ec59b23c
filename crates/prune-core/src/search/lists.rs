//! The lists behind `front`: the steps on the way to every state, and how lists are kept short enough for memory and time.
//!
//! A list that outgrows them is thinned: a state gives way to a heavier one that scores little more. What that may cost is added
//! up in `error`, so that the answer still comes with a bound.

use crate::search::bound::Bound;
use crate::search::effort::Watch;
use crate::search::instance::Instance;
use crate::search::relax::Fix;

/// One state of the search: what has been removed so far weighs and scores this much.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) score: i128,
    pub(super) weight: u64,
    /// Last step on the way here, 0 for none.
    pub(super) node: u32,
}

/// One step on the way to a state: a unit, or several at once, was removed after `parent`.
#[derive(Clone, Copy)]
struct Node {
    parent: u32,
    step: u32,
}

/// Marks a step that removes several units, which are decided one after the other.
const GROUP: u32 = 1 << 31;

/// The step that removes the group with this number: that of a block, or of a subtree.
pub(super) fn group(number: usize) -> u32 {
    GROUP | number as u32
}

/// All steps on the way to the states.
pub(super) struct Steps {
    nodes: Vec<Node>,
    /// Number of nodes at which unreachable ones are thrown away.
    collect_at: usize,
    /// The units in the order in which they are decided.
    sequence: Vec<u32>,
    /// Stretches of the sequence that go in one step: first the blocks, then subtrees.
    groups: Vec<(u32, u32)>,
    /// Place of each unit by descending ids, block by block: of two units of a block, the later one has the smaller id.
    place: Vec<u32>,
}

impl Steps {
    pub(super) fn new(instance: &Instance) -> Self {
        let mut place = vec![0; instance.units.len()];
        instance.blocks.iter().flat_map(|block| &block.units).zip(0..).for_each(|(unit, at)| place[*unit] = at);
        let sequence = instance.blocks.iter().flat_map(|block| block.order()).map(|unit| *unit as u32).collect();
        let (mut groups, mut subtrees, mut start) = (Vec::with_capacity(instance.blocks.len()), Vec::new(), 0);
        for block in &instance.blocks {
            groups.push((start, block.units.len() as u32));
            subtrees.extend(block.subtrees().iter().zip(start..).map(|(size, at)| (at, *size as u32)));
            start += block.units.len() as u32;
        }
        groups.extend(subtrees);
        Self { nodes: vec![Node { parent: 0, step: 0 }], collect_at: COLLECT, sequence, groups, place }
    }

    pub(super) fn push(&mut self, parent: u32, step: u32) -> u32 {
        self.nodes.push(Node { parent, step });
        (self.nodes.len() - 1) as u32
    }

    fn visit(&self, step: u32, mut visit: impl FnMut(u32)) {
        if step & GROUP == 0 {
            return visit(step);
        }
        let (start, len) = self.groups[(step & !GROUP) as usize];
        self.sequence[start as usize..(start + len) as usize].iter().for_each(|unit| visit(*unit));
    }

    /// The units removed on the way to a node.
    pub(super) fn units(&self, mut node: u32) -> Vec<usize> {
        let mut units = Vec::new();
        while node != 0 {
            let Node { parent, step } = self.nodes[node as usize];
            self.visit(step, |unit| units.push(unit as usize));
            node = parent;
        }
        units
    }

    /// Whether the set behind one node holds the smallest id on which it differs from the other's, where blocks are compared one
    /// after the other.
    fn prefers(&self, mut a: u32, mut b: u32) -> bool {
        let (mut left, mut right): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        // A node stands after its parent, so the way back leads to the last common one.
        while a != b {
            let (at, places) = if a > b { (&mut a, &mut left) } else { (&mut b, &mut right) };
            let Node { parent, step } = self.nodes[*at as usize];
            self.visit(step, |unit| places.push(self.place[unit as usize]));
            *at = parent;
        }
        left.sort_unstable_by(|a, b| b.cmp(a));
        right.sort_unstable_by(|a, b| b.cmp(a));
        left > right
    }

    /// Throws away the nodes that no state leads back to; answers how many are left.
    fn collect(&mut self, lists: &mut [&mut Vec<State>]) -> usize {
        let mut new_index = vec![0u32; self.nodes.len()];
        for state in lists.iter().flat_map(|list| list.iter()) {
            let mut node = state.node;
            while node != 0 && new_index[node as usize] == 0 {
                new_index[node as usize] = 1;
                node = self.nodes[node as usize].parent;
            }
        }
        // Parents are renumbered first.
        let mut kept = 1;
        for old in 1..self.nodes.len() {
            if new_index[old] == 1 {
                let node = self.nodes[old];
                self.nodes[kept] = Node { parent: new_index[node.parent as usize], step: node.step };
                new_index[old] = kept as u32;
                kept += 1;
            }
        }
        self.nodes.truncate(kept);
        for state in lists.iter_mut().flat_map(|list| list.iter_mut()) {
            state.node = new_index[state.node as usize];
        }
        kept
    }
}

/// Nodes before the first clearing.
const COLLECT: usize = 1 << 20;
/// Fewer states than this are never thinned.
const FEWEST: usize = 256;
/// Below this length a list is not worth bounding.
const SHORT: usize = 16;

/// A search under way.
pub(super) struct Lists<'w, 'a> {
    pub(super) steps: Steps,
    pub(super) resource: usize,
    bound: Option<&'w Bound>,
    watch: &'w mut Watch<'a>,
    /// States and nodes that fit into the memory.
    most: usize,
    most_nodes: usize,
    /// Ends the search instead of thinning.
    exact_only: bool,
    units: usize,
    /// Units of the blocks before this one.
    pub(super) before: usize,
    /// How much less than the states some set may score that was thinned out; `None` where sets were dropped for nothing.
    pub(super) error: Option<i128>,
}

impl<'w, 'a> Lists<'w, 'a> {
    /// With `most` states the search gives up where it would have to thin; without, the memory decides, and nothing does.
    pub(super) fn new(
        instance: &Instance,
        resource: usize,
        bound: Option<&'w Bound>,
        watch: &'w mut Watch<'a>,
        most: Option<usize>,
    ) -> Self {
        // Half the memory for three lists, half for the nodes and what clearing them takes.
        let half = usize::try_from(watch.memory() / 2).unwrap_or(usize::MAX);
        let fits = (half / (3 * size_of::<State>())).max(FEWEST);
        Self {
            steps: Steps::new(instance),
            resource,
            bound,
            watch,
            most: most.unwrap_or(fits).min(fits),
            most_nodes: (half / (size_of::<Node>() + size_of::<u32>())).max(4 * FEWEST),
            exact_only: most.is_some(),
            units: instance.units.len(),
            before: 0,
            error: Some(0),
        }
    }

    pub(super) fn fix(&self, unit: usize) -> Fix {
        self.bound.map_or(Fix::Free, |bound| bound.fix(unit))
    }

    /// Drops the states that lead nowhere once `done` units of the present block are decided.
    pub(super) fn prune(&self, done: usize, states: &mut Vec<State>) {
        if let Some(bound) = self.bound.filter(|_| states.len() >= SHORT) {
            bound.prune(self.before + done, states);
        }
    }

    /// The states after one more step.
    pub(super) fn moved(&mut self, list: &[State], weight: u64, score: i128, step: u32) -> Vec<State> {
        let steps = &mut self.steps;
        let moved = list.iter().map(|state| State {
            score: state.score + score,
            weight: state.weight + weight,
            node: steps.push(state.node, step),
        });
        moved.collect()
    }

    /// Sorts by weight, drops what another state beats and what leads nowhere.
    pub(super) fn tidy(&self, done: usize, list: &mut Vec<State>) {
        list.sort_by(|a, b| {
            let by_value = b.weight.cmp(&a.weight).then(a.score.cmp(&b.score));
            by_value.then_with(|| self.steps.prefers(b.node, a.node).cmp(&self.steps.prefers(a.node, b.node)))
        });
        let mut best = i128::MAX;
        list.retain(|state| {
            let better = state.score < best;
            best = best.min(state.score);
            better
        });
        self.prune(done, list);
    }

    /// Called after every unit with all lists, `done` units of the present block decided; false where the search is to give up.
    pub(super) fn checkpoint(&mut self, done: usize, lists: &mut [&mut Vec<State>]) -> bool {
        let (decided, units) = (self.before + done, self.units.max(1));
        let total: usize = lists.iter().map(|list| list.len()).sum();
        self.watch.tick(total as u64 + 1, self.steps.nodes.len() as u64, || decided as f64 / units as f64);
        let most = self.room(units.saturating_sub(decided));
        if total > most {
            if self.exact_only {
                return false;
            }
            self.thin(done, lists, total, most);
        }
        if self.steps.nodes.len() > self.steps.collect_at {
            let kept = self.steps.collect(lists);
            if kept > self.most_nodes / 2 {
                self.most = (self.most / 2).max(FEWEST);
            }
            self.steps.collect_at = (2 * kept).clamp(COLLECT.min(self.most_nodes), self.most_nodes.max(COLLECT / 16));
        }
        true
    }

    /// The number of states with which the rest fits into memory and time.
    fn room(&self, units_left: usize) -> usize {
        if self.watch.stopped() {
            return FEWEST;
        }
        let in_time = self.watch.steps_left().map(|steps| usize::try_from(steps).unwrap_or(usize::MAX) / units_left.max(1));
        in_time.map_or(self.most, |states| states.clamp(FEWEST, self.most))
    }

    fn thin(&mut self, done: usize, lists: &mut [&mut Vec<State>], total: usize, most: usize) {
        if lists.len() > most / 2 {
            // Too many lists to keep one state of each: the best half goes on, and nothing is known of the rest.
            let mut scores: Vec<i128> = lists.iter().filter_map(|list| list.iter().map(|state| state.score).min()).collect();
            scores.sort_unstable();
            let limit = scores.get(most / 4).copied().unwrap_or(i128::MAX);
            lists.iter_mut().for_each(|list| list.retain(|state| state.score <= limit));
            self.error = None;
        }
        let mut worst = 0;
        for list in lists.iter_mut() {
            self.tidy(done, list);
            let share = (list.len() * (most / 2) / total.max(1)).max(1);
            worst = worst.max(thin(list, share));
        }
        self.error = self.error.map(|error| error + worst);
    }
}

/// Leaves about `most` of some undominated states; answers by how much a state that is gone may score less than the next heavier
/// one that is left.
fn thin(list: &mut Vec<State>, most: usize) -> i128 {
    let (Some(first), Some(last)) = (list.first(), list.last()) else { return 0 };
    if list.len() <= most {
        return 0;
    }
    let step = (first.score - last.score) / most as i128;
    let mut anchor = first.score;
    let mut worst = 0;
    let mut at = 0;
    list.retain(|state| {
        at += 1;
        let lost = anchor - state.score;
        if at == 1 || lost > step {
            anchor = state.score;
            return true;
        }
        worst = worst.max(lost);
        false
    });
    worst
}

/// The undominated union of `without` and of `with` moved by one step, into `out`. Lists are strictly descending in
/// weight and score; on ties the removal wins.
pub(super) fn merge(without: &[State], with: &[State], step: (u64, i128, u32), steps: &mut Steps, out: &mut Vec<State>) {
    let (weight, score, step) = step;
    out.clear();
    out.reserve(without.len() + with.len());
    let (mut i, mut j) = (0, 0);
    let mut best = i128::MAX;
    while i < without.len() || j < with.len() {
        let removal_first = match (without.get(i), with.get(j)) {
            (Some(a), Some(b)) => {
                let heavier = b.weight + weight;
                heavier > a.weight || (heavier == a.weight && b.score + score <= a.score)
            }
            (None, _) => true,
            (_, None) => false,
        };
        // What comes later weighs no more, so it must score less.
        if removal_first {
            let state = with[j];
            j += 1;
            if state.score + score < best {
                best = state.score + score;
                out.push(State { score: best, weight: state.weight + weight, node: steps.push(state.node, step) });
            }
        } else {
            let state = without[i];
            i += 1;
            if state.score < best {
                best = state.score;
                out.push(state);
            }
        }
    }
}
