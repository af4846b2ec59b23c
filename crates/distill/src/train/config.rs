//! Settings of the training loop, shared by distillation and by training from nothing.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use unet::Compute;

use crate::error::{Error, Result};

/// How the learning rate moves after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Stays.
    Constant,
    /// Falls along a half cosine to `lr * lr_end_ratio` at the last step.
    Cosine,
    /// Falls along a line to `lr * lr_end_ratio` at the last step.
    Linear,
}

/// Settings of the loop. What decides the result must be given, so that a forgotten setting is an error; what is about machines
/// and files has defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerConfig {
    /// Optimizer steps in the whole run.
    pub steps: u64,
    /// Samples of one forward and backward pass. A step has `batch x accumulate x ranks` samples.
    pub batch: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// Steps over which the rate rises linearly from 0.
    pub warmup: u64,
    /// What follows the warm-up.
    pub lr_schedule: LrSchedule,
    /// The last rate as a share of `lr` (not used by `constant`).
    pub lr_end_ratio: f64,
    /// AdamW's decay rate of the first moment.
    pub beta1: f64,
    /// AdamW's decay rate of the second moment.
    pub beta2: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this L2 norm when they exceed it; 0 switches clipping off.
    pub clip_norm: f64,
    /// Decay of the moving average of the weights; 0 switches it off. Early in a run the decay is at most (1+n)/(10+n).
    pub ema_decay: f64,
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Number type of the forward and backward pass, f32 or bf16. Master weights, optimizer state and reductions are always f32.
    pub compute: Compute,
    /// A row of the log every this many steps.
    pub log_every: u64,
    /// A checkpoint every this many steps.
    pub checkpoint_every: u64,
    /// Passes of each rank whose gradients make one step.
    #[serde(default = "one")]
    pub accumulate: u64,
    /// The newest checkpoints to keep.
    #[serde(default = "two")]
    pub keep_checkpoints: u64,
    /// More steps skipped because something was not finite stop the run.
    #[serde(default = "fifty")]
    pub max_skipped: u64,
    /// Several ranks keep one part of the optimizer's state and of the moving average each, instead of all of it (ZeRO stage 1,
    /// arXiv 1910.02054). No bit changes.
    #[serde(default)]
    pub shard_optimizer: bool,
    /// Megabytes of gradients that are sent to the other ranks at once.
    #[serde(default = "bucket_mb")]
    pub bucket_mb: f64,
}

fn one() -> u64 {
    1
}

fn two() -> u64 {
    2
}

fn fifty() -> u64 {
    50
}

fn bucket_mb() -> f64 {
    25.0
}

/// What changes no number of a run.
const FREE: [&str; 6] = ["checkpoint_every", "keep_checkpoints", "max_skipped", "log_every", "shard_optimizer", "bucket_mb"];
const ACCUMULATE: &str = "accumulate";
const PASSES: &str = "accumulate x ranks";

fn object(json: Value) -> Map<String, Value> {
    if let Value::Object(fields) = json { fields } else { Map::new() }
}

/// Two [`TrainerConfig::identity`]s, of which an earlier program's may hold more, without what may differ between them: the number of
/// steps too where it `may_grow` and the rate does not depend on it.
pub(crate) fn comparable(a: &str, b: &str, may_grow: bool) -> Option<(String, String)> {
    let mut both = [a, b].map(|text| serde_json::from_str(text).map_or(Map::new(), object));
    if both.iter().any(Map::is_empty) {
        return None;
    }
    let grows = may_grow && both.iter().all(|fields| fields.get("lr_schedule").is_some_and(|s| s == "constant"));
    // An earlier program wrote the passes of a rank without the number of ranks.
    let ranks_are_known =
        both.iter().all(|fields| fields.contains_key(PASSES)) || both.iter().all(|fields| fields.contains_key(ACCUMULATE));
    for fields in &mut both {
        fields.retain(|key, _| match key.as_str() {
            "steps" | "lr_end_ratio" => !grows,
            PASSES | ACCUMULATE => ranks_are_known,
            key => !FREE.contains(&key),
        });
    }
    let [a, b] = both.map(|fields| Value::from(fields).to_string());
    Some((a, b))
}

/// Whether two trainers' settings, as JSON, make the same numbers.
pub(crate) fn same_settings(a: &Value, b: &Value) -> bool {
    comparable(&a.to_string(), &b.to_string(), false).is_some_and(|(a, b)| a == b)
}

impl TrainerConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first setting out of range.
    pub fn check(&self) -> Result<()> {
        let need = |ok: bool, key: &str, expected: &str, got: String| {
            if ok { Ok(()) } else { Err(Error::Config { key: key.into(), expected: expected.into(), got }) }
        };
        need(self.batch > 0, "batch", "at least 1", self.batch.to_string())?;
        need(self.lr > 0.0 && self.lr.is_finite(), "lr", "a positive number", self.lr.to_string())?;
        need((0.0..1.0).contains(&self.beta1), "beta1", "0 <= beta1 < 1", self.beta1.to_string())?;
        need((0.0..1.0).contains(&self.beta2), "beta2", "0 <= beta2 < 1", self.beta2.to_string())?;
        need((0.0..1.0).contains(&self.ema_decay), "ema_decay", "0 <= ema_decay < 1", self.ema_decay.to_string())?;
        need(self.weight_decay >= 0.0, "weight_decay", "0 or more", self.weight_decay.to_string())?;
        need(self.clip_norm >= 0.0, "clip_norm", "0 or more", self.clip_norm.to_string())?;
        need((0.0..=1.0).contains(&self.lr_end_ratio), "lr_end_ratio", "0 to 1", self.lr_end_ratio.to_string())?;
        need(self.compute != Compute::F16, "compute", "f32 or bf16: gradients leave f16's range", self.compute.name().into())?;
        need(self.accumulate > 0, "accumulate", "at least 1", self.accumulate.to_string())?;
        need(self.keep_checkpoints > 0, "keep_checkpoints", "at least 1", self.keep_checkpoints.to_string())?;
        need(self.bucket_mb > 0.0 && self.bucket_mb.is_finite(), "bucket_mb", "a positive number", self.bucket_mb.to_string())?;
        need(self.log_every > 0, "log_every", "at least 1", self.log_every.to_string())?;
        need(self.checkpoint_every > 0, "checkpoint_every", "at least 1", self.checkpoint_every.to_string())
    }

    /// What must not change when a run goes on, as JSON: not how its work is cut up and how often it is told and saved, but how many
    /// passes make a step.
    pub(crate) fn identity(&self, ranks: u64) -> String {
        let mut fields = object(serde_json::to_value(self).expect("a plain struct is JSON"));
        fields.retain(|key, _| key != ACCUMULATE && !FREE.contains(&key.as_str()));
        fields.insert(PASSES.into(), (self.accumulate * ranks).into());
        Value::from(fields).to_string()
    }

    /// The learning rate of step `step` (0 is the first).
    pub fn lr_at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let progress = ((step - self.warmup) as f64 / span).min(1.0);
        let shape = match self.lr_schedule {
            LrSchedule::Constant => 1.0,
            LrSchedule::Linear => 1.0 - progress,
            LrSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        match self.lr_schedule {
            LrSchedule::Constant => self.lr,
            _ => self.lr * (self.lr_end_ratio + (1.0 - self.lr_end_ratio) * shape),
        }
    }
}
