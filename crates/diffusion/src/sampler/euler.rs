//! Euler's method in the noise level, and its ancestral form, which takes away more noise than it should and adds fresh noise.

use tch::Tensor;

use super::{Method, sigmas};
use crate::error::Result;
use crate::schedule::NoiseSchedule;
use crate::scheduler_config::{NoiseLevels, PredictionType, TimestepSpacing};

// Noise levels of the steps, and one more, to which the last one goes.
#[derive(Debug)]
struct Levels {
    prediction: PredictionType,
    init_noise_sigma: f64,
    sigmas: Vec<f64>,
}

impl Levels {
    fn new(schedule: &NoiseSchedule, steps: usize, spread: NoiseLevels, last: f64) -> Result<(Vec<f64>, Self)> {
        let config = schedule.config();
        let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
        let mut timesteps = schedule.timesteps(steps, spacing)?;
        let table = sigmas::table(schedule);
        let mut levels: Vec<f64> = timesteps.iter().map(|&t| sigmas::interpolate(&table, t)).collect();
        // Those of Lu are none of Euler's, as in diffusers.
        let spread = if spread == NoiseLevels::Lu { NoiseLevels::Timesteps } else { spread };
        if let Some(spread) = sigmas::spread(spread, levels[0], levels[steps - 1], steps) {
            levels = spread;
            timesteps = levels.iter().map(|&s| sigmas::timestep_of(&table, s)).collect();
        }
        let max = levels.iter().copied().fold(0.0, f64::max);
        let init_noise_sigma = match spacing {
            TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
        };
        levels.push(last);
        Ok((timesteps, Self { prediction: config.prediction_type, init_noise_sigma, sigmas: levels }))
    }

    fn scale(&self, x: &Tensor, i: usize) -> Tensor {
        let s = self.sigmas[i];
        x / (s * s + 1.0).sqrt()
    }

    // dx/dsigma = (x - x0) / sigma
    fn derivative(&self, output: &Tensor, i: usize, x: &Tensor) -> Result<Tensor> {
        let s = self.sigmas[i];
        Ok(match self.prediction {
            PredictionType::Epsilon => output.shallow_clone(),
            PredictionType::VPrediction => {
                let r = s * s + 1.0;
                (output / r.sqrt()).f_add(&(x * (s / r)))?
            }
            PredictionType::Sample => x.f_sub(output)? / s,
        })
    }
}

#[derive(Debug)]
pub(super) struct Euler(Levels);

impl Euler {
    pub(super) fn new(schedule: &NoiseSchedule, steps: usize, spread: NoiseLevels) -> Result<(Vec<f64>, Self)> {
        let (timesteps, levels) = Levels::new(schedule, steps, spread, sigmas::last(schedule))?;
        Ok((timesteps, Self(levels)))
    }
}

impl Method for Euler {
    fn init_noise_sigma(&self) -> f64 {
        self.0.init_noise_sigma
    }

    fn scale_model_input(&self, x: &Tensor, i: usize) -> Tensor {
        self.0.scale(x, i)
    }

    fn step(&mut self, output: &Tensor, i: usize, x: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        let dt = self.0.sigmas[i + 1] - self.0.sigmas[i];
        Ok(x.f_add(&(self.0.derivative(output, i, x)? * dt))?)
    }
}

#[derive(Debug)]
pub(super) struct EulerAncestral(Levels);

impl EulerAncestral {
    pub(super) fn new(schedule: &NoiseSchedule, steps: usize) -> Result<(Vec<f64>, Self)> {
        let (timesteps, levels) = Levels::new(schedule, steps, NoiseLevels::Timesteps, 0.0)?;
        Ok((timesteps, Self(levels)))
    }

    // Noise level reached by the ODE, and of the fresh noise: down^2 + up^2 is the square of the next level.
    fn down_up(&self, i: usize) -> (f64, f64) {
        let (from, to) = (self.0.sigmas[i], self.0.sigmas[i + 1]);
        let up2 = to * to * (from * from - to * to) / (from * from);
        ((to * to - up2).max(0.0).sqrt(), up2.sqrt())
    }
}

impl Method for EulerAncestral {
    fn init_noise_sigma(&self) -> f64 {
        self.0.init_noise_sigma
    }

    fn scale_model_input(&self, x: &Tensor, i: usize) -> Tensor {
        self.0.scale(x, i)
    }

    fn needs_noise(&self, i: usize) -> bool {
        self.0.sigmas[i + 1] > 0.0
    }

    fn step(&mut self, output: &Tensor, i: usize, x: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let (down, up) = self.down_up(i);
        let x = x.f_add(&(self.0.derivative(output, i, x)? * (down - self.0.sigmas[i])))?;
        Ok(match noise {
            Some(noise) => x.f_add(&(noise * up))?,
            None => x,
        })
    }
}
