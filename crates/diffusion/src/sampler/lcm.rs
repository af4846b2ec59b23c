//! Multistep sampling of latent consistency models: each step goes straight to a clean latent, then noises it again.

use tch::Tensor;

use super::{Clip, Method, refuse_pure_noise, to_x0};
use crate::error::{Error, Result};
use crate::schedule::NoiseSchedule;
use crate::scheduler_config::PredictionType;

/// Standard deviation of the data in the boundary conditions.
const SIGMA_DATA: f64 = 0.5;

#[derive(Debug)]
pub(super) struct Lcm {
    prediction: PredictionType,
    clip: Clip,
    timesteps: Vec<f64>,
    timestep_scaling: f64,
    // abar at each step.
    alphas: Vec<f64>,
}

impl Lcm {
    pub(super) fn new(schedule: &NoiseSchedule, steps: usize) -> Result<(Vec<f64>, Self)> {
        let config = schedule.config();
        let original = config.original_inference_steps;
        let stride = config.num_train_timesteps / original;
        if stride == 0 || steps == 0 || steps as i64 > original {
            let most = original.min(config.num_train_timesteps);
            return Err(Error::Input {
                name: "steps".into(),
                expected: format!("1 to {most}, the steps of its distillation (original_inference_steps)"),
                got: steps.to_string(),
            });
        }
        // Some of the timesteps of distillation, evenly from the highest.
        let pick = |i: usize| original - (i as f64 * (original as f64 / steps as f64)).floor() as i64;
        let timesteps: Vec<f64> = (0..steps).map(|i| (pick(i) * stride - 1) as f64).collect();
        let alphas: Vec<f64> = timesteps.iter().map(|&t| schedule.alphas_cumprod()[t as usize]).collect();
        refuse_pure_noise(alphas[0], config.prediction_type)?;
        let clip = Clip::of(config);
        let timestep_scaling = config.timestep_scaling;
        Ok((timesteps.clone(), Self { prediction: config.prediction_type, clip, timesteps, timestep_scaling, alphas }))
    }
}

impl Method for Lcm {
    fn needs_noise(&self, i: usize) -> bool {
        i + 1 < self.timesteps.len()
    }

    fn step(&mut self, output: &Tensor, i: usize, x: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let alpha = self.alphas[i];
        let x0 = to_x0(self.prediction, (alpha.sqrt(), (1.0 - alpha).sqrt()), output, x)?;
        let x0 = self.clip.apply(x0)?;
        // The consistency function, which is the identity at timestep 0 (arXiv 2310.04378, section 3 and appendix).
        let t = self.timesteps[i] * self.timestep_scaling;
        let norm = t * t + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / norm, t / norm.sqrt());
        let clean = (x0 * out).f_add(&(x * skip))?;
        Ok(match noise {
            Some(noise) => {
                let next = self.alphas[i + 1];
                (clean * next.sqrt()).f_add(&(noise * (1.0 - next).sqrt()))?
            }
            None => clean,
        })
    }
}
