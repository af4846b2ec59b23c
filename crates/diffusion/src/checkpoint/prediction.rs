//! What a checkpoint's U-Net predicts: said by markers among its tensors, by its metadata, or asked from the U-Net itself.
//! Checkpoint -> **scheduler settings** -> schedule.
//!
//! Sources: the markers `v_pred` and `ztsnr` that ComfyUI, A1111 and Forge look for; Stability's ModelSpec 1.0.0.

use std::path::Path;

use tch::{Device, Kind, Tensor};
use unet::{AddedConditioning, Conditioning, Markers, Prediction, UNet};

use crate::error::{Error, Result};
use crate::pipeline::seeded_noise;
use crate::schedule::NoiseSchedule;
use crate::scheduler_config::{PredictionType, SchedulerConfig, TimestepSpacing};

/// Names of tensors that say that the velocity is predicted, and that nothing of the image is left at the last timestep.
const V_PRED: &str = "v_pred";
const ZERO_SNR: &str = "ztsnr";

/// The markers of a schedule.
pub(super) fn markers(scheduler: &SchedulerConfig) -> Vec<&'static str> {
    let v = scheduler.prediction_type == PredictionType::VPrediction;
    [(v, V_PRED), (scheduler.rescale_betas_zero_snr, ZERO_SNR)].into_iter().filter_map(|(holds, marker)| holds.then_some(marker)).collect()
}

/// What a file says of what its U-Net predicts; `None` where it does not.
///
/// # Errors
/// [`Error::Config`] for a kind of schedule that is not implemented.
pub(super) fn said(markers: &Markers, path: &Path) -> Result<Option<PredictionType>> {
    match markers.prediction {
        None => Ok(None),
        Some(Prediction::V) => Ok(Some(PredictionType::VPrediction)),
        Some(Prediction::Epsilon) => Ok(Some(PredictionType::Epsilon)),
        Some(_) => Err(Error::Config {
            path: path.into(),
            key: markers.tensors.iter().find(|name| name.contains("edm_")).cloned().unwrap_or_default(),
            expected: "no such marker: the noise levels of EDM (Playground v2.5, CosXL) are not implemented".into(),
            got: "one".into(),
        }),
    }
}

/// The schedule of every Stable Diffusion for what is predicted.
pub(super) fn scheduler(markers: &Markers, predicted: PredictionType) -> SchedulerConfig {
    let usual = SchedulerConfig::stable_diffusion(predicted);
    match markers.zero_terminal_snr {
        true => SchedulerConfig { rescale_betas_zero_snr: true, timestep_spacing: Some(TimestepSpacing::Trailing), ..usual },
        false => usual,
    }
}

/// Where in the schedule the U-Net is asked: far up, noise and velocity differ most.
const ASKED_AT: [f64; 4] = [0.95, 0.85, 0.7, 0.55];
/// Height and width of the latents that it is asked with, where it takes them.
const ASKED_SIZE: i64 = 32;
const ASKED_SEED: u64 = 2024;

/// Asks a U-Net what it predicts, from nothing but noise: the plainest image, a latent of zeros, is noised, and the answer is compared
/// with the noise and with the velocity that belong to it. Says what was taken; where neither fits better, the noise.
///
/// # Errors
/// As [`UNet::forward`].
pub(super) fn ask(unet: &UNet, path: &Path) -> Result<PredictionType> {
    let _no_grad = tch::no_grad_guard();
    let config = unet.config();
    let schedule = NoiseSchedule::new(SchedulerConfig::stable_diffusion(PredictionType::VPrediction))?;
    let count = ASKED_AT.len() as i64;
    let side = config.down_factor() * (ASKED_SIZE / config.down_factor()).max(1);
    let noise = seeded_noise(&[ASKED_SEED], &[count, config.in_channels, side, side], 1)?.swap_remove(0).f_squeeze_dim(0)?;
    let last = schedule.config().num_train_timesteps - 1;
    let steps: Vec<i64> = ASKED_AT.iter().map(|share| (share * last as f64) as i64).collect();
    let t = Tensor::f_from_slice(&steps)?;
    let x = schedule.add_noise(&noise.zeros_like(), &noise, &t)?;
    let zeros = |shape: &[i64]| Tensor::f_zeros(shape, (unet.kind(), unet.device()));
    // Without text, as SDXL's own unconditional side.
    let added = config.added.as_ref().map(|added| {
        let sizes = Tensor::f_from_slice(&[1024f32, 1024.0, 0.0, 0.0, 1024.0, 1024.0])?;
        let time_ids = sizes.f_to_device(unet.device())?.f_repeat([count, 1])?;
        Ok::<_, Error>(AddedConditioning { text_embeds: zeros(&[count, added.input - 6 * added.channels])?, time_ids })
    });
    let cond = Conditioning { encoder_hidden_states: zeros(&[count, 77, config.text_width])?, added: added.transpose()?, guidance: None };
    let cond = crate::guidance::with_guidance(cond, config, 1.0)?;
    let input = x.f_to_device(unet.device())?.f_to_kind(unet.kind())?;
    let answer = unet.forward(&input, &t.f_to_device(unet.device())?.f_to_kind(Kind::Float)?, &cond)?;
    let answer = answer.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;

    // Of a latent of zeros the velocity is the noise, smaller by sqrt(abar).
    let velocity = schedule.target(&noise.zeros_like(), &noise, &t)?;
    let error = |target: &Tensor| -> Result<f64> {
        let part = (&answer - target).f_norm()?.double_value(&[]) / target.f_norm()?.double_value(&[]);
        Ok(part)
    };
    let (as_noise, as_velocity) = (error(&noise)?, error(&velocity)?);
    let taken = if as_velocity < as_noise { PredictionType::VPrediction } else { PredictionType::Epsilon };
    tracing::warn!(
        "{}: says nothing of what it predicts, so it was asked: as noise its error is {as_noise:.2}, as velocity {as_velocity:.2}; taken as {} \
         (--prediction-type says otherwise)",
        path.display(),
        taken.name()
    );
    Ok(taken)
}
