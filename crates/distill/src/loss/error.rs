//! Squared errors of outputs and features, and how much each timestep's counts.

use diffusion::{NoiseSchedule, PredictionType};
use tch::{Kind, Tensor};

use crate::error::Result;

/// No norm that something is divided by is smaller.
pub(crate) const SMALLEST_ALPHA: f64 = 1e-8;

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
        // min(SNR, gamma) / SNR, and its limit 1 where nothing of the image is left.
        PredictionType::Epsilon => (snr.reciprocal() * gamma).clamp_max(1.0),
        PredictionType::Sample => snr.clamp_max(gamma),
    })
}

#[cfg(test)]
mod tests {
    use diffusion::SchedulerConfig;

    use super::*;

    #[test]
    fn snr_weights_count_each_timestep_by_its_clamped_ratio() {
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
}
