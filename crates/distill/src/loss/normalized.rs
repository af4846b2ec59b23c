//! Feature losses that bring all taps to one scale: each term divided by the size of the teacher's feature (LAPTOP-Diff,
//! arXiv 2404.11098), with all of its elements or without the largest.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};
use unet::weights::Tensors;

use super::error::{SMALLEST_ALPHA, mse, mse_per_sample};
use super::feature::FeatureLoss;
use super::settings::{LossConfig, NormScope};
use crate::error::Result;
use crate::train::Average;

/// How the size of a feature is measured, and for [`NormScope::Running`] what was measured in earlier steps.
struct Norms {
    scope: NormScope,
    // Of the mean square.
    power: f64,
    running: BTreeMap<String, f64>,
    // Sum and number of the norms seen in this step.
    seen: BTreeMap<String, (f64, u64)>,
}

const RUNNING_DECAY: f64 = 0.99;

impl Norms {
    fn new(config: &LossConfig) -> Self {
        let power = f64::from(config.norm_power) / 2.0;
        Self { scope: config.norm_scope, power, running: BTreeMap::new(), seen: BTreeMap::new() }
    }

    /// The norm of a mean square, as something to divide by.
    fn alpha(&self, mean_square: &Tensor) -> Tensor {
        mean_square.pow_tensor_scalar(self.power).clamp_min(SMALLEST_ALPHA)
    }

    /// The alpha of earlier steps, and notes this one's.
    fn running(&mut self, tap: &str, mean_square: &Tensor) -> f64 {
        let now = mean_square.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]).powf(self.power);
        let (sum, n) = self.seen.entry(tap.into()).or_default();
        (*sum, *n) = (*sum + now, *n + 1);
        self.running.get(tap).copied().unwrap_or(now).max(SMALLEST_ALPHA)
    }

    /// Takes in the mean of the step's norms, over its micro-batches and, by `average`, over ranks. Within a step the running norms do
    /// not move, so that every micro-batch and rank divides by the same.
    fn end_step(&mut self, average: &mut Average) -> Result<()> {
        let seen = std::mem::take(&mut self.seen);
        if seen.is_empty() {
            return Ok(());
        }
        let mut norms: Vec<f64> = seen.values().map(|(sum, n)| sum / *n as f64).collect();
        average(&mut norms)?;
        for (tap, now) in seen.into_keys().zip(norms) {
            // A step that is not finite is skipped, and leaves no trace here either.
            if now.is_finite() {
                let alpha = self.running.get(&tap).map_or(now, |old| old * RUNNING_DECAY + now * (1.0 - RUNNING_DECAY));
                self.running.insert(tap, alpha);
            }
        }
        Ok(())
    }

    fn state(&self) -> Tensors {
        self.running.iter().map(|(tap, &alpha)| (tap.clone(), Tensor::from(alpha))).collect()
    }

    fn restore(&mut self, state: &Tensors) {
        self.running = state.iter().map(|(tap, alpha)| (tap.clone(), alpha.double_value(&[]))).collect();
    }
}

/// `sum_i E||f_i^T - f_i^S||^2 / alpha_i` with `alpha_i` from the norm of the teacher's feature (LAPTOP-Diff, arXiv 2404.11098).
pub struct Normalized(Norms);

impl Normalized {
    /// With norms as `config` says.
    pub fn new(config: &LossConfig) -> Self {
        Self(Norms::new(config))
    }
}

impl FeatureLoss for Normalized {
    // alpha is a constant of the optimization: the teacher's features carry no gradient.
    fn term(&mut self, tap: &str, f_t: &Tensor, f_s: &Tensor) -> Result<Tensor> {
        let square = f_t.detach().to_kind(Kind::Float).square();
        Ok(match self.0.scope {
            NormScope::Sample => {
                // [B, C, H, W] -> [B]
                let alpha = self.0.alpha(&square.flatten(1, -1).mean_dim([1i64].as_slice(), false, Kind::Float));
                (mse_per_sample(f_t, f_s) / alpha).mean(Kind::Float)
            }
            NormScope::Batch => mse(f_t, f_s) / self.0.alpha(&square.mean(Kind::Float)),
            NormScope::Running => mse(f_t, f_s) / self.0.running(tap, &square.mean(Kind::Float)),
        })
    }

    fn end_step(&mut self, average: &mut Average) -> Result<()> {
        self.0.end_step(average)
    }

    fn state(&self) -> Tensors {
        self.0.state()
    }

    fn restore(&mut self, state: &Tensors) {
        self.0.restore(state);
    }
}

/// [`Normalized`] without the elements whose teacher feature exceeds `mask_threshold` times the feature's root mean square, in
/// numerator and norm alike: massive activations do not decide (after TinyFusion's masked distillation, arXiv 2412.01199).
pub struct Masked {
    norms: Norms,
    threshold: f64,
}

impl Masked {
    /// With norms and threshold as `config` says.
    pub fn new(config: &LossConfig) -> Self {
        Self { norms: Norms::new(config), threshold: config.mask_threshold }
    }
}

impl FeatureLoss for Masked {
    fn term(&mut self, tap: &str, f_t: &Tensor, f_s: &Tensor) -> Result<Tensor> {
        // One row per norm. [B, C, H, W] -> [B, N], or [1, B * N]
        let rows = |t: &Tensor| match self.norms.scope {
            NormScope::Sample => t.flatten(1, -1),
            NormScope::Batch | NormScope::Running => t.reshape([1, -1]),
        };
        let mean = |t: &Tensor| t.mean_dim([1i64].as_slice(), true, Kind::Float);
        let square = rows(&f_t.detach().to_kind(Kind::Float)).square();
        let keep = square.le_tensor(&(mean(&square) * self.threshold.powi(2))).to_kind(Kind::Float);
        let kept = mean(&keep);
        let error = mean(&(rows(&(f_t.to_kind(Kind::Float) - f_s.to_kind(Kind::Float))).square() * &keep)) / &kept;
        let norm = mean(&(square * &keep)) / kept;
        Ok(match self.norms.scope {
            NormScope::Running => error.mean(Kind::Float) / self.norms.running(tap, &norm),
            _ => (error / self.norms.alpha(&norm)).mean(Kind::Float),
        })
    }

    fn end_step(&mut self, average: &mut Average) -> Result<()> {
        self.norms.end_step(average)
    }

    fn state(&self) -> Tensors {
        self.norms.state()
    }

    fn restore(&mut self, state: &Tensors) {
        self.norms.restore(state);
    }
}
