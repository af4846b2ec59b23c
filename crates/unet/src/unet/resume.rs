//! A forward pass that halts and goes on: when many removal sets are measured, all that comes before the first removed layer is
//! the same for many of them and need not be computed again.

use std::ops::Range;

use super::*;
use crate::blocks::Inner;
use crate::config::{Part, Transformer};

/// What runs in one go: a ResNet, or some blocks of a Transformer2D, with its entrance before the first and its exit behind the
/// last one. The change of size at the end of a stage goes with its last part.
#[derive(Debug, Clone)]
pub(crate) struct SegmentRef {
    pub stage: usize,
    pub part: usize,
    /// Blocks of the Transformer2D; `0..0` for a ResNet.
    pub blocks: Range<usize>,
}

/// A forward pass halted between two places.
#[derive(Debug)]
pub struct Pass<'n> {
    /// Output of the last part; input of the Transformer2D that has begun.
    pub(super) x: Tensor,
    pub(super) inner: Option<Inner>,
    pub(super) time: Tensor,
    pub(super) text: Tensor,
    pub(super) skips: BTreeMap<&'n str, Tensor>,
}

impl Pass<'_> {
    /// What the pass has come to: behind the last place the prediction, `[B, C, H, W]`.
    pub fn output(&self) -> &Tensor {
        &self.x
    }

    /// The same pass for a network that computes in `kind`.
    pub(super) fn to_kind(&self, kind: Kind) -> Self {
        Self {
            x: self.x.to_kind(kind),
            inner: self.inner.as_ref().map(|inner| inner.with_tokens(&inner.tokens.to_kind(kind))),
            time: self.time.to_kind(kind),
            text: self.text.to_kind(kind),
            skips: self.skips.iter().map(|(name, skip)| (*name, skip.to_kind(kind))).collect(),
        }
    }

    /// Bytes that this pass keeps alive; skips are counted in every pass that holds them.
    pub fn bytes(&self) -> u64 {
        let own = [&self.x, &self.time, &self.text];
        let all = own.into_iter().chain(self.inner.as_ref().map(|inner| &inner.tokens)).chain(self.skips.values());
        all.map(|t| (t.numel() * t.kind().elt_size_in_bytes()) as u64).sum()
    }
}

impl UNet {
    /// The places of a pass, in order. Transformer2Ds for which `whole` is true, or that are absent, run in one go.
    pub(crate) fn places(&self, whole: impl Fn(&Transformer) -> bool) -> Vec<SegmentRef> {
        let mut places = Vec::new();
        for (stage, parts) in self.config.stages.iter().map(|s| &s.parts).enumerate() {
            for (part, content) in parts.iter().enumerate() {
                match content {
                    Part::Transformer(t) if t.depth > 1 && !whole(t) && !self.stages[stage].is_absent(part) => {
                        places.extend((0..t.depth).map(|i| SegmentRef { stage, part, blocks: i..i + 1 }));
                    }
                    Part::Transformer(t) => places.push(SegmentRef { stage, part, blocks: 0..t.depth }),
                    Part::Resnet(_) => places.push(SegmentRef { stage, part, blocks: 0..0 }),
                }
            }
        }
        places
    }

    /// A pass halted before the first place.
    pub(crate) fn begin(&self, sample: &Tensor, timestep: &Tensor, cond: &Conditioning) -> Result<Pass<'_>> {
        self.check(sample, timestep, cond)?;
        let (time, text) = (self.embed(timestep, cond), cond.encoder_hidden_states.to_kind(self.kind));
        let x = self.conv_in.forward(&self.centre(sample));
        let skips = BTreeMap::from([("conv_in", x.shallow_clone())]);
        Ok(Pass { x, inner: None, time, text, skips })
    }

    /// The pass behind `place`, with the flagged branches left out; behind the last place of all it ends in the prediction.
    pub(crate) fn advance<'n>(&'n self, pass: &Pass<'n>, place: &SegmentRef, ablated: &[bool]) -> Pass<'n> {
        self.advance_with(pass, place, ablated, &TapSet::none()).0
    }

    /// [`UNet::advance`] with the wanted outputs that the place leaves.
    pub(super) fn advance_with<'n>(
        &'n self,
        pass: &Pass<'n>,
        place: &SegmentRef,
        ablated: &[bool],
        wanted: &TapSet,
    ) -> (Pass<'n>, Tensors) {
        let skips = pass.skips.iter().map(|(name, skip)| (*name, skip.shallow_clone())).collect();
        let mut context = ForwardContext { ablated, time: &pass.time, text: &pass.text, skips, wanted, taps: Tensors::new() };
        let stage = &self.stages[place.stage];
        let inner = pass.inner.as_ref().map(Inner::shallow_clone);
        let (mut x, inner) = stage.advance(place.part, place.blocks.clone(), pass.x.shallow_clone(), inner, &mut context);
        let ends = inner.is_none() && place.stage + 1 == self.stages.len() && place.part + 1 == stage.parts();
        if ends {
            x = self.predict(&x);
        }
        let (skips, taps) = (context.skips, context.taps);
        (Pass { x, inner, time: pass.time.shallow_clone(), text: pass.text.shallow_clone(), skips }, taps)
    }
}
