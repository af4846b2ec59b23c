//! Samplers: from noise to a clean latent in a few U-Net calls. Stands between the text embeddings and the VAE decoder.
//!
//! A [`Sampler`] knows its timesteps beforehand; the caller runs, for every `i`,
//! `out = unet(sampler.scale_model_input(x, i), sampler.timesteps()[i])` and `x = sampler.step(out, i, x)`.
//! A further sampler is one more struct that implements `Method`, and one more [`SamplerKind`].

use tch::Tensor;

use crate::error::{Error, Result};
use crate::schedule::NoiseSchedule;
use crate::scheduler_config::{PredictionType, TimestepSpacing};

/// The samplers that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamplerKind {
    /// DDIM with eta 0 (arXiv 2010.02502, equation 12).
    Ddim,
    /// Euler's method on the probability-flow ODE in the noise level (arXiv 2206.00364, algorithm 1 without its second-order step).
    Euler,
}

impl SamplerKind {
    /// All of them, for help texts and tests.
    pub const ALL: [SamplerKind; 2] = [SamplerKind::Ddim, SamplerKind::Euler];

    /// The name on the command line and in a picture's metadata.
    pub fn name(self) -> &'static str {
        match self {
            SamplerKind::Ddim => "ddim",
            SamplerKind::Euler => "euler",
        }
    }
}

impl std::fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for SamplerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|k| k.name() == name).ok_or_else(|| Error::Input {
            name: "sampler".into(),
            expected: format!("one of {}", Self::ALL.map(SamplerKind::name).join(", ")),
            got: name.into(),
        })
    }
}

/// One sampler's arithmetic. Methods that look back keep what they need between calls of `step`.
trait Method: std::fmt::Debug {
    fn init_noise_sigma(&self) -> f64;
    fn scale_model_input(&self, x: &Tensor, i: usize) -> Result<Tensor>;
    fn step(&mut self, output: &Tensor, i: usize, x: &Tensor) -> Result<Tensor>;
}

/// A sampler made ready for a schedule and a number of steps. Make a new one for every batch of pictures.
#[derive(Debug)]
pub struct Sampler {
    kind: SamplerKind,
    timesteps: Vec<f64>,
    method: Box<dyn Method>,
}

impl Sampler {
    /// Plans `steps` steps on `schedule`.
    ///
    /// # Errors
    /// [`Error::Input`] when the number of steps does not fit the schedule, or the sampler cannot follow it.
    pub fn new(kind: SamplerKind, schedule: &NoiseSchedule, steps: usize) -> Result<Self> {
        let (timesteps, method): (_, Box<dyn Method>) = match kind {
            SamplerKind::Ddim => {
                let (t, m) = Ddim::new(schedule, steps)?;
                (t, Box::new(m))
            }
            SamplerKind::Euler => {
                let (t, m) = Euler::new(schedule, steps)?;
                (t, Box::new(m))
            }
        };
        Ok(Self { kind, timesteps, method })
    }

    /// Which sampler this is.
    pub fn kind(&self) -> SamplerKind {
        self.kind
    }

    /// The timestep given to the U-Net in each step, highest first; Euler's may lie between integers.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// Unit noise is multiplied by this to give the first `x`.
    pub fn init_noise_sigma(&self) -> f64 {
        self.method.init_noise_sigma()
    }

    /// The U-Net's input for step `i`: `x` brought to the scale of training.
    ///
    /// # Errors
    /// [`Error::Input`] for an `i` outside the plan.
    pub fn scale_model_input(&self, x: &Tensor, i: usize) -> Result<Tensor> {
        self.check(i)?;
        self.method.scale_model_input(x, i)
    }

    /// The next `x` from the model's (guided) output for step `i`, in the type of `x`.
    ///
    /// # Errors
    /// [`Error::Input`] for an `i` outside the plan, [`Error::Torch`] when shapes differ.
    pub fn step(&mut self, output: &Tensor, i: usize, x: &Tensor) -> Result<Tensor> {
        self.check(i)?;
        self.method.step(&output.f_to_kind(x.kind())?, i, x)
    }

    fn check(&self, i: usize) -> Result<()> {
        if i < self.timesteps.len() {
            return Ok(());
        }
        Err(Error::Input { name: "step".into(), expected: format!("below {}", self.timesteps.len()), got: i.to_string() })
    }
}

#[derive(Debug)]
struct Ddim {
    prediction: PredictionType,
    clip: Option<f64>,
    // abar at each step, and where the step goes.
    alphas: Vec<(f64, f64)>,
}

impl Ddim {
    fn new(schedule: &NoiseSchedule, steps: usize) -> Result<(Vec<f64>, Self)> {
        let config = schedule.config();
        let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Leading);
        let timesteps: Vec<f64> = schedule.timesteps(steps, spacing)?.into_iter().map(f64::round_ties_even).collect();
        let abar = schedule.alphas_cumprod();
        let last = if config.set_alpha_to_one { 1.0 } else { abar[0] };
        let stride = config.num_train_timesteps / steps as i64;
        let alpha_of = |t: f64| {
            let previous = t as i64 - stride;
            (abar[t as usize], if previous >= 0 { abar[previous as usize] } else { last })
        };
        let alphas: Vec<_> = timesteps.iter().map(|&t| alpha_of(t)).collect();
        if alphas[0].0 == 0.0 && config.prediction_type == PredictionType::Epsilon {
            return Err(Error::Input {
                name: "sampler".into(),
                expected: "a model that predicts v, for a schedule that ends in pure noise (rescale_betas_zero_snr)".into(),
                got: "epsilon".into(),
            });
        }
        let clip = config.clip_sample.then_some(config.clip_sample_range);
        Ok((timesteps, Self { prediction: config.prediction_type, clip, alphas }))
    }
}

impl Method for Ddim {
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    fn scale_model_input(&self, x: &Tensor, _: usize) -> Result<Tensor> {
        Ok(x.shallow_clone())
    }

    fn step(&mut self, output: &Tensor, i: usize, x: &Tensor) -> Result<Tensor> {
        let (alpha, next) = self.alphas[i];
        let (a, b) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (x0, epsilon) = match self.prediction {
            PredictionType::Epsilon => (x.f_sub(&(output * b))? / a, output.shallow_clone()),
            PredictionType::VPrediction => ((x * a).f_sub(&(output * b))?, (output * a).f_add(&(x * b))?),
            PredictionType::Sample => (output.shallow_clone(), x.f_sub(&(output * a))? / b),
        };
        let x0 = match self.clip {
            Some(range) => x0.f_clamp(-range, range)?,
            None => x0,
        };
        Ok((x0 * next.sqrt()).f_add(&(epsilon * (1.0 - next).sqrt()))?)
    }
}

#[derive(Debug)]
struct Euler {
    prediction: PredictionType,
    init_noise_sigma: f64,
    // One more than there are steps; the last is 0.
    sigmas: Vec<f64>,
}

impl Euler {
    fn new(schedule: &NoiseSchedule, steps: usize) -> Result<(Vec<f64>, Self)> {
        let config = schedule.config();
        let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
        let mut timesteps = schedule.timesteps(steps, spacing)?;
        // sigma_t = sqrt((1 - abar_t) / abar_t), rising with t. Where nothing of the picture is left, abar (0) counts as
        // 2^-24 (the smallest f16), so that sigma stays finite.
        let table: Vec<f64> = schedule
            .alphas_cumprod()
            .iter()
            .map(|&a| if a > 0.0 { a } else { f64::powi(2.0, -24) })
            .map(|a| ((1.0 - a) / a).sqrt())
            .collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| interpolate(&table, t)).collect();
        if config.use_karras_sigmas {
            sigmas = karras(sigmas[0], sigmas[steps - 1], steps);
            timesteps = sigmas.iter().map(|&s| timestep_of(&table, s)).collect();
        }
        let max = sigmas[0];
        let init_noise_sigma = match spacing {
            TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
        };
        sigmas.push(0.0);
        Ok((timesteps, Self { prediction: config.prediction_type, init_noise_sigma, sigmas }))
    }
}

impl Method for Euler {
    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, x: &Tensor, i: usize) -> Result<Tensor> {
        let s = self.sigmas[i];
        Ok(x / (s * s + 1.0).sqrt())
    }

    fn step(&mut self, output: &Tensor, i: usize, x: &Tensor) -> Result<Tensor> {
        let (s, dt) = (self.sigmas[i], self.sigmas[i + 1] - self.sigmas[i]);
        // dx/dsigma = (x - x0) / sigma
        let derivative = match self.prediction {
            PredictionType::Epsilon => output.shallow_clone(),
            PredictionType::VPrediction => {
                let r = s * s + 1.0;
                (output / r.sqrt()).f_add(&(x * (s / r)))?
            }
            PredictionType::Sample => x.f_sub(output)? / s,
        };
        Ok(x.f_add(&(derivative * dt))?)
    }
}

// Linear between the entries of `table`; `t` is within it.
fn interpolate(table: &[f64], t: f64) -> f64 {
    let low = (t.floor() as usize).min(table.len() - 1);
    let high = (low + 1).min(table.len() - 1);
    table[low] + (t - low as f64) * (table[high] - table[low])
}

// arXiv 2206.00364, equation 5, with rho = 7.
fn karras(max: f64, min: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (a, b) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
    let ramp = |i: usize| if steps > 1 { i as f64 / (steps - 1) as f64 } else { 0.0 };
    (0..steps).map(|i| (a + ramp(i) * (b - a)).powf(RHO)).collect()
}

// The (fractional) timestep with this noise level, linear in the logarithm.
fn timestep_of(table: &[f64], sigma: f64) -> f64 {
    let log = sigma.max(1e-10).ln();
    let low = table.iter().rposition(|s| s.ln() <= log).unwrap_or(0).min(table.len().saturating_sub(2));
    let high = (low + 1).min(table.len() - 1);
    let (l, h) = (table[low].ln(), table[high].ln());
    let w = if h > l { ((log - l) / (h - l)).clamp(0.0, 1.0) } else { 0.0 };
    (1.0 - w) * low as f64 + w * high as f64
}
