//! Everything around the U-Net that makes an image: prompt -> tokens -> text embeddings -> (U-Net and sampler) -> latents -> image.

mod checkpoint;
mod clip;
mod conditioning;
mod decoder;
mod error;
mod guidance;
mod hub;
mod inspection;
mod model_dir;
mod model_ref;
mod offload;
pub mod images;
mod pipeline;
mod random_model;
mod resample;
mod sampler;
mod schedule;
mod scheduler_config;
mod tokenizer;
mod vae;

pub use checkpoint::{Companions, convert};
pub use clip::{
    ClipConfig, ClipCrop, ClipModel, ClipPreprocess, ClipTextConfig, ClipTextModel, ClipVisionConfig, ClipVisionModel, HiddenAct,
    TextOutput,
};
pub use conditioning::{TextEncoders, TimeIds};
pub use error::{Error, Result};
pub use guidance::{is_classifier_free, with_guidance};
pub use hub::{Download, ENDPOINT, Hub, HubModel};
pub use inspection::inspect;
pub use model_dir::{Family, ModelDir, write_model_index};
pub use model_ref::{ModelRef, Overrides};
pub use offload::OffloadedPipeline;
pub use pipeline::{Denoise, GenerateOptions, Generated, Pipeline, Progress, Visit, native_size, seeded_noise};
pub use random_model::RandomModel;
pub use resample::{Filter, resize, resize_plane};
pub use sampler::{Sampler, SamplerKind};
pub use schedule::NoiseSchedule;
pub use scheduler_config::{BetaSchedule, NoiseLevels, PredictionType, SchedulerConfig, SolverSettings, TimestepSpacing};
pub use tokenizer::{Encoded, Tokenizer, Truncated};
pub use unet::model_name;
pub use vae::{AutoencoderKl, DecodeParts, Moments, VaeConfig};
