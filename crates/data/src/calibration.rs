//! The calibration set: the (x_t, t, text) points on which every layer is scored and every plan is measured. Stands between
//! the model and the scores; all layers and all criteria see the same points.
//!
//! Shapes: `N` points, `C` `h` `w` the latents, `T` `D` the text, `P` pooled text.

mod noised;
mod trajectories;
mod calibrate;
mod file;

use diffusion::{PredictionType, seeded_noise};
use tch::{Device, Kind, Tensor};
use unet::Conditioning;
use unet::scoring::Calibration;

use crate::error::{Error, Result};
use crate::order::mix;

pub use calibrate::{CalibrationOptions, CalibrationPoints, calibrate};
pub use noised::CalibrationBuilder;
pub use trajectories::TrajectoryOptions;

/// Where the points come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CalibrationSource {
    /// Latents of images, noised.
    Latents,
    /// The model's own sampling trajectories, made from prompts alone.
    Trajectories,
}

impl CalibrationSource {
    /// The name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latents => "latents",
            Self::Trajectories => "trajectories",
        }
    }
}

/// The points, on the CPU.
#[derive(Debug)]
pub struct CalibrationSet {
    /// The U-Net's inputs `[N, C, h, w]`, f32.
    pub x_t: Tensor,
    /// `[N]` i64, from 0 to 999 in the published models.
    pub timesteps: Tensor,
    /// What the U-Net is conditioned on, `N` of it.
    pub cond: Conditioning,
    /// What the U-Net should predict (noise or v) `[N, C, h, w]`. `None` for trajectories: nobody knows the clean image
    /// there, so the task loss is undefined and only losses against the teacher can be measured.
    pub target: Option<Tensor>,
    /// The timestep bin of each point `[N]` i64, counted from the cleanest.
    pub bins: Tensor,
    /// Number of bins.
    pub num_bins: usize,
    /// The prompt of each point.
    pub prompts: Vec<String>,
    /// What the U-Net predicts.
    pub prediction_type: PredictionType,
    /// Where the points come from.
    pub source: CalibrationSource,
    /// What identifies the latents' file, or the teacher's weights.
    pub source_hash: String,
    /// The seed.
    pub seed: u64,
}

/// Some of the points, where they are needed.
#[derive(Debug)]
pub struct CalibrationBatch {
    /// `[B, C, h, w]` in the wanted type.
    pub x_t: Tensor,
    /// `[B]` i64.
    pub timesteps: Tensor,
    /// `B` of it, the text in the wanted type.
    pub cond: Conditioning,
    /// `[B, C, h, w]`, f32.
    pub target: Option<Tensor>,
}

impl CalibrationSet {
    /// Number of points.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there is no point; never true for a set that was made or opened.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// `len` points from `start` on, on `device`, inputs in `kind`.
    ///
    /// # Errors
    /// [`Error::Torch`] when there are fewer.
    pub fn batch(&self, start: usize, len: usize, device: Device, kind: Kind) -> Result<CalibrationBatch> {
        let part = |t: &Tensor| t.f_narrow(0, start as i64, len as i64)?.f_to_device(device);
        Ok(CalibrationBatch {
            x_t: part(&self.x_t)?.f_to_kind(kind)?,
            timesteps: part(&self.timesteps)?,
            cond: self.cond.narrow(start as i64, len as i64).to_device(device).to_kind(kind),
            target: self.target.as_ref().map(part).transpose()?,
        })
    }

    /// All points, as scores take them; without targets where the set has none.
    ///
    /// # Errors
    /// [`Error::Unet`] when the set's parts do not fit each other.
    pub fn calibration(&self) -> Result<Calibration> {
        let bins = Vec::<i64>::try_from(&self.bins)?.into_iter().map(|bin| bin as u32).collect();
        let target = self.target.as_ref().map(Tensor::shallow_clone);
        let (x_t, timesteps) = (self.x_t.shallow_clone(), self.timesteps.shallow_clone());
        Ok(Calibration::new(x_t, timesteps, self.cond.shallow_clone(), target, bins)?)
    }

    /// The starts and lengths of batches of at most `size` points.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (n, size) = (self.len(), size.max(1));
        (0..n).step_by(size).map(move |start| (start, size.min(n - start)))
    }

    /// The points at these positions, in this order: a part for scoring and a held-out part, say.
    ///
    /// # Errors
    /// [`Error::Input`] for a position beyond the last, or none at all.
    pub fn select(&self, positions: &[usize]) -> Result<Self> {
        if positions.is_empty() || positions.iter().any(|&i| i >= self.len()) {
            return Err(Error::Input {
                name: "positions".into(),
                expected: format!("at least one, all below {}", self.len()),
                got: format!("{} with the highest {:?}", positions.len(), positions.iter().max()),
            });
        }
        let index = Tensor::f_from_slice(&positions.iter().map(|&i| i as i64).collect::<Vec<_>>())?;
        Ok(Self {
            x_t: self.x_t.f_index_select(0, &index)?,
            timesteps: self.timesteps.f_index_select(0, &index)?,
            cond: self.cond.index_select(&index),
            target: self.target.as_ref().map(|t| t.f_index_select(0, &index)).transpose()?,
            bins: self.bins.f_index_select(0, &index)?,
            prompts: positions.iter().map(|&i| self.prompts[i].clone()).collect(),
            source_hash: self.source_hash.clone(),
            num_bins: self.num_bins,
            prediction_type: self.prediction_type,
            source: self.source,
            seed: self.seed,
        })
    }
}

// 0..n in a random order (Fisher and Yates).
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut out: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        out.swap(i, (seed_of(seed ^ 2, i as u64) % (i as u64 + 1)) as usize);
    }
    out
}

// Each point's noise depends on the seed and its position only, so a longer set begins with the shorter one's noise.
fn point_noise(n: i64, seed: u64, shape: &[i64]) -> Result<Tensor> {
    let seeds: Vec<u64> = (0..n as u64).map(|i| seed_of(seed, i)).collect();
    Ok(seeded_noise(&seeds, shape, 1)?.swap_remove(0))
}

fn bins_of(timesteps: &Tensor, num_bins: usize, t_max: i64) -> Result<Tensor> {
    Ok((timesteps * num_bins as i64).f_floor_divide_scalar(t_max)?)
}

// The upper 63 bits, which libtorch takes as a seed.
fn seed_of(seed: u64, i: u64) -> u64 {
    mix(seed, i) >> 1
}

fn at_least_one(name: &str, value: usize) -> Result<()> {
    if value > 0 { Ok(()) } else { Err(Error::Input { name: name.into(), expected: "at least 1".into(), got: "0".into() }) }
}
