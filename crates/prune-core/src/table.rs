//! The table of removable layers: what there is to choose from and what it costs. First arrow of the flow: a model fills
//! it, scores and plans refer to it, files carry it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::layer::{Cost, Layer, LayerId, RemovalSet, Shell};

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
    /// Costs that go with the last member of a group; may be empty.
    pub shells: Vec<Shell>,
}

/// A validated table of removable layers.
///
/// It holds: at least one layer, unique non-empty ids, no layer without cost, disjoint non-empty shells over known
/// members, and totals that fit `u64` and are not below the sum of what can be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TableParts", into = "TableParts")]
pub struct LayerTable {
    parts: TableParts,
    index: BTreeMap<LayerId, usize>,
    /// Place of each layer in the order of ids, by position.
    rank: Vec<usize>,
    /// Shell of each layer, by position.
    shell_of: Vec<Option<usize>>,
    /// Member positions of each shell, ascending.
    shell_members: Vec<Vec<usize>>,
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

impl LayerTable {
    /// Validates the parts.
    ///
    /// # Errors
    /// [`Error::EmptyTable`], [`Error::EmptyName`], [`Error::DuplicateId`], [`Error::NothingToRemove`],
    /// [`Error::UnknownLayer`] (a shell's member), [`Error::SharedMember`], [`Error::Overflow`],
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
        let mut shell_of: Vec<Option<usize>> = vec![None; parts.layers.len()];
        let mut shell_members = Vec::with_capacity(parts.shells.len());
        let mut shell_ids = BTreeSet::new();
        for (position, shell) in parts.shells.iter().enumerate() {
            require_name("shells.id", shell.id.as_str())?;
            if !shell_ids.insert(&shell.id) {
                return Err(duplicate("shells", &shell.id));
            }
            if shell.members.is_empty() {
                return Err(Error::NothingToRemove { id: shell.id.clone(), problem: "it has no members" });
            }
            let mut members = Vec::with_capacity(shell.members.len());
            for member in &shell.members {
                let at = *index.get(member).ok_or_else(|| unknown(member, index.keys()))?;
                match shell_of[at] {
                    Some(first) if first == position => {
                        return Err(duplicate(&format!("shells.{}.members", shell.id), member));
                    }
                    Some(first) => {
                        return Err(Error::SharedMember {
                            member: member.clone(),
                            first: parts.shells[first].id.clone(),
                            second: shell.id.clone(),
                        });
                    }
                    None => shell_of[at] = Some(position),
                }
                members.push(at);
            }
            members.sort_unstable();
            shell_members.push(members);
        }
        let mut rank = vec![0; index.len()];
        index.values().enumerate().for_each(|(place, position)| rank[*position] = place);
        let table = Self { parts, index, rank, shell_of, shell_members };
        for cost in [Cost::Params, Cost::Macs] {
            let removable = table.removable(cost)?;
            if removable > table.total(cost) {
                return Err(Error::TotalTooSmall { cost, expected: table.total(cost), got: removable });
            }
        }
        Ok(table)
    }

    fn removable(&self, cost: Cost) -> Result<u64, Error> {
        let layers = self.parts.layers.iter().map(|layer| layer.cost(cost));
        let shells = self.parts.shells.iter().map(|shell| shell.cost(cost));
        layers.chain(shells).try_fold(0u64, u64::checked_add).ok_or_else(|| Error::Overflow { what: format!("the layers' {cost}") })
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

    /// The shells.
    pub fn shells(&self) -> &[Shell] {
        &self.parts.shells
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

    /// The shell that a layer is a member of.
    pub fn shell_of(&self, id: &str) -> Option<&Shell> {
        self.shell_of[self.position(id)?].map(|shell| &self.parts.shells[shell])
    }

    /// Cost of a removal set: its layers, and every shell that loses its last member.
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

    /// The shells all of whose members stand at these positions, in table order.
    pub(crate) fn shells_without(&self, positions: &[usize]) -> impl Iterator<Item = &Shell> {
        let mut gone = vec![false; self.len()];
        positions.iter().for_each(|layer| gone[*layer] = true);
        let all_gone = move |members: &Vec<usize>| members.iter().all(|layer| gone[*layer]);
        self.parts.shells.iter().zip(&self.shell_members).filter(move |(_, members)| all_gone(members)).map(|(shell, _)| shell)
    }

    /// The shells that go with a removal set, in table order.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`].
    pub fn removed_shells(&self, set: &RemovalSet) -> Result<Vec<&Shell>, Error> {
        Ok(self.shells_without(&self.positions(set)?).collect())
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
        if self.shells().len() != other.shells().len() {
            return differ("the number of shells".to_owned(), self.shells().len().to_string(), other.shells().len().to_string());
        }
        if let Some((mine, theirs)) = self.shells().iter().zip(other.shells()).find(|(mine, theirs)| mine != theirs) {
            let told = |s: &Shell| {
                let members: Vec<String> = s.members.iter().map(|m| format!("`{m}`")).collect();
                format!("{} parameters and {} MACs around {}", s.params, s.macs, members.join(", "))
            };
            return differ(format!("shell `{}`", mine.id), told(mine), format!("`{}`, {}", theirs.id, told(theirs)));
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

    pub(crate) fn shell_position(&self, layer: usize) -> Option<usize> {
        self.shell_of[layer]
    }

    pub(crate) fn shell_members(&self, shell: usize) -> &[usize] {
        &self.shell_members[shell]
    }
}

/// Running cost of a removal set, shells included.
pub(crate) struct Tally<'a> {
    table: &'a LayerTable,
    cost: Cost,
    gone: Vec<bool>,
    /// Members still there, by shell.
    left: Vec<usize>,
    removed: u64,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(table: &'a LayerTable, cost: Cost) -> Self {
        Self { table, cost, gone: vec![false; table.len()], left: table.shell_members.iter().map(Vec::len).collect(), removed: 0 }
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
        if let Some(shell) = self.table.shell_position(layer) {
            self.left[shell] -= 1;
            if self.left[shell] == 0 {
                self.removed += self.table.shells()[shell].cost(self.cost);
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
        .map(|other| (edit_distance(id.as_str(), other.as_str()), other))
        .min()
        .filter(|(distance, _)| *distance <= limit)
        .map(|(_, other)| other.clone());
    Error::UnknownLayer { id: id.clone(), nearest }
}

/// Levenshtein distance in characters, by the two-row dynamic programme.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
