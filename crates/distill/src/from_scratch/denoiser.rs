//! The U-Net's own training: predict the noise (or velocity) in noised latents, given the caption.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use unet::weights::{Tensors, Weights};
use unet::{RemovalSet, UNet, UNetConfig};

use crate::error::Result;
use crate::loss::{mse_per_sample, snr_weights};
use crate::noise::{LatentData, Noised};
use crate::train::{StepLoss, Task};

/// Settings of the denoising task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiserTaskConfig {
    /// Share of captions dropped, so that classifier-free guidance works.
    pub caption_dropout: f64,
    /// Weights each timestep by min(SNR, gamma) in x0 terms (arXiv 2303.09556, equation 5); 0 weights all alike.
    pub min_snr_gamma: f64,
    /// Steps for which that holds; from then on all timesteps weigh alike. For velocity prediction the weights favour little noise,
    /// where shapes and colours are learned; where things stand is decided under much noise.
    pub min_snr_steps: u64,
}

/// Trains a [`UNet`] on cached latents (arXiv 2006.11239; velocity prediction: arXiv 2202.00512).
pub struct DenoiserTask<'a> {
    /// Architecture.
    pub unet: &'a UNetConfig,
    /// What the network lacks (empty for a full one).
    pub removed: &'a RemovalSet,
    /// Latents, captions, and how they are noised.
    pub data: LatentData<'a>,
    /// Weights of the timesteps, among others.
    pub config: &'a DenoiserTaskConfig,
    /// Micro-batches of a step, on all ranks together.
    pub passes: u64,
}

/// The parameters from which a U-Net is trained. The last projection of every residual branch and of the network is zero: at
/// first each block hands its input on, as in the published models' own training (their `zero_module`; arXiv 2105.05233).
///
/// # Errors
/// None for a valid configuration.
pub fn initial_unet(config: &UNetConfig, seed: u64, device: Device) -> Result<Tensors> {
    const LAST: [&str; 3] = ["conv2", "proj_out", "conv_out"];
    let unet = UNet::random(config, seed, device, Kind::Float)?;
    let start = |(key, t): (&String, &Tensor)| {
        let last = key.rsplit('.').nth(1).is_some_and(|layer| LAST.contains(&layer));
        (key.clone(), if last { t.zeros_like() } else { t.shallow_clone() })
    };
    Ok(unet.parameters().iter().map(start).collect())
}

impl Task for DenoiserTask<'_> {
    fn loss(&mut self, params: &Tensors, micro: u64) -> Result<StepLoss> {
        let Noised { x_t, timesteps, cond, target } = self.data.noised(micro)?;
        let unet = UNet::from_weights(self.unet, Weights::from_tensors(super::cast(params, self.data.compute)), self.removed)?;
        let prediction = unet.forward(&x_t, &timesteps, &cond)?;
        let loss = (mse_per_sample(&prediction, &target) * self.weights(&timesteps, micro / self.passes.max(1))?).mean(Kind::Float);
        Ok(StepLoss { terms: vec![("task".into(), loss.detach())], total: loss })
    }
}

impl DenoiserTask<'_> {
    fn weights(&self, timesteps: &Tensor, step: u64) -> Result<Tensor> {
        let gamma = if step < self.config.min_snr_steps { self.config.min_snr_gamma } else { 0.0 };
        snr_weights(self.data.schedule, timesteps, gamma)
    }
}
