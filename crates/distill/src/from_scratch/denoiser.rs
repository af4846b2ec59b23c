//! The U-Net's own training: predict the noise (or velocity) in noised latents, given the caption.

use diffusion::NoiseSchedule;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use unet::weights::{Tensors, Weights};
use unet::{RemovalSet, UNet, UNetConfig};

use crate::config::Compute;
use crate::data::{Shuffle, StepNoise};
use crate::error::Result;
use crate::latents::{Conditioner, LatentCache, drop_captions};
use crate::losses::mse_per_sample;
use crate::trainer::{StepLoss, Task};

/// Settings of the denoising task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiserTaskConfig {
    /// Share of captions dropped, so that classifier-free guidance works.
    pub caption_dropout: f64,
    /// Weights each timestep by min(SNR, gamma) in x0 terms (arXiv 2303.09556, equation 5); 0 weights all alike.
    pub min_snr_gamma: f64,
}

/// Trains a [`UNet`] on cached latents (arXiv 2006.11239; velocity prediction: arXiv 2202.00512).
pub struct DenoiserTask<'a> {
    /// Architecture.
    pub unet: &'a UNetConfig,
    /// What the network lacks (empty for a full one).
    pub removed: &'a RemovalSet,
    /// Latents and captions.
    pub cache: &'a LatentCache,
    /// Their order.
    pub order: Shuffle,
    /// Captions to conditioning.
    pub conditioner: &'a Conditioner<'a>,
    /// Noise schedule and prediction type.
    pub schedule: &'a NoiseSchedule,
    /// Settings.
    pub config: DenoiserTaskConfig,
    /// Seed of noise and timesteps.
    pub seed: u64,
    /// Samples per step.
    pub batch: u64,
    /// Where to compute.
    pub device: Device,
    /// Number type to compute in.
    pub compute: Compute,
}

impl Task for DenoiserTask<'_> {
    fn loss(&mut self, params: &Tensors, step: u64) -> Result<StepLoss> {
        let (x0, captions) = self.cache.batch(&self.order.batch(step, self.batch), self.device);
        let draw = StepNoise::draw(
            self.seed,
            step,
            &x0.size(),
            self.schedule.config().num_train_timesteps,
            self.config.caption_dropout,
            self.device,
        );
        let cond = drop_captions(&tch::no_grad(|| (self.conditioner)(&captions))?, &draw.keep);
        let x_t = self.schedule.add_noise(&x0, &draw.noise, &draw.timesteps)?;
        let target = self.schedule.target(&x0, &draw.noise, &draw.timesteps)?;

        let unet = UNet::from_weights(self.unet, Weights::from_tensors(super::cast(params, self.compute)), self.removed)?;
        let kind = self.compute.kind();
        let prediction = unet.forward(&x_t.to_kind(kind), &draw.timesteps, &cond.to_kind(kind))?;
        let loss = (mse_per_sample(&prediction, &target) * self.weights(&draw.timesteps)?).mean(Kind::Float);
        Ok(StepLoss { terms: vec![("task".into(), loss.detach())], total: loss })
    }
}

impl DenoiserTask<'_> {
    // The x0-loss weight min(SNR, gamma), divided by what the prediction type already implies: SNR for noise, SNR + 1 for velocity.
    fn weights(&self, timesteps: &Tensor) -> Result<Tensor> {
        let gamma = self.config.min_snr_gamma;
        if gamma <= 0.0 {
            return Ok(Tensor::ones(timesteps.size(), (Kind::Float, self.device)));
        }
        let snr = self.schedule.snr(timesteps)?;
        let implied = match self.schedule.config().prediction_type {
            diffusion::PredictionType::VPrediction => &snr + 1.0,
            _ => snr.shallow_clone(),
        };
        Ok(snr.clamp_max(gamma) / implied)
    }
}
