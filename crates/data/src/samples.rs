//! Clean samples, batch by batch: what every source of training data comes to. Sources -> **samples** -> noise and losses.

use diffusion::Moments;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use unet::Conditioning;
use unet::weights::seeded;

use crate::error::Result;
use crate::latent_set::LatentSet;
use crate::order::{Shuffle, mix};

/// Turns captions into what the U-Net is conditioned on.
pub type Conditioner<'a> = dyn Fn(&[&str]) -> diffusion::Result<Conditioning> + 'a;

/// Clean training samples, batch by batch.
pub trait Samples {
    /// Micro-batch `micro` of the run's global sequence; the same number always gives the same samples.
    ///
    /// # Errors
    /// Whatever files and networks report.
    fn batch(&mut self, micro: u64) -> Result<Batch>;
}

/// One micro-batch.
#[derive(Debug)]
pub struct Batch {
    /// Scaled as the U-Net sees them, `[B, C, h, w]`, f32 on the device to compute on.
    pub latents: Tensor,
    /// What they show, on the same device.
    pub cond: Conditioning,
}

/// Samples of a [`LatentSet`].
pub struct LatentSetSamples<'a> {
    /// Latents and captions.
    pub set: &'a LatentSet,
    /// Their order.
    pub order: Shuffle,
    /// Captions to conditioning.
    pub conditioner: &'a Conditioner<'a>,
    /// Samples per micro-batch.
    pub batch: u64,
    /// Where to compute.
    pub device: Device,
}

impl Samples for LatentSetSamples<'_> {
    fn batch(&mut self, micro: u64) -> Result<Batch> {
        let (latents, captions) = self.set.batch(&self.order.batch(micro, self.batch), self.device);
        Ok(Batch { latents, cond: tch::no_grad(|| (self.conditioner)(&captions))? })
    }
}

/// What is taken of the autoencoder's answer, a normal distribution per latent value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Posterior {
    /// Its mean.
    Mean,
    /// A draw, another one each time (Rombach et al., arXiv 2112.10752, appendix G).
    Sample,
}

/// How encoded or decoded images are read.
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions {
    /// Samples per batch.
    pub batch: u64,
    /// Seed of the order and of draws from the posterior.
    pub seed: u64,
    /// What is taken of the autoencoder's answer.
    pub posterior: Posterior,
    /// Threads that read ahead; with 0 everything is read when it is needed. They change no bit.
    pub workers: usize,
    /// The run takes every n-th batch: the number of ranks that share the data.
    pub stride: u64,
    /// Where to compute.
    pub device: Device,
}

/// Latents from moments, not scaled. The draw is made on the CPU and depends on (`seed`, `micro`) only.
///
/// # Shapes
/// `mean`, `logvar` and result `[B, C, h, w]`, f32
pub(crate) fn draw(mean: &Tensor, logvar: &Tensor, posterior: Posterior, seed: u64, micro: u64) -> Tensor {
    match posterior {
        Posterior::Mean => mean.shallow_clone(),
        Posterior::Sample => {
            let moments = Moments { mean: mean.shallow_clone(), logvar: logvar.shallow_clone() };
            moments.sample(&normal(mix(seed, micro ^ POSTERIOR), &mean.size()).to_device(mean.device()))
        }
    }
}

// What the stream of random numbers is for.
const POSTERIOR: u64 = 0x706f_7374_6572;

fn normal(seed: u64, shape: &[i64]) -> Tensor {
    seeded((seed >> 1) as i64, || Tensor::randn(shape, (Kind::Float, Device::Cpu)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_has_the_moments_of_the_posterior() {
        let full = |value: f64| Tensor::full([4, 4, 32, 32], value, (Kind::Float, Device::Cpu));
        let (mean, logvar) = (full(3.0), full(0.25f64.ln()));
        let drawn = draw(&mean, &logvar, Posterior::Sample, 1, 2);
        let (m, s) = (drawn.mean(Kind::Float).double_value(&[]), drawn.std(true).double_value(&[]));
        // 16384 values: standard error 0.004.
        assert!((m - 3.0).abs() < 0.02 && (s - 0.5).abs() < 0.02, "{m} {s}");
        assert!(draw(&mean, &logvar, Posterior::Mean, 1, 2).equal(&mean));
        assert!(!draw(&mean, &logvar, Posterior::Sample, 1, 3).equal(&drawn), "another batch, another draw");
    }
}
