//! The two ways of guidance: twice the work with a negative prompt (classifier-free, arXiv 2207.12598), or a number that the
//! U-Net itself takes, in models that were distilled from guided ones for few steps (arXiv 2210.03142, 2310.04378).

use tch::{Kind, Tensor};
use unet::{Conditioning, UNetConfig};

use crate::error::Result;

/// Whether guidance of this weight needs the unconditional half of a batch.
pub fn is_classifier_free(guidance: f64, unet: &UNetConfig) -> bool {
    guidance > 1.0 && unet.time.guidance.is_none()
}

/// `cond` with the embedded weight of guidance where the U-Net takes one and `cond` has none yet.
///
/// # Errors
/// [`crate::Error::Torch`] when memory runs out.
pub fn with_guidance(cond: Conditioning, unet: &UNetConfig, guidance: f64) -> Result<Conditioning> {
    Ok(match unet.time.guidance {
        Some(width) if cond.guidance.is_none() => {
            let device = cond.encoder_hidden_states.device();
            let row = embedding(guidance, width)?.f_to_device(device)?;
            Conditioning { guidance: Some(row.f_repeat([cond.batch(), 1])?), ..cond }
        }
        _ => cond,
    })
}

/// The embedding of one weight, `[1, G]` f32. Zero stands for no guidance, which is a weight of 1; distillation counts in thousandths
/// (diffusers' `get_guidance_scale_embedding`).
fn embedding(guidance: f64, width: i64) -> Result<Tensor> {
    const MAX_PERIOD: f32 = 10_000.0;
    let half = width / 2;
    // In f32 step by step as there, since thousands are multiplied by these.
    let step = MAX_PERIOD.ln() / (half - 1) as f32;
    let frequencies = (Tensor::f_arange(half, (Kind::Float, tch::Device::Cpu))? * f64::from(-step)).f_exp()?;
    let angles = frequencies * f64::from((guidance - 1.0) as f32 * 1000.0);
    let embedding = Tensor::f_cat(&[angles.f_sin()?, angles.f_cos()?], 0)?.f_unsqueeze(0)?;
    Ok(if width % 2 == 1 { embedding.f_constant_pad_nd([0, 1])? } else { embedding })
}
