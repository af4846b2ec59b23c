//! What a distillation is going to do, before its first step: the settings in full, and what follows from them.

use unet::weights::Tensors;
use unet::{Granularity, TableOptions, UNet, activation_costs};

use super::settings::Settings;
use crate::error::{Error, Result};

/// Sizes that follow from the settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The settings as TOML, with what the caller changed.
    pub settings: String,
    /// Parameters of the teacher.
    pub teacher_params: u64,
    /// Parameters of the student.
    pub student_params: u64,
    /// Numbers that the optimizer changes.
    pub trained: u64,
    /// Images in an epoch.
    pub images: u64,
    /// Images of a forward and backward pass.
    pub batch: u64,
    /// Passes of each rank that make a step.
    pub accumulate: u64,
    /// Processes that train together.
    pub ranks: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// What takes memory on one rank, in words and bytes, at most.
    pub memory: Vec<(&'static str, f64)>,
}

impl Summary {
    /// Images of a step, on all ranks together.
    pub fn global_batch(&self) -> u64 {
        self.batch * self.accumulate * self.ranks
    }

    /// Steps in which every image is seen once.
    pub fn steps_per_epoch(&self) -> f64 {
        self.images as f64 / self.global_batch() as f64
    }
}

/// Who takes part in a run.
pub(super) struct Parts<'a> {
    pub pipeline: &'a diffusion::Pipeline,
    pub student: &'a UNet,
    pub trained: u64,
    pub images: u64,
    pub ranks: u64,
}

impl Parts<'_> {
    pub fn summary(&self, settings: &Settings) -> Result<Summary> {
        let t = &settings.trainer;
        let text = toml::to_string(settings).map_err(|e| Error::Config {
            key: "settings".into(),
            expected: "what TOML can hold".into(),
            got: e.to_string(),
        })?;
        Ok(Summary {
            settings: text.trim_end().into(),
            teacher_params: self.pipeline.unet().num_parameters(),
            student_params: self.student.num_parameters(),
            trained: self.trained,
            images: self.images,
            batch: t.batch,
            accumulate: t.accumulate,
            ranks: self.ranks,
            steps: t.steps,
            memory: self.memory(settings)?,
        })
    }

    fn memory(&self, settings: &Settings) -> Result<Vec<(&'static str, f64)>> {
        let t = &settings.trainer;
        let size = t.compute.kind().elt_size_in_bytes() as f64;
        let (trained, whole) = (self.trained as f64, self.student.num_parameters() as f64);
        let shards = if t.shard_optimizer { self.ranks as f64 } else { 1.0 };
        let averages = if t.ema_decay > 0.0 { 1.0 } else { 0.0 };
        let text: f64 = self.pipeline.text().parts().iter().map(|(encoder, _)| bytes(encoder.parameters())).sum();
        let mut out = vec![
            ("student's master weights, f32", 4.0 * trained),
            ("optimizer and moving average, f32", (8.0 + 4.0 * averages) * trained / shards),
            ("teacher", bytes(self.pipeline.unet().parameters())),
            ("autoencoder and text encoders", bytes(self.pipeline.vae().parameters()) + text),
        ];
        if size < 4.0 || trained < whole {
            out.push(("student's weights to compute with", whole * size));
        }
        let config = self.student.config();
        let (latent_h, latent_w) = config.sample_size.unwrap_or((64, 64));
        let options = TableOptions {
            latent_h,
            latent_w,
            tokens: 77,
            granularity: Granularity::Branch,
            removed: self.student.removed().clone(),
            model: "student".into(),
            fingerprint: config.hash(),
        };
        let costs = activation_costs(config, &options)?;
        let backward = costs.with_gradients(settings.activation_checkpointing, t.batch as f64 * size, 4.0 * trained / whole);
        out.push(("student's activations and gradients, f32, at most", backward));
        Ok(out)
    }
}

fn bytes(tensors: &Tensors) -> f64 {
    tensors.values().map(|t| (t.numel() * t.kind().elt_size_in_bytes()) as f64).sum()
}
