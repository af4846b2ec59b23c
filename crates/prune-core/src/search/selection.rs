//! Which units are gone at the moment, with their exact sums: what heuristics and baselines work on.

use crate::search::instance::{Bonus, Instance};

/// A set of removed units and what it adds up to, bonuses and forced layers included.
#[derive(Debug, Clone)]
pub(crate) struct Selection<'a> {
    instance: &'a Instance,
    gone: Vec<bool>,
    /// Members still there, by bonus.
    left: Vec<usize>,
    score: i128,
    costs: Vec<u64>,
}

impl<'a> Selection<'a> {
    /// Only the forced layers are gone.
    pub(crate) fn new(instance: &'a Instance) -> Self {
        Self {
            instance,
            gone: vec![false; instance.units.len()],
            left: instance.bonuses.iter().map(|bonus| bonus.members.len()).collect(),
            score: instance.forced_score,
            costs: instance.forced_costs.clone(),
        }
    }

    pub(crate) fn gone(&self) -> &[bool] {
        &self.gone
    }

    pub(crate) fn score(&self) -> i128 {
        self.score
    }

    pub(crate) fn cost(&self, resource: usize) -> u64 {
        self.costs[resource]
    }

    pub(crate) fn costs(&self) -> &[u64] {
        &self.costs
    }

    /// Removes one unit that is still there; otherwise does nothing. What it needs is the caller's business.
    pub(crate) fn remove(&mut self, unit: usize) {
        if std::mem::replace(&mut self.gone[unit], true) {
            return;
        }
        let parts = &self.instance.units[unit];
        self.score += parts.score;
        self.costs.iter_mut().zip(&parts.costs).for_each(|(sum, cost)| *sum += cost);
        for bonus in &parts.bonuses {
            self.left[*bonus] -= 1;
            if self.left[*bonus] == 0 {
                let Bonus { score, costs, .. } = &self.instance.bonuses[*bonus];
                self.score += score;
                self.costs.iter_mut().zip(costs).for_each(|(sum, cost)| *sum += cost);
            }
        }
    }

    /// Puts one removed unit back; otherwise does nothing.
    pub(crate) fn restore(&mut self, unit: usize) {
        if !std::mem::replace(&mut self.gone[unit], false) {
            return;
        }
        let parts = &self.instance.units[unit];
        self.score -= parts.score;
        self.costs.iter_mut().zip(&parts.costs).for_each(|(sum, cost)| *sum -= cost);
        for bonus in &parts.bonuses {
            if self.left[*bonus] == 0 {
                let Bonus { score, costs, .. } = &self.instance.bonuses[*bonus];
                self.score -= score;
                self.costs.iter_mut().zip(costs).for_each(|(sum, cost)| *sum -= cost);
            }
            self.left[*bonus] += 1;
        }
    }

    /// Removes a unit and all that it needs; answers what went.
    pub(crate) fn remove_with_needs(&mut self, unit: usize) -> Vec<usize> {
        if self.gone[unit] {
            return Vec::new();
        }
        let closure = self.instance.closure(unit, &self.gone);
        closure.iter().for_each(|unit| self.remove(*unit));
        closure
    }

    /// Whether no removed unit needs this one.
    pub(crate) fn is_free_to_return(&self, unit: usize) -> bool {
        self.gone[unit] && self.instance.units[unit].needed_by.iter().all(|other| !self.gone[*other])
    }

    /// Positions of the layers that are gone.
    pub(crate) fn layers(&self) -> Vec<usize> {
        self.instance.layers_of((0..self.gone.len()).filter(|unit| self.gone[*unit]))
    }
}
