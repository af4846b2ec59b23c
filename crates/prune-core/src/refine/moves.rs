//! Small changes of a set within the limits: put one unit back, remove another, then mend what that broke.

use crate::error::Error;
use crate::layer::RemovalSet;
use crate::plan::Plan;
use crate::search::{Instance, Problem, Range, Selection};
use crate::table::LayerTable;

/// What may be changed and what must hold.
pub(crate) struct Field<'a> {
    pub(crate) instance: &'a Instance,
    pub(crate) table: &'a LayerTable,
    ranges: Vec<Range>,
}

/// Which units are gone.
pub(crate) type Units = Vec<bool>;

/// A changed set, and how much its loss is expected to change.
pub(crate) struct Move {
    pub(crate) gone: Units,
    pub(crate) change: f64,
}

impl<'a> Field<'a> {
    pub(crate) fn new(problem: &Problem<'a>, instance: &'a Instance, ranges: Vec<Range>) -> Self {
        Self { instance, table: problem.table(), ranges }
    }

    /// The units of a plan that meets limits and constraints.
    pub(crate) fn start(&self, plan: &Plan, problem: &Problem<'_>) -> Result<Units, Error> {
        let set = plan.removal_set();
        let unfit = |problem: String| Error::UnfitStart { method: plan.method.clone(), problem };
        plan.check(self.table)?;
        if let Some((expected, id)) = problem.constraints.first_broken(&set) {
            return Err(unfit(format!("the constraints ask for a set {expected} `{id}`")));
        }
        let gone = self.units(&set);
        let selection = self.select(&gone);
        for range in &self.ranges {
            let removed = selection.cost(range.resource);
            if removed < range.low || removed > range.high {
                let name = &problem.resources()[range.resource];
                return Err(unfit(format!("it removes {removed} {name}, outside the limits of {} to {}", range.low, range.high)));
            }
        }
        Ok(gone)
    }

    /// The units of a set within the limits. Some sets are measured for what they say about others, and are not to be chosen.
    pub(crate) fn allowed(&self, set: &RemovalSet) -> Option<Units> {
        let gone = self.units(set);
        let selection = self.select(&gone);
        self.ranges.iter().all(|range| (range.low..=range.high).contains(&selection.cost(range.resource))).then_some(gone)
    }

    /// The units all of whose layers are in a set.
    pub(crate) fn units(&self, set: &RemovalSet) -> Units {
        let is_gone = |layers: &[usize]| layers.iter().all(|layer| set.contains(self.table.layers()[*layer].id.as_str()));
        self.instance.units.iter().map(|unit| is_gone(&unit.layers)).collect()
    }

    pub(crate) fn select(&self, gone: &[bool]) -> Selection<'a> {
        let mut selection = Selection::new(self.instance);
        (0..gone.len()).filter(|unit| gone[*unit]).for_each(|unit| selection.remove(unit));
        selection
    }

    pub(crate) fn removal_set(&self, gone: &[bool]) -> RemovalSet {
        let layers = self.instance.layers_of((0..gone.len()).filter(|unit| gone[*unit]));
        layers.into_iter().map(|layer| self.table.layers()[layer].id.clone()).collect()
    }

    /// The units that change with a unit: those that go with it, or come back with it.
    pub(crate) fn closure(&self, gone: &[bool], unit: usize) -> Vec<usize> {
        if gone[unit] { self.instance.dependents(unit, gone) } else { self.instance.closure(unit, gone) }
    }

    /// The set after one unit and what hangs on it has changed sides, whatever the limits say.
    pub(crate) fn toggled(&self, gone: &[bool], unit: usize) -> Units {
        let mut changed = gone.to_vec();
        self.closure(gone, unit).into_iter().for_each(|other| changed[other] = !gone[unit]);
        changed
    }

    /// All ways to put one unit back, remove another, or both, by expected change. `weights` are what the removal of each
    /// unit is expected to cost.
    pub(crate) fn neighbours(&self, gone: &[bool], weights: &[f64]) -> Vec<Move> {
        let of = |side: bool| (0..gone.len()).filter(move |unit| gone[*unit] == side).map(Some).chain([None]);
        let mut moves = Vec::new();
        for back in of(true) {
            for out in of(false) {
                moves.extend(self.swap(gone, back, out, weights));
            }
        }
        moves.sort_by(|a, b| a.change.total_cmp(&b.change).then_with(|| b.gone.cmp(&a.gone)));
        moves.dedup_by(|a, b| a.gone == b.gone);
        moves
    }

    /// Puts `back` back and removes `out`, then removes what is cheapest until the limits are met and puts back what they do
    /// not need. `None` where that does not succeed or changes nothing.
    pub(crate) fn swap(&self, gone: &[bool], back: Option<usize>, out: Option<usize>, weights: &[f64]) -> Option<Move> {
        let mut selection = self.select(gone);
        if let Some(back) = back {
            self.closure(gone, back).into_iter().for_each(|unit| selection.restore(unit));
        }
        if let Some(out) = out {
            selection.remove_with_needs(out);
        }
        let stays = |selection: &Selection<'_>| back.is_none_or(|back| !selection.gone()[back]);
        while stays(&selection) && !self.low_met(&selection) {
            let unit = self.cheapest(&selection, back, weights)?;
            selection.remove_with_needs(unit);
        }
        if !stays(&selection) {
            return None;
        }
        self.put_back(&mut selection, out, weights);
        let high_met = self.ranges.iter().all(|range| selection.cost(range.resource) <= range.high);
        if !high_met || selection.gone() == gone {
            return None;
        }
        let sides = selection.gone().iter().zip(gone).zip(weights);
        let change = sides.map(|((now, before), weight)| weight * (f64::from(u8::from(*now)) - f64::from(u8::from(*before)))).sum();
        Some(Move { gone: selection.gone().to_vec(), change })
    }

    fn low_met(&self, selection: &Selection<'_>) -> bool {
        self.ranges.iter().all(|range| selection.cost(range.resource) >= range.low)
    }

    /// The unit that brings most of what is lacking for its weight, without `back`.
    fn cheapest(&self, selection: &Selection<'_>, back: Option<usize>, weights: &[f64]) -> Option<usize> {
        let lacking = self.ranges.iter().find(|range| selection.cost(range.resource) < range.low)?;
        let missing = lacking.low - selection.cost(lacking.resource);
        let rate = |unit: usize| {
            let closure = self.instance.closure(unit, selection.gone());
            let brings: u64 = closure.iter().map(|unit| self.instance.units[*unit].costs[lacking.resource]).sum();
            let useful = brings > 0 && back.is_none_or(|back| !closure.contains(&back));
            let weight: f64 = closure.iter().map(|unit| weights[*unit]).sum();
            // More than is missing is worth no more.
            useful.then(|| weight / brings.min(missing) as f64)
        };
        let candidates = (0..weights.len()).filter(|unit| !selection.gone()[*unit]).filter_map(|unit| Some((rate(unit)?, unit)));
        candidates.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).map(|(_, unit)| unit)
    }

    /// Puts back what the limits do not need and what costs something, dearest first, but not `out`.
    fn put_back(&self, selection: &mut Selection<'_>, out: Option<usize>, weights: &[f64]) {
        let mut units: Vec<usize> = (0..weights.len()).filter(|unit| selection.gone()[*unit] && weights[*unit] > 0.0).collect();
        units.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
        for unit in units {
            if Some(unit) == out || !selection.is_free_to_return(unit) {
                continue;
            }
            selection.restore(unit);
            if !self.low_met(selection) {
                selection.remove(unit);
            }
        }
    }
}
