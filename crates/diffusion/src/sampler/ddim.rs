//! DDIM: the deterministic sampler in the scale of training, the default.

use tch::Tensor;

use super::{Clip, Method, refuse_pure_noise, to_x0};
use crate::error::Result;
use crate::schedule::NoiseSchedule;
use crate::scheduler_config::{PredictionType, TimestepSpacing};

#[derive(Debug)]
pub(super) struct Ddim {
    prediction: PredictionType,
    clip: Clip,
    // abar at each step, and where the step goes.
    alphas: Vec<(f64, f64)>,
}

impl Ddim {
    pub(super) fn new(schedule: &NoiseSchedule, steps: usize) -> Result<(Vec<f64>, Self)> {
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
        refuse_pure_noise(alphas[0].0, config.prediction_type)?;
        Ok((timesteps, Self { prediction: config.prediction_type, clip: Clip::of(config), alphas }))
    }
}

impl Method for Ddim {
    fn step(&mut self, output: &Tensor, i: usize, x: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        let (alpha, next) = self.alphas[i];
        let (a, b) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let x0 = to_x0(self.prediction, (a, b), output, x)?;
        let epsilon = match self.prediction {
            PredictionType::Epsilon => output.shallow_clone(),
            PredictionType::VPrediction => (output * a).f_add(&(x * b))?,
            PredictionType::Sample => x.f_sub(&(output * a))? / b,
        };
        let x0 = self.clip.apply(x0)?;
        Ok((x0 * next.sqrt()).f_add(&(epsilon * (1.0 - next).sqrt()))?)
    }
}
