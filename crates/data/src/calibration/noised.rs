//! Points from latents of images: each has its own noise and timestep. Latents -> **points** -> scores.

use diffusion::NoiseSchedule;
use tch::{Device, Kind, Tensor};
use unet::Conditioning;

use super::{CalibrationSet, CalibrationSource, bins_of, point_noise, seed_of, shuffled};
use crate::error::{Error, Result};

/// What a set of noised latents is made of: made by [`CalibrationSet::builder`], ended by [`CalibrationBuilder::build`].
#[derive(Debug)]
#[must_use]
pub struct CalibrationBuilder<'a> {
    x0: &'a Tensor,
    cond: &'a Conditioning,
    prompts: &'a [String],
    schedule: &'a NoiseSchedule,
    num_bins: usize,
    seed: u64,
    source_hash: &'a str,
}

impl CalibrationSet {
    /// Begins a set of noised latents: `x0 [N, C, h, w]` at the U-Net's scale, with one condition and prompt each, noised by
    /// `schedule`. Unless told otherwise it has ten timestep bins and the seed 0.
    pub fn builder<'a>(
        x0: &'a Tensor,
        cond: &'a Conditioning,
        prompts: &'a [String],
        schedule: &'a NoiseSchedule,
    ) -> CalibrationBuilder<'a> {
        CalibrationBuilder { x0, cond, prompts, schedule, num_bins: 10, seed: 0, source_hash: "" }
    }
}

impl<'a> CalibrationBuilder<'a> {
    /// Number of timestep bins.
    pub fn bins(self, num_bins: usize) -> Self {
        Self { num_bins, ..self }
    }

    /// Seed of noise and timesteps.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// What identifies the images that the latents are of.
    pub fn source_hash(self, source_hash: &'a str) -> Self {
        Self { source_hash, ..self }
    }

    /// Noises the latents: each point has its own noise and a timestep from its own of `N` equal strata, dealt out at random.
    ///
    /// # Errors
    /// [`Error::Input`] when the numbers of latents, conditions and prompts differ or are zero.
    pub fn build(self) -> Result<CalibrationSet> {
        let _no_grad = tch::no_grad_guard();
        let Self { cond, prompts, schedule, num_bins, seed, .. } = self;
        let x0 = self.x0.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        let n = x0.size().first().copied().unwrap_or(0);
        check_counts(n, cond, prompts.len(), num_bins)?;
        let t_max = schedule.config().num_train_timesteps;

        let within = |i: usize| seed_of(seed ^ 1, i as u64) as f64 / (1u64 << 63) as f64;
        let position = |(i, stratum): (usize, usize)| (stratum as f64 + within(i)) / n as f64;
        let at = |p: f64| ((p * t_max as f64) as i64).min(t_max - 1);
        let t: Vec<i64> = shuffled(n as usize, seed).into_iter().enumerate().map(|s| at(position(s))).collect();
        let timesteps = Tensor::f_from_slice(&t)?;

        let noise = point_noise(n, seed, &x0.size()[1..])?;
        Ok(CalibrationSet {
            x_t: schedule.add_noise(&x0, &noise, &timesteps)?,
            target: Some(schedule.target(&x0, &noise, &timesteps)?),
            bins: bins_of(&timesteps, num_bins, t_max)?,
            timesteps,
            cond: cond.to_device(Device::Cpu).to_kind(Kind::Float),
            num_bins,
            prompts: prompts.to_vec(),
            prediction_type: schedule.prediction_type(),
            source: CalibrationSource::Latents,
            source_hash: self.source_hash.into(),
            seed,
        })
    }
}

fn check_counts(n: i64, cond: &Conditioning, prompts: usize, num_bins: usize) -> Result<()> {
    if n > 0 && cond.batch() == n && prompts as i64 == n && num_bins > 0 {
        return Ok(());
    }
    Err(Error::Input {
        name: "calibration".into(),
        expected: "as many conditions and prompts as latents, at least one, and at least one bin".into(),
        got: format!("{n} latents, {} conditions, {prompts} prompts, {num_bins} bins", cond.batch()),
    })
}
