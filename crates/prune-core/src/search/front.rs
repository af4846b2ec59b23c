//! The exact Pareto front of (cost removed, summed score) in one pass over the layers, by dominance lists (Nemhauser
//! and Ullmann 1969, doi 10.1287/mnsc.15.9.494). Any budget is then a look-up.

use crate::budget::{Budget, Constraints};
use crate::error::Error;
use crate::layer::{Cost, RemovalSet};
use crate::plan::Plan;
use crate::score::Scores;
use crate::search::problem::{Group, Item, Problem};

/// One state of the search: what has been removed so far weighs and scores this much.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) score: i128,
    pub(super) weight: u64,
    /// Last step on the way here, 0 for none.
    node: u32,
}

/// One step on the way to a state: an item, or a whole group, was removed after `parent`.
#[derive(Clone, Copy)]
struct Node {
    parent: u32,
    step: u32,
}

/// Marks a step that removes a whole group.
const WHOLE: u32 = 1 << 31;

/// The undominated states, with weights and scores both strictly descending, and the steps that led to them.
pub(super) struct Search {
    pub(super) problem: Problem,
    pub(super) states: Vec<State>,
    steps: Steps,
}

/// All steps on the way to the states.
struct Steps {
    nodes: Vec<Node>,
    /// Number of nodes at which unreachable ones are thrown away.
    collect_at: usize,
}

impl Steps {
    /// Throws away the nodes that no state leads back to, once there are many.
    fn collect(&mut self, states: &mut [State]) {
        if self.nodes.len() <= self.collect_at {
            return;
        }
        let mut new_index = vec![0u32; self.nodes.len()];
        for state in states.iter() {
            let mut node = state.node;
            while node != 0 && new_index[node as usize] == 0 {
                new_index[node as usize] = 1;
                node = self.nodes[node as usize].parent;
            }
        }
        // A node stands after its parent, so parents are renumbered first.
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
        for state in states {
            state.node = new_index[state.node as usize];
        }
        self.collect_at = self.collect_at.max(kept * 4);
    }
}

impl Search {
    /// Runs over all groups; `prune` sees the states each time `done` items, counted over all groups in order, are
    /// decided, and may drop such as lead nowhere.
    pub(super) fn run(problem: Problem, mut prune: impl FnMut(usize, &mut Vec<State>)) -> Self {
        let mut states = vec![State { score: problem.forced_score, weight: problem.forced_weight, node: 0 }];
        let mut steps = Steps { nodes: vec![Node { parent: 0, step: 0 }], collect_at: 1 << 22 };
        let mut done = 0;
        let mut next = Vec::new();
        for (position, group) in problem.groups.iter().enumerate() {
            let before = if group.shell > 0 { states.clone() } else { Vec::new() };
            for Item { layer, weight, score } in &group.items {
                merge(&states, &states, (*weight, *score, *layer), &mut steps.nodes, &mut next);
                std::mem::swap(&mut states, &mut next);
                done += 1;
                prune(done, &mut states);
            }
            if group.shell > 0 {
                // Removing every item is one more option, with the shell's weight on top.
                let whole = (group.whole_weight(), group.whole_score(), WHOLE | position as u32);
                merge(&states, &before, whole, &mut steps.nodes, &mut next);
                std::mem::swap(&mut states, &mut next);
                prune(done, &mut states);
            }
            steps.collect(&mut states);
        }
        Self { problem, states, steps }
    }

    /// Position of the cheapest state that removes at least `needed`; of equal scores the one that removes most.
    pub(super) fn find(&self, needed: u64) -> Option<usize> {
        self.states.partition_point(|state| state.weight >= needed).checked_sub(1)
    }

    /// Positions in the table of the layers that a state removes.
    fn removed_layers(&self, state: &State) -> Vec<usize> {
        let mut removed = self.problem.forced.clone();
        let mut at = state.node;
        while at != 0 {
            let Node { parent, step } = self.steps.nodes[at as usize];
            if step & WHOLE == 0 {
                removed.push(step as usize);
            } else {
                let Group { items, .. } = &self.problem.groups[(step & !WHOLE) as usize];
                removed.extend(items.iter().map(|item| item.layer as usize));
            }
            at = parent;
        }
        removed
    }

    /// The layers that the state at `position` removes.
    pub(super) fn removal(&self, position: usize, scores: &Scores) -> RemovalSet {
        let layers = scores.table().layers();
        let removed = self.removed_layers(&self.states[position]);
        removed.into_iter().map(|layer| layers[layer].id.clone()).collect()
    }

    /// The plan for a budget over the searched cost.
    pub(super) fn plan(&self, budget: &Budget, scores: &Scores) -> Result<Plan, Error> {
        let table = scores.table();
        let needed = budget.required(table)?;
        self.problem.check_feasible(needed, table.total(self.problem.cost))?;
        // The front reaches from the cheapest set to the heaviest one, so a feasible budget has a state.
        let position = self.find(needed).unwrap_or(0);
        let mut plan = Plan::from_removed(table, "exact", self.removal(position, scores))?;
        plan.set_budget(budget, table)?;
        plan.constraints = self.problem.constraints.clone();
        plan.set_scores(scores)?;
        plan.lower_bound = plan.predicted;
        plan.optimal = true;
        Ok(plan)
    }
}

/// A point of a [`Front`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrontPoint {
    /// Cost removed, shells included.
    pub removed: u64,
    /// Sum of the scores of the removed layers; no set that removes as much has a lower one.
    pub score: f64,
}

/// Every set of layers worth removing under one cost: for any budget the exact optimum is a look-up.
pub struct Front<'a> {
    scores: &'a Scores,
    search: Search,
}

impl<'a> Front<'a> {
    /// Computes the whole front. Its size is bounded by the number of distinct sums of costs: a few thousand points
    /// for networks made of equal blocks, more where every layer has a cost of its own.
    ///
    /// # Errors
    /// [`Error::IncompleteScores`], [`Error::UnknownLayer`] and [`Error::Contradiction`] (constraints),
    /// [`Error::ScoreSpread`], [`Error::Overflow`].
    pub fn build(scores: &'a Scores, cost: Cost, constraints: &Constraints) -> Result<Self, Error> {
        let problem = Problem::new(scores, cost, constraints)?;
        let search = Search::run(problem, |_, _| ());
        Ok(Self { scores, search })
    }

    /// What the front counts.
    pub fn cost(&self) -> Cost {
        self.search.problem.cost
    }

    /// The points, ascending in both coordinates.
    pub fn points(&self) -> Vec<FrontPoint> {
        let exact = &self.search.problem.exact;
        let point = |state: &State| FrontPoint { removed: state.weight, score: exact.to_f64(state.score) };
        self.search.states.iter().rev().map(point).collect()
    }

    /// The layers behind the point of [`Front::points`] with this index.
    pub fn removal(&self, index: usize) -> Option<RemovalSet> {
        let position = self.search.states.len().checked_sub(index.checked_add(1)?)?;
        Some(self.search.removal(position, self.scores))
    }

    /// The optimal plan for a budget; the same as [`crate::solve`]'s.
    ///
    /// # Errors
    /// [`Error::OtherCost`], [`Error::OutOfRange`] (ratio), [`Error::Infeasible`].
    pub fn plan(&self, budget: &Budget) -> Result<Plan, Error> {
        if budget.cost() != self.cost() {
            return Err(Error::OtherCost { expected: self.cost(), got: budget.cost() });
        }
        self.search.plan(budget, self.scores)
    }
}

/// The undominated union of `without` and of `with` moved by one step, into `out`. Lists are strictly descending in
/// weight and score; on ties the removal wins.
fn merge(without: &[State], with: &[State], step: (u64, i128, u32), nodes: &mut Vec<Node>, out: &mut Vec<State>) {
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
                let node = nodes.len() as u32;
                nodes.push(Node { parent: state.node, step });
                out.push(State { score: best, weight: state.weight + weight, node });
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
