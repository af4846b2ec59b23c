//! The losses of retraining: task, output distillation, and feature distillation, plain or normalized.
//!
//! Notation: `eps_T`, `eps_S` outputs of teacher and student, `f_i^T`, `f_i^S` their features at tap i; `E` is the mean over all
//! elements and samples, as in BK-SDM (arXiv 2305.15798, equations 2 to 4).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use unet::weights::Tensors;

use crate::error::{Error, Result};

/// How feature differences are brought to one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureLoss {
    /// No feature term.
    None,
    /// `sum_i E||f_i^T - f_i^S||^2`: a few taps with large features dominate.
    Plain,
    /// `sum_i E||f_i^T - f_i^S||^2 / alpha_i` with `alpha_i` from the norm of the teacher's feature (LAPTOP-Diff, arXiv 2404.11098).
    Normalized,
}

/// Over what the teacher's norm is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormScope {
    /// Each sample by its own norm.
    Sample,
    /// The whole batch by one norm.
    Batch,
    /// A moving average of the batch norms (decay 0.99).
    Running,
}

/// Weights and forms of the terms of `L = task * L_task + out * L_outKD + feat * L_featKD`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of the task loss `E||target - eps_S||^2`.
    pub task: f64,
    /// Weight of the output distillation `E||eps_T - eps_S||^2`.
    pub out: f64,
    /// Weight of the feature distillation.
    pub feat: f64,
    /// Its form.
    pub features: FeatureLoss,
    /// 2: `alpha_i = mean(f^2)`, a relative squared error. 1: `alpha_i = sqrt(mean(f^2))`.
    pub norm_power: u8,
    /// What the mean runs over.
    pub norm_scope: NormScope,
}

impl LossConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first setting out of range.
    pub fn check(&self) -> Result<()> {
        if !matches!(self.norm_power, 1 | 2) {
            return Err(Error::Config { key: "norm_power".into(), expected: "1 or 2".into(), got: self.norm_power.to_string() });
        }
        for (key, w) in [("task", self.task), ("out", self.out), ("feat", self.feat)] {
            if !(w >= 0.0 && w.is_finite()) {
                return Err(Error::Config { key: key.into(), expected: "a weight of 0 or more".into(), got: w.to_string() });
            }
        }
        Ok(())
    }
}

/// `E||a - b||^2`, computed in f32.
pub fn mse(a: &Tensor, b: &Tensor) -> Tensor {
    let d = a.to_kind(Kind::Float) - b.to_kind(Kind::Float);
    d.square().mean(Kind::Float)
}

/// `E||a - b||^2` of each sample.
///
/// # Shapes
/// `[B, ..] -> [B]`
pub fn mse_per_sample(a: &Tensor, b: &Tensor) -> Tensor {
    let d = a.to_kind(Kind::Float) - b.to_kind(Kind::Float);
    d.square().flatten(1, -1).mean_dim([1i64].as_slice(), false, Kind::Float)
}

/// The feature term, tap by tap. Holds the running norms when the scope asks for them.
#[derive(Debug)]
pub struct FeatureTerms {
    config: LossConfig,
    running: BTreeMap<String, f64>,
}

const RUNNING_DECAY: f64 = 0.99;
const SMALLEST_ALPHA: f64 = 1e-8;

impl FeatureTerms {
    /// Terms as `config` asks.
    pub fn new(config: &LossConfig) -> Self {
        Self { config: config.clone(), running: BTreeMap::new() }
    }

    /// The running norms, to be saved with a checkpoint.
    pub fn state(&self) -> Tensors {
        self.running.iter().map(|(tap, &alpha)| (tap.clone(), Tensor::from(alpha))).collect()
    }

    /// Takes up saved running norms.
    pub fn restore(&mut self, state: &Tensors) {
        self.running = state.iter().map(|(tap, alpha)| (tap.clone(), alpha.double_value(&[]))).collect();
    }

    /// One unweighted scalar per tap, in the order of the taps' names.
    ///
    /// # Errors
    /// [`Error::Tap`] when a tap of the teacher is missing in the student.
    pub fn terms(&mut self, teacher: &Tensors, student: &Tensors) -> Result<Vec<(String, Tensor)>> {
        let mut out = Vec::with_capacity(teacher.len());
        for (tap, f_t) in teacher {
            let f_s = student.get(tap).ok_or_else(|| Error::Tap { tap: tap.clone(), network: "student".into() })?;
            let term = match self.config.features {
                FeatureLoss::None => continue,
                FeatureLoss::Plain => mse(f_t, f_s),
                FeatureLoss::Normalized => self.normalized(tap, f_t, f_s),
            };
            out.push((tap.clone(), term));
        }
        Ok(out)
    }

    // alpha is a constant of the optimization: the teacher's features carry no gradient.
    fn normalized(&mut self, tap: &str, f_t: &Tensor, f_s: &Tensor) -> Tensor {
        let square = f_t.detach().to_kind(Kind::Float).square();
        let power = f64::from(self.config.norm_power) / 2.0;
        match self.config.norm_scope {
            NormScope::Sample => {
                // [B, C, H, W] -> [B]
                let alpha = square.flatten(1, -1).mean_dim([1i64].as_slice(), false, Kind::Float).pow_tensor_scalar(power);
                (mse_per_sample(f_t, f_s) / alpha.clamp_min(SMALLEST_ALPHA)).mean(Kind::Float)
            }
            NormScope::Batch => mse(f_t, f_s) / square.mean(Kind::Float).pow_tensor_scalar(power).clamp_min(SMALLEST_ALPHA),
            NormScope::Running => {
                let now = square.mean(Kind::Float).double_value(&[]).powf(power);
                let alpha = self.running.get(tap).map_or(now, |old| old * RUNNING_DECAY + now * (1.0 - RUNNING_DECAY));
                self.running.insert(tap.into(), alpha);
                mse(f_t, f_s) / alpha.max(SMALLEST_ALPHA)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(features: FeatureLoss, norm_power: u8, norm_scope: NormScope) -> LossConfig {
        LossConfig { task: 1.0, out: 1.0, feat: 1.0, features, norm_power, norm_scope }
    }

    fn value(c: LossConfig, t: &[f32], s: &[f32]) -> f64 {
        let shape = [2, t.len() as i64 / 2];
        let teacher = Tensors::from([("mid_block".to_string(), Tensor::from_slice(t).view(shape))]);
        let student = Tensors::from([("mid_block".to_string(), Tensor::from_slice(s).view(shape))]);
        FeatureTerms::new(&c).terms(&teacher, &student).unwrap()[0].1.double_value(&[])
    }

    // By hand: squared errors (1, 0 | 4, 4), teacher squares (1, 9 | 4, 16).
    const T: [f32; 4] = [1.0, 3.0, 2.0, 4.0];
    const S: [f32; 4] = [2.0, 3.0, 4.0, 2.0];

    #[test]
    fn terms_follow_their_formulas() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
        near(value(config(FeatureLoss::Plain, 2, NormScope::Batch), &T, &S), 9.0 / 4.0);
        near(value(config(FeatureLoss::Normalized, 2, NormScope::Batch), &T, &S), (9.0 / 4.0) / (30.0 / 4.0));
        near(value(config(FeatureLoss::Normalized, 1, NormScope::Batch), &T, &S), (9.0 / 4.0) / (30.0f64 / 4.0).sqrt());
        near(value(config(FeatureLoss::Normalized, 2, NormScope::Sample), &T, &S), (0.5 / 5.0 + 4.0 / 10.0) / 2.0);
    }

    #[test]
    fn normalized_terms_do_not_depend_on_the_scale_of_a_feature() {
        let big = |x: &[f32]| x.iter().map(|v| v * 50.0).collect::<Vec<_>>();
        for scope in [NormScope::Sample, NormScope::Batch, NormScope::Running] {
            let a = value(config(FeatureLoss::Normalized, 2, scope), &T, &S);
            let b = value(config(FeatureLoss::Normalized, 2, scope), &big(&T), &big(&S));
            assert!((a - b).abs() < 1e-6 * a.abs(), "{scope:?}: {a} against {b}");
        }
    }

    #[test]
    fn a_missing_tap_is_named() {
        let teacher = Tensors::from([("mid_block".to_string(), Tensor::from_slice(&T))]);
        let err = FeatureTerms::new(&config(FeatureLoss::Plain, 2, NormScope::Batch)).terms(&teacher, &Tensors::new()).unwrap_err();
        assert!(matches!(err, Error::Tap { tap, .. } if tap == "mid_block"));
    }
}
