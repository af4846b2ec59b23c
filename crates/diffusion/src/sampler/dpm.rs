//! DPM-Solver++(2M): second order from what the step before found out, so no more U-Net calls than Euler's method.

use artifact::warn_once;
use tch::Tensor;

use super::{Clip, Method, sigmas, to_x0};
use crate::error::{Error, Result};
use crate::schedule::NoiseSchedule;
use crate::scheduler_config::{BetaSchedule, NoiseLevels, PredictionType, SolverSettings, TimestepSpacing};

/// Steps from which `lower_order_final` says nothing.
const FEW_STEPS: usize = 15;

#[derive(Debug)]
pub(super) struct DpmPp2m {
    prediction: PredictionType,
    clip: Clip,
    // One more than there are steps: to where the last one goes.
    sigmas: Vec<f64>,
    // Whether the last step is of first order. To level 0 it must be: its h is infinite.
    euler_at_final: bool,
    // Number of the last step and its x0.
    before: Option<(usize, Tensor)>,
}

impl DpmPp2m {
    pub(super) fn new(schedule: &NoiseSchedule, steps: usize, spread: NoiseLevels) -> Result<(Vec<f64>, Self)> {
        let config = schedule.config();
        tell_unheeded(&config.solver);
        let table = sigmas::table(schedule);
        let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
        // Unlike Euler's, levels that are spread span the whole schedule, whatever the spacing; the U-Net is told whole timesteps.
        let (timesteps, mut levels) = match sigmas::spread(spread, table[table.len() - 1], table[0], steps) {
            Some(levels) => {
                schedule.timesteps(steps, TimestepSpacing::Trailing)?;
                let rounded =
                    matches!(spread, NoiseLevels::Karras | NoiseLevels::Lu) && config.beta_schedule != BetaSchedule::SquaredcosCapV2;
                let whole = |t: f64| if rounded { t.round_ties_even() } else { t.floor() };
                (levels.iter().map(|&s| whole(sigmas::timestep_of(&table, s))).collect(), levels)
            }
            None => {
                let clipped = config.lambda_min_clipped.map_or(0, |least| table.iter().filter(|level| -level.ln() < least).count());
                let timesteps = spaced(schedule, steps, spacing, config.num_train_timesteps - clipped as i64)?;
                let levels = timesteps.iter().map(|&t| sigmas::interpolate(&table, t)).collect();
                (timesteps, levels)
            }
        };
        let last = sigmas::last(schedule);
        levels.push(last);
        let euler_at_final = last == 0.0 || config.euler_at_final || (config.lower_order_final && steps < FEW_STEPS);
        let (prediction, clip) = (config.prediction_type, Clip::thresholding(config));
        Ok((timesteps, Self { prediction, clip, sigmas: levels, euler_at_final, before: None }))
    }
}

// What `--sampler dpmpp-2m` runs whatever the file says: names that other solvers' classes use for the same do not count.
fn tell_unheeded(solver: &SolverSettings) {
    let told = |key: &str, value: &str, runs: &str| {
        warn_once(format!("the scheduler's setting `{key}` is {value}; the sampler dpmpp-2m runs with {runs}"));
    };
    if let Some(order) = solver.order.filter(|&order| order != 2) {
        told("solver_order", &order.to_string(), "2");
    }
    if let Some(other) = solver.algorithm_type.as_deref().filter(|name| !["dpmsolver++", "deis"].contains(name)) {
        told("algorithm_type", other, "dpmsolver++");
    }
    if let Some(other) = solver.solver_type.as_deref().filter(|name| !["midpoint", "logrho", "bh1", "bh2"].contains(name)) {
        told("solver_type", other, "midpoint");
    }
}

// As diffusers plans a multistep method: one timestep more is spaced out, and the last (the lowest) is left away. `n` timesteps are used.
fn spaced(schedule: &NoiseSchedule, steps: usize, spacing: TimestepSpacing, n: i64) -> Result<Vec<f64>> {
    let config = schedule.config();
    let s = steps as i64;
    let out: Vec<f64> = match spacing {
        TimestepSpacing::Trailing if n == config.num_train_timesteps => return schedule.timesteps(steps, spacing),
        TimestepSpacing::Trailing => {
            let expected = "none, with trailing timesteps".into();
            return Err(Error::Input { name: "lambda_min_clipped".into(), expected, got: format!("one that leaves {n} timesteps") });
        }
        // A step that is no whole timestep would stand still.
        _ if steps == 0 || s >= n => vec![config.num_train_timesteps as f64],
        TimestepSpacing::Linspace => (1..=s).rev().map(|i| (i as f64 * ((n - 1) as f64 / s as f64)).round_ties_even()).collect(),
        TimestepSpacing::Leading => (1..=s).rev().map(|i| (i * (n / (s + 1)) + config.steps_offset) as f64).collect(),
    };
    if out[0] > (config.num_train_timesteps - 1) as f64 {
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
        let x0 = self.clip.apply(to_x0(self.prediction, (a, s), output, x)?)?;
        let direction = match &self.before {
            Some((number, before)) if number + 1 == i && !(self.euler_at_final && i + 2 == self.sigmas.len()) => {
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
