//! The points on which every layer is scored and every plan is measured. Calibration set -> **samples** -> scores.
//!
//! Shapes: `N` samples, `C` channels, `H` `W` height and width of the latents.

use std::ops::Range;

use tch::Tensor;

use crate::error::{Error, Result};
use crate::unet::{Conditioning, UNet};

/// Noised latents with what the model should say about them.
#[derive(Debug)]
pub struct Calibration {
    x_t: Tensor,
    timesteps: Tensor,
    cond: Conditioning,
    target: Option<Tensor>,
    bins: Vec<u32>,
}

impl Calibration {
    /// # Shapes
    /// `x_t` and `target` `[N, C, H, W]`, `timesteps [N]`, conditioning of `N` samples, `N` bins of time steps. Without a target only
    /// losses against the network's own output can be measured.
    ///
    /// # Errors
    /// [`Error::Input`] when the numbers of samples differ, there are none, or the target's shape is not the sample's.
    pub fn new(x_t: Tensor, timesteps: Tensor, cond: Conditioning, target: Option<Tensor>, bins: Vec<u32>) -> Result<Self> {
        let n = x_t.size().first().copied().unwrap_or(0);
        if n == 0 {
            return Err(Error::Input {
                name: "x_t".into(),
                expected: "at least one calibration sample".into(),
                got: format!("{:?}", x_t.size()),
            });
        }
        let batch = |t: &Tensor| t.size().first().copied().unwrap_or(0);
        let mut counts = vec![("timesteps", batch(&timesteps)), ("encoder_hidden_states", cond.batch()), ("bins", bins.len() as i64)];
        counts.extend(target.iter().map(|target| ("target", batch(target))));
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

    /// What the model should say, `[N, C, H, W]`, where that is known.
    pub fn target(&self) -> Option<&Tensor> {
        self.target.as_ref()
    }

    /// The same samples.
    pub fn shallow_clone(&self) -> Self {
        Self {
            x_t: self.x_t.shallow_clone(),
            timesteps: self.timesteps.shallow_clone(),
            cond: self.cond.shallow_clone(),
            target: self.target.as_ref().map(Tensor::shallow_clone),
            bins: self.bins.clone(),
        }
    }

    /// The first `n` samples.
    ///
    /// # Errors
    /// [`Error::Input`] for none, or more than there are.
    pub fn first(&self, n: usize) -> Result<Self> {
        if !(1..=self.num_samples()).contains(&n) {
            let expected = format!("1 to {}, the points of the calibration set", self.num_samples());
            return Err(Error::Input { name: "samples".into(), expected, got: n.to_string() });
        }
        let take = |t: &Tensor| t.narrow(0, 0, n as i64);
        Ok(Self {
            x_t: take(&self.x_t),
            timesteps: take(&self.timesteps),
            cond: self.cond.narrow(0, n as i64),
            target: self.target.as_ref().map(take),
            bins: self.bins[..n].to_vec(),
        })
    }

    /// Sample, time steps and conditioning of a range, on the network's device.
    pub(super) fn inputs(&self, unet: &UNet, range: Range<usize>) -> (Tensor, Tensor, Conditioning) {
        let (start, len) = (range.start as i64, range.len() as i64);
        let take = |t: &Tensor| t.narrow(0, start, len).to_device(unet.device());
        (take(&self.x_t), take(&self.timesteps), self.cond.narrow(start, len).to_device(unet.device()))
    }

    /// The targets of a range, on the network's device.
    pub(super) fn targets(&self, unet: &UNet, range: Range<usize>) -> Result<Tensor> {
        let missing = || Error::Input { name: "target".into(), expected: "a calibration set with targets".into(), got: "none".into() };
        let target = self.target.as_ref().ok_or_else(missing)?;
        Ok(target.narrow(0, range.start as i64, range.len() as i64).to_device(unet.device()))
    }
}
