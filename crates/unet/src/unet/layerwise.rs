//! Parts of a pruned network on the full network's own inputs, for layer-wise training: what a removed layer leaves to its
//! neighbors, apart from all errors further up.

use std::ops::Range;

use super::*;
use crate::config::Part;

/// A ResNet or Transformer2D that lacks a branch, with the part before it and the part behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighborhood {
    /// The part that lacks a branch.
    pub id: String,
    /// All parts of the neighborhood, in order.
    pub parts: Vec<String>,
    places: Range<usize>,
}

/// A forward pass of the full network, halted before every part.
#[derive(Debug)]
pub struct LayerwiseInputs<'n> {
    passes: Vec<Pass<'n>>,
}

impl UNet {
    /// The neighborhoods of this network, one for each part that lacks a branch, in the order of the pass.
    pub fn neighborhoods(&self) -> Vec<Neighborhood> {
        let ids: Vec<&str> = self.config.stages.iter().flat_map(|s| &s.parts).map(Part::id).collect();
        let inside = |id: &str, part: &str| id.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let lacks = |n: &usize| self.removed.iter().any(|id| inside(id.as_str(), ids[*n]));
        let neighborhood = |n: usize| {
            let places = n.saturating_sub(1)..(n + 2).min(ids.len());
            Neighborhood { id: ids[n].into(), parts: ids[places.clone()].iter().map(|id| id.to_string()).collect(), places }
        };
        (0..ids.len()).filter(lacks).map(neighborhood).collect()
    }

    /// A forward pass that keeps what stands before every part.
    ///
    /// # Shapes
    /// As [`UNet::forward`].
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub fn layerwise_inputs(&self, sample: &Tensor, timestep: &Tensor, cond: &Conditioning) -> Result<LayerwiseInputs<'_>> {
        let mut passes = vec![self.begin(sample, timestep, cond)?];
        for (n, place) in self.places(|_| true).iter().enumerate() {
            passes.push(self.advance(&passes[n], place, &[]));
        }
        Ok(LayerwiseInputs { passes })
    }

    /// What leaves a neighborhood of this network on the inputs of `full`, beside what leaves it there: the output, and skips to the way up.
    /// Each network computes in its own number type.
    ///
    /// # Shapes
    /// pairs (full, this) of `[B, C, H, W]`
    pub fn layerwise<'n>(&'n self, full: &LayerwiseInputs<'n>, neighborhood: &Neighborhood) -> Vec<(Tensor, Tensor)> {
        let (before, end) = (&full.passes[neighborhood.places.start], &full.passes[neighborhood.places.end]);
        let before = &before.to_kind(self.kind);
        let places = self.places(|_| true);
        let mut own: Option<Pass> = None;
        for place in &places[neighborhood.places.clone()] {
            own = Some(self.advance(own.as_ref().unwrap_or(before), place, &[]));
        }
        let own = own.as_ref().unwrap_or(before);
        let skips = end.skips.iter().filter(|(name, _)| !before.skips.contains_key(*name));
        let skips = skips.filter_map(|(name, skip)| Some((skip.shallow_clone(), own.skips.get(name)?.shallow_clone())));
        std::iter::once((end.x.shallow_clone(), own.x.shallow_clone())).chain(skips).collect()
    }
}
