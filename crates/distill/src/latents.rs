//! Encoded training data: latents and captions of a fixed set of pictures, so that the autoencoder runs once per picture.

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::{AutoencoderKl, Family, Moments, NoiseSchedule, TextEncoders, TimeIds};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use unet::Cond;
use unet::weights::{TensorFile, Tensors, save_tensors, seeded};

use unet::Compute;
use crate::data::{PairSource, Shuffle, StepNoise, mix, picture_batch};
use crate::error::{Error, Result};

const FORMAT: &str = "laptop-diff/latents";
const ENCODE_BATCH: u64 = 32;

/// Turns captions into what the U-Net is conditioned on.
pub type Conditioner<'a> = dyn Fn(&[&str]) -> diffusion::Result<Cond> + 'a;

/// Latents (scaled as the U-Net sees them) and captions.
#[derive(Debug)]
pub struct LatentCache {
    latents: Tensor,
    captions: Vec<String>,
}

impl LatentCache {
    /// Encodes the pictures `first .. first + len` of `source`: means of the posterior, times the scaling factor, kept as f16.
    ///
    /// # Errors
    /// Whatever the autoencoder reports.
    pub fn encode(
        source: &dyn PairSource,
        vae: &AutoencoderKl,
        first: u64,
        len: u64,
        device: Device,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let (mut latents, mut captions) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < len {
            let n = ENCODE_BATCH.min(len - at);
            let indices: Vec<u64> = (first + at..first + at + n).collect();
            let (x, mut texts) = picture_batch(source, &indices, device)?;
            let moments = tch::no_grad(|| vae.encode(&x))?;
            latents.push((moments.mean * vae.config().scaling_factor).to_kind(Kind::Half).to_device(Device::Cpu));
            captions.append(&mut texts);
            at += n;
            progress(at);
        }
        Ok(Self { latents: Tensor::f_cat(&latents, 0)?, captions })
    }

    /// A cache of latents that exist already.
    ///
    /// # Errors
    /// [`Error::Config`] when latents and captions differ in number.
    ///
    /// # Shapes
    /// `latents [N, C, h, w]`
    pub fn from_parts(latents: &Tensor, captions: Vec<String>) -> Result<Self> {
        let n = latents.size().first().copied().unwrap_or(0);
        if n != captions.len() as i64 || n == 0 {
            let expected = format!("one caption for each of {n} latents, at least one");
            return Err(Error::Config { key: "captions".into(), expected, got: captions.len().to_string() });
        }
        Ok(Self { latents: latents.to_kind(Kind::Half).to_device(Device::Cpu), captions })
    }

    /// Number of pictures.
    pub fn len(&self) -> u64 {
        self.captions.len() as u64
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.captions.is_empty()
    }

    /// `[N, C, h, w]`, f16 on the CPU.
    pub fn latents(&self) -> &Tensor {
        &self.latents
    }

    /// The captions, in the order of the latents.
    pub fn captions(&self) -> &[String] {
        &self.captions
    }

    /// Latents (f32 on `device`) and captions of the chosen pictures.
    ///
    /// # Shapes
    /// `[B, C, h, w]`
    pub fn batch(&self, indices: &[i64], device: Device) -> (Tensor, Vec<&str>) {
        let x = self.latents.index_select(0, &Tensor::from_slice(indices)).to_device(device).to_kind(Kind::Float);
        (x, indices.iter().map(|&i| self.captions[i as usize].as_str()).collect())
    }

    /// Writes the cache as one safetensors file; `made_from` tells what it was made from.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path, made_from: &str) -> Result<()> {
        let meta = BTreeMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("made_from".to_string(), made_from.to_string()),
            ("captions".to_string(), serde_json::to_string(&self.captions).expect("strings are JSON")),
        ]);
        let tensors = Tensors::from([("latents".to_string(), self.latents.shallow_clone())]);
        Ok(save_tensors(path, &tensors, &meta, None)?)
    }

    /// Reads a cache; `None` when the file is absent or was made from something else.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no cache.
    pub fn open(path: &Path, made_from: &str) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let file = TensorFile::open(path)?;
        let bad =
            |problem: &str| Error::Format { path: path.into(), problem: problem.into(), hint: "delete it; it will be made again".into() };
        if file.metadata().get("format").map(String::as_str) != Some(FORMAT) {
            return Err(bad("not a latent cache"));
        }
        if file.metadata().get("made_from").map(String::as_str) != Some(made_from) {
            return Ok(None);
        }
        let captions: Vec<String> =
            file.metadata().get("captions").and_then(|c| serde_json::from_str(c).ok()).ok_or_else(|| bad("no captions"))?;
        let latents = file.tensor("latents")?.ok_or_else(|| bad("no latents"))?;
        if latents.size().first() != Some(&(captions.len() as i64)) {
            return Err(bad("latents and captions differ in number"));
        }
        Ok(Some(Self { latents, captions }))
    }
}

/// Clean training samples, batch by batch.
pub trait Samples {
    /// Micro-batch `micro` of the run's global sequence; the same number always gives the same samples.
    ///
    /// # Errors
    /// Whatever files and networks report.
    fn batch(&mut self, micro: u64) -> Result<Batch>;
}

/// One micro-batch.
#[derive(Debug)]
pub struct Batch {
    /// Scaled as the U-Net sees them, `[B, C, h, w]`, f32 on the device to compute on.
    pub latents: Tensor,
    /// What they show, on the same device.
    pub cond: Cond,
}

/// Samples of a [`LatentCache`].
pub struct CachedSamples<'a> {
    /// Latents and captions.
    pub cache: &'a LatentCache,
    /// Their order.
    pub order: Shuffle,
    /// Captions to conditioning.
    pub conditioner: &'a Conditioner<'a>,
    /// Samples per micro-batch.
    pub batch: u64,
    /// Where to compute.
    pub device: Device,
}

impl Samples for CachedSamples<'_> {
    fn batch(&mut self, micro: u64) -> Result<Batch> {
        let (latents, captions) = self.cache.batch(&self.order.batch(micro, self.batch), self.device);
        Ok(Batch { latents, cond: tch::no_grad(|| (self.conditioner)(&captions))? })
    }
}

/// What is taken of the autoencoder's answer, a normal distribution per latent value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Posterior {
    /// Its mean.
    Mean,
    /// A draw, another one each time (Rombach et al., arXiv 2112.10752, appendix G).
    Sample,
}

/// Latents from moments, not scaled. The draw is made on the CPU and depends on (`seed`, `micro`) only.
///
/// # Shapes
/// `mean`, `logvar` and result `[B, C, h, w]`, f32
pub(crate) fn draw(mean: &Tensor, logvar: &Tensor, posterior: Posterior, seed: u64, micro: u64) -> Tensor {
    match posterior {
        Posterior::Mean => mean.shallow_clone(),
        Posterior::Sample => {
            let moments = Moments { mean: mean.shallow_clone(), logvar: logvar.shallow_clone() };
            moments.sample(&normal(mix(seed, micro ^ POSTERIOR), &mean.size()).to_device(mean.device()))
        }
    }
}

// What the streams of random numbers beside StepNoise's are for.
const POSTERIOR: u64 = 0x706f_7374_6572;
const OFFSET: u64 = 0x6f66_6673_6574;

fn normal(seed: u64, shape: &[i64]) -> Tensor {
    seeded((seed >> 1) as i64, || Tensor::randn(shape, (Kind::Float, Device::Cpu)))
}

/// What a dropped caption becomes: the unconditional side of classifier-free guidance, as generation will use it.
#[derive(Debug)]
pub enum EmptyPrompt {
    /// Zeros: SDXL with `force_zeros_for_empty_prompt`.
    Zeros,
    /// The features of the empty prompt, `[1, S, D]` and for SDXL `[1, P]`; its sizes are not used.
    Features(Cond),
}

impl EmptyPrompt {
    /// What a model of this kind takes an empty prompt to be; `zeros` is its `force_zeros_for_empty_prompt`.
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn new(text: &TextEncoders, zeros: bool) -> Result<Self> {
        if zeros && text.family() == Family::StableDiffusionXl {
            return Ok(Self::Zeros);
        }
        Ok(Self::Features(text.encode(&[""], TimeIds::uncropped(1, 1))?))
    }

    /// `cond`, with the samples whose `keep` is 0 made empty.
    ///
    /// # Shapes
    /// `keep [B]`
    fn replace(&self, cond: &Cond, keep: &Tensor) -> Cond {
        let mix = |given: &Tensor, keep: Tensor, empty: Option<&Tensor>| match empty {
            None => given * keep,
            Some(empty) => given * &keep + empty * (1.0 - &keep),
        };
        let empty = match self {
            Self::Zeros => None,
            Self::Features(cond) => Some(cond),
        };
        let mut out = cond.shallow_clone();
        out.encoder_hidden_states = mix(&out.encoder_hidden_states, keep.view([-1, 1, 1]), empty.map(|e| &e.encoder_hidden_states));
        if let Some(added) = &mut out.added {
            let empty = empty.and_then(|e| e.added.as_ref()).map(|a| &a.text_embeds);
            added.text_embeds = mix(&added.text_embeds, keep.view([-1, 1]), empty);
        }
        out
    }
}

/// What a U-Net is trained on, from nothing or under a teacher: samples, noised anew in every step.
pub struct LatentData<'a> {
    /// Clean latents and their conditioning.
    pub samples: Box<dyn Samples + 'a>,
    /// Noise schedule and prediction type.
    pub schedule: &'a NoiseSchedule,
    /// Share of captions dropped, so that classifier-free guidance works.
    pub caption_dropout: f64,
    /// What a dropped caption becomes.
    pub empty: EmptyPrompt,
    /// Strength of a second noise that is one number per sample and channel, so that the mean of a picture is learned as well
    /// (N. Guttenberg, "Diffusion with Offset Noise", 2023): `noise + offset_noise * N(0, 1)`; 0 switches it off.
    pub offset_noise: f64,
    /// Seed of noise and timesteps.
    pub seed: u64,
    /// Where to compute.
    pub device: Device,
    /// Number type to compute in.
    pub compute: Compute,
}

/// One micro-batch's inputs, in the type to compute in, and what the U-Net should predict, in f32.
pub(crate) struct Noised {
    pub x_t: Tensor,
    pub timesteps: Tensor,
    pub cond: Cond,
    pub target: Tensor,
}

impl LatentData<'_> {
    /// The inputs of micro-batch `micro`; they depend on nothing else.
    pub(crate) fn noised(&mut self, micro: u64) -> Result<Noised> {
        let Batch { latents: x0, cond } = self.samples.batch(micro)?;
        let num_timesteps = self.schedule.config().num_train_timesteps;
        let draw = StepNoise::draw(self.seed, micro, &x0.size(), num_timesteps, self.caption_dropout, self.device);
        let noise = self.offset(draw.noise, micro);
        let kind = self.compute.kind();
        Ok(Noised {
            x_t: self.schedule.add_noise(&x0, &noise, &draw.timesteps)?.to_kind(kind),
            cond: self.empty.replace(&cond, &draw.keep).to_kind(kind),
            target: self.schedule.target(&x0, &noise, &draw.timesteps)?,
            timesteps: draw.timesteps,
        })
    }

    // [B, C, h, w] -> [B, C, h, w]
    fn offset(&self, noise: Tensor, micro: u64) -> Tensor {
        if self.offset_noise == 0.0 {
            return noise;
        }
        let size = noise.size();
        let shift = normal(mix(self.seed, micro ^ OFFSET), &[size[0], size[1], 1, 1]);
        noise + shift.to_device(self.device) * self.offset_noise
    }
}

#[cfg(test)]
mod tests {
    use diffusion::{PredictionType, SchedulerConfig};
    use unet::AddedCond;

    use super::*;

    fn cond(value: f64) -> Cond {
        let full = |shape: &[i64]| Tensor::full(shape, value, (Kind::Float, Device::Cpu));
        Cond {
            encoder_hidden_states: full(&[2, 3, 4]),
            added: Some(AddedCond { text_embeds: full(&[2, 5]), time_ids: full(&[2, 6]) }),
            guidance: None,
        }
    }

    #[test]
    fn a_dropped_caption_becomes_what_guidance_takes_for_an_empty_prompt() {
        let keep = Tensor::from_slice(&[1f32, 0.0]);
        let one = |t: &Tensor, i: i64| t.get(i).max().double_value(&[]);
        for (empty, expected) in [(EmptyPrompt::Zeros, 0.0), (EmptyPrompt::Features(cond(7.0).narrow(0, 1)), 7.0)] {
            let out = empty.replace(&cond(2.0), &keep);
            let added = out.added.unwrap();
            for t in [&out.encoder_hidden_states, &added.text_embeds] {
                assert_eq!((one(t, 0), one(t, 1)), (2.0, expected), "{empty:?}");
            }
            assert_eq!(one(&added.time_ids, 1), 2.0, "sizes are no part of the caption");
        }
    }

    struct Zeros;

    impl Samples for Zeros {
        fn batch(&mut self, _: u64) -> Result<Batch> {
            Ok(Batch { latents: Tensor::zeros([2, 4, 16, 16], (Kind::Float, Device::Cpu)), cond: cond(1.0) })
        }
    }

    #[test]
    fn offset_noise_moves_each_channel_as_a_whole_and_is_learned_as_noise() {
        let schedule = NoiseSchedule::new(SchedulerConfig::stable_diffusion(PredictionType::Epsilon)).unwrap();
        let noise = |offset_noise: f64, micro: u64| {
            let (samples, empty) = (Box::new(Zeros), EmptyPrompt::Zeros);
            let (device, compute) = (Device::Cpu, Compute::F32);
            let mut data = LatentData { samples, schedule: &schedule, caption_dropout: 0.0, empty, offset_noise, seed: 3, device, compute };
            data.noised(micro).unwrap().target
        };
        let shift = noise(0.5, 8) - noise(0.0, 8);
        let spread = shift.amax([2i64, 3].as_slice(), false) - shift.amin([2i64, 3].as_slice(), false);
        assert!(spread.max().double_value(&[]) < 1e-6, "one number per sample and channel");
        let std = shift.std(true).double_value(&[]);
        assert!((0.15..1.2).contains(&std), "of about the strength: {std}");
        assert!(noise(0.5, 8).equal(&noise(0.5, 8)) && !noise(0.5, 9).equal(&noise(0.5, 8)));
    }

    #[test]
    fn a_draw_has_the_moments_of_the_posterior() {
        let full = |value: f64| Tensor::full([4, 4, 32, 32], value, (Kind::Float, Device::Cpu));
        let (mean, logvar) = (full(3.0), full(0.25f64.ln()));
        let drawn = draw(&mean, &logvar, Posterior::Sample, 1, 2);
        let (m, s) = (drawn.mean(Kind::Float).double_value(&[]), drawn.std(true).double_value(&[]));
        // 16384 values: standard error 0.004.
        assert!((m - 3.0).abs() < 0.02 && (s - 0.5).abs() < 0.02, "{m} {s}");
        assert!(draw(&mean, &logvar, Posterior::Mean, 1, 2).equal(&mean));
        assert!(!draw(&mean, &logvar, Posterior::Sample, 1, 3).equal(&drawn), "another batch, another draw");
    }
}
