//! DPM-Solver++(2M): second order from what the step before found out, so no more U-Net calls than Euler's method.

use tch::Tensor;

use super::{Method, sigmas, to_x0};
use crate::error::{Error, Result};
use crate::schedule::NoiseSchedule;
use crate::scheduler_config::{BetaSchedule, PredictionType, TimestepSpacing};

#[derive(Debug)]
pub(super) struct DpmPp2m {
    prediction: PredictionType,
    // One more than there are steps; the last is 0.
    sigmas: Vec<f64>,
    // Number of the last step and its x0.
    before: Option<(usize, Tensor)>,
}

impl DpmPp2m {
    pub(super) fn new(schedule: &NoiseSchedule, steps: usize, karras: bool) -> Result<(Vec<f64>, Self)> {
        let config = schedule.config();
        let table = sigmas::table(schedule);
        let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
        let (timesteps, mut levels): (Vec<f64>, Vec<f64>) = if karras {
            // Unlike Euler's, these levels span the whole schedule, whatever the spacing; the U-Net is told whole timesteps.
            schedule.timesteps(steps, TimestepSpacing::Trailing)?;
            let levels = sigmas::karras(table[table.len() - 1], table[0], steps);
            let whole = |t: f64| if config.beta_schedule == BetaSchedule::SquaredcosCapV2 { t.floor() } else { t.round_ties_even() };
            (levels.iter().map(|&s| whole(sigmas::timestep_of(&table, s))).collect(), levels)
        } else {
            let timesteps = spaced(schedule, steps, spacing)?;
            let levels = timesteps.iter().map(|&t| sigmas::interpolate(&table, t)).collect();
            (timesteps, levels)
        };
        levels.push(0.0);
        Ok((timesteps, Self { prediction: config.prediction_type, sigmas: levels, before: None }))
    }
}

// As diffusers plans a multistep method: one timestep more is spaced out, and the last (the lowest) is left away.
fn spaced(schedule: &NoiseSchedule, steps: usize, spacing: TimestepSpacing) -> Result<Vec<f64>> {
    let config = schedule.config();
    let n = config.num_train_timesteps;
    let s = steps as i64;
    let out: Vec<f64> = match spacing {
        TimestepSpacing::Trailing => return schedule.timesteps(steps, spacing),
        // A step that is no whole timestep would stand still.
        _ if steps == 0 || s >= n => vec![n as f64],
        TimestepSpacing::Linspace => (1..=s).rev().map(|i| (i as f64 * ((n - 1) as f64 / s as f64)).round_ties_even()).collect(),
        TimestepSpacing::Leading => (1..=s).rev().map(|i| (i * (n / (s + 1)) + config.steps_offset) as f64).collect(),
    };
    if out[0] > (n - 1) as f64 {
        let expected = format!("1 to {}, and no timestep past the last", n - 1);
        return Err(Error::Input { name: "steps".into(), expected, got: steps.to_string() });
    }
    Ok(out)
}

// sqrt(abar) and sqrt(1 - abar) of a noise level.
fn alpha_sigma(level: f64) -> (f64, f64) {
    let alpha = 1.0 / (level * level + 1.0).sqrt();
    (alpha, level * alpha)
}

impl Method for DpmPp2m {
    fn step(&mut self, output: &Tensor, i: usize, x: &Tensor, _: Option<&Tensor>) -> Result<Tensor> {
        let (now, next) = (self.sigmas[i], self.sigmas[i + 1]);
        let ((a, s), (a_next, s_next)) = (alpha_sigma(now), alpha_sigma(next));
        let x0 = to_x0(self.prediction, (a, s), output, x)?;
        let direction = match &self.before {
            // The step to level 0 is of first order: its h is infinite.
            Some((number, before)) if number + 1 == i && next > 0.0 => {
                // lambda = log(alpha / sigma) = -log(level)
                let (h, h_before) = ((now / next).ln(), (self.sigmas[i - 1] / now).ln());
                let slope = 0.5 * h / h_before;
                (&x0 * (1.0 + slope)).f_sub(&(before * slope))?
            }
            _ => x0.shallow_clone(),
        };
        self.before = Some((i, x0));
        // exp(-h) = next / now
        Ok((x * (s_next / s)).f_sub(&(direction * (a_next * (next / now - 1.0))))?)
    }
}
