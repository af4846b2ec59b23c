//! The noise schedule: how much of an image is left at each timestep, and what the U-Net is asked to predict there.
//! Used by training (noise -> target), by the calibration set and by every sampler.
//!
//! Shapes: `B` batch; `x0`, `noise` and model outputs are `[B, C, H, W]`, timesteps `[B]` of type i64.
//! `x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise` (arXiv 2006.11239, equation 4).

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::scheduler_config::{BetaSchedule, PredictionType, SchedulerConfig, TimestepSpacing};

/// The schedule of one model: `abar_t` for every timestep, and the arithmetic of noising and of the U-Net's target.
#[derive(Debug)]
pub struct NoiseSchedule {
    config: SchedulerConfig,
    alphas_cumprod: Vec<f64>,
    // sqrt(abar) and sqrt(1 - abar), each [num_train_timesteps] f32 on the CPU.
    sqrt_alpha: Tensor,
    sqrt_beta: Tensor,
}

impl NoiseSchedule {
    /// The schedule of `config`.
    ///
    /// `beta_t` and `1 - beta_t` are rounded to f32, as they are in the published models and in diffusers; all else is f64.
    ///
    /// # Errors
    /// [`Error::Torch`] when libtorch refuses the numbers.
    pub fn new(config: SchedulerConfig) -> Result<Self> {
        let n = config.num_train_timesteps;
        let cpu = (Kind::Float, Device::Cpu);
        let mut betas = match (&config.trained_betas, config.beta_schedule) {
            (Some(betas), _) => Tensor::f_from_slice(betas)?.f_to_kind(Kind::Float)?,
            (None, BetaSchedule::Linear) => Tensor::f_linspace(config.beta_start, config.beta_end, n, cpu)?,
            (None, BetaSchedule::ScaledLinear) => {
                Tensor::f_linspace(config.beta_start.sqrt(), config.beta_end.sqrt(), n, cpu)?.f_square()?
            }
            (None, BetaSchedule::SquaredcosCapV2) => {
                let abar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                let beta = |i: i64| (1.0 - abar((i + 1) as f64 / n as f64) / abar(i as f64 / n as f64)).min(0.999) as f32;
                Tensor::f_from_slice(&(0..n).map(beta).collect::<Vec<_>>())?
            }
        };
        if config.rescale_betas_zero_snr {
            betas = zero_terminal_snr(&betas)?;
        }
        let alphas_cumprod = (betas * -1.0 + 1.0).f_cumprod(0, Kind::Float)?;
        let wide = alphas_cumprod.f_to_kind(Kind::Double)?;
        Ok(Self {
            sqrt_alpha: wide.f_sqrt()?.f_to_kind(Kind::Float)?,
            sqrt_beta: (&wide * -1.0 + 1.0).f_sqrt()?.f_to_kind(Kind::Float)?,
            alphas_cumprod: Vec::<f64>::try_from(&wide)?,
            config,
        })
    }

    /// The schedule in `path`, as [`SchedulerConfig::open`] finds it.
    ///
    /// # Errors
    /// As [`SchedulerConfig::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(SchedulerConfig::open(path)?)
    }

    /// Writes `dir/scheduler_config.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        Ok(artifact::write_config(&dir.join("scheduler_config.json"), &self.config.to_json())?)
    }

    /// The settings.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// What the U-Net predicts.
    pub fn prediction_type(&self) -> PredictionType {
        self.config.prediction_type
    }

    /// `abar_t` for `t = 0 .. num_train_timesteps`.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Signal-to-noise ratio `abar_t / (1 - abar_t)`.
    ///
    /// # Shapes
    /// `t [B]` -> `[B]` f32 on the device of `t`.
    ///
    /// # Errors
    /// [`Error::Torch`] when a timestep is outside the schedule.
    pub fn snr(&self, t: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.gather(&self.sqrt_alpha, t)?, self.gather(&self.sqrt_beta, t)?);
        Ok(a.f_div(&b)?.f_square()?)
    }

    /// `x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise` (arXiv 2006.11239, equation 4), in the type of `x0`.
    ///
    /// # Errors
    /// [`Error::Torch`] when shapes differ or a timestep is outside the schedule.
    pub fn add_noise(&self, x0: &Tensor, noise: &Tensor, t: &Tensor) -> Result<Tensor> {
        let (a, b) = self.coefficients(t, x0)?;
        Ok(a.f_mul(x0)?.f_add(&b.f_mul(noise)?)?)
    }

    /// What the U-Net should predict at `x_t`: the noise, `v`, or `x0`.
    ///
    /// # Errors
    /// As [`NoiseSchedule::add_noise`].
    pub fn target(&self, x0: &Tensor, noise: &Tensor, t: &Tensor) -> Result<Tensor> {
        match self.config.prediction_type {
            PredictionType::Epsilon => Ok(noise.shallow_clone()),
            PredictionType::Sample => Ok(x0.shallow_clone()),
            PredictionType::VPrediction => {
                let (a, b) = self.coefficients(t, x0)?;
                Ok(a.f_mul(noise)?.f_sub(&b.f_mul(x0)?)?)
            }
        }
    }

    /// The clean sample that a model output at `x_t` stands for.
    ///
    /// # Errors
    /// As [`NoiseSchedule::add_noise`].
    pub fn to_x0(&self, output: &Tensor, x_t: &Tensor, t: &Tensor) -> Result<Tensor> {
        let (a, b) = self.coefficients(t, x_t)?;
        Ok(match self.config.prediction_type {
            PredictionType::Epsilon => x_t.f_sub(&b.f_mul(output)?)?.f_div(&a)?,
            PredictionType::VPrediction => a.f_mul(x_t)?.f_sub(&b.f_mul(output)?)?,
            PredictionType::Sample => output.shallow_clone(),
        })
    }

    /// The noise that a model output at `x_t` stands for.
    ///
    /// # Errors
    /// As [`NoiseSchedule::add_noise`].
    pub fn to_epsilon(&self, output: &Tensor, x_t: &Tensor, t: &Tensor) -> Result<Tensor> {
        let (a, b) = self.coefficients(t, x_t)?;
        Ok(match self.config.prediction_type {
            PredictionType::Epsilon => output.shallow_clone(),
            PredictionType::VPrediction => a.f_mul(output)?.f_add(&b.f_mul(x_t)?)?,
            PredictionType::Sample => x_t.f_sub(&a.f_mul(output)?)?.f_div(&b)?,
        })
    }

    /// The timesteps that a sampler with `steps` steps visits, highest first; not rounded to integers for linspace spacing.
    ///
    /// # Errors
    /// [`Error::Input`] when there are no steps, or more than the schedule has room for.
    pub fn timesteps(&self, steps: usize, spacing: TimestepSpacing) -> Result<Vec<f64>> {
        let n = self.config.num_train_timesteps;
        let wrong = |expected: String| Error::Input { name: "steps".into(), expected, got: steps.to_string() };
        if steps == 0 || steps as i64 > n {
            return Err(wrong(format!("1 to {n}")));
        }
        let out: Vec<f64> = match spacing {
            TimestepSpacing::Linspace => {
                let step = if steps > 1 { (n - 1) as f64 / (steps - 1) as f64 } else { 0.0 };
                (0..steps).rev().map(|i| i as f64 * step).collect()
            }
            TimestepSpacing::Leading => {
                let step = n / steps as i64;
                (0..steps as i64).rev().map(|i| (i * step + self.config.steps_offset) as f64).collect()
            }
            TimestepSpacing::Trailing => {
                let step = n as f64 / steps as f64;
                (0..steps).map(|i| (n as f64 - i as f64 * step).round_ties_even() - 1.0).collect()
            }
        };
        if out[0] > (n - 1) as f64 {
            return Err(wrong(format!("fewer steps, since steps_offset {} leads past the last timestep", self.config.steps_offset)));
        }
        Ok(out)
    }

    // `table[t]` as [B], on the device of `t`.
    fn gather(&self, table: &Tensor, t: &Tensor) -> Result<Tensor> {
        Ok(table.f_to_device(t.device())?.f_index_select(0, &t.f_to_kind(Kind::Int64)?)?)
    }

    // sqrt(abar_t) and sqrt(1 - abar_t) as [B, 1, ..], in the type and on the device of `like`.
    fn coefficients(&self, t: &Tensor, like: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut shape = vec![1i64; like.dim().max(1)];
        shape[0] = -1;
        let t = t.f_to_device(like.device())?;
        let cast = |table| -> Result<Tensor> { Ok(self.gather(table, &t)?.f_to_kind(like.kind())?.f_view(shape.as_slice())?) };
        Ok((cast(&self.sqrt_alpha)?, cast(&self.sqrt_beta)?))
    }
}

// arXiv 2305.08891, algorithm 1, in f32.
fn zero_terminal_snr(betas: &Tensor) -> Result<Tensor> {
    let root = (betas * -1.0 + 1.0).f_cumprod(0, Kind::Float)?.f_sqrt()?;
    let n = root.size1()?;
    let (first, last) = (root.f_get(0)?, root.f_get(n - 1)?);
    let scale = first.f_div(&first.f_sub(&last)?)?;
    let abar = root.f_sub(&last)?.f_mul(&scale)?.f_square()?;
    let ratio = abar.f_narrow(0, 1, n - 1)?.f_div(&abar.f_narrow(0, 0, n - 1)?)?;
    let alphas = Tensor::f_cat(&[abar.f_narrow(0, 0, 1)?, ratio], 0)?;
    Ok(alphas * -1.0 + 1.0)
}
