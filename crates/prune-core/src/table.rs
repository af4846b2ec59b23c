//! The table of removable layers: what there is to choose from and what it costs. First arrow of the flow: a model fills
//! it, scores and plans refer to it, files carry it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::Error;
pub use crate::layer::{Cost, Layer, LayerId, RemovalSet, SharedCost};

/// The fields of a [`LayerTable`] before validation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableParts {
    /// Name of the model, for people.
    pub model: String,
    /// Hash of weights and configuration, made by the caller; files made for another fingerprint are refused.
    pub fingerprint: String,
    /// Parameters of the whole model, removable or not.
    pub total_params: u64,
    /// Multiply-accumulates of one forward pass of the whole model; 0 where they are not counted.
    pub total_macs: u64,
    /// The removable layers in the order of the forward pass.
    pub layers: Vec<Layer>,
    /// Costs that go with the last member of a group; may be empty. `shells` in older files.
    #[serde(alias = "shells")]
    pub shared_costs: Vec<SharedCost>,
}

/// A validated table of removable layers.
///
/// It holds: at least one layer, unique non-empty ids, no layer without cost, disjoint non-empty shared costs over known
/// members, and totals that fit `u64` and are not below the sum of what can be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TableParts", into = "TableParts")]
pub struct LayerTable {
    parts: TableParts,
    index: BTreeMap<LayerId, usize>,
    /// Place of each layer in the order of ids, by position.
    rank: Vec<usize>,
    /// SharedCost of each layer, by position.
    shared_cost_of: Vec<Option<usize>>,
    /// Member positions of each shared cost, ascending.
    shared_members: Vec<Vec<usize>>,
}

impl TryFrom<TableParts> for LayerTable {
    type Error = Error;

    fn try_from(parts: TableParts) -> Result<Self, Error> {
        Self::new(parts)
    }
}

impl From<LayerTable> for TableParts {
    fn from(table: LayerTable) -> Self {
        table.parts
    }
}

/// Puts a [`LayerTable`] together, layer by layer.
///
/// ```
/// use prune_core::LayerTable;
///
/// let table = LayerTable::builder()
///     .model("llama-2-7b")
///     .total_params(6_738_415_616)
///     .layer("model.layers.0.self_attn", 67_108_864)
///     .layer("model.layers.0.mlp", 135_266_304)
///     .build()?;
/// assert_eq!(table.len(), 2);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct LayerTableBuilder {
    model: Option<String>,
    fingerprint: Option<String>,
    total_params: Option<u64>,
    total_macs: Option<u64>,
    layers: Vec<Layer>,
    shared_costs: Vec<SharedCost>,
}

impl LayerTableBuilder {
    /// Name of the model, for people; `model` unless said otherwise.
    pub fn model(mut self, name: impl Into<String>) -> Self {
        self.model = Some(name.into());
        self
    }

    /// Hash of weights and configuration: files made for another one are refused. Unless it is given, one of the layers and
    /// their costs, which does not tell two trainings of one architecture apart.
    pub fn fingerprint(mut self, fingerprint: impl Into<String>) -> Self {
        self.fingerprint = Some(fingerprint.into());
        self
    }

    /// Parameters of the whole model; those of all that can be removed unless said otherwise.
    pub fn total_params(mut self, params: u64) -> Self {
        self.total_params = Some(params);
        self
    }

    /// Multiply-accumulates of one forward pass of the whole model; those of all that can be removed unless said otherwise.
    pub fn total_macs(mut self, macs: u64) -> Self {
        self.total_macs = Some(macs);
        self
    }

    /// Adds a layer of kind `layer` with these parameters, in the order of the forward pass.
    pub fn layer(self, id: impl Into<LayerId>, params: u64) -> Self {
        self.push(Layer::new(id, params))
    }

    /// Adds a layer, in the order of the forward pass.
    pub fn push(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Adds a cost that goes only with the last of its members.
    pub fn shared_cost(mut self, shared: SharedCost) -> Self {
        self.shared_costs.push(shared);
        self
    }

    /// The validated table.
    ///
    /// # Errors
    /// As [`LayerTable::new`].
    pub fn build(self) -> Result<LayerTable, Error> {
        let sum = |cost| removable(&self.layers, &self.shared_costs, cost);
        LayerTable::new(TableParts {
            total_params: self.total_params.map_or_else(|| sum(Cost::Params), Ok)?,
            total_macs: self.total_macs.map_or_else(|| sum(Cost::Macs), Ok)?,
            fingerprint: self.fingerprint.unwrap_or_else(|| costs_fingerprint(&self.layers, &self.shared_costs)),
            model: self.model.unwrap_or_else(|| "model".to_owned()),
            layers: self.layers,
            shared_costs: self.shared_costs,
        })
    }
}

/// FNV-1a (Fowler, Noll, Vo) over ids and costs.
fn costs_fingerprint(layers: &[Layer], shared_costs: &[SharedCost]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |id: &LayerId, costs: [u64; 2]| {
        let bytes = id.as_str().bytes().chain([0]).chain(costs.into_iter().flat_map(u64::to_le_bytes));
        bytes.for_each(|byte| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    };
    layers.iter().for_each(|layer| add(&layer.id, [layer.params, layer.macs]));
    shared_costs.iter().for_each(|shared| add(&shared.id, [shared.params, shared.macs]));
    format!("costs-{hash:016x}")
}

/// Sum over all that can be removed.
fn removable(layers: &[Layer], shared_costs: &[SharedCost], cost: Cost) -> Result<u64, Error> {
    let costs = layers.iter().map(|layer| layer.cost(cost)).chain(shared_costs.iter().map(|shared| shared.cost(cost)));
    costs.into_iter().try_fold(0u64, u64::checked_add).ok_or_else(|| Error::Overflow { what: format!("the layers' {cost}") })
}

impl LayerTable {
    /// A table to be put together layer by layer.
    pub fn builder() -> LayerTableBuilder {
        LayerTableBuilder::default()
    }

    /// Validates the parts.
    ///
    /// # Errors
    /// [`Error::EmptyTable`], [`Error::EmptyName`], [`Error::DuplicateId`], [`Error::NothingToRemove`],
    /// [`Error::UnknownLayer`] (a shared cost's member), [`Error::SharedMember`], [`Error::Overflow`],
    /// [`Error::TotalTooSmall`].
    pub fn new(parts: TableParts) -> Result<Self, Error> {
        for (key, value) in [("model", &parts.model), ("fingerprint", &parts.fingerprint)] {
            require_name(key, value)?;
        }
        if parts.layers.is_empty() {
            return Err(Error::EmptyTable { model: parts.model });
        }
        let mut index = BTreeMap::new();
        for (position, layer) in parts.layers.iter().enumerate() {
            require_name("layers.id", layer.id.as_str())?;
            if index.insert(layer.id.clone(), position).is_some() {
                return Err(duplicate("layers", &layer.id));
            }
            if layer.params == 0 && layer.macs == 0 {
                return Err(Error::NothingToRemove { id: layer.id.clone(), problem: "both params and macs are 0" });
            }
        }
        let mut shared_cost_of: Vec<Option<usize>> = vec![None; parts.layers.len()];
        let mut shared_members = Vec::with_capacity(parts.shared_costs.len());
        let mut shared_ids = BTreeSet::new();
        for (position, shared) in parts.shared_costs.iter().enumerate() {
            require_name("shared_costs.id", shared.id.as_str())?;
            if !shared_ids.insert(&shared.id) {
                return Err(duplicate("shared_costs", &shared.id));
            }
            if shared.members.is_empty() {
                return Err(Error::NothingToRemove { id: shared.id.clone(), problem: "it has no members" });
            }
            let mut members = Vec::with_capacity(shared.members.len());
            for member in &shared.members {
                let at = *index.get(member).ok_or_else(|| unknown(member, index.keys()))?;
                match shared_cost_of[at] {
                    Some(first) if first == position => {
                        return Err(duplicate(&format!("shared_costs.{}.members", shared.id), member));
                    }
                    Some(first) => {
                        return Err(Error::SharedMember {
                            member: member.clone(),
                            first: parts.shared_costs[first].id.clone(),
                            second: shared.id.clone(),
                        });
                    }
                    None => shared_cost_of[at] = Some(position),
                }
                members.push(at);
            }
            members.sort_unstable();
            shared_members.push(members);
        }
        let mut rank = vec![0; index.len()];
        index.values().enumerate().for_each(|(place, position)| rank[*position] = place);
        let table = Self { parts, index, rank, shared_cost_of, shared_members };
        for cost in [Cost::Params, Cost::Macs] {
            let removable = removable(table.layers(), table.shared_costs(), cost)?;
            if removable > table.total(cost) {
                return Err(Error::TotalTooSmall { cost, expected: table.total(cost), got: removable });
            }
        }
        Ok(table)
    }

    /// Name of the model.
    pub fn model(&self) -> &str {
        &self.parts.model
    }

    /// Hash of weights and configuration.
    pub fn fingerprint(&self) -> &str {
        &self.parts.fingerprint
    }

    /// Cost of the whole model.
    pub fn total(&self, cost: Cost) -> u64 {
        match cost {
            Cost::Params => self.parts.total_params,
            Cost::Macs => self.parts.total_macs,
        }
    }

    /// Parameters of the whole model.
    pub fn total_params(&self) -> u64 {
        self.parts.total_params
    }

    /// Multiply-accumulates of one forward pass of the whole model.
    pub fn total_macs(&self) -> u64 {
        self.parts.total_macs
    }

    /// The removable layers in the order of the forward pass.
    pub fn layers(&self) -> &[Layer] {
        &self.parts.layers
    }

    /// The shared costs.
    pub fn shared_costs(&self) -> &[SharedCost] {
        &self.parts.shared_costs
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.parts.layers.len()
    }

    /// Always false: a table has at least one layer.
    pub fn is_empty(&self) -> bool {
        self.parts.layers.is_empty()
    }

    /// Position of a layer in [`LayerTable::layers`].
    pub fn position(&self, id: &str) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// Positions of the layers in the order of their ids.
    pub(crate) fn by_id(&self) -> impl Iterator<Item = (&LayerId, usize)> {
        self.index.iter().map(|(id, position)| (id, *position))
    }

    /// Place of a layer in the order of ids: comparing places compares ids.
    pub(crate) fn rank(&self, position: usize) -> usize {
        self.rank[position]
    }

    /// The layer with this id.
    pub fn layer(&self, id: &str) -> Option<&Layer> {
        self.position(id).map(|at| &self.parts.layers[at])
    }

    /// Position of a layer that must exist.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`] with the most similar id.
    pub fn require(&self, id: &LayerId) -> Result<usize, Error> {
        self.position(id.as_str()).ok_or_else(|| unknown(id, self.index.keys()))
    }

    /// The shared cost that a layer is a member of.
    pub fn shared_cost_of(&self, id: &str) -> Option<&SharedCost> {
        self.shared_cost_of[self.position(id)?].map(|shared| &self.parts.shared_costs[shared])
    }

    /// Cost of a removal set: its layers, and every shared cost that loses its last member.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`].
    pub fn removed_cost(&self, set: &RemovalSet, cost: Cost) -> Result<u64, Error> {
        Ok(self.cost_of(&self.positions(set)?, cost))
    }

    /// [`LayerTable::removed_cost`] by positions.
    pub(crate) fn cost_of(&self, positions: &[usize], cost: Cost) -> u64 {
        let mut tally = Tally::new(self, cost);
        positions.iter().for_each(|layer| tally.remove(*layer));
        tally.removed()
    }

    /// Positions of a removal set, ascending.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`].
    pub(crate) fn positions(&self, set: &RemovalSet) -> Result<Vec<usize>, Error> {
        let mut positions = set.iter().map(|id| self.require(id)).collect::<Result<Vec<_>, _>>()?;
        positions.sort_unstable();
        Ok(positions)
    }

    /// The shared costs all of whose members stand at these positions, in table order.
    pub(crate) fn shared_costs_without(&self, positions: &[usize]) -> impl Iterator<Item = &SharedCost> {
        let mut gone = vec![false; self.len()];
        positions.iter().for_each(|layer| gone[*layer] = true);
        let all_gone = move |members: &Vec<usize>| members.iter().all(|layer| gone[*layer]);
        self.parts.shared_costs.iter().zip(&self.shared_members).filter(move |(_, members)| all_gone(members)).map(|(shared, _)| shared)
    }

    /// The shared costs that go with a removal set, in table order.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`].
    pub fn removed_shared_costs(&self, set: &RemovalSet) -> Result<Vec<&SharedCost>, Error> {
        Ok(self.shared_costs_without(&self.positions(set)?).collect())
    }

    /// The ids of a removal set in the order of the forward pass.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`].
    pub fn in_order(&self, set: &RemovalSet) -> Result<Vec<LayerId>, Error> {
        Ok(self.positions(set)?.into_iter().map(|at| self.parts.layers[at].id.clone()).collect())
    }

    /// Refuses data made for another model.
    ///
    /// # Errors
    /// [`Error::OtherModel`].
    pub fn check_fingerprint(&self, model: &str, fingerprint: &str) -> Result<(), Error> {
        if fingerprint == self.fingerprint() {
            return Ok(());
        }
        Err(Error::OtherModel {
            expected: self.fingerprint().to_owned(),
            expected_model: self.model().to_owned(),
            got: fingerprint.to_owned(),
            got_model: model.to_owned(),
        })
    }

    /// Refuses data made for another model or for another choice of layers. Names of models may differ: a folder that
    /// was moved holds the same model.
    ///
    /// # Errors
    /// [`Error::OtherModel`], [`Error::OtherLayers`].
    pub fn check_same(&self, other: &LayerTable) -> Result<(), Error> {
        self.check_fingerprint(other.model(), other.fingerprint())?;
        let differ = |key: String, expected: String, got: String| Err(Error::OtherLayers { key, expected, got });
        if self.len() != other.len() {
            return differ("the number of layers".to_owned(), self.len().to_string(), other.len().to_string());
        }
        for (position, (mine, theirs)) in self.layers().iter().zip(other.layers()).enumerate() {
            if mine != theirs {
                let told = |l: &Layer| format!("`{}` ({}, {} parameters, {} MACs, in `{}`)", l.id, l.kind, l.params, l.macs, l.stage);
                return differ(format!("layer {position}"), told(mine), told(theirs));
            }
        }
        if self.shared_costs().len() != other.shared_costs().len() {
            return differ(
                "the number of shared_costs".to_owned(),
                self.shared_costs().len().to_string(),
                other.shared_costs().len().to_string(),
            );
        }
        if let Some((mine, theirs)) = self.shared_costs().iter().zip(other.shared_costs()).find(|(mine, theirs)| mine != theirs) {
            let told = |s: &SharedCost| {
                let members: Vec<String> = s.members.iter().map(|m| format!("`{m}`")).collect();
                format!("{} parameters and {} MACs around {}", s.params, s.macs, members.join(", "))
            };
            return differ(format!("shared cost `{}`", mine.id), told(mine), format!("`{}`, {}", theirs.id, told(theirs)));
        }
        for cost in [Cost::Params, Cost::Macs] {
            if self.total(cost) != other.total(cost) {
                return differ(format!("the total of {cost}"), self.total(cost).to_string(), other.total(cost).to_string());
            }
        }
        Ok(())
    }

    pub(crate) fn parts(&self) -> &TableParts {
        &self.parts
    }

    pub(crate) fn shared_position(&self, layer: usize) -> Option<usize> {
        self.shared_cost_of[layer]
    }

    pub(crate) fn shared_members(&self, shared: usize) -> &[usize] {
        &self.shared_members[shared]
    }
}

/// Running cost of a removal set, shared costs included.
pub(crate) struct Tally<'a> {
    table: &'a LayerTable,
    cost: Cost,
    gone: Vec<bool>,
    /// Members still there, by shared cost.
    left: Vec<usize>,
    removed: u64,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(table: &'a LayerTable, cost: Cost) -> Self {
        Self { table, cost, gone: vec![false; table.len()], left: table.shared_members.iter().map(Vec::len).collect(), removed: 0 }
    }

    /// What goes so far. No sum overflows: the table's total does not.
    pub(crate) fn removed(&self) -> u64 {
        self.removed
    }

    /// Removes a layer that is still there; otherwise does nothing.
    pub(crate) fn remove(&mut self, layer: usize) {
        if std::mem::replace(&mut self.gone[layer], true) {
            return;
        }
        self.removed += self.table.layers()[layer].cost(self.cost);
        if let Some(shared) = self.table.shared_position(layer) {
            self.left[shared] -= 1;
            if self.left[shared] == 0 {
                self.removed += self.table.shared_costs()[shared].cost(self.cost);
            }
        }
    }
}

fn require_name(key: &str, value: &str) -> Result<(), Error> {
    if value.is_empty() {
        return Err(Error::EmptyName { key: key.to_owned() });
    }
    Ok(())
}

fn duplicate(key: &str, id: &LayerId) -> Error {
    Error::DuplicateId { key: key.to_owned(), id: id.clone() }
}

fn unknown<'a>(id: &LayerId, known: impl Iterator<Item = &'a LayerId>) -> Error {
    // A name further away than a third of its length is no misspelling.
    let limit = id.as_str().chars().count() / 3;
    let nearest = known
        .map(|other| (strsim::levenshtein(id.as_str(), other.as_str()), other))
        .min()
        .filter(|(distance, _)| *distance <= limit)
        .map(|(_, other)| other.clone());
    Error::UnknownLayer { id: id.clone(), nearest }
}
