//! The problem that is left once the constraints are applied, in plain numbers: units that go or stay as a whole, what they
//! need, and what comes on top once several are gone.
//!
//! Every solver works on this. Layers of one group, and layers that need each other in a circle, are one unit; what is
//! pinned or forced, directly or through others, is decided here.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::budget::Constraints;
use crate::error::Error;
use crate::layer::LayerId;
use crate::search::components::{DisjointSets, join_circles};
use crate::search::linked::Linked;
use crate::search::relax::Fix;
use crate::table::LayerTable;

/// Layers that go together or not at all.
#[derive(Debug)]
pub(crate) struct Unit {
    /// Positions in the table, ascending.
    pub(crate) layers: Vec<usize>,
    pub(crate) score: i128,
    /// By resource.
    pub(crate) costs: Vec<u64>,
    /// Free units that must be gone where this one is.
    pub(crate) needs: Vec<usize>,
    /// Free units that need this one.
    pub(crate) needed_by: Vec<usize>,
    /// The bonuses that this unit is a member of.
    pub(crate) bonuses: Vec<usize>,
}

/// What counts on top once all members are gone: a shared cost's costs, or the interaction of two layers.
#[derive(Debug)]
pub(crate) struct Bonus {
    /// Free units, ascending, at least two.
    pub(crate) members: Vec<usize>,
    pub(crate) score: i128,
    /// By resource.
    pub(crate) costs: Vec<u64>,
}

/// Free units that are linked by bonuses or needs, or one unit alone, in descending order of their smallest ids.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) units: Vec<usize>,
    pub(crate) kind: BlockKind,
    /// How a linked block is decided.
    pub(crate) linked: Option<Linked>,
}

impl Block {
    /// The units in the order in which they are decided.
    pub(crate) fn order(&self) -> &[usize] {
        self.linked.as_ref().map_or(&self.units, |linked| &linked.order)
    }

    /// Sizes of the subtrees, by place in that order, that go in one step.
    pub(crate) fn subtrees(&self) -> &[usize] {
        self.linked.as_ref().map_or(&[], Linked::subtrees)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockKind {
    /// One unit.
    Single,
    /// Units that share exactly this bonus, which scores nothing, and need nothing.
    Shared(usize),
    /// Anything else.
    Linked,
}

/// One resource: its cost by position of the layer and of the shared cost.
#[derive(Debug, Clone)]
pub(crate) struct ResourceCosts {
    pub(crate) layers: Vec<u64>,
    pub(crate) shared_costs: Vec<u64>,
}

/// Two layers, by position, whose joint removal scores this much more than the sum.
pub(crate) type Pair = (usize, usize, i128);

#[derive(Debug)]
pub(crate) struct Instance {
    /// In order of their first layers.
    pub(crate) units: Vec<Unit>,
    pub(crate) bonuses: Vec<Bonus>,
    /// In descending order of ids: the order in which a search decides, so that ties end with the smallest id.
    pub(crate) blocks: Vec<Block>,
    /// Positions in the table of the layers that go in any case.
    pub(crate) forced: Vec<usize>,
    pub(crate) forced_score: i128,
    /// By resource, shared costs included.
    pub(crate) forced_costs: Vec<u64>,
    /// The most that can go, by resource.
    pub(crate) available: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Free,
    Keep,
    Remove,
}

impl Instance {
    /// `scores` are those of the layers by position.
    pub(crate) fn new(
        table: &LayerTable,
        scores: &[i128],
        resources: &[ResourceCosts],
        constraints: &Constraints,
        pairs: &[Pair],
    ) -> Result<Self, Error> {
        let (group_of, groups, needs) = groups(table, constraints)?;
        let choices = choices(table, constraints, &group_of, &groups, &needs)?;
        let choice = |layer: usize| choices[group_of[layer]];
        let costs = |layers: &[usize]| -> Vec<u64> {
            let sum = |resource: &ResourceCosts| layers.iter().map(|layer| resource.layers[*layer]).sum();
            resources.iter().map(sum).collect()
        };
        let mut unit_of: Vec<Option<usize>> = vec![None; groups.len()];
        let mut units: Vec<Unit> = Vec::new();
        let mut forced = Vec::new();
        for (group, layers) in groups.iter().enumerate() {
            match choices[group] {
                Choice::Keep => {}
                Choice::Remove => forced.extend(layers),
                Choice::Free => {
                    unit_of[group] = Some(units.len());
                    let score = layers.iter().map(|layer| scores[*layer]).sum();
                    let costs = costs(layers);
                    units.push(Unit { layers: layers.clone(), score, costs, needs: vec![], needed_by: vec![], bonuses: vec![] });
                }
            }
        }
        for (a, b) in needs {
            // Each pair of groups is there once.
            if let (Some(a), Some(b)) = (unit_of[a], unit_of[b]) {
                units[a].needs.push(b);
                units[b].needed_by.push(a);
            }
        }
        forced.sort_unstable();
        let forced_costs = costs(&forced);
        let forced_score = forced.iter().map(|layer| scores[*layer]).sum();
        let bonuses = Vec::new();
        let mut instance = Self { units, bonuses, blocks: Vec::new(), forced, forced_score, forced_costs, available: Vec::new() };
        for shared in 0..table.shared_costs().len() {
            let costs: Vec<u64> = resources.iter().map(|resource| resource.shared_costs[shared]).collect();
            instance.add_bonus(table.shared_members(shared), 0, costs, &choice, |layer| unit_of[group_of[layer]]);
        }
        for (a, b, score) in pairs {
            instance.add_bonus(&[*a, *b], *score, vec![0; resources.len()], &choice, |layer| unit_of[group_of[layer]]);
        }
        instance.finish(table);
        Ok(instance)
    }

    /// Works out what follows from units and bonuses.
    fn finish(&mut self, table: &LayerTable) {
        self.available = self.forced_costs.clone();
        for costs in self.units.iter().map(|unit| &unit.costs).chain(self.bonuses.iter().map(|bonus| &bonus.costs)) {
            self.available.iter_mut().zip(costs).for_each(|(sum, cost)| *sum += cost);
        }
        self.blocks = self.find_blocks(table);
    }

    /// The instance that is left with some units decided, and which of these each of its units was. What is decided must agree with
    /// what units need.
    pub(super) fn restricted(&self, fixes: &[Fix], table: &LayerTable) -> (Self, Vec<usize>) {
        let kept: Vec<usize> = (0..self.units.len()).filter(|unit| fixes[*unit] == Fix::Free).collect();
        let mut number = vec![None; self.units.len()];
        kept.iter().zip(0..).for_each(|(unit, at)| number[*unit] = Some(at));
        let renumbered = |links: &[usize]| links.iter().filter_map(|unit| number[*unit]).collect();
        let units = kept.iter().map(|unit| {
            let Unit { layers, score, costs, needs, needed_by, .. } = &self.units[*unit];
            let (needs, needed_by) = (renumbered(needs), renumbered(needed_by));
            Unit { layers: layers.clone(), score: *score, costs: costs.clone(), needs, needed_by, bonuses: Vec::new() }
        });
        let mut instance = Self {
            units: units.collect(),
            bonuses: Vec::new(),
            blocks: Vec::new(),
            forced: self.forced.clone(),
            forced_score: self.forced_score,
            forced_costs: self.forced_costs.clone(),
            available: Vec::new(),
        };
        for unit in (0..self.units.len()).filter(|unit| fixes[*unit] == Fix::Gone) {
            let unit = &self.units[unit];
            instance.forced.extend(&unit.layers);
            instance.forced_score += unit.score;
            instance.forced_costs.iter_mut().zip(&unit.costs).for_each(|(sum, cost)| *sum += cost);
        }
        for Bonus { members, score, costs } in &self.bonuses {
            if members.iter().all(|unit| fixes[*unit] != Fix::Keep) {
                instance.put_bonus(renumbered(members), *score, costs.clone());
            }
        }
        instance.finish(table);
        (instance, kept)
    }

    /// Counts what the members' choices decide already, and keeps the rest as a bonus.
    fn add_bonus(
        &mut self,
        layers: &[usize],
        score: i128,
        costs: Vec<u64>,
        choice: &impl Fn(usize) -> Choice,
        unit_of: impl Fn(usize) -> Option<usize>,
    ) {
        if layers.iter().any(|layer| choice(*layer) == Choice::Keep) || (score == 0 && costs.iter().all(|cost| *cost == 0)) {
            return;
        }
        let mut members: Vec<usize> = layers.iter().filter_map(|layer| unit_of(*layer)).collect();
        members.sort_unstable();
        members.dedup();
        self.put_bonus(members, score, costs);
    }

    /// Adds what counts once all of some free units, ascending, are gone.
    fn put_bonus(&mut self, members: Vec<usize>, score: i128, costs: Vec<u64>) {
        let (total_score, total_costs) = match members[..] {
            [] => (&mut self.forced_score, &mut self.forced_costs),
            [only] => {
                let unit = &mut self.units[only];
                (&mut unit.score, &mut unit.costs)
            }
            _ => {
                members.iter().for_each(|unit| self.units[*unit].bonuses.push(self.bonuses.len()));
                self.bonuses.push(Bonus { members, score, costs });
                return;
            }
        };
        *total_score += score;
        total_costs.iter_mut().zip(costs).for_each(|(sum, cost)| *sum += cost);
    }

    fn find_blocks(&self, table: &LayerTable) -> Vec<Block> {
        let mut sets = DisjointSets::new(self.units.len());
        for bonus in &self.bonuses {
            bonus.members.windows(2).for_each(|pair| sets.join(pair[0], pair[1]));
        }
        for (unit, parts) in self.units.iter().enumerate() {
            parts.needs.iter().for_each(|other| sets.join(unit, *other));
        }
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); self.units.len()];
        (0..self.units.len()).for_each(|unit| members[sets.root(unit)].push(unit));
        let ranks: Vec<usize> = (0..self.units.len()).map(|unit| self.first_rank(unit, table)).collect();
        let kind = |units: &[usize]| match units {
            [_] => BlockKind::Single,
            _ => {
                let plain = |unit: &usize| self.units[*unit].needs.is_empty() && self.units[*unit].bonuses.len() == 1;
                match self.units[units[0]].bonuses[..] {
                    [bonus] if units.iter().all(plain) && self.bonuses[bonus].members.len() == units.len() => {
                        if self.bonuses[bonus].score == 0 { BlockKind::Shared(bonus) } else { BlockKind::Linked }
                    }
                    _ => BlockKind::Linked,
                }
            }
        };
        let mut blocks: Vec<Block> = members
            .into_iter()
            .filter(|units| !units.is_empty())
            .map(|mut units| {
                units.sort_by_key(|unit| Reverse(ranks[*unit]));
                let kind = kind(&units);
                let members = |bonus: usize| self.bonuses[bonus].members.clone();
                let linked = (kind == BlockKind::Linked).then(|| Linked::new(&self.units, &units, members));
                Block { kind, units, linked }
            })
            .collect();
        // The place of a block does not depend on what is pinned, so the shared cost's members that are not free count as well.
        let place = |block: &Block| {
            let layers = block.units.iter().flat_map(|unit| &self.units[*unit].layers);
            let around = layers.flat_map(|layer| {
                let shared = table.shared_position(*layer).map_or(&[][..], |shared| table.shared_members(shared));
                shared.iter().chain([layer])
            });
            around.map(|layer| table.rank(*layer)).min()
        };
        blocks.sort_by_cached_key(|block| Reverse(place(block)));
        blocks
    }

    /// Place of the smallest id among a unit's layers in the order of ids.
    pub(crate) fn first_rank(&self, unit: usize, table: &LayerTable) -> usize {
        // A unit has at least one layer.
        self.units[unit].layers.iter().map(|layer| table.rank(*layer)).min().unwrap_or(0)
    }

    /// The units that must go with a unit, itself first; those in `gone` are left out.
    pub(crate) fn closure(&self, unit: usize, gone: &[bool]) -> Vec<usize> {
        self.reach(unit, |at| &self.units[at].needs, |other| gone[other])
    }

    /// Score and cost of a unit with all that it needs. Along units with one need each the sums follow from one another; `known`
    /// holds those found so far.
    pub(crate) fn closure_sums(&self, unit: usize, resource: usize, known: &mut [Option<(i128, u64)>]) -> (i128, u64) {
        let own = |unit: usize| (self.units[unit].score, self.units[unit].costs[resource]);
        let plus = |a: (i128, u64), b: (i128, u64)| (a.0 + b.0, a.1 + b.1);
        let mut path = vec![unit];
        let mut sums = loop {
            let at = path[path.len() - 1];
            match (known[at], &self.units[at].needs[..]) {
                (Some(sums), _) => break sums,
                (None, []) => break own(at),
                (None, [only]) => path.push(*only),
                (None, _) => break self.closure(at, &vec![false; self.units.len()]).into_iter().map(own).fold((0, 0), plus),
            }
        };
        while let Some(at) = path.pop() {
            known[at] = Some(sums);
            if let Some(before) = path.last() {
                sums = plus(sums, own(*before));
            }
        }
        known[unit].unwrap_or_else(|| own(unit))
    }

    /// The units that must stay with a unit, itself first; those not in `gone` are left out.
    pub(crate) fn dependents(&self, unit: usize, gone: &[bool]) -> Vec<usize> {
        self.reach(unit, |at| &self.units[at].needed_by, |other| !gone[other])
    }

    fn reach<'a>(&'a self, unit: usize, next: impl Fn(usize) -> &'a [usize], skip: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut found = vec![unit];
        if next(unit).is_empty() {
            return found;
        }
        let mut seen = BTreeSet::from([unit]);
        let mut at = 0;
        while at < found.len() {
            found.extend(next(found[at]).iter().filter(|other| !skip(**other) && seen.insert(**other)));
            at += 1;
        }
        found
    }

    /// Positions of the layers that go where these units go, ascending.
    pub(crate) fn layers_of(&self, gone: impl Iterator<Item = usize>) -> Vec<usize> {
        let mut layers = self.forced.clone();
        gone.for_each(|unit| layers.extend(&self.units[unit].layers));
        layers.sort_unstable();
        layers
    }
}

/// Groups of layers and the needs among groups: `(group of each layer, layers of each group, pairs of groups)`.
type Groups = (Vec<usize>, Vec<Vec<usize>>, Vec<(usize, usize)>);

fn groups(table: &LayerTable, constraints: &Constraints) -> Result<Groups, Error> {
    let mut sets = DisjointSets::new(table.len());
    for group in &constraints.together {
        let positions = group.iter().map(|id| table.require(id)).collect::<Result<Vec<_>, _>>()?;
        positions.windows(2).for_each(|pair| sets.join(pair[0], pair[1]));
    }
    let mut needs = Vec::with_capacity(constraints.requires.len());
    for rule in &constraints.requires {
        needs.push((table.require(&rule.layer)?, table.require(&rule.needs)?));
    }
    join_circles(&mut sets, &needs);
    let mut group_of = vec![0; table.len()];
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut number_of: Vec<Option<usize>> = vec![None; table.len()];
    for (layer, group) in group_of.iter_mut().enumerate() {
        let root = sets.root(layer);
        let number = *number_of[root].get_or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[number].push(layer);
        *group = number;
    }
    let mut between: Vec<(usize, usize)> = needs.iter().map(|(a, b)| (group_of[*a], group_of[*b])).filter(|(a, b)| a != b).collect();
    between.sort_unstable();
    between.dedup();
    Ok((group_of, groups, between))
}

/// What is decided by pins, forced layers and the needs among groups.
fn choices(
    table: &LayerTable,
    constraints: &Constraints,
    group_of: &[usize],
    groups: &[Vec<usize>],
    needs: &[(usize, usize)],
) -> Result<Vec<Choice>, Error> {
    let mut choices = vec![Choice::Free; groups.len()];
    let mut open = Vec::new();
    for (ids, choice) in [(&constraints.keep, Choice::Keep), (&constraints.remove, Choice::Remove)] {
        for id in ids {
            open.push((group_of[table.require(id)?], choice));
        }
    }
    let contradiction = |group: usize| {
        let ids = groups[group].iter().map(|layer| &table.layers()[*layer].id);
        let named = |id: &&LayerId| constraints.keep.contains(*id) || constraints.remove.contains(*id);
        let id = ids.clone().find(named).or_else(|| ids.clone().min()).cloned();
        id.map_or(Error::EmptyTable { model: table.model().to_owned() }, |id| Error::Contradiction { id })
    };
    // By group: what it needs, and what needs it.
    let (mut needs_of, mut needed_by) = (vec![Vec::new(); groups.len()], vec![Vec::new(); groups.len()]);
    for (a, b) in needs {
        needs_of[*a].push(*b);
        needed_by[*b].push(*a);
    }
    while let Some((group, choice)) = open.pop() {
        if choices[group] == choice {
            continue;
        }
        if choices[group] != Choice::Free {
            return Err(contradiction(group));
        }
        choices[group] = choice;
        // What a removed group needs goes; what needs a kept group stays.
        let linked: &[usize] = if choice == Choice::Remove { &needs_of[group] } else { &needed_by[group] };
        open.extend(linked.iter().map(|other| (*other, choice)));
    }
    Ok(choices)
}
