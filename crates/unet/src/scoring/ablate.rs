//! The U-Net as a model that can be scored: implements [`prune_core::score::Segmented`] over calibration samples. Flow: U-Net ->
//! **per-layer scores**.
//!
//! Two criteria come from one forward pass, per sample, with eps the prediction: the output loss of arXiv 2404.11098,
//! `mean (eps(removed) - eps_ori)^2`, and the change of the task loss, `mean (eps(removed) - target)^2 - mean (eps_ori - target)^2`.

use std::ops::Range;

use prune_core::score::{LossDeltas, PrefixCached, Segment, Segmented};
use prune_core::{LayerTable, RemovalSet};
use tch::{Kind, Tensor};

use super::calibration::Calibration;
use super::registry::{OUTPUT_LOSS, TASK_LOSS_DELTA};
use crate::error::{Error, Result};
use crate::unet::{Pass, SegmentRef, UNet};

/// Removal sets that are walked together; some tens share nearly all there is to share.
const SETS_AT_ONCE: usize = 32;

/// Memory for inner states of the U-Net, from which passes with other layers removed go on.
const CACHE_BYTES: u64 = 2 << 30;

/// A U-Net with its calibration samples, ready to be scored: see [`UNetPasses`].
pub type UNetAblate<'a> = PrefixCached<UNetPasses<'a>>;

/// A U-Net whose passes over its calibration samples halt behind every ResNet and every BasicTransformerBlock, so that an
/// ablated pass goes on from the first layer that differs. That changes no bit of the result.
#[derive(Debug)]
pub struct UNetPasses<'a> {
    unet: &'a UNet,
    table: LayerTable,
    data: Calibration,
    criteria: Vec<String>,
    places: Vec<SegmentRef>,
    segments: Vec<Segment>,
}

impl<'a> UNetPasses<'a> {
    /// Measures `criteria`, of [`OUTPUT_LOSS`] and [`TASK_LOSS_DELTA`]. `table` must come from this network's configuration, at any
    /// granularity.
    ///
    /// # Errors
    /// [`Error::Layer`] for a table with a layer that this network does not have, or in another order; [`Error::Criterion`] for another
    /// criterion, or one that needs targets where the samples have none.
    pub fn new(unet: &'a UNet, table: LayerTable, data: Calibration, criteria: &[&str]) -> Result<Self> {
        for id in criteria {
            let reason = match *id {
                OUTPUT_LOSS => continue,
                TASK_LOSS_DELTA if data.target().is_some() => continue,
                TASK_LOSS_DELTA => "it needs targets, and this calibration set was made from prompts alone",
                _ => "a forward pass does not give it",
            };
            return Err(Error::Criterion { id: id.to_string(), reason: reason.into() });
        }
        unet.layout().flags(&table.layers().iter().map(|l| l.id.clone()).collect())?;
        let places = unet.places(|t| table.layer(&t.id).is_some());
        let segments = segments(unet, &table, &places)?;
        let criteria = criteria.iter().map(|id| id.to_string()).collect();
        Ok(Self { unet, table, data, criteria, places, segments })
    }

    /// The model to score, which keeps at most 2 GiB of other passes.
    ///
    /// # Errors
    /// As [`UNetPasses::new`].
    pub fn model(unet: &'a UNet, table: &LayerTable, data: Calibration, criteria: &[&str]) -> Result<UNetAblate<'a>> {
        Self::new(unet, table.clone(), data, criteria)?.ablate(CACHE_BYTES)
    }

    /// The model to score. `memory` bounds in bytes what is kept of other passes beside the one that runs.
    ///
    /// # Errors
    /// None for a table that [`UNetPasses::new`] took.
    pub fn ablate(self, memory: u64) -> Result<UNetAblate<'a>> {
        Ok(PrefixCached::new(self, memory, SETS_AT_ONCE)?)
    }
}

/// One segment per place, with the layers that stand there and the work of a pass on the way through.
fn segments(unet: &UNet, table: &LayerTable, places: &[SegmentRef]) -> Result<Vec<Segment>> {
    let mut next = 0;
    let mut segments = Vec::with_capacity(places.len());
    for place in places {
        let part = &unet.config().stages[place.stage].parts[place.part];
        let blocks: Vec<String> = place.blocks.clone().map(|i| format!("{}.transformer_blocks.{i}", part.id())).collect();
        let stands_here = |id: &str| {
            let below = |block: &String| id.strip_prefix(block.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
            id == part.id() || blocks.iter().any(below)
        };
        let count = table.layers()[next..].iter().take_while(|layer| stands_here(layer.id.as_str())).count();
        let layers = next..next + count;
        // What is fixed around a layer is small beside it; a pass without any removable layer still does something.
        let work = 1 + table.layers()[layers.clone()].iter().map(|layer| layer.macs).sum::<u64>();
        segments.push(Segment::new(layers, work));
        next += count;
    }
    match table.layers().get(next) {
        None => Ok(segments),
        Some(layer) => Err(Error::Layer { id: layer.id.to_string(), reason: "the table is not in the order of the forward pass".into() }),
    }
}

/// Mean squared difference of each sample. `[N, ..]`, `[N, ..]` -> `N` numbers
fn squared_difference(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    let squares = (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).square().flatten(1, -1).mean_dim(1, false, Kind::Double);
    Ok(Vec::<f64>::try_from(squares.to_device(tch::Device::Cpu))?)
}

impl UNetPasses<'_> {
    fn task_loss_delta(&self, original: &Tensor, ablated: &Tensor, samples: Range<usize>) -> Result<Vec<f64>> {
        let target = self.data.targets(self.unet, samples)?;
        if target.size() != original.size() {
            return Err(Error::Input {
                name: "target".into(),
                expected: format!("{:?}", original.size()),
                got: format!("{:?}", target.size()),
            });
        }
        let (after, before) = (squared_difference(ablated, &target)?, squared_difference(original, &target)?);
        Ok(after.iter().zip(&before).map(|(after, before)| after - before).collect())
    }
}

impl<'a> Segmented for UNetPasses<'a> {
    type Error = Error;
    type State = Pass<'a>;

    fn table(&self) -> &LayerTable {
        &self.table
    }

    fn criteria(&self) -> Vec<String> {
        self.criteria.clone()
    }

    fn num_samples(&self) -> usize {
        self.data.num_samples()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        self.data.bins().get(index).copied().unwrap_or(0)
    }

    fn segments(&self) -> &[Segment] {
        &self.segments
    }

    fn start(&mut self, samples: Range<usize>) -> Result<Pass<'a>> {
        if samples.start >= samples.end || samples.end > self.data.num_samples() {
            return Err(Error::Input {
                name: "samples".into(),
                expected: format!("a non-empty range within 0..{}", self.data.num_samples()),
                got: format!("{samples:?}"),
            });
        }
        let (x_t, timesteps, cond) = self.data.inputs(self.unet, samples);
        tch::no_grad(|| self.unet.begin(&x_t, &timesteps, &cond))
    }

    fn step(&mut self, state: &Pass<'a>, segment: usize, removed: &RemovalSet) -> Result<Pass<'a>> {
        let off = if removed.is_empty() { Vec::new() } else { self.unet.layout().flags(removed)? };
        if let Some(id) = removed.iter().find(|id| self.table.layer(id.as_str()).is_none()) {
            return Err(Error::Layer { id: id.to_string(), reason: "the layer table has no such item".into() });
        }
        Ok(tch::no_grad(|| self.unet.advance(state, &self.places[segment], &off)))
    }

    fn loss_deltas(&mut self, original: &Pass<'a>, ablated: &Pass<'a>, samples: Range<usize>) -> Result<LossDeltas> {
        let (original, ablated) = (original.output(), ablated.output());
        let mut columns = Vec::with_capacity(self.criteria.len());
        for criterion in &self.criteria {
            columns.push(match criterion.as_str() {
                OUTPUT_LOSS => squared_difference(ablated, original)?,
                _ => self.task_loss_delta(original, ablated, samples.clone())?,
            });
        }
        let values: Vec<f64> = (0..samples.len()).flat_map(|row| columns.iter().map(move |column| column[row])).collect();
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::NotFinite {
                what: "the loss with layers removed".into(),
                hint: "check the calibration samples, and use f32 or bf16 where f16 overflows".into(),
            });
        }
        Ok(LossDeltas::new(self.criteria.len(), values)?)
    }

    fn state_bytes(&self, state: &Pass<'a>) -> u64 {
        state.bytes()
    }
}
