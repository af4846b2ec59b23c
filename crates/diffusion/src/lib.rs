//! Everything around the U-Net that makes a picture: prompt -> tokens -> text embeddings -> (U-Net and sampler) -> latents -> picture.

mod error;
mod fields;
mod files;
mod tokenizer;
mod clip;
mod sampler;
mod schedule;
mod vae;

pub use clip::{ClipConfig, ClipModel, ClipPreprocess, ClipTextConfig, ClipTextModel, ClipVisionConfig, ClipVisionModel, HiddenAct, TextOutput};
pub use error::{Error, Result};
pub use sampler::{Sampler, SamplerKind};
pub use schedule::{BetaSchedule, NoiseSchedule, PredictionType, SchedulerConfig, TimestepSpacing};
pub use tokenizer::{Encoded, Tokenizer, Truncated};
pub use vae::{AutoencoderKl, Moments, VaeConfig};
