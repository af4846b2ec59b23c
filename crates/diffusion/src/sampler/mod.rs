//! Samplers: from noise to a clean latent in a few U-Net calls. Stands between the text embeddings and the VAE decoder.
//!
//! A [`Sampler`] knows its timesteps beforehand; the caller runs, for every `i`,
//! `out = unet(sampler.scale_model_input(x, i), sampler.timesteps()[i])` and `x = sampler.step(out, i, x, noise)`.
//! Fresh noise of stochastic samplers comes from the caller, so that a sampler itself has nothing random in it.
//! A further sampler is one more struct that implements `Method`, and one more [`SamplerKind`].

mod ddim;
mod dpm;
mod euler;
mod lcm;
mod sigmas;

use tch::Tensor;

use self::ddim::Ddim;
use self::dpm::DpmPp2m;
use self::euler::{Euler, EulerAncestral};
use self::lcm::Lcm;
use crate::error::{Error, Result};
use crate::schedule::NoiseSchedule;
use crate::scheduler_config::{NoiseLevels, PredictionType, SchedulerConfig};

/// The samplers that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SamplerKind {
    /// DDIM with eta 0 (arXiv 2010.02502, equation 12).
    Ddim,
    /// Euler's method on the probability-flow ODE in the noise level (arXiv 2206.00364, algorithm 1 without its second-order step).
    Euler,
    /// Euler's method with fresh noise after each step: diffusers' `EulerAncestralDiscreteScheduler`, k-diffusion's `euler_ancestral`.
    EulerAncestral,
    /// DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), of first order in the first and last step: diffusers'
    /// `DPMSolverMultistepScheduler` of order 2. A configuration that names another order, algorithm or solver is told so in a warning.
    DpmPp2m,
    /// Latent consistency models (arXiv 2310.04378), in a few steps: diffusers' `LCMScheduler`.
    Lcm,
}

impl SamplerKind {
    /// All of them, for help texts and tests.
    pub const ALL: [SamplerKind; 5] =
        [SamplerKind::Ddim, SamplerKind::Euler, SamplerKind::EulerAncestral, SamplerKind::DpmPp2m, SamplerKind::Lcm];

    /// The name on the command line and in an image's metadata.
    pub fn name(self) -> &'static str {
        match self {
            SamplerKind::Ddim => "ddim",
            SamplerKind::Euler => "euler",
            SamplerKind::EulerAncestral => "euler-ancestral",
            SamplerKind::DpmPp2m => "dpmpp-2m",
            SamplerKind::Lcm => "lcm",
        }
    }

    /// Whether its noise levels can follow arXiv 2206.00364, equation 5; others pass over `use_karras_sigmas`, as in diffusers.
    pub fn has_karras(self) -> bool {
        matches!(self, SamplerKind::Euler | SamplerKind::DpmPp2m)
    }

    /// Whether its steps draw fresh noise.
    pub fn is_stochastic(self) -> bool {
        matches!(self, SamplerKind::EulerAncestral | SamplerKind::Lcm)
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
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    fn scale_model_input(&self, x: &Tensor, _: usize) -> Tensor {
        x.shallow_clone()
    }

    fn needs_noise(&self, _: usize) -> bool {
        false
    }

    /// `noise` is there exactly when `needs_noise(i)`.
    fn step(&mut self, output: &Tensor, i: usize, x: &Tensor, noise: Option<&Tensor>) -> Result<Tensor>;
}

/// A sampler made ready for a schedule and a number of steps. Make a new one for every batch of images.
#[derive(Debug)]
pub struct Sampler {
    kind: SamplerKind,
    timesteps: Vec<f64>,
    method: Box<dyn Method>,
}

impl Sampler {
    /// Plans `steps` steps on `schedule`. `karras` asks for noise levels after arXiv 2206.00364, equation 5, even where the
    /// schedule's configuration (`use_karras_sigmas`) does not.
    ///
    /// # Errors
    /// [`Error::Input`] when the number of steps does not fit the schedule, the sampler cannot follow it, or `karras` is asked
    /// of a sampler without it.
    pub fn new(kind: SamplerKind, schedule: &NoiseSchedule, steps: usize, karras: bool) -> Result<Self> {
        if karras && !kind.has_karras() {
            let able: Vec<_> = SamplerKind::ALL.into_iter().filter(|k| k.has_karras()).map(SamplerKind::name).collect();
            return Err(Error::Input { name: "karras".into(), expected: format!("one of {}", able.join(", ")), got: kind.name().into() });
        }
        let levels = if karras { NoiseLevels::Karras } else { schedule.config().noise_levels };
        let (timesteps, method) = match kind {
            SamplerKind::Ddim => boxed(Ddim::new(schedule, steps)?),
            SamplerKind::Euler => boxed(Euler::new(schedule, steps, levels)?),
            SamplerKind::EulerAncestral => boxed(EulerAncestral::new(schedule, steps)?),
            SamplerKind::DpmPp2m => boxed(DpmPp2m::new(schedule, steps, levels)?),
            SamplerKind::Lcm => boxed(Lcm::new(schedule, steps)?),
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
        Ok(self.method.scale_model_input(x, i))
    }

    /// Whether step `i` adds fresh noise; the last one never does.
    pub fn needs_noise(&self, i: usize) -> bool {
        i < self.timesteps.len() && self.method.needs_noise(i)
    }

    /// The next `x` from the model's (guided) output for step `i`, in the type of `x`. `noise` is unit noise of the same
    /// shape where [`Sampler::needs_noise`]; elsewhere it has no influence.
    ///
    /// # Errors
    /// [`Error::Input`] for an `i` outside the plan or missing noise, [`Error::Torch`] when shapes differ.
    pub fn step(&mut self, output: &Tensor, i: usize, x: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        self.check(i)?;
        let noise = match (self.needs_noise(i), noise) {
            (false, _) => None,
            (true, Some(noise)) => Some(noise.f_to_device(x.device())?.f_to_kind(x.kind())?),
            (true, None) => {
                let expected = format!("unit noise {:?} for step {i} of {}", x.size(), self.kind);
                return Err(Error::Input { name: "noise".into(), expected, got: "none".into() });
            }
        };
        self.method.step(&output.f_to_kind(x.kind())?, i, x, noise.as_ref())
    }

    fn check(&self, i: usize) -> Result<()> {
        if i < self.timesteps.len() {
            return Ok(());
        }
        Err(Error::Input { name: "step".into(), expected: format!("below {}", self.timesteps.len()), got: i.to_string() })
    }
}

fn boxed<M: Method + 'static>((timesteps, method): (Vec<f64>, M)) -> (Vec<f64>, Box<dyn Method>) {
    (timesteps, Box::new(method))
}

// The clean sample at `x = a x0 + b noise`.
fn to_x0(prediction: PredictionType, (a, b): (f64, f64), output: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(match prediction {
        PredictionType::Epsilon => x.f_sub(&(output * b))? / a,
        PredictionType::VPrediction => (x * a).f_sub(&(output * b))?,
        PredictionType::Sample => output.shallow_clone(),
    })
}

/// What is done to every predicted clean sample before it is used.
#[derive(Debug)]
enum Clip {
    None,
    /// Held between plus and minus this.
    Range(f64),
    /// Divided by its own size where that is more than 1 (arXiv 2205.11487, section 2.3): the quantile `ratio` of its values, at most `most`.
    Dynamic {
        ratio: f64,
        most: f64,
    },
}

impl Clip {
    fn of(c: &SchedulerConfig) -> Self {
        match Self::thresholding(c) {
            Self::None if c.clip_sample => Self::Range(c.clip_sample_range),
            other => other,
        }
    }

    /// For samplers that know no fixed range.
    fn thresholding(c: &SchedulerConfig) -> Self {
        match c.thresholding {
            true => Self::Dynamic { ratio: c.dynamic_thresholding_ratio, most: c.sample_max_value.max(1.0) },
            false => Self::None,
        }
    }

    /// `x0 [B, C, h, w]`, each sample by itself.
    fn apply(&self, x0: Tensor) -> Result<Tensor> {
        Ok(match *self {
            Self::None => x0,
            Self::Range(range) => x0.f_clamp(-range, range)?,
            Self::Dynamic { ratio, most } => {
                let flat = x0.f_flatten(1, -1)?;
                let size = flat.f_abs()?.f_quantile_scalar(ratio, 1, true, "linear")?.f_clamp(1.0, most)?;
                let held = flat.f_minimum(&size)?.f_maximum(&size.f_neg()?)?;
                held.f_div(&size)?.f_view_as(&x0)?
            }
        })
    }
}

// Where nothing of the image is left, predicted noise says nothing about it.
fn refuse_pure_noise(first_alpha: f64, prediction: PredictionType) -> Result<()> {
    if first_alpha > 0.0 || prediction != PredictionType::Epsilon {
        return Ok(());
    }
    Err(Error::Input {
        name: "sampler".into(),
        expected: "a model that predicts v, for a schedule that ends in pure noise (rescale_betas_zero_snr)".into(),
        got: "epsilon".into(),
    })
}
