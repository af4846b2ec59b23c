//! `scheduler_config.json`: the settings of the noise schedule and of the samplers, in diffusers' keys. Read with the model
//! directory, written with every trained one.

mod keys;

use std::path::{Path, PathBuf};

use artifact::Fields;
use serde_json::{Value, json};

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

/// How the noise levels of a sampler's steps are spread, where they do not follow from evenly spaced timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoiseLevels {
    /// Those of the timesteps.
    Timesteps,
    /// arXiv 2206.00364, equation 5.
    Karras,
    /// Evenly in the logarithm.
    Exponential,
    /// By the quantiles of a beta distribution (arXiv 2407.12173).
    Beta,
    /// Evenly in half the logarithm of the signal-to-noise ratio (arXiv 2206.00927).
    Lu,
}

impl NoiseLevels {
    /// The setting that asks for them, in diffusers' files.
    const fn key(self) -> &'static str {
        match self {
            Self::Timesteps => "none of use_*_sigmas",
            Self::Karras => "use_karras_sigmas",
            Self::Exponential => "use_exponential_sigmas",
            Self::Beta => "use_beta_sigmas",
            Self::Lu => "use_lu_lambdas",
        }
    }
}

/// What a scheduler file says of a multistep solver. It gives way to the sampler that the caller names; only kept here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SolverSettings {
    /// `solver_order`: 1, 2 or 3.
    pub order: Option<i64>,
    /// `algorithm_type`, such as `dpmsolver++` or `sde-dpmsolver++`.
    pub algorithm_type: Option<String>,
    /// `solver_type`, such as `midpoint` or `heun`.
    pub solver_type: Option<String>,
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
    /// Every `beta`, in place of the three above.
    pub trained_betas: Option<Vec<f64>>,
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
    /// DDIM, LCM and DPM-Solver++ bring the predicted clean sample into plus or minus 1 by its own size (arXiv 2205.11487, section 2.3).
    pub thresholding: bool,
    /// The share of a sample's values that `thresholding` leaves as they are.
    pub dynamic_thresholding_ratio: f64,
    /// The largest size that `thresholding` divides by.
    pub sample_max_value: f64,
    /// Noise levels of Euler and DPM-Solver++.
    pub noise_levels: NoiseLevels,
    /// The last step of Euler and DPM-Solver++ goes to the lowest noise level of training, not to none.
    pub final_sigma_min: bool,
    /// DPM-Solver++ with fewer than 15 steps takes its last one by Euler's method; to no noise it always does.
    pub lower_order_final: bool,
    /// DPM-Solver++ takes its last step by Euler's method.
    pub euler_at_final: bool,
    /// DPM-Solver++ leaves out the timesteps whose half logarithm of the signal-to-noise ratio is below this.
    pub lambda_min_clipped: Option<f64>,
    /// Settings of a multistep solver.
    pub solver: SolverSettings,
    /// LCM: steps of the distillation, out of which a sampler with few steps takes some.
    pub original_inference_steps: i64,
    /// LCM: how fast the boundary condition fades from timestep 0 on.
    pub timestep_scaling: f64,
}

/// LCM's defaults in diffusers.
const LCM_STEPS: i64 = 50;
const LCM_SCALING: f64 = 10.0;
const THRESHOLDING_RATIO: f64 = 0.995;

impl SchedulerConfig {
    /// The schedule that Stable Diffusion 1.x, 2.x and SDXL share, with the given prediction type.
    pub fn stable_diffusion(prediction_type: PredictionType) -> Self {
        Self {
            class_name: "EulerDiscreteScheduler".into(),
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            trained_betas: None,
            prediction_type,
            timestep_spacing: Some(TimestepSpacing::Leading),
            steps_offset: 1,
            set_alpha_to_one: false,
            rescale_betas_zero_snr: false,
            clip_sample: false,
            clip_sample_range: 1.0,
            thresholding: false,
            dynamic_thresholding_ratio: THRESHOLDING_RATIO,
            sample_max_value: 1.0,
            noise_levels: NoiseLevels::Timesteps,
            final_sigma_min: false,
            lower_order_final: true,
            euler_at_final: false,
            lambda_min_clipped: None,
            solver: SolverSettings::default(),
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
    /// Missing keys have diffusers' defaults. A key that would change numbers in a way that is not implemented here is an error.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no JSON object, [`Error::Config`] for a setting that is wrong, unknown or not implemented.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        // Python's json writes the default of `lambda_min_clipped` in a way that JSON does not know.
        keys::read(&Fields::parse(&text.replace("-Infinity", "null"), path)?)
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
            "use_karras_sigmas": self.noise_levels == NoiseLevels::Karras,
        });
        let mut put = |is_there: bool, key: &str, value: Value| {
            if is_there {
                out[key] = value;
            }
        };
        put(self.timestep_spacing.is_some(), "timestep_spacing", json!(self.timestep_spacing.map(TimestepSpacing::name)));
        // Keys that few classes know stand only where they are not at their defaults.
        put(self.trained_betas.is_some(), "trained_betas", json!(self.trained_betas));
        let others = [NoiseLevels::Exponential, NoiseLevels::Beta, NoiseLevels::Lu];
        put(others.contains(&self.noise_levels), self.noise_levels.key(), json!(true));
        put(self.thresholding, "thresholding", json!(true));
        put(self.thresholding, "dynamic_thresholding_ratio", json!(self.dynamic_thresholding_ratio));
        put(self.thresholding, "sample_max_value", json!(self.sample_max_value));
        put(self.final_sigma_min, "final_sigmas_type", json!("sigma_min"));
        put(!self.lower_order_final, "lower_order_final", json!(false));
        put(self.euler_at_final, "euler_at_final", json!(true));
        put(self.lambda_min_clipped.is_some(), "lambda_min_clipped", json!(self.lambda_min_clipped));
        put(self.solver.order.is_some(), "solver_order", json!(self.solver.order));
        put(self.solver.algorithm_type.is_some(), "algorithm_type", json!(self.solver.algorithm_type));
        put(self.solver.solver_type.is_some(), "solver_type", json!(self.solver.solver_type));
        put(self.original_inference_steps != LCM_STEPS, "original_inference_steps", json!(self.original_inference_steps));
        put(self.timestep_scaling != LCM_SCALING, "timestep_scaling", json!(self.timestep_scaling));
        out
    }
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
