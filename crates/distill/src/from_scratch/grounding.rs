//! Grounding of a text encoder: from the caption's state alone, predict roughly what the image shows where.
//!
//! Contrast with images teaches which words occur, not how they depend on each other: "above" and "below" stay nearly alike. A
//! caption that must foretell the coarse image keeps them apart, at a thousandth of the U-Net's cost (our own step; SDXL's encoders
//! learn it from hundreds of millions of pairs).

use data::{LatentSet, Shuffle};
use diffusion::{ClipTextConfig, ClipTextModel, Tokenizer};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};
use unet::nn::{LayerNorm, Linear};
use unet::weights::{Cursor, Tensors, Weights};

use super::clip::{below, unpadded};
use crate::error::Result;
use crate::loss::mse;
use crate::train::{StepLoss, Task};
use unet::Compute;

/// Settings of the grounding task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroundingTaskConfig {
    /// Rows and columns of the coarse image.
    pub grid: i64,
}

/// Trains a text encoder to predict the mean latents of each cell of a grid, by mean squared error, from the state of the end
/// token in the layer that the U-Net reads.
pub struct GroundingTask<'a> {
    /// Architecture of the encoder.
    pub encoder: &'a ClipTextConfig,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Latents and captions.
    pub cache: &'a LatentSet,
    /// Their order.
    pub order: Shuffle,
    /// Settings.
    pub config: &'a GroundingTaskConfig,
    /// Pairs per step.
    pub batch: u64,
    /// Where to compute.
    pub device: Device,
    /// Number type to compute in.
    pub compute: Compute,
}

/// The encoder, below the prefix `text_encoder`, and the read-out that is thrown away afterwards.
struct Grounded {
    encoder: ClipTextModel,
    norm: LayerNorm,
    readout: Linear,
}

const ENCODER: &str = "text_encoder";

impl Grounded {
    fn build(config: &ClipTextConfig, outputs: i64, at: &Cursor) -> Result<Self> {
        Ok(Self {
            encoder: ClipTextModel::build(config, &at.pp(ENCODER))?,
            norm: LayerNorm::new(&at.pp("norm"), config.hidden_size, config.layer_norm_eps),
            readout: Linear::new(&at.pp("readout"), config.hidden_size, outputs, true),
        })
    }
}

impl GroundingTask<'_> {
    /// The parameters at the start: the given encoder and a fresh read-out.
    ///
    /// # Errors
    /// When the architecture is refused.
    pub fn initial(&self, encoder: &ClipTextModel, seed: u64) -> Result<Tensors> {
        let weights = Weights::random(seed, self.device, Kind::Float);
        Grounded::build(self.encoder, self.outputs(), &weights.root())?;
        let mut tensors = weights.finish()?.0;
        for (name, t) in encoder.parameters() {
            tensors.insert(format!("{ENCODER}.{name}"), t.shallow_clone());
        }
        Ok(tensors)
    }

    /// The trained encoder.
    ///
    /// # Errors
    /// When `tensors` are not this task's.
    pub fn encoder(&self, tensors: &Tensors) -> Result<ClipTextModel> {
        Ok(ClipTextModel::from_weights(self.encoder, Weights::from_tensors(below(tensors, ENCODER)))?)
    }

    fn outputs(&self) -> i64 {
        self.cache.latents().size()[1] * self.config.grid * self.config.grid
    }
}

impl Task for GroundingTask<'_> {
    fn loss(&mut self, params: &Tensors, step: u64) -> Result<StepLoss> {
        let (x0, captions) = self.cache.batch(&self.order.batch(step, self.batch), self.device);
        let weights = Weights::from_tensors(super::cast(params, self.compute));
        let model = Grounded::build(self.encoder, self.outputs(), &weights.root())?;
        weights.finish()?;

        let eos = self.tokenizer.eos();
        let ids = unpadded(self.tokenizer.encode(&captions)?, eos);
        let mut states = model.encoder.forward(&ids)?.hidden_states;
        // SDXL's U-Net reads the states before the last layer.
        let state = states.swap_remove(states.len() - 2);
        let end = ids.eq(eos).to_kind(Kind::Int).argmax(-1, false).to_device(self.device);
        let at_end = state.gather(1, &end.view([-1, 1, 1]).expand([-1, 1, state.size()[2]], false), false).squeeze_dim(1);
        let predicted = model.readout.forward(&model.norm.forward(&at_end)).to_kind(Kind::Float);

        let coarse = x0.adaptive_avg_pool2d([self.config.grid, self.config.grid]).flatten(1, -1);
        let loss = mse(&predicted, &coarse);
        Ok(StepLoss { terms: vec![("grounding".into(), loss.detach())], total: loss })
    }
}
