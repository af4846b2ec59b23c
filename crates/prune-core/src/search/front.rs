//! The exact Pareto front of (cost removed, summed score) in one pass over the layers, by dominance lists (Nemhauser
//! and Ullmann 1969, doi 10.1287/mnsc.15.9.494). Any budget is then a look-up.

use crate::budget::{Budget, Constraints};
use crate::error::Error;
use crate::layer::{Cost, RemovalSet};
use crate::plan::Plan;
use crate::score::Scores;
use crate::search::bound::{Bound, Relaxation};
use crate::search::exact::Exact;
use crate::search::instance::{BlockKind, Instance};
use crate::search::linked;
use crate::search::problem::{Problem, check_feasible};
use crate::search::relax::Fix;

/// One state of the search: what has been removed so far weighs and scores this much.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) score: i128,
    pub(super) weight: u64,
    /// Last step on the way here, 0 for none.
    pub(super) node: u32,
}

/// One step on the way to a state: a unit, or a whole block, was removed after `parent`.
#[derive(Clone, Copy)]
struct Node {
    parent: u32,
    step: u32,
}

/// Marks a step that removes a whole block.
const WHOLE: u32 = 1 << 31;

/// A list longer than this is not continued: it would soon fill the memory.
const MOST_STATES: usize = 1 << 22;

/// The undominated states, with weights and scores both strictly descending, and the steps that led to them.
pub(super) struct Search {
    instance: Instance,
    exact: Exact,
    resource: usize,
    states: Vec<State>,
    steps: Steps,
}

/// All steps on the way to the states.
pub(super) struct Steps {
    nodes: Vec<Node>,
    /// Number of nodes at which unreachable ones are thrown away.
    collect_at: usize,
    /// When each unit is decided; later ones have smaller ids, within their block.
    place: Vec<u32>,
}

impl Steps {
    fn new(instance: &Instance) -> Self {
        let mut place = vec![0; instance.units.len()];
        let order = instance.blocks.iter().flat_map(|block| &block.units);
        order.zip(0..).for_each(|(unit, at)| place[*unit] = at);
        Self { nodes: vec![Node { parent: 0, step: 0 }], collect_at: 1 << 22, place }
    }

    pub(super) fn push(&mut self, parent: u32, step: u32) -> u32 {
        self.nodes.push(Node { parent, step });
        (self.nodes.len() - 1) as u32
    }

    /// Whether the set behind one node holds the smallest id on which it differs from the other's. Both lie in blocks
    /// without whole steps, or meet before the first of these.
    pub(super) fn prefers(&self, mut a: u32, mut b: u32) -> bool {
        while a != b {
            let (Node { parent: next_a, step: step_a }, Node { parent: next_b, step: step_b }) =
                (self.nodes[a as usize], self.nodes[b as usize]);
            if a == 0 || b == 0 {
                return a != 0;
            }
            if step_a != step_b {
                let place = |step: u32| if step & WHOLE == 0 { self.place[step as usize] } else { u32::MAX };
                return place(step_a) > place(step_b);
            }
            (a, b) = (next_a, next_b);
        }
        false
    }

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
    /// Runs over all blocks; with a bound, without the states that lead nowhere.
    fn states(instance: &Instance, resource: usize, bound: Option<&Bound>) -> Result<(Vec<State>, Steps), Error> {
        let fix = |unit: usize| bound.map_or(Fix::Free, |bound| bound.fix(unit));
        // After `done` units, counted over all blocks in order.
        let prune = |done: usize, states: &mut Vec<State>| {
            if let Some(bound) = bound {
                bound.prune(done, states);
            }
        };
        let mut states = vec![State { score: instance.forced_score, weight: instance.forced_costs[resource], node: 0 }];
        let mut steps = Steps::new(instance);
        let mut done = 0;
        let mut next = Vec::new();
        for (position, block) in instance.blocks.iter().enumerate() {
            if block.kind == BlockKind::Linked {
                linked::run(instance, &block.units, resource, &mut states, &mut steps)?;
                done += block.units.len();
                prune(done, &mut states);
            } else {
                let shared = match block.kind {
                    BlockKind::Shared(bonus) => instance.bonuses[bonus].costs[resource],
                    _ => 0,
                };
                let whole = shared > 0 && block.units.iter().all(|unit| fix(*unit) != Fix::Keep);
                let before = if whole { states.clone() } else { Vec::new() };
                for at in &block.units {
                    let unit = &instance.units[*at];
                    done += 1;
                    match fix(*at) {
                        Fix::Keep => {}
                        Fix::Gone => {
                            for state in &mut states {
                                let node = steps.push(state.node, *at as u32);
                                *state = State { score: state.score + unit.score, weight: state.weight + unit.costs[resource], node };
                            }
                        }
                        Fix::Free => {
                            merge(&states, &states, (unit.costs[resource], unit.score, *at as u32), &mut steps.nodes, &mut next);
                            std::mem::swap(&mut states, &mut next);
                            prune(done, &mut states);
                        }
                    }
                }
                if whole {
                    // Removing every unit is one more option, with the shared cost's weight on top.
                    let weight = shared + block.units.iter().map(|unit| instance.units[*unit].costs[resource]).sum::<u64>();
                    let score = block.units.iter().map(|unit| instance.units[*unit].score).sum();
                    merge(&states, &before, (weight, score, WHOLE | position as u32), &mut steps.nodes, &mut next);
                    std::mem::swap(&mut states, &mut next);
                    prune(done, &mut states);
                }
            }
            check_size(states.len())?;
            steps.collect(&mut states);
        }
        Ok((states, steps))
    }

    /// The whole front.
    fn all(instance: Instance, exact: Exact, resource: usize) -> Result<Self, Error> {
        let (states, steps) = Self::states(&instance, resource, None)?;
        Ok(Self { instance, exact, resource, states, steps })
    }

    /// What matters to one budget; `known` is the score of some set that meets it.
    pub(super) fn within(instance: Instance, exact: Exact, resource: usize, needed: u64, known: i128) -> Result<Self, Error> {
        let bound = Relaxation::new(&instance, resource, needed).within(known);
        let (states, steps) = Self::states(&instance, resource, Some(&bound))?;
        Ok(Self { instance, exact, resource, states, steps })
    }

    /// Position of the cheapest state that removes at least `needed`; of equal scores the one that removes most.
    fn find(&self, needed: u64) -> Option<usize> {
        self.states.partition_point(|state| state.weight >= needed).checked_sub(1)
    }

    /// Positions in the table of the layers that a state removes.
    fn removed_layers(&self, state: &State) -> Vec<usize> {
        let mut units = Vec::new();
        let mut at = state.node;
        while at != 0 {
            let Node { parent, step } = self.steps.nodes[at as usize];
            if step & WHOLE == 0 {
                units.push(step as usize);
            } else {
                units.extend(&self.instance.blocks[(step & !WHOLE) as usize].units);
            }
            at = parent;
        }
        self.instance.layers_of(units.into_iter())
    }

    /// The layers that the state at `position` removes.
    fn removal(&self, position: usize, scores: &Scores) -> RemovalSet {
        let layers = scores.table().layers();
        let removed = self.removed_layers(&self.states[position]);
        removed.into_iter().map(|layer| layers[layer].id.clone()).collect()
    }

    /// The optimal plan for a budget over this search's resource.
    pub(super) fn plan(&self, budget: &Budget, constraints: &Constraints, scores: &Scores) -> Result<Plan, Error> {
        let table = scores.table();
        let needed = budget.required(table)?;
        let available = self.instance.available[self.resource];
        check_feasible(budget.cost(), needed, available, table.total(budget.cost()))?;
        // What is needed is available, so a state was found.
        let position = self.find(needed).unwrap_or(0);
        let value = self.exact.to_f64(self.states[position].score);
        let mut plan = Plan::from_positions(table, "exact".to_owned(), &self.removed_layers(&self.states[position]));
        plan.set_budget(budget, table)?;
        plan.constraints = constraints.clone();
        plan.set_proof(scores.criterion(), value, value);
        Ok(plan)
    }
}

pub(super) fn check_size(states: usize) -> Result<(), Error> {
    if states > MOST_STATES {
        return Err(Error::FrontTooLarge { states, most: MOST_STATES });
    }
    Ok(())
}

/// A point of a [`Front`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrontPoint {
    /// Cost removed, shared costs included.
    pub removed: u64,
    /// Sum of the scores of the removed layers; no set that removes as much has a lower one.
    pub score: f64,
}

/// Every set of layers worth removing under one cost: for any budget the exact optimum is a look-up.
pub struct Front<'a> {
    scores: &'a Scores,
    constraints: Constraints,
    resource: String,
    search: Search,
}

impl<'a> Front<'a> {
    /// Computes the whole front. Its size is bounded by the number of distinct sums of costs: a few thousand points
    /// for networks made of equal blocks, more where every layer has a cost of its own.
    ///
    /// # Errors
    /// [`Error::IncompleteScores`], [`Error::UnknownLayer`] and [`Error::Contradiction`] (constraints),
    /// [`Error::ScoreSpread`], [`Error::Overflow`], [`Error::FrontTooLarge`].
    pub fn build(scores: &'a Scores, cost: Cost, constraints: &Constraints) -> Result<Self, Error> {
        Problem::new(scores, constraints)?.front(cost.name())
    }

    /// What the front counts.
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// The points, ascending in both coordinates.
    pub fn points(&self) -> Vec<FrontPoint> {
        let exact = &self.search.exact;
        let point = |state: &State| FrontPoint { removed: state.weight, score: exact.to_f64(state.score) };
        self.search.states.iter().rev().map(point).collect()
    }

    /// The index in [`Front::points`] of the best point that removes at least `needed`; `None` where that is too much.
    pub fn find(&self, needed: u64) -> Option<usize> {
        self.search.find(needed).map(|position| self.search.states.len() - 1 - position)
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
        if budget.cost().name() != self.resource {
            return Err(Error::OtherCost { expected: self.resource.clone(), got: budget.cost() });
        }
        self.search.plan(budget, &self.constraints, self.scores)
    }
}

impl<'a> Problem<'a> {
    /// Computes the whole front over one resource: the optimum for every least amount of it, other resources left free.
    ///
    /// # Errors
    /// As [`Front::build`], and [`Error::UnknownResource`].
    pub fn front(&self, resource: &str) -> Result<Front<'a>, Error> {
        let index = self.resource(resource)?;
        let (instance, exact) = self.instance()?;
        let search = Search::all(instance, exact, index)?;
        Ok(Front { scores: self.scores, constraints: self.constraints.clone(), resource: resource.to_owned(), search })
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
