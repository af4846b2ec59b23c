//! The vector that conditions every ResNet: time, and for SDXL pooled text and image sizes. Part of the U-Net's forward.
//!
//! Shapes: `B` batch, `e` time width, `K` sizes per image, `P` pooled text width.

use tch::{Kind, Tensor};

use crate::config::{TimeConfig, UNetConfig};
use crate::nn::Linear;
use crate::unet::{AddedConditioning, Conditioning};
use crate::weights::Cursor;

/// Sines and cosines of `t` at geometrically spaced frequencies (arXiv 2006.11239, as in diffusers' `Timesteps`), in f32
/// whatever the network's type: bf16 cannot tell time step 999 from 1000.
///
/// # Shapes
/// `t [N] -> [N, channels]`
pub(crate) fn sinusoid(t: &Tensor, channels: i64, time: &TimeConfig) -> Tensor {
    const MAX_PERIOD: f64 = 10_000.0;
    let half = channels / 2;
    let step = -MAX_PERIOD.ln() / (half as f64 - time.freq_shift);
    let frequencies = (Tensor::arange(half, (Kind::Float, t.device())) * step).exp();
    let angles = t.to_kind(Kind::Float).unsqueeze(1) * frequencies;
    let (first, second) = if time.flip_sin_to_cos { (angles.cos(), angles.sin()) } else { (angles.sin(), angles.cos()) };
    let embedding = Tensor::cat(&[first, second], 1);
    if channels % 2 == 1 { embedding.constant_pad_nd([0, 1]) } else { embedding }
}

/// Two linear layers with a SiLU between.
#[derive(Debug)]
struct Mlp {
    linear_1: Linear,
    linear_2: Linear,
}

impl Mlp {
    fn new(at: &Cursor, input: i64, width: i64) -> Self {
        Self {
            linear_1: Linear::new(&at.pp("linear_1"), input, width, true),
            linear_2: Linear::new(&at.pp("linear_2"), width, width, true),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.linear_2.forward(&self.linear_1.forward(x).silu())
    }
}

/// `time_embedding`, and `add_embedding` where the model has it.
#[derive(Debug)]
pub(crate) struct Embeddings {
    time: TimeConfig,
    time_embedding: Mlp,
    // `[B, G] -> [B, channels]`, before the two layers.
    cond_proj: Option<Linear>,
    add_embedding: Option<(i64, Mlp)>,
}

impl Embeddings {
    pub fn new(config: &UNetConfig, at: &Cursor) -> Self {
        let (width, time) = (config.time.width, at.pp("time_embedding"));
        let add_embedding = config.added.as_ref().map(|a| (a.channels, Mlp::new(&at.pp("add_embedding"), a.input, width)));
        let cond_proj = config.time.guidance.map(|g| Linear::new(&time.pp("cond_proj"), g, config.time.channels, false));
        Self { time: config.time.clone(), time_embedding: Mlp::new(&time, config.time.channels, width), cond_proj, add_embedding }
    }

    /// The conditioning vector after its SiLU, which every ResNet takes and diffusers computes anew in each of them.
    ///
    /// # Shapes
    /// `timestep [B]`, `text_embeds [B, P]`, `time_ids [B, K]`, guidance `[B, G]` -> `[B, e]`
    pub fn forward(&self, timestep: &Tensor, cond: &Conditioning, kind: Kind) -> Tensor {
        let mut time = sinusoid(timestep, self.time.channels, &self.time).to_kind(kind);
        if let (Some(proj), Some(guidance)) = (&self.cond_proj, &cond.guidance) {
            time += proj.forward(&guidance.to_kind(kind));
        }
        let mut out = self.time_embedding.forward(&time);
        if let (Some((channels, mlp)), Some(AddedConditioning { text_embeds, time_ids })) = (&self.add_embedding, &cond.added) {
            // [B, K] -> [B * K, channels] -> [B, K * channels]
            let sizes = sinusoid(&time_ids.flatten(0, -1), *channels, &self.time).reshape([time_ids.size()[0], -1]);
            out += mlp.forward(&Tensor::cat(&[text_embeds.to_kind(kind), sizes.to_kind(kind)], 1));
        }
        out.silu()
    }
}
