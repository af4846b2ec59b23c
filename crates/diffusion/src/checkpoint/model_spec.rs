//! Metadata of a checkpoint by Stability's ModelSpec 1.0.0, from which other programs learn its kind. Settings -> **metadata**.

use std::collections::BTreeMap;

use unet::UNetConfig;

use super::parts::Version;
use crate::scheduler_config::{PredictionType, SchedulerConfig};

/// The keys that can be said of a model of this version.
pub(super) fn model_spec(version: Version, config: &UNetConfig, scheduler: &SchedulerConfig, title: &str) -> BTreeMap<String, String> {
    let is_v = scheduler.prediction_type == PredictionType::VPrediction;
    let (architecture, implementation) = match (version, is_v) {
        (Version::V1, _) => ("stable-diffusion-v1", "https://github.com/CompVis/stable-diffusion"),
        (Version::V2, false) => ("stable-diffusion-v2-512", "https://github.com/Stability-AI/stablediffusion"),
        (Version::V2, true) => ("stable-diffusion-v2-768-v", "https://github.com/Stability-AI/stablediffusion"),
        (Version::Xl, _) => ("stable-diffusion-xl-v1-base", "https://github.com/Stability-AI/generative-models"),
    };
    let mut said = BTreeMap::from([
        ("modelspec.sai_model_spec", "1.0.0".to_string()),
        ("modelspec.architecture", architecture.to_string()),
        ("modelspec.implementation", implementation.to_string()),
        ("modelspec.title", title.to_string()),
        ("modelspec.prediction_type", if is_v { "v" } else { "epsilon" }.to_string()),
    ]);
    if let Some((h, w)) = config.sample_size {
        said.insert("modelspec.resolution", format!("{}x{}", 8 * w, 8 * h));
    }
    said.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}
