//! The problem as its owner states it: scores, constraints, resources and interactions of layers. Where the search starts.

use std::collections::BTreeMap;

use crate::budget::Constraints;
use crate::error::Error;
use crate::layer::{Cost, LayerId};
use crate::score::Scores;
use crate::search::exact::Exact;
use crate::search::instance::{Instance, Pair, ResourceCosts};
use crate::table::LayerTable;

/// A further integer cost of the layers beside parameters and multiply-accumulates: bytes of memory, microseconds of
/// measured latency, ... Any unit will do, as long as it is the same for all layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Its name in limits, such as `latency_us`.
    pub name: String,
    /// What goes when the layer goes; 0 for layers that are not listed.
    pub layers: BTreeMap<LayerId, u64>,
    /// What goes when the shared cost goes; 0 for shared costs that are not listed.
    pub shared_costs: BTreeMap<LayerId, u64>,
}

impl Resource {
    /// A resource of which no layer costs anything yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), layers: BTreeMap::new(), shared_costs: BTreeMap::new() }
    }

    /// What goes when this layer goes.
    pub fn layer(mut self, id: impl Into<LayerId>, cost: u64) -> Self {
        self.layers.insert(id.into(), cost);
        self
    }

    /// What goes when this shared cost goes.
    pub fn shared_cost(mut self, id: impl Into<LayerId>, cost: u64) -> Self {
        self.shared_costs.insert(id.into(), cost);
        self
    }
}

/// How much more two layers lose together than the sum of their scores says.
#[derive(Debug, Clone, PartialEq)]
pub struct Interaction {
    /// One layer.
    pub first: LayerId,
    /// The other.
    pub second: LayerId,
    /// Joint loss less the sum of the single scores; may be negative.
    pub score: f64,
}

/// What to choose from and under which rules: the scores of one criterion, costs in any number of resources,
/// constraints, and the interactions of some pairs of layers.
#[derive(Debug, Clone)]
pub struct Problem<'a> {
    pub(crate) scores: &'a Scores,
    pub(crate) constraints: Constraints,
    pub(super) names: Vec<String>,
    pub(super) costs: Vec<ResourceCosts>,
    pairs: Vec<Interaction>,
}

impl<'a> Problem<'a> {
    /// A problem over `params` and `macs`, the costs of the table.
    ///
    /// # Errors
    /// [`Error::IncompleteScores`].
    pub fn new(scores: &'a Scores, constraints: &Constraints) -> Result<Self, Error> {
        scores.values()?;
        let table = scores.table();
        let of = |cost: Cost| ResourceCosts {
            layers: table.layers().iter().map(|layer| layer.cost(cost)).collect(),
            shared_costs: table.shared_costs().iter().map(|shared| shared.cost(cost)).collect(),
        };
        let both = [Cost::Params, Cost::Macs];
        Ok(Self {
            scores,
            constraints: constraints.clone(),
            names: both.iter().map(|cost| cost.name().to_owned()).collect(),
            costs: both.iter().map(|cost| of(*cost)).collect(),
            pairs: Vec::new(),
        })
    }

    /// Adds a resource, which limits may then name.
    ///
    /// # Errors
    /// [`Error::EmptyName`], [`Error::DuplicateId`] (name), [`Error::UnknownLayer`], [`Error::Overflow`].
    pub fn with_resource(mut self, resource: &Resource) -> Result<Self, Error> {
        let table = self.scores.table();
        if resource.name.is_empty() {
            return Err(Error::EmptyName { key: "resource".to_owned() });
        }
        if self.names.contains(&resource.name) {
            return Err(Error::DuplicateId { key: "resources".to_owned(), id: resource.name.as_str().into() });
        }
        let mut costs = ResourceCosts { layers: vec![0; table.len()], shared_costs: vec![0; table.shared_costs().len()] };
        for (id, cost) in &resource.layers {
            costs.layers[table.require(id)?] = *cost;
        }
        for (id, cost) in &resource.shared_costs {
            let at = table.shared_costs().iter().position(|shared| shared.id == *id);
            costs.shared_costs[at.ok_or_else(|| Error::UnknownLayer { id: id.clone(), nearest: None })?] = *cost;
        }
        let all = costs.layers.iter().chain(&costs.shared_costs);
        if all.copied().try_fold(0u64, u64::checked_add).is_none() {
            return Err(Error::Overflow { what: format!("the layers' {}", resource.name) });
        }
        self.names.push(resource.name.clone());
        self.costs.push(costs);
        Ok(self)
    }

    /// Adds interactions: the score of a set is then the sum of its layers' scores and of the interactions of which both
    /// layers are in the set. Interactions of one pair add up. Few strong ones are enough; each makes the bound of the
    /// search a little weaker.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`], [`Error::NotFinite`], [`Error::DuplicateId`] for a layer paired with itself.
    pub fn with_interactions(mut self, pairs: &[Interaction]) -> Result<Self, Error> {
        let table = self.scores.table();
        for pair in pairs {
            table.require(&pair.first)?;
            table.require(&pair.second)?;
            if pair.first == pair.second {
                return Err(Error::DuplicateId { key: "interaction".to_owned(), id: pair.first.clone() });
            }
            if !pair.score.is_finite() {
                return Err(Error::NotFinite {
                    what: format!("the interaction of `{}` and `{}`", pair.first, pair.second),
                    got: pair.score.to_string(),
                });
            }
        }
        self.pairs.extend_from_slice(pairs);
        Ok(self)
    }

    pub(crate) fn interactions(&self) -> &[Interaction] {
        &self.pairs
    }

    /// The resources that limits may name.
    pub fn resources(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn resource(&self, name: &str) -> Result<usize, Error> {
        self.names
            .iter()
            .position(|known| known == name)
            .ok_or_else(|| Error::UnknownResource { expected: self.names.join(", "), got: name.to_owned() })
    }

    pub(crate) fn table(&self) -> &'a LayerTable {
        self.scores.table()
    }

    /// The plain numbers, and the scale of their scores.
    pub(crate) fn instance(&self) -> Result<(Instance, Exact), Error> {
        let table = self.table();
        let exact = exact(self.scores, &self.pairs)?;
        let (scores, pair_scores) = exact.integers.split_at(table.len());
        let mut pairs: Vec<Pair> = Vec::with_capacity(self.pairs.len());
        for (pair, score) in self.pairs.iter().zip(pair_scores) {
            pairs.push((table.require(&pair.first)?, table.require(&pair.second)?, *score));
        }
        let instance = Instance::new(table, scores, &self.costs, &self.constraints, &pairs)?;
        Ok((instance, exact))
    }
}

/// The layers' scores as integers of one scale, by position.
pub(crate) fn exact_scores(scores: &Scores) -> Result<Vec<i128>, Error> {
    Ok(exact(scores, &[])?.integers)
}

/// The scores of the layers, then those of the pairs.
fn exact(scores: &Scores, pairs: &[Interaction]) -> Result<Exact, Error> {
    let table = scores.table();
    let mut values = scores.values()?;
    values.extend(pairs.iter().map(|pair| pair.score));
    if !values.iter().map(|value| value.abs()).sum::<f64>().is_finite() {
        return Err(Error::Overflow { what: format!("the scores of `{}`", scores.criterion()) });
    }
    let name = |at: usize| match at.checked_sub(table.len()) {
        None => table.layers()[at].id.clone(),
        Some(pair) => pairs[pair].first.clone(),
    };
    Exact::new(&values).map_err(|vanishes| Error::ScoreSpread {
        small_layer: name(vanishes.small),
        small: values[vanishes.small],
        large_layer: name(vanishes.large),
        large: values[vanishes.large],
    })
}

/// [`Error::Infeasible`] where more is needed than can go.
pub(crate) fn check_feasible(cost: Cost, needed: u64, available: u64, total: u64) -> Result<(), Error> {
    if needed <= available {
        return Ok(());
    }
    Err(Error::Infeasible { cost, needed, available, largest_ratio: if total == 0 { 0.0 } else { available as f64 / total as f64 } })
}
