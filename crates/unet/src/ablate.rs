//! The U-Net as a model that can be scored: implements [`prune_core::Segmented`] over calibration samples. Flow: U-Net ->
//! **per-layer scores**.
//!
//! Two criteria come from one forward pass, per sample, with eps the prediction: the output loss of arXiv 2404.11098,
//! `mean (eps(removed) - eps_ori)^2`, and the change of the task loss, `mean (eps(removed) - target)^2 - mean (eps_ori - target)^2`.
//! Shapes: `N` samples, `C` channels, `H` `W` height and width of the latents.

use std::ops::Range;

use prune_core::score::{LossDeltas, PrefixCached, Segment, Segmented};
use prune_core::{LayerTable, RemovalSet};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::unet::{Cond, Pass, Place, UNet};

/// Noised latents with what the model should say about them.
#[derive(Debug)]
pub struct Calibration {
    x_t: Tensor,
    timesteps: Tensor,
    cond: Cond,
    target: Tensor,
    bins: Vec<u32>,
}

impl Calibration {
    /// # Shapes
    /// `x_t` and `target` `[N, C, H, W]`, `timesteps [N]`, conditioning of `N` samples, `N` bins of time steps.
    ///
    /// # Errors
    /// [`Error::Input`] when the numbers of samples differ, there are none, or the target's shape is not the sample's.
    pub fn new(x_t: Tensor, timesteps: Tensor, cond: Cond, target: Tensor, bins: Vec<u32>) -> Result<Self> {
        let n = x_t.size().first().copied().unwrap_or(0);
        if n == 0 {
            return Err(Error::Input {
                name: "x_t".into(),
                expected: "at least one calibration sample".into(),
                got: format!("{:?}", x_t.size()),
            });
        }
        let batch = |t: &Tensor| t.size().first().copied().unwrap_or(0);
        let mut counts = vec![
            ("timesteps", batch(&timesteps)),
            ("encoder_hidden_states", cond.batch()),
            ("target", batch(&target)),
            ("bins", bins.len() as i64),
        ];
        if let Some(added) = &cond.added {
            counts.extend([("text_embeds", batch(&added.text_embeds)), ("time_ids", batch(&added.time_ids))]);
        }
        counts.extend(cond.guidance.iter().map(|guidance| ("guidance", batch(guidance))));
        if let Some((name, got)) = counts.into_iter().find(|(_, count)| *count != n) {
            return Err(Error::Input { name: name.into(), expected: format!("{n} samples, as in x_t"), got: got.to_string() });
        }
        Ok(Self { x_t, timesteps, cond, target, bins })
    }

    /// Number of samples; at least 1.
    pub fn num_samples(&self) -> usize {
        self.bins.len()
    }

    /// Bin of each sample.
    pub fn bins(&self) -> &[u32] {
        &self.bins
    }

    /// Sample, time steps, conditioning and target of a range, on the network's device.
    pub(crate) fn batch(&self, unet: &UNet, range: Range<usize>) -> (Tensor, Tensor, Cond, Tensor) {
        let (start, len) = (range.start as i64, range.len() as i64);
        let take = |t: &Tensor| t.narrow(0, start, len).to_device(unet.device());
        (take(&self.x_t), take(&self.timesteps), self.cond.narrow(start, len).to_device(unet.device()), take(&self.target))
    }
}

/// Column of the gaps.
const OUTPUT_LOSS: &str = "output_loss";
/// Column of the gaps.
const TASK_LOSS_DELTA: &str = "task_loss_delta";

/// Removal sets that are walked together; some tens share nearly all there is to share.
const SETS_AT_ONCE: usize = 32;

/// A U-Net with its calibration samples, ready to be scored: see [`UNetPasses`].
pub type UNetAblate<'a> = PrefixCached<UNetPasses<'a>>;

/// A U-Net whose passes over its calibration samples halt behind every ResNet and every BasicTransformerBlock, so that an
/// ablated pass goes on from the first layer that differs. That changes no bit of the result.
#[derive(Debug)]
pub struct UNetPasses<'a> {
    unet: &'a UNet,
    table: LayerTable,
    data: Calibration,
    criteria: [String; 2],
    places: Vec<Place>,
    segments: Vec<Segment>,
}

impl<'a> UNetPasses<'a> {
    /// `table` must come from this network's configuration, at any granularity.
    ///
    /// # Errors
    /// [`Error::Layer`] for a table with a layer that this network does not have, or in another order.
    pub fn new(unet: &'a UNet, table: LayerTable, data: Calibration) -> Result<Self> {
        unet.layout().flags(&table.layers().iter().map(|l| l.id.clone()).collect())?;
        let places = unet.places(|t| table.layer(&t.id).is_some());
        let segments = segments(unet, &table, &places)?;
        let criteria = [OUTPUT_LOSS.to_string(), TASK_LOSS_DELTA.to_string()];
        Ok(Self { unet, table, data, criteria, places, segments })
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
fn segments(unet: &UNet, table: &LayerTable, places: &[Place]) -> Result<Vec<Segment>> {
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
fn squared_gap(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    let gap = (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).square().flatten(1, -1).mean_dim(1, false, Kind::Double);
    Ok(Vec::<f64>::try_from(gap.to_device(tch::Device::Cpu))?)
}

impl<'a> Segmented for UNetPasses<'a> {
    type Error = Error;
    type State = Pass<'a>;

    fn table(&self) -> &LayerTable {
        &self.table
    }

    fn criteria(&self) -> Vec<String> {
        self.criteria.to_vec()
    }

    fn num_samples(&self) -> usize {
        self.data.num_samples()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        self.data.bins.get(index).copied().unwrap_or(0)
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
        let (x_t, timesteps, cond, _) = self.data.batch(self.unet, samples);
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
        let target = self.data.target.narrow(0, samples.start as i64, samples.len() as i64).to_device(self.unet.device());
        let (original, ablated) = (original.output(), ablated.output());
        if target.size() != original.size() {
            return Err(Error::Input {
                name: "target".into(),
                expected: format!("{:?}", original.size()),
                got: format!("{:?}", target.size()),
            });
        }
        let output_loss = squared_gap(ablated, original)?;
        let (after, before) = (squared_gap(ablated, &target)?, squared_gap(original, &target)?);
        let rows = output_loss.iter().zip(after.iter().zip(&before));
        let values: Vec<f64> = rows.flat_map(|(output, (after, before))| [*output, after - before]).collect();
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
