//! The calibration set: the (x_t, t, text) points on which every layer is scored and every plan is measured. Stands between
//! the model and the scores; all layers and all criteria see the same points.
//!
//! Shapes: `N` points, `C` `h` `w` the latents, `T` `D` the text, `P` pooled text.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use diffusion::picture::check_finite;
use diffusion::{
    Denoise, NoiseSchedule, Pipeline, PredictionType, Sampler, SamplerKind, TimeIds, is_classifier_free, seeded_noise, with_guidance,
};
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};
use unet::{AddedCond, Cond, UNet};

use crate::error::{Error, Result};
use crate::order::mix;

const FORMAT: &str = "laptop-diff calibration set";
const VERSION: &str = "1";

/// Where the points come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CalibrationSource {
    /// Latents of pictures, noised.
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

/// How a data-free set is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrajectoryOptions {
    /// Steps of each trajectory.
    pub steps: usize,
    /// Weight of guidance on the way.
    pub guidance: f64,
    /// Height of the pictures in pixels.
    pub height: i64,
    /// Width of the pictures in pixels.
    pub width: i64,
    /// Number of timestep bins.
    pub num_bins: usize,
    /// Seed of the noise and of the choice of points.
    pub seed: u64,
    /// How many trajectories are computed at once.
    pub batch: usize,
}

/// The points, on the CPU.
#[derive(Debug)]
pub struct CalibrationSet {
    /// The U-Net's inputs `[N, C, h, w]`, f32.
    pub x_t: Tensor,
    /// `[N]` i64, from 0 to 999 in the published models.
    pub timesteps: Tensor,
    /// What the U-Net is conditioned on, `N` of it.
    pub cond: Cond,
    /// What the U-Net should predict (noise or v) `[N, C, h, w]`. `None` for trajectories: nobody knows the clean picture
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
    pub cond: Cond,
    /// `[B, C, h, w]`, f32.
    pub target: Option<Tensor>,
}

impl CalibrationSet {
    /// Noises latents: each point has its own noise and a timestep from its own of `N` equal strata, dealt out at random.
    ///
    /// `x0 [N, C, h, w]` are latents at the U-Net's scale, with one condition and prompt each.
    ///
    /// # Errors
    /// [`Error::Input`] when the numbers of latents, conditions and prompts differ or are zero.
    pub fn from_latents(
        x0: &Tensor,
        cond: &Cond,
        prompts: &[String],
        schedule: &NoiseSchedule,
        num_bins: usize,
        seed: u64,
        source_hash: &str,
    ) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let x0 = x0.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        let n = x0.size().first().copied().unwrap_or(0);
        check_counts(n, cond, prompts.len(), num_bins)?;
        let t_max = schedule.config().num_train_timesteps;

        let within = |i: usize| seed_of(seed ^ 1, i as u64) as f64 / (1u64 << 63) as f64;
        let place = |(i, stratum): (usize, usize)| (stratum as f64 + within(i)) / n as f64;
        let at = |p: f64| ((p * t_max as f64) as i64).min(t_max - 1);
        let t: Vec<i64> = shuffled(n as usize, seed).into_iter().enumerate().map(|s| at(place(s))).collect();
        let timesteps = Tensor::f_from_slice(&t)?;

        let noise = point_noise(n, seed, &x0.size()[1..])?;
        Ok(Self {
            x_t: schedule.add_noise(&x0, &noise, &timesteps)?,
            target: Some(schedule.target(&x0, &noise, &timesteps)?),
            bins: bins_of(&timesteps, num_bins, t_max)?,
            timesteps,
            cond: cond.to_device(Device::Cpu).to_kind(Kind::Float),
            num_bins,
            prompts: prompts.to_vec(),
            prediction_type: schedule.prediction_type(),
            source: CalibrationSource::Latents,
            source_hash: source_hash.into(),
            seed,
        })
    }

    /// Makes a set without any data: one point per prompt, met on a DDIM trajectory of `unet` from noise under guidance. The
    /// steps at which the points are taken are spread evenly over the trajectory. The condition kept is the prompt's.
    ///
    /// `progress` hears how many points are done, of how many.
    ///
    /// # Errors
    /// [`Error::Input`] for settings that do not fit, [`Error::NotFinite`] when the U-Net gives NaN.
    pub fn from_trajectories(
        pipeline: &Pipeline,
        unet: &UNet,
        prompts: &[String],
        source_hash: &str,
        options: &TrajectoryOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let o = options;
        let n = prompts.len();
        let size = TimeIds::uncropped(o.height, o.width);
        let multiple = pipeline.size_multiple();
        if n == 0 || o.batch == 0 || o.num_bins == 0 || o.height <= 0 || o.width <= 0 || o.height % multiple != 0 || o.width % multiple != 0
        {
            return Err(Error::Input {
                name: "calibration".into(),
                expected: format!("at least one prompt, bin and picture per batch, and sides that are multiples of {multiple}"),
                got: format!("{n} prompts, {} bins, batches of {}, {} x {}", o.num_bins, o.batch, o.height, o.width),
            });
        }
        // DDIM's timesteps are integers, and its x needs no scaling: its points are points of the schedule.
        let timesteps = Sampler::new(SamplerKind::Ddim, pipeline.schedule(), o.steps, false)?.timesteps().to_vec();
        let step_of: Vec<usize> = shuffled(n, o.seed).into_iter().map(|s| s * o.steps / n).collect();
        // Points that are taken early share a batch, which then ends early.
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&i| (step_of[i], i));

        let mut rows: Vec<Option<(Tensor, Cond)>> = (0..n).map(|_| None).collect();
        let mut done = 0;
        for part in order.chunks(o.batch) {
            progress(done, n);
            let seeds: Vec<u64> = part.iter().map(|&i| seed_of(o.seed, i as u64)).collect();
            let noise = pipeline.initial_noise(&seeds, o.height, o.width)?;
            let text: Vec<&str> = part.iter().map(|&i| prompts[i].as_str()).collect();
            let cond = pipeline.encode_prompts(&text, size)?;
            let cond = with_guidance(cond, unet.config(), o.guidance)?;
            let negative =
                if is_classifier_free(o.guidance, unet.config()) { Some(pipeline.encode_negative(None, &cond, size)?) } else { None };
            let kept = cond.to_device(Device::Cpu).to_kind(Kind::Float);
            let last = part.iter().map(|&i| step_of[i]).max().unwrap_or(0);
            let run = Denoise {
                cond: &cond,
                negative: negative.as_ref(),
                guidance: o.guidance,
                sampler: SamplerKind::Ddim,
                karras: false,
                steps: o.steps,
                step_noise: &[],
            };
            let _unfinished = pipeline.denoise(unet, &run, &noise, &mut |visit| {
                for (row, &i) in part.iter().enumerate() {
                    if step_of[i] == visit.step {
                        let x = visit.x_t.narrow(0, row as i64, 1).to_device(Device::Cpu).copy();
                        rows[i] = Some((x, kept.narrow(row as i64, 1)));
                    }
                }
                if visit.step == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            done += part.len();
        }
        progress(n, n);
        let rows: Vec<(Tensor, Cond)> = rows.into_iter().flatten().collect();
        let x_t = Tensor::f_cat(&rows.iter().map(|(x, _)| x).collect::<Vec<_>>(), 0)?;
        check_finite(&x_t, "a point of a sampling trajectory")?;
        let t: Vec<i64> = step_of.iter().map(|&s| timesteps[s] as i64).collect();
        let timesteps = Tensor::f_from_slice(&t)?;
        Ok(Self {
            x_t,
            bins: bins_of(&timesteps, o.num_bins, pipeline.schedule().config().num_train_timesteps)?,
            timesteps,
            cond: Cond::cat(&rows.iter().map(|(_, c)| c).collect::<Vec<_>>())?,
            target: None,
            num_bins: o.num_bins,
            prompts: prompts.to_vec(),
            prediction_type: pipeline.schedule().prediction_type(),
            source: CalibrationSource::Trajectories,
            source_hash: source_hash.into(),
            seed: o.seed,
        })
    }

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

    /// Writes one safetensors file, whole or not at all; the same set gives the same bytes.
    ///
    /// # Errors
    /// [`Error::Unet`] with the file's name when it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut tensors = Tensors::from([
            ("x_t".to_string(), self.x_t.shallow_clone()),
            ("timesteps".to_string(), self.timesteps.shallow_clone()),
            ("bins".to_string(), self.bins.shallow_clone()),
            ("encoder_hidden_states".to_string(), self.cond.encoder_hidden_states.shallow_clone()),
        ]);
        if let Some(a) = &self.cond.added {
            tensors.insert("text_embeds".into(), a.text_embeds.shallow_clone());
            tensors.insert("time_ids".into(), a.time_ids.shallow_clone());
        }
        if let Some(t) = &self.cond.guidance {
            tensors.insert("guidance".into(), t.shallow_clone());
        }
        if let Some(t) = &self.target {
            tensors.insert("target".into(), t.shallow_clone());
        }
        let metadata = BTreeMap::from(
            [
                ("format", FORMAT.to_string()),
                ("version", VERSION.to_string()),
                ("seed", self.seed.to_string()),
                ("source", self.source.name().to_string()),
                ("source_hash", self.source_hash.clone()),
                ("prediction_type", self.prediction_type.name().to_string()),
                ("num_bins", self.num_bins.to_string()),
                ("prompts", serde_json::to_string(&self.prompts).expect("strings are JSON")),
            ]
            .map(|(k, v)| (k.to_string(), v)),
        );
        Ok(save_tensors(path, &tensors, &metadata, None)?)
    }

    /// Opens a file that [`CalibrationSet::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Unet`] when it is no intact safetensors file; [`Error::Format`] when it is no calibration set, of another
    /// version, or its parts do not fit each other.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bad = |problem: String| Error::Format { path: path.into(), problem, hint: "make the calibration set again".into() };
        let file = TensorFile::open(path)?;
        let text =
            |key: &str| file.metadata().get(key).cloned().ok_or_else(|| bad(format!("not a calibration set: no `{key}` in its metadata")));
        let number = |key: &str| text(key)?.parse::<u64>().map_err(|_| bad(format!("`{key}` in its metadata is no number")));
        if text("format")? != FORMAT {
            return Err(bad(format!("not a calibration set but `{}`", text("format")?)));
        }
        if text("version")? != VERSION {
            return Err(bad(format!("version {} of the format; this program knows {VERSION}", text("version")?)));
        }
        let tensor = |key: &str| file.tensor(key)?.ok_or_else(|| bad(format!("tensor `{key}` is missing")));
        let prediction = text("prediction_type")?;
        let source = text("source")?;
        let added = match file.tensor("text_embeds")? {
            Some(text_embeds) => Some(AddedCond { text_embeds, time_ids: tensor("time_ids")? }),
            None => None,
        };
        let set = Self {
            x_t: tensor("x_t")?,
            timesteps: tensor("timesteps")?,
            cond: Cond { encoder_hidden_states: tensor("encoder_hidden_states")?, added, guidance: file.tensor("guidance")? },
            target: file.tensor("target")?,
            bins: tensor("bins")?,
            num_bins: number("num_bins")? as usize,
            prompts: serde_json::from_str(&text("prompts")?).map_err(|e| bad(format!("bad list of prompts ({e})")))?,
            prediction_type: PredictionType::from_name(&prediction)
                .ok_or_else(|| bad(format!("unknown prediction type `{prediction}`")))?,
            source: [CalibrationSource::Latents, CalibrationSource::Trajectories]
                .into_iter()
                .find(|s| s.name() == source)
                .ok_or_else(|| bad(format!("unknown source `{source}`")))?,
            source_hash: text("source_hash")?,
            seed: number("seed")?,
        };
        let n = set.prompts.len() as i64;
        let mut all = vec![&set.x_t, &set.timesteps, &set.bins, &set.cond.encoder_hidden_states];
        all.extend(set.cond.added.iter().flat_map(|a| [&a.text_embeds, &a.time_ids]));
        all.extend(set.cond.guidance.iter().chain(&set.target));
        if n == 0 || all.iter().any(|t| t.size().first() != Some(&n)) {
            return Err(bad(format!("not every tensor has {n} rows, one per prompt")));
        }
        if set.target.as_ref().is_some_and(|t| t.size() != set.x_t.size()) {
            return Err(bad("`target` and `x_t` differ in shape".into()));
        }
        Ok(set)
    }
}

fn check_counts(n: i64, cond: &Cond, prompts: usize, num_bins: usize) -> Result<()> {
    if n > 0 && cond.batch() == n && prompts as i64 == n && num_bins > 0 {
        return Ok(());
    }
    Err(Error::Input {
        name: "calibration".into(),
        expected: "as many conditions and prompts as latents, at least one, and at least one bin".into(),
        got: format!("{n} latents, {} conditions, {prompts} prompts, {num_bins} bins", cond.batch()),
    })
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

// One seed out of two; libtorch's seeds have a sign.
fn seed_of(seed: u64, i: u64) -> u64 {
    mix(seed, i) >> 1
}
