//! Which inner outputs a forward pass hands back.

use std::collections::BTreeSet;

use prune_core::RemovalSet;

use crate::config::{Part, Transformer, UNetConfig};
use crate::error::{Error, Result};
use crate::layout::Layout;

/// Names of outputs inside the network: stages (`down_blocks.0`, `mid_block`, `up_blocks.2`), ResNets, Transformer2Ds and
/// self-attentions.
///
/// The first three exist whatever was removed: a removed branch leaves its input, or its shortcut, as output. A self-attention's
/// output, `[B, T, C]` before it is added to its input, exists where the layer does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapSet(pub(super) BTreeSet<String>);

impl TapSet {
    /// No output but the last.
    pub fn none() -> Self {
        Self(BTreeSet::new())
    }

    /// The end of every stage.
    pub fn stages(config: &UNetConfig) -> Self {
        Self(config.stages.iter().map(|s| s.name.clone()).collect())
    }

    /// The end of every stage, every ResNet and every Transformer2D.
    pub fn all(config: &UNetConfig) -> Self {
        let parts = config.stages.iter().flat_map(|s| &s.parts).map(|p| p.id().to_string());
        Self(Self::stages(config).0.into_iter().chain(parts).collect())
    }

    /// The output of every self-attention that is left without `removed` (KOALA, arXiv 2312.04005, distils those). A tap whose
    /// layer is gone moves to the nearest place behind it that both networks have, the end of its Transformer2D: what the
    /// removed attention did is asked of what is left around it.
    ///
    /// # Errors
    /// [`Error::Layer`] for an id that names nothing removable.
    pub fn self_attention(config: &UNetConfig, removed: &RemovalSet) -> Result<Self> {
        let gone = Layout::new(config).expand(removed)?;
        let taps = transformers(config).flat_map(|t| attentions(t).map(|id| if gone.contains(&id) { t.id.clone() } else { id }));
        Ok(Self(taps.collect()))
    }

    /// The nearest output behind every layer of `removed` that both networks have: the end of its ResNet or Transformer2D.
    ///
    /// # Errors
    /// [`Error::Layer`] for an id that names nothing removable.
    pub fn removed(config: &UNetConfig, removed: &RemovalSet) -> Result<Self> {
        let gone = Layout::new(config).expand(removed)?;
        let inside = |id: &str, part: &str| id.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let parts = config.stages.iter().flat_map(|s| &s.parts).map(Part::id);
        Ok(Self(parts.filter(|part| gone.iter().any(|id| inside(id.as_str(), part))).map(str::to_string).collect()))
    }

    /// These names.
    ///
    /// # Errors
    /// [`Error::Input`] for a name that is no stage, ResNet, Transformer2D or self-attention.
    pub fn of(config: &UNetConfig, names: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        let known: BTreeSet<String> = Self::all(config).0.into_iter().chain(transformers(config).flat_map(attentions)).collect();
        let wanted: BTreeSet<String> = names.into_iter().map(Into::into).collect();
        match wanted.difference(&known).next() {
            None => Ok(Self(wanted)),
            Some(unknown) => Err(Error::Input {
                name: "taps".into(),
                expected: "stages, ResNets, Transformer2Ds and self-attentions".into(),
                got: unknown.clone(),
            }),
        }
    }

    /// Whether the name is wanted.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// The names in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

fn transformers(config: &UNetConfig) -> impl Iterator<Item = &Transformer> {
    config.stages.iter().flat_map(|s| &s.parts).filter_map(|part| match part {
        Part::Transformer(t) => Some(t),
        Part::Resnet(_) => None,
    })
}

fn attentions(t: &Transformer) -> impl Iterator<Item = String> {
    (0..t.depth).map(|i| format!("{}.transformer_blocks.{i}.attn1", t.id))
}
