//! `scheduler_config.json`: the settings of the noise schedule and of the samplers, in diffusers' keys. Read with the model
//! directory, written with every trained one.

use std::path::{Path, PathBuf};

use artifact::Fields;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// How `beta_t` grows from `beta_start` to `beta_end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Its square root grows evenly (the latent diffusion models).
    ScaledLinear,
    /// From a squared cosine of `abar_t`, capped at 0.999 (arXiv 2102.09672, equation 17).
    SquaredcosCapV2,
}

/// What the U-Net predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// `v = sqrt(abar) noise - sqrt(1 - abar) x0` (arXiv 2202.00512, appendix D).
    VPrediction,
    /// The clean sample.
    Sample,
}

/// Which timesteps a sampler with few steps visits (arXiv 2305.08891, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestepSpacing {
    /// Multiples of the step, plus `steps_offset`.
    Leading,
    /// Evenly, both ends included.
    Linspace,
    /// Evenly, counted down from the last timestep.
    Trailing,
}

macro_rules! names {
    ($type:ty { $($variant:ident = $name:literal),+ }) => {
        impl $type {
            /// The name in diffusers' configuration files.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// The value of this name, `None` when there is none.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }

            const EXPECTED: &'static str = concat!("one of", $(" ", $name),+);
        }
    };
}
names!(BetaSchedule { Linear = "linear", ScaledLinear = "scaled_linear", SquaredcosCapV2 = "squaredcos_cap_v2" });
names!(PredictionType { Epsilon = "epsilon", VPrediction = "v_prediction", Sample = "sample" });
names!(TimestepSpacing { Leading = "leading", Linspace = "linspace", Trailing = "trailing" });

/// `scheduler_config.json` of a diffusers model directory: what is common to its samplers.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// The published sampler, e.g. `EulerDiscreteScheduler`; ours is chosen separately.
    pub class_name: String,
    /// Number of timesteps in training, 1000 in all published models.
    pub num_train_timesteps: i64,
    /// First `beta`.
    pub beta_start: f64,
    /// Last `beta`.
    pub beta_end: f64,
    /// The way between them.
    pub beta_schedule: BetaSchedule,
    /// What the U-Net predicts.
    pub prediction_type: PredictionType,
    /// Which timesteps are visited; `None` leaves it to the sampler (DDIM: leading, the others: linspace; LCM has its own).
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Added to every timestep with leading spacing.
    pub steps_offset: i64,
    /// DDIM's last step goes to `abar = 1`, else to `abar_0`.
    pub set_alpha_to_one: bool,
    /// Rescales the schedule so that nothing of the image is left at the last timestep (arXiv 2305.08891, algorithm 1).
    pub rescale_betas_zero_snr: bool,
    /// DDIM and LCM clip the predicted clean sample to plus or minus `clip_sample_range`.
    pub clip_sample: bool,
    /// The range of `clip_sample`.
    pub clip_sample_range: f64,
    /// Noise levels of Euler and DPM-Solver++ follow arXiv 2206.00364, equation 5.
    pub use_karras_sigmas: bool,
    /// LCM: steps of the distillation, out of which a sampler with few steps takes some.
    pub original_inference_steps: i64,
    /// LCM: how fast the boundary condition fades from timestep 0 on.
    pub timestep_scaling: f64,
}

/// Settings of other samplers, without influence on the schedule or on ours. Those of a solver (order, type, algorithm) give
/// way to the sampler that the caller names.
const INERT: [&str; 14] = [
    "_diffusers_version",
    "skip_prk_steps",
    "sample_max_value",
    "dynamic_thresholding_ratio",
    "variance_type",
    "solver_order",
    "solver_type",
    "algorithm_type",
    "lower_order_final",
    "disable_corrector",
    "predict_x0",
    // These say nothing while use_flow_sigmas and use_dynamic_shifting are off.
    "flow_shift",
    "time_shift_type",
    "euler_at_final",
];

/// LCM's defaults in diffusers.
const LCM_STEPS: i64 = 50;
const LCM_SCALING: f64 = 10.0;

impl SchedulerConfig {
    /// The schedule that Stable Diffusion 1.x, 2.x and SDXL share, with the given prediction type.
    pub fn stable_diffusion(prediction_type: PredictionType) -> Self {
        Self {
            class_name: "EulerDiscreteScheduler".into(),
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            prediction_type,
            timestep_spacing: Some(TimestepSpacing::Leading),
            steps_offset: 1,
            set_alpha_to_one: false,
            rescale_betas_zero_snr: false,
            clip_sample: false,
            clip_sample_range: 1.0,
            use_karras_sigmas: false,
            original_inference_steps: LCM_STEPS,
            timestep_scaling: LCM_SCALING,
        }
    }

    /// Reads `path`: the json file, the folder that holds `scheduler_config.json`, or a model directory with a `scheduler/` folder.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none, else as [`SchedulerConfig::parse`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = config_file(path.as_ref());
        let text = std::fs::read_to_string(&file).map_err(Error::io(&file))?;
        Self::parse(&text, &file)
    }

    /// Parses diffusers' keys; `path` is for the messages.
    ///
    /// Missing keys have diffusers' defaults. A key that would change the schedule in a way that is not implemented here is an error.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no JSON object, [`Error::Config`] for a setting that is wrong, unknown or not implemented.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        // Python's json writes diffusers' default of this key in a way that JSON does not know.
        let text = text.replace("\"lambda_min_clipped\": -Infinity", "\"lambda_min_clipped\": null");
        let mut keys = Keys { map: Fields::parse(&text, path)?.into_map(), path };
        let class_name = keys.take("_class_name", "a string", |v| v.as_str().map(String::from))?.unwrap_or_default();
        // A missing key means the default of the class that wrote the file.
        let ddim = class_name == "DDIMScheduler";
        let config = Self {
            num_train_timesteps: keys.take("num_train_timesteps", "a positive integer", |v| v.as_i64().filter(|&n| n > 0))?.unwrap_or(1000),
            beta_start: keys.take("beta_start", "a number between 0 and 1", fraction)?.unwrap_or(0.0001),
            beta_end: keys.take("beta_end", "a number between 0 and 1", fraction)?.unwrap_or(0.02),
            beta_schedule: keys
                .take("beta_schedule", BetaSchedule::EXPECTED, |v| BetaSchedule::from_name(v.as_str()?))?
                .unwrap_or(BetaSchedule::Linear),
            prediction_type: keys
                .take("prediction_type", PredictionType::EXPECTED, |v| PredictionType::from_name(v.as_str()?))?
                .unwrap_or(PredictionType::Epsilon),
            timestep_spacing: keys.take("timestep_spacing", TimestepSpacing::EXPECTED, |v| TimestepSpacing::from_name(v.as_str()?))?,
            steps_offset: keys.take("steps_offset", "an integer, at least 0", |v| v.as_i64().filter(|&n| n >= 0))?.unwrap_or(0),
            set_alpha_to_one: keys.flag("set_alpha_to_one")?.unwrap_or(true),
            rescale_betas_zero_snr: keys.flag("rescale_betas_zero_snr")?.unwrap_or(false),
            clip_sample: keys.flag("clip_sample")?.unwrap_or(ddim),
            clip_sample_range: keys.take("clip_sample_range", "a positive number", |v| v.as_f64().filter(|&x| x > 0.0))?.unwrap_or(1.0),
            use_karras_sigmas: keys.flag("use_karras_sigmas")?.unwrap_or(false),
            original_inference_steps: keys
                .take("original_inference_steps", "a positive integer", |v| v.as_i64().filter(|&n| n > 0))?
                .unwrap_or(LCM_STEPS),
            timestep_scaling: keys
                .take("timestep_scaling", "a positive number", |v| v.as_f64().filter(|&x| x > 0.0))?
                .unwrap_or(LCM_SCALING),
            class_name,
        };
        for (key, only) in [("interpolation_type", "linear"), ("timestep_type", "discrete"), ("final_sigmas_type", "zero")] {
            keys.take(key, &format!("`{only}`, the only one implemented"), |v| (v == only).then_some(()))?;
        }
        // What is left must be known to be inert, or switched off.
        for (key, value) in &keys.map {
            if !INERT.contains(&key.as_str()) && !matches!(value, Value::Null | Value::Bool(false)) {
                return Err(keys.error(key, "no such setting, or null (it is not implemented)", value));
            }
        }
        Ok(config)
    }

    /// diffusers' keys.
    pub fn to_json(&self) -> Value {
        let mut out = json!({
            "_class_name": self.class_name,
            "num_train_timesteps": self.num_train_timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule.name(),
            "prediction_type": self.prediction_type.name(),
            "steps_offset": self.steps_offset,
            "set_alpha_to_one": self.set_alpha_to_one,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
            "clip_sample": self.clip_sample,
            "clip_sample_range": self.clip_sample_range,
            "use_karras_sigmas": self.use_karras_sigmas,
        });
        if let Some(spacing) = self.timestep_spacing {
            out["timestep_spacing"] = spacing.name().into();
        }
        // Only LCM's scheduler knows these.
        if self.original_inference_steps != LCM_STEPS {
            out["original_inference_steps"] = self.original_inference_steps.into();
        }
        if self.timestep_scaling != LCM_SCALING {
            out["timestep_scaling"] = self.timestep_scaling.into();
        }
        out
    }
}

fn fraction(v: &Value) -> Option<f64> {
    v.as_f64().filter(|x| *x > 0.0 && *x < 1.0)
}

fn config_file(path: &Path) -> PathBuf {
    const NAME: &str = "scheduler_config.json";
    if path.join("scheduler").join(NAME).is_file() {
        path.join("scheduler").join(NAME)
    } else if path.is_file() {
        path.into()
    } else {
        path.join(NAME)
    }
}

struct Keys<'a> {
    map: Map<String, Value>,
    path: &'a Path,
}

impl Keys<'_> {
    /// Removes `key`; `None` when it is missing or null.
    fn take<T>(&mut self, key: &str, expected: &str, read: impl FnOnce(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => read(&v).map(Some).ok_or_else(|| self.error(key, expected, &v)),
        }
    }

    fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        self.take(key, "true or false", Value::as_bool)
    }

    fn error(&self, key: &str, expected: &str, got: &Value) -> Error {
        Error::Config { path: self.path.into(), key: key.into(), expected: expected.into(), got: got.to_string() }
    }
}
