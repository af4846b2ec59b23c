//! The losses of retraining: task, output distillation, and feature distillation, plain or normalized.
//!
//! Notation: `eps_T`, `eps_S` outputs of teacher and student, `f_i^T`, `f_i^S` their features at tap i; `E` is the mean over all
//! elements and samples, as in BK-SDM (arXiv 2305.15798, equations 2 to 4).

use std::collections::BTreeMap;

use diffusion::{NoiseSchedule, PredictionType};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use unet::weights::Tensors;

use crate::error::{Error, Result};
use crate::trainer::Average;

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
    /// `sum_i E(1 - cos(f_i^T, f_i^S))` over positions, each position's channels being one vector: directions alone count (as
    /// PPCL's distillation of unit vectors, arXiv 2511.16156).
    Direction,
    /// [`FeatureLoss::Normalized`] without the elements whose teacher feature exceeds `mask_threshold` times the feature's root
    /// mean square, in numerator and norm alike: massive activations do not decide (after TinyFusion's masked distillation,
    /// arXiv 2412.01199).
    Masked,
}

/// Over what the teacher's norm is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormScope {
    /// Each sample by its own norm.
    Sample,
    /// The whole batch by one norm.
    Batch,
    /// A moving average of the batch norms of the steps before (decay 0.99); in the first step the batch's own.
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
    /// For `masked`: an element is left out when the teacher's feature exceeds this many times its root mean square, taken over
    /// the sample or the batch as `norm_scope` says.
    #[serde(default = "default_mask_threshold")]
    pub mask_threshold: f64,
    /// Weighs each sample of the task and output terms by min(SNR, gamma) in x0 terms (Min-SNR, arXiv 2303.09556);
    /// 0 weighs all alike. Feature terms are not weighed.
    #[serde(default)]
    pub min_snr_gamma: f64,
}

// Three standard deviations of a centred feature.
fn default_mask_threshold() -> f64 {
    3.0
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
        if !(self.mask_threshold >= 1.0 && self.mask_threshold.is_finite()) {
            let (key, got) = ("mask_threshold".into(), self.mask_threshold.to_string());
            return Err(Error::Config { key, expected: "a number from 1 on".into(), got });
        }
        for (key, w) in [("task", self.task), ("out", self.out), ("feat", self.feat), ("min_snr_gamma", self.min_snr_gamma)] {
            if !(w >= 0.0 && w.is_finite()) {
                return Err(Error::Config { key: key.into(), expected: "a number of 0 or more".into(), got: w.to_string() });
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

/// The weight of each sample's error so that it counts min(SNR, gamma) in x0 terms (arXiv 2303.09556): that,
/// divided by what the prediction type implies already: SNR for noise, SNR + 1 for velocity, 1 for x0. All ones for gamma 0.
///
/// # Shapes
/// `timesteps [B] -> [B]`
pub(crate) fn snr_weights(schedule: &NoiseSchedule, timesteps: &Tensor, gamma: f64) -> Result<Tensor> {
    let snr = schedule.snr(timesteps)?;
    if gamma <= 0.0 {
        return Ok(snr.ones_like());
    }
    Ok(match schedule.prediction_type() {
        PredictionType::VPrediction => snr.clamp_max(gamma) / (&snr + 1.0),
        // min(SNR, gamma) / SNR, and its limit 1 where nothing of the picture is left.
        PredictionType::Epsilon => (snr.reciprocal() * gamma).clamp_max(1.0),
        PredictionType::Sample => snr.clamp_max(gamma),
    })
}

/// The feature term, tap by tap. Holds the running norms when the scope asks for them.
#[derive(Debug)]
pub struct FeatureTerms {
    config: LossConfig,
    running: BTreeMap<String, f64>,
    // Sums of the norms seen in this step.
    seen: BTreeMap<String, f64>,
}

const RUNNING_DECAY: f64 = 0.99;
const SMALLEST_ALPHA: f64 = 1e-8;

impl FeatureTerms {
    /// Terms as `config` asks.
    pub fn new(config: &LossConfig) -> Self {
        Self { config: config.clone(), running: BTreeMap::new(), seen: BTreeMap::new() }
    }

    /// The running norms, to be saved with a checkpoint between steps.
    pub fn state(&self) -> Tensors {
        self.running.iter().map(|(tap, &alpha)| (tap.clone(), Tensor::from(alpha))).collect()
    }

    /// Takes up saved running norms.
    pub fn restore(&mut self, state: &Tensors) {
        self.running = state.iter().map(|(tap, alpha)| (tap.clone(), alpha.double_value(&[]))).collect();
    }

    /// Ends an optimizer step: the running norms take in the mean of the step's norms, which `average` makes of one
    /// sum over micro-batches on each rank. Within a step they do not move, so that every micro-batch and rank divides by the same.
    ///
    /// # Errors
    /// Whatever `average` reports.
    pub fn end_step(&mut self, average: &mut Average) -> Result<()> {
        let seen = std::mem::take(&mut self.seen);
        if seen.is_empty() {
            return Ok(());
        }
        let mut norms: Vec<f64> = seen.values().copied().collect();
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
                FeatureLoss::Direction => direction(f_t, f_s),
                FeatureLoss::Masked => self.masked(tap, f_t, f_s),
            };
            out.push((tap.clone(), term));
        }
        Ok(out)
    }

    // alpha is a constant of the optimization: the teacher's features carry no gradient.
    fn normalized(&mut self, tap: &str, f_t: &Tensor, f_s: &Tensor) -> Tensor {
        let square = f_t.detach().to_kind(Kind::Float).square();
        let power = self.power();
        match self.config.norm_scope {
            NormScope::Sample => {
                // [B, C, H, W] -> [B]
                let alpha = square.flatten(1, -1).mean_dim([1i64].as_slice(), false, Kind::Float).pow_tensor_scalar(power);
                (mse_per_sample(f_t, f_s) / alpha.clamp_min(SMALLEST_ALPHA)).mean(Kind::Float)
            }
            NormScope::Batch => mse(f_t, f_s) / square.mean(Kind::Float).pow_tensor_scalar(power).clamp_min(SMALLEST_ALPHA),
            NormScope::Running => mse(f_t, f_s) / self.running(tap, &square.mean(Kind::Float)),
        }
    }

    // The same over the elements that are not masked.
    fn masked(&mut self, tap: &str, f_t: &Tensor, f_s: &Tensor) -> Tensor {
        // One row per norm. [B, C, H, W] -> [B, N], or [1, B * N]
        let rows = |t: &Tensor| match self.config.norm_scope {
            NormScope::Sample => t.flatten(1, -1),
            NormScope::Batch | NormScope::Running => t.reshape([1, -1]),
        };
        let mean = |t: &Tensor| t.mean_dim([1i64].as_slice(), true, Kind::Float);
        let square = rows(&f_t.detach().to_kind(Kind::Float)).square();
        let keep = square.le_tensor(&(mean(&square) * self.config.mask_threshold.powi(2))).to_kind(Kind::Float);
        let kept = mean(&keep);
        let error = mean(&(rows(&(f_t.to_kind(Kind::Float) - f_s.to_kind(Kind::Float))).square() * &keep)) / &kept;
        let norm = mean(&(square * &keep)) / kept;
        match self.config.norm_scope {
            NormScope::Running => error.mean(Kind::Float) / self.running(tap, &norm),
            _ => (error / norm.pow_tensor_scalar(self.power()).clamp_min(SMALLEST_ALPHA)).mean(Kind::Float),
        }
    }

    fn power(&self) -> f64 {
        f64::from(self.config.norm_power) / 2.0
    }

    // The alpha of earlier steps, and notes this one's.
    fn running(&mut self, tap: &str, mean_square: &Tensor) -> f64 {
        let now = mean_square.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]).powf(self.power());
        *self.seen.entry(tap.into()).or_default() += now;
        self.running.get(tap).copied().unwrap_or(now).max(SMALLEST_ALPHA)
    }
}

// 1 - cos at every position; channels are the second of [B, C, H, W] and the last of [B, T, C].
fn direction(f_t: &Tensor, f_s: &Tensor) -> Tensor {
    let channels = if f_t.dim() == 3 { 2 } else { 1 };
    let f = |t: &Tensor| t.to_kind(Kind::Float);
    1.0 - Tensor::cosine_similarity(&f(&f_t.detach()), &f(f_s), channels, SMALLEST_ALPHA).mean(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(features: FeatureLoss, norm_power: u8, norm_scope: NormScope) -> LossConfig {
        LossConfig { task: 1.0, out: 1.0, feat: 1.0, features, norm_power, norm_scope, mask_threshold: 1.3, min_snr_gamma: 0.0 }
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
    fn masked_terms_leave_out_what_is_large_in_the_teacher() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
        // Root mean squares: sqrt(5) and sqrt(10) of the samples, sqrt(7.5) of the batch; 3 and 4 exceed 1.3 times the first (2.907)
        // and the last (3.560), 4 not 1.3 times the second (4.111).
        near(value(config(FeatureLoss::Masked, 2, NormScope::Sample), &T, &S), (1.0 / 1.0 + 4.0 / 10.0) / 2.0);
        near(value(config(FeatureLoss::Masked, 2, NormScope::Batch), &T, &S), (5.0 / 3.0) / (14.0 / 3.0));
        near(value(config(FeatureLoss::Masked, 1, NormScope::Batch), &T, &S), (5.0 / 3.0) / (14.0f64 / 3.0).sqrt());
        near(value(config(FeatureLoss::Masked, 2, NormScope::Running), &T, &S), (5.0 / 3.0) / (14.0 / 3.0));
        // With a threshold that nothing exceeds it is the normalized loss.
        for scope in [NormScope::Sample, NormScope::Batch] {
            let all = LossConfig { mask_threshold: 10.0, ..config(FeatureLoss::Masked, 2, scope) };
            near(value(all, &T, &S), value(config(FeatureLoss::Normalized, 2, scope), &T, &S));
        }
    }

    #[test]
    fn direction_terms_compare_the_channels_of_each_position() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
        // Cosines of (1, 3), (2, 3) and of (2, 4), (4, 2).
        let expected = 1.0 - (11.0 / 130f64.sqrt() + 16.0 / 20.0) / 2.0;
        near(value(config(FeatureLoss::Direction, 2, NormScope::Sample), &T, &S), expected);
        // Two positions of two channels, as a picture and as tokens.
        let (t, s) = (Tensor::from_slice(&T).view([2, 2]), Tensor::from_slice(&S).view([2, 2]));
        near(direction(&t.view([1, 2, 2]), &s.view([1, 2, 2])).double_value(&[]), expected);
        let picture = |t: &Tensor| t.transpose(0, 1).reshape([1, 2, 2, 1]);
        near(direction(&picture(&t), &picture(&s)).double_value(&[]), expected);
        near(direction(&(&t * 9.0).view([1, 2, 2]), &s.view([1, 2, 2])).double_value(&[]), expected);
    }

    #[test]
    fn running_norms_move_once_per_step_by_the_mean_of_all() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} is not {b}");
        let mut terms = FeatureTerms::new(&config(FeatureLoss::Normalized, 2, NormScope::Running));
        let tap = |x: &[f32]| Tensors::from([("mid_block".to_string(), Tensor::from_slice(x).view([2, 2]))]);
        let term = |terms: &mut FeatureTerms, t: &[f32]| terms.terms(&tap(t), &tap(&S)).unwrap()[0].1.double_value(&[]);
        let twice: Vec<f32> = T.iter().map(|x| x * 2.0).collect();
        // Errors of 2 T against S: (0, 9, 0, 36). Mean squares 7.5 and 30; nothing is known before the first step ends.
        near(term(&mut terms, &T), (9.0 / 4.0) / 7.5);
        near(term(&mut terms, &twice), (45.0 / 4.0) / 30.0);
        let mut other_rank = |norms: &mut [f64]| {
            near(norms[0], 7.5 + 30.0);
            norms[0] = (norms[0] + 42.5) / 4.0;
            Ok(())
        };
        terms.end_step(&mut other_rank).unwrap();
        near(term(&mut terms, &T), (9.0 / 4.0) / 20.0);
        near(terms.state()["mid_block"].double_value(&[]), 20.0);
        terms.end_step(&mut |_| Ok(())).unwrap();
        near(terms.state()["mid_block"].double_value(&[]), 20.0 * 0.99 + 7.5 * 0.01);
        // What is not finite leaves no trace; without a norm there is nothing to average.
        term(&mut terms, &[f32::NAN; 4]);
        terms.end_step(&mut |_| Ok(())).unwrap();
        near(terms.state()["mid_block"].double_value(&[]), 20.0 * 0.99 + 7.5 * 0.01);
        terms.end_step(&mut |_| panic!("nothing to average")).unwrap();
    }

    #[test]
    fn snr_weights_count_each_timestep_by_its_clamped_ratio() {
        use diffusion::SchedulerConfig;
        let t = Tensor::from_slice(&[0i64, 300, 700, 999]);
        for prediction in [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample] {
            let schedule = NoiseSchedule::new(SchedulerConfig::stable_diffusion(prediction)).unwrap();
            let weights = Vec::<f64>::try_from(snr_weights(&schedule, &t, 5.0).unwrap().to_kind(Kind::Double)).unwrap();
            for (&t, w) in [0usize, 300, 700, 999].iter().zip(weights) {
                let abar = schedule.alphas_cumprod()[t];
                let snr = abar / (1.0 - abar);
                let implied = match prediction {
                    PredictionType::Epsilon => snr,
                    PredictionType::VPrediction => snr + 1.0,
                    PredictionType::Sample => 1.0,
                };
                assert!((w - snr.min(5.0) / implied).abs() < 1e-4 * w, "{prediction:?} {t}: {w}");
            }
        }
        let zero = SchedulerConfig { rescale_betas_zero_snr: true, ..SchedulerConfig::stable_diffusion(PredictionType::Epsilon) };
        let schedule = NoiseSchedule::new(zero).unwrap();
        let last = |gamma| snr_weights(&schedule, &Tensor::from_slice(&[999i64]), gamma).unwrap().double_value(&[0]);
        assert_eq!((last(5.0), last(0.0)), (1.0, 1.0));
    }

    #[test]
    fn a_missing_tap_is_named() {
        let teacher = Tensors::from([("mid_block".to_string(), Tensor::from_slice(&T))]);
        let err = FeatureTerms::new(&config(FeatureLoss::Plain, 2, NormScope::Batch)).terms(&teacher, &Tensors::new()).unwrap_err();
        assert!(matches!(err, Error::Tap { tap, .. } if tap == "mid_block"));
    }
}
