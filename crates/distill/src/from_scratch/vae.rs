//! The autoencoder's training: reconstruct images through a small Gaussian code.

use data::{PairSource, image_batch, mix};
use diffusion::{AutoencoderKl, VaeConfig};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use unet::weights::{Tensors, Weights, seeded};

use crate::error::Result;
use crate::train::{StepLoss, Task};
use unet::Compute;

/// Weights of the autoencoder's loss terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeTaskConfig {
    /// Weight of the mean squared error; the mean absolute error has weight 1.
    pub square: f64,
    /// Weight of the mean absolute error of horizontal and vertical differences, which keeps edges sharp.
    pub edges: f64,
    /// Weight of the KL divergence from the standard normal, per latent element.
    pub kl: f64,
}

/// Trains an [`AutoencoderKl`] (arXiv 1312.6114; the architecture of arXiv 2112.10752 without its adversarial term).
pub struct VaeTask<'a> {
    /// Architecture.
    pub vae: &'a VaeConfig,
    /// Images.
    pub source: &'a dyn PairSource,
    /// Loss weights.
    pub config: VaeTaskConfig,
    /// Seed of the code's noise.
    pub seed: u64,
    /// Images per step.
    pub batch: u64,
    /// Where to compute.
    pub device: Device,
    /// Number type to compute in.
    pub compute: Compute,
}

impl Task for VaeTask<'_> {
    fn loss(&mut self, params: &Tensors, step: u64) -> Result<StepLoss> {
        let indices: Vec<u64> = (step * self.batch..(step + 1) * self.batch).collect();
        let (x, _) = image_batch(self.source, &indices, self.device)?;
        let weights = Weights::from_tensors(super::cast(params, self.compute));
        let vae = AutoencoderKl::build(self.vae, &weights.root())?;
        weights.finish()?;

        let moments = vae.encode(&x.to_kind(self.compute.kind()))?;
        let (mean, logvar) = (moments.mean.to_kind(Kind::Float), moments.logvar.to_kind(Kind::Float));
        let noise = seeded((mix(self.seed, step) >> 1) as i64, || Tensor::randn(mean.size(), (Kind::Float, Device::Cpu)));
        let noise = noise.to_device(self.device);
        let z = &mean + noise * (&logvar * 0.5).exp();
        let y = vae.decode(&z.to_kind(self.compute.kind()))?.to_kind(Kind::Float);

        let diff = &y - &x;
        let edges = (diff.diff(1, 2, None::<&Tensor>, None::<&Tensor>).abs().mean(Kind::Float)
            + diff.diff(1, 3, None::<&Tensor>, None::<&Tensor>).abs().mean(Kind::Float))
            * self.config.edges;
        let absolute = diff.abs().mean(Kind::Float);
        let square = diff.square().mean(Kind::Float) * self.config.square;
        let kl: Tensor = (mean.square() + logvar.exp() - 1.0 - &logvar).mean(Kind::Float) * (0.5 * self.config.kl);
        let total = &absolute + &square + &edges + &kl;
        let terms = [("absolute", absolute), ("square", square), ("edges", edges), ("kl", kl)];
        Ok(StepLoss { total, terms: terms.map(|(n, t)| (n.to_string(), t.detach())).into() })
    }
}
