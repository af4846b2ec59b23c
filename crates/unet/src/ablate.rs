//! The U-Net as a model that can be scored: implements [`prune_core::Ablate`] over calibration samples. Flow: U-Net ->
//! **per-layer scores**.
//!
//! Two criteria come from one forward pass, per sample, with eps the prediction: the output loss of arXiv 2404.11098,
//! `mean (eps(removed) - eps_ori)^2`, and the change of the task loss, `mean (eps(removed) - target)^2 - mean (eps_ori - target)^2`.
//! Shapes: `N` samples, `C` channels, `H` `W` height and width of the latents.

use std::collections::BTreeMap;
use std::ops::Range;

use prune_core::{Ablate, Gaps, LayerTable, RemovalSet};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::unet::{Checkpoint, Cond, TapSet, UNet};

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

/// Column of [`UNetAblate::criteria`].
const OUTPUT_LOSS: &str = "output_loss";
/// Column of [`UNetAblate::criteria`].
const TASK_LOSS_DELTA: &str = "task_loss_delta";

/// A U-Net with its calibration samples.
///
/// The original's predictions are kept, and as far as `cache_bytes` allow also its state before each stage, so that an
/// ablated pass starts at the first stage that differs. That changes no bit of the result.
#[derive(Debug)]
pub struct UNetAblate<'a> {
    unet: &'a UNet,
    table: LayerTable,
    data: Calibration,
    criteria: [String; 2],
    batch: usize,
    cache_left: u64,
    /// By first sample and number of samples.
    originals: BTreeMap<(usize, usize), Original<'a>>,
}

#[derive(Debug)]
struct Original<'a> {
    /// `[N, C, H, W]` in f64.
    prediction: Tensor,
    /// `mean (eps_ori - target)^2` of each sample.
    task_loss: Vec<f64>,
    /// One per stage, or none.
    checkpoints: Vec<Checkpoint<'a>>,
}

impl<'a> UNetAblate<'a> {
    /// `table` must come from this network's configuration; `batch` samples run at once at most.
    ///
    /// # Errors
    /// [`Error::Layer`] for a table with a layer that this network does not have, [`Error::Input`] for a batch of 0.
    pub fn new(unet: &'a UNet, table: LayerTable, data: Calibration, batch: usize, cache_bytes: u64) -> Result<Self> {
        if batch == 0 {
            return Err(Error::Input { name: "batch".into(), expected: "at least 1".into(), got: "0".into() });
        }
        unet.layout().flags(&table.layers().iter().map(|l| l.id.clone()).collect())?;
        let criteria = [OUTPUT_LOSS.to_string(), TASK_LOSS_DELTA.to_string()];
        Ok(Self { unet, table, data, criteria, batch, cache_left: cache_bytes, originals: BTreeMap::new() })
    }

    /// The calibration samples.
    pub fn calibration(&self) -> &Calibration {
        &self.data
    }

    fn remember_original(&mut self, range: Range<usize>) -> Result<()> {
        let key = (range.start, range.len());
        if self.originals.contains_key(&key) {
            return Ok(());
        }
        let (x_t, timesteps, cond, target) = self.data.batch(self.unet, range);
        let (prediction, mut checkpoints) = self.unet.forward_with_checkpoints(&x_t, &timesteps, &cond)?;
        let bytes = UNet::checkpoint_bytes(&checkpoints);
        match self.cache_left.checked_sub(bytes) {
            Some(left) => self.cache_left = left,
            None => checkpoints.clear(),
        }
        if target.size() != prediction.size() {
            return Err(Error::Input {
                name: "target".into(),
                expected: format!("{:?}", prediction.size()),
                got: format!("{:?}", target.size()),
            });
        }
        let prediction = prediction.to_kind(Kind::Double);
        let task_loss = squared_gap(&prediction, &target)?;
        self.originals.insert(key, Original { prediction, task_loss, checkpoints });
        Ok(())
    }

    fn evaluate_batch(&mut self, off: &[bool], range: Range<usize>, out: &mut Vec<f64>) -> Result<()> {
        self.remember_original(range.clone())?;
        let original = &self.originals[&(range.start, range.len())];
        let (x_t, timesteps, cond, target) = self.data.batch(self.unet, range);
        let first = self.unet.first_stage(off);
        let prediction = match original.checkpoints.get(first) {
            Some(checkpoint) => self.unet.forward_from(checkpoint, off),
            None if off.contains(&true) => self.unet.forward_off(&x_t, &timesteps, &cond, off, &TapSet::none())?.sample,
            None => original.prediction.shallow_clone(),
        };
        let prediction = prediction.to_kind(Kind::Double);
        let output_loss = squared_gap(&prediction, &original.prediction)?;
        let task_loss = squared_gap(&prediction, &target)?;
        for ((output, task), before) in output_loss.iter().zip(&task_loss).zip(&original.task_loss) {
            out.extend([*output, task - before]);
        }
        Ok(())
    }
}

/// Mean squared difference of each sample. `[N, ..]`, `[N, ..]` -> `N` numbers
fn squared_gap(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    let gap = (a - b.to_kind(Kind::Double)).square().flatten(1, -1).mean_dim(1, false, Kind::Double);
    Ok(Vec::<f64>::try_from(gap.to_device(tch::Device::Cpu))?)
}

impl Ablate for UNetAblate<'_> {
    type Error = Error;

    fn table(&self) -> &LayerTable {
        &self.table
    }

    fn criteria(&self) -> &[String] {
        &self.criteria
    }

    fn num_samples(&self) -> usize {
        self.data.num_samples()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        self.data.bins.get(index).copied().unwrap_or(0)
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<Gaps> {
        if samples.start >= samples.end || samples.end > self.num_samples() {
            return Err(Error::Input {
                name: "samples".into(),
                expected: format!("a non-empty range within 0..{}", self.num_samples()),
                got: format!("{samples:?}"),
            });
        }
        let off = self.unet.layout().flags(removed)?;
        let mut values = Vec::with_capacity(2 * samples.len());
        let batch = self.batch;
        tch::no_grad(|| {
            samples.clone().step_by(batch).try_for_each(|start| {
                let end = (start + batch).min(samples.end);
                self.evaluate_batch(&off, start..end, &mut values)
            })
        })?;
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::NotFinite {
                what: format!("the loss with {} layers removed", removed.len()),
                hint: "check the calibration samples, and use f32 or bf16 where f16 overflows".into(),
            });
        }
        Ok(Gaps::new(self.criteria.len(), values)?)
    }
}
