//! The words of the crate: layer, shared cost, cost, set of removed layers. Everything later in the flow is made of these.

use std::borrow::Borrow;
use std::collections::{BTreeSet, btree_set};
use std::fmt;

use serde::{Deserialize, Serialize};

/// The one name of a layer: the prefix of its keys in the checkpoint, such as
/// `down_blocks.1.attentions.0.transformer_blocks.0.attn1`.
///
/// The same string is the row of the scores, the entry of the plan and the line of the report. Ids are ordered as
/// strings and written as plain strings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerId(String);

impl LayerId {
    /// Wraps a checkpoint key prefix, unchanged. A [`crate::LayerTable`] refuses empty ids.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self(prefix.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<&str> for LayerId {
    fn from(prefix: &str) -> Self {
        Self::new(prefix)
    }
}

impl From<String> for LayerId {
    fn from(prefix: String) -> Self {
        Self::new(prefix)
    }
}

impl AsRef<str> for LayerId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

// `str` and `LayerId` compare and hash alike, so maps keyed by id can be asked with a `&str`.
impl Borrow<str> for LayerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// One removable layer and what it costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Checkpoint key prefix.
    pub id: LayerId,
    /// What it is, such as `resnet`, `self_attention`, `cross_attention` or `feed_forward`.
    pub kind: String,
    /// The part of the network it sits in, such as `down_blocks.1`; reports group by it.
    pub stage: String,
    /// Parameters that go when this layer goes.
    pub params: u64,
    /// Multiply-accumulates of one forward pass that go with it; 0 in every layer of a table that does not count them.
    pub macs: u64,
}

/// Extra cost that goes only when all its members go: the norm and projections around the branches of a
/// transformer, which become the identity once no branch is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedCost {
    /// Checkpoint key prefix of the module around the members.
    pub id: LayerId,
    /// The layers inside. A layer is a member of at most one shared cost.
    pub members: Vec<LayerId>,
    /// Parameters of the shared cost itself, without its members'.
    pub params: u64,
    /// Multiply-accumulates of the shared cost itself, without its members'.
    pub macs: u64,
}

/// What a budget counts. Both are integers and are never rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cost {
    /// Number of parameters.
    Params,
    /// Multiply-accumulates of one forward pass.
    Macs,
}

impl Cost {
    /// The name used in files and messages: `params` or `macs`.
    pub fn name(self) -> &'static str {
        match self {
            Cost::Params => "params",
            Cost::Macs => "macs",
        }
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Layer {
    /// A layer with these parameters; no multiply-accumulates, of kind `layer`, in no stage.
    pub fn new(id: impl Into<LayerId>, params: u64) -> Self {
        Self { id: id.into(), kind: "layer".to_owned(), stage: String::new(), params, macs: 0 }
    }

    /// Multiply-accumulates of one forward pass that go with it.
    pub fn macs(mut self, macs: u64) -> Self {
        self.macs = macs;
        self
    }

    /// What it is.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }

    /// The part of the network it sits in.
    pub fn stage(mut self, stage: impl Into<String>) -> Self {
        self.stage = stage.into();
        self
    }

    /// The layer's cost of the given kind.
    pub fn cost(&self, cost: Cost) -> u64 {
        match cost {
            Cost::Params => self.params,
            Cost::Macs => self.macs,
        }
    }
}

impl SharedCost {
    /// A cost in parameters around these layers; no multiply-accumulates.
    pub fn new(id: impl Into<LayerId>, members: impl IntoIterator<Item = impl Into<LayerId>>, params: u64) -> Self {
        Self { id: id.into(), members: members.into_iter().map(Into::into).collect(), params, macs: 0 }
    }

    /// Multiply-accumulates of one forward pass that go with the last member.
    pub fn macs(mut self, macs: u64) -> Self {
        self.macs = macs;
        self
    }

    /// The shared cost's own cost of the given kind.
    pub fn cost(&self, cost: Cost) -> u64 {
        match cost {
            Cost::Params => self.params,
            Cost::Macs => self.macs,
        }
    }
}

/// A set of removed layers, ordered by id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RemovalSet(BTreeSet<LayerId>);

impl RemovalSet {
    /// The empty set: the whole model.
    pub fn empty() -> Self {
        Self(BTreeSet::new())
    }

    /// The set with one layer removed.
    pub fn single(id: impl Into<LayerId>) -> Self {
        Self(BTreeSet::from([id.into()]))
    }

    /// Adds a layer; false where it was in the set already.
    pub fn insert(&mut self, id: impl Into<LayerId>) -> bool {
        self.0.insert(id.into())
    }

    /// Whether the layer is removed.
    pub fn contains(&self, id: &str) -> bool {
        self.0.contains(id)
    }

    /// Number of removed layers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is removed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The removed layers in order of their ids.
    pub fn iter(&self) -> btree_set::Iter<'_, LayerId> {
        self.0.iter()
    }
}

impl<T: Into<LayerId>> FromIterator<T> for RemovalSet {
    fn from_iter<I: IntoIterator<Item = T>>(ids: I) -> Self {
        Self(ids.into_iter().map(Into::into).collect())
    }
}

impl<'a> IntoIterator for &'a RemovalSet {
    type Item = &'a LayerId;
    type IntoIter = btree_set::Iter<'a, LayerId>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl IntoIterator for RemovalSet {
    type Item = LayerId;
    type IntoIter = btree_set::IntoIter<LayerId>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
