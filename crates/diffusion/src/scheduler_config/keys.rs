//! diffusers' keys of a scheduler file: which are read, which change no number here, and which must be off.

use artifact::{Fields, warn_once};
use serde_json::Value;

use super::{
    BetaSchedule, LCM_SCALING, LCM_STEPS, NoiseLevels, PredictionType, SchedulerConfig, SolverSettings, THRESHOLDING_RATIO, TimestepSpacing,
};
use crate::error::{Error, Result};

/// Far above any real setting: a damaged file must not ask for endless memory.
const MOST_TIMESTEPS: i64 = 1 << 20;

/// Keys without influence on the schedule or on a sampler here, whatever they hold.
const INERT: [&str; 7] = [
    "skip_prk_steps",
    "variance_type",
    "disable_corrector",
    "predict_x0",
    // These say nothing while use_flow_sigmas and use_dynamic_shifting are off.
    "flow_shift",
    "time_shift_type",
    // Of the first releases, before there were others than PyTorch's tensors.
    "tensor_format",
];

/// Keys that diffusers' classes write, and that must be off: null or false.
const OFF: [&str; 13] = [
    "use_flow_sigmas",
    "use_dynamic_shifting",
    "sigma_min",
    "sigma_max",
    "shift_terminal",
    "solver_p",
    "tau_func",
    "noise_sampler_seed",
    "rescale_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
    "s_churn",
    "rho",
];

/// Every key that is read below.
const READ: [&str; 32] = [
    "_class_name",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "predict_epsilon",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "rescale_betas_zero_snr",
    "clip_sample",
    "clip_sample_range",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "final_sigmas_type",
    "lower_order_final",
    "euler_at_final",
    "lambda_min_clipped",
    "solver_order",
    "algorithm_type",
    "solver_type",
    "original_inference_steps",
    "timestep_scaling",
    "interpolation_type",
    "timestep_type",
];

/// The settings of a file.
pub(super) fn read(f: &Fields) -> Result<SchedulerConfig> {
    refuse_unknown(f)?;
    for (key, only) in [("interpolation_type", "linear"), ("timestep_type", "discrete")] {
        f.typed(key, &format!("`{only}`, the only one implemented"), |v| (v == only).then_some(()))?;
    }
    let class_name = f.text("_class_name")?.unwrap_or_default();
    // A missing key means the default of the class that wrote the file.
    let ddim = class_name == "DDIMScheduler";
    let (beta_start, beta_end, beta_schedule) = default_betas(&class_name);
    let expected = format!("a whole number from 1 to {MOST_TIMESTEPS}");
    let timesteps = f.typed("num_train_timesteps", &expected, |v| v.as_i64().filter(|n| (1..=MOST_TIMESTEPS).contains(n)))?;
    let num_train_timesteps = timesteps.unwrap_or(1000);
    Ok(SchedulerConfig {
        num_train_timesteps,
        beta_start: fraction(f, "beta_start")?.unwrap_or(beta_start),
        beta_end: fraction(f, "beta_end")?.unwrap_or(beta_end),
        beta_schedule: f.typed("beta_schedule", BetaSchedule::EXPECTED, |v| BetaSchedule::from_name(v.as_str()?))?.unwrap_or(beta_schedule),
        trained_betas: trained_betas(f, num_train_timesteps)?,
        prediction_type: prediction_type(f)?,
        timestep_spacing: f.typed("timestep_spacing", TimestepSpacing::EXPECTED, |v| TimestepSpacing::from_name(v.as_str()?))?,
        steps_offset: f.int("steps_offset", 0, 0)?,
        set_alpha_to_one: f.flag("set_alpha_to_one", true)?,
        rescale_betas_zero_snr: f.flag("rescale_betas_zero_snr", false)?,
        clip_sample: f.flag("clip_sample", ddim)?,
        clip_sample_range: positive(f, "clip_sample_range")?.unwrap_or(1.0),
        thresholding: f.flag("thresholding", false)?,
        dynamic_thresholding_ratio: positive(f, "dynamic_thresholding_ratio")?.unwrap_or(THRESHOLDING_RATIO).min(1.0),
        sample_max_value: positive(f, "sample_max_value")?.unwrap_or(1.0),
        noise_levels: noise_levels(f)?,
        final_sigma_min: f
            .typed("final_sigmas_type", "`zero` or `sigma_min`", |v| match v.as_str()? {
                "zero" => Some(false),
                "sigma_min" => Some(true),
                _ => None,
            })?
            .unwrap_or(false),
        lower_order_final: f.flag("lower_order_final", true)?,
        euler_at_final: f.flag("euler_at_final", false)?,
        lambda_min_clipped: f.typed("lambda_min_clipped", "a number", Value::as_f64)?,
        solver: SolverSettings {
            order: f.typed("solver_order", "1, 2 or 3", |v| v.as_i64().filter(|n| (1..=3).contains(n)))?,
            algorithm_type: f.text("algorithm_type")?,
            solver_type: f.text("solver_type")?,
        },
        original_inference_steps: f.int("original_inference_steps", LCM_STEPS, 1)?,
        timestep_scaling: positive(f, "timestep_scaling")?.unwrap_or(LCM_SCALING),
        class_name,
    })
}

/// What is neither read nor known to change nothing must be off.
fn refuse_unknown(f: &Fields) -> Result<()> {
    for (key, value) in f.map() {
        let known = |names: &[&str]| names.contains(&key.as_str());
        if key.starts_with('_') || known(&READ) || known(&INERT) {
            continue;
        }
        if !matches!(value, Value::Null | Value::Bool(false)) {
            return Err(f.wrong(key, "no such setting, or null (it is not implemented)").into());
        }
        if !known(&OFF) {
            warn_once(format!("{}: setting `{key}` is not known; it is {value}, and passed over", f.path().display()));
        }
    }
    Ok(())
}

fn default_betas(class_name: &str) -> (f64, f64, BetaSchedule) {
    match class_name {
        "LCMScheduler" | "TCDScheduler" => (0.00085, 0.012, BetaSchedule::ScaledLinear),
        "HeunDiscreteScheduler" | "KDPM2DiscreteScheduler" | "KDPM2AncestralDiscreteScheduler" | "DPMSolverSDEScheduler" => {
            (0.00085, 0.012, BetaSchedule::Linear)
        }
        _ => (0.0001, 0.02, BetaSchedule::Linear),
    }
}

fn prediction_type(f: &Fields) -> Result<PredictionType> {
    // The first releases had no other choice than this one.
    let noise = f.flag("predict_epsilon", true)?;
    let named = f.typed("prediction_type", PredictionType::EXPECTED, |v| PredictionType::from_name(v.as_str()?))?;
    Ok(named.unwrap_or(if noise { PredictionType::Epsilon } else { PredictionType::Sample }))
}

fn trained_betas(f: &Fields, timesteps: i64) -> Result<Option<Vec<f64>>> {
    let expected = format!("{timesteps} numbers between 0 and 1, one per timestep (num_train_timesteps)");
    let read = |v: &Value| {
        let betas: Vec<f64> = v.as_array()?.iter().map(|b| b.as_f64().filter(|b| (0.0..=1.0).contains(b))).collect::<Option<_>>()?;
        (betas.len() as i64 == timesteps).then_some(betas)
    };
    Ok(f.typed("trained_betas", &expected, read)?)
}

fn noise_levels(f: &Fields) -> Result<NoiseLevels> {
    let mut found = NoiseLevels::Timesteps;
    for levels in [NoiseLevels::Karras, NoiseLevels::Exponential, NoiseLevels::Beta, NoiseLevels::Lu] {
        if !f.flag(levels.key(), false)? {
            continue;
        }
        if found != NoiseLevels::Timesteps {
            return Err(f.wrong(levels.key(), format!("false beside `{}`", found.key())).into());
        }
        found = levels;
    }
    Ok(found)
}

fn fraction(f: &Fields, key: &str) -> Result<Option<f64>> {
    Ok(f.typed(key, "a number between 0 and 1", |v| v.as_f64().filter(|x| *x > 0.0 && *x < 1.0))?)
}

fn positive(f: &Fields, key: &str) -> Result<Option<f64>> {
    f.typed(key, "a positive number", |v| v.as_f64().filter(|&x| x > 0.0)).map_err(Error::from)
}
