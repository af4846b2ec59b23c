//! Random inputs of a U-Net call, of the right shapes.

use tch::{Device, Kind, Tensor};
use unet::{AddedConditioning, Conditioning, UNetConfig};

/// Numbers per image that SDXL is told about sizes.
const TIME_IDS: i64 = 6;

/// The inputs of one call.
pub(super) struct UNetInputs {
    /// Latents `[B, C, h, w]`.
    pub x: Tensor,
    /// Timesteps `[B]`.
    pub t: Tensor,
    /// Text features `[B, tokens, width]` and what goes with them.
    pub cond: Conditioning,
}

impl UNetInputs {
    /// `batch` samples of this size; the same numbers every time.
    pub fn random(config: &UNetConfig, batch: i64, (h, w): (i64, i64), tokens: i64, device: Device) -> Self {
        tch::manual_seed(0);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_device(device);
        let added = config.added.as_ref().map(|a| AddedConditioning {
            text_embeds: random(&[batch, a.input - TIME_IDS * a.channels]),
            time_ids: Tensor::ones([batch, TIME_IDS], (Kind::Float, device)),
        });
        let x = random(&[batch, config.in_channels, h, w]);
        let t = Tensor::full([batch], 500, (Kind::Int64, device));
        let cond = Conditioning {
            encoder_hidden_states: random(&[batch, tokens, config.text_width]),
            added,
            guidance: config.time.guidance.map(|g| random(&[batch, g])),
        };
        Self { x, t, cond }
    }
}
