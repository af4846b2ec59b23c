//! Encoded training data: latents and captions of a fixed set of pictures, so that the autoencoder runs once per picture.

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::{AutoencoderKl, NoiseSchedule};
use tch::{Device, Kind, Tensor};
use unet::Cond;
use unet::weights::{TensorFile, Tensors, save_tensors};

use crate::config::Compute;
use crate::data::{PairSource, Shuffle, StepNoise, picture_batch};
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

/// What a U-Net is trained on, from nothing or under a teacher: cached latents, noised anew in every step.
pub struct LatentData<'a> {
    /// Latents and captions.
    pub cache: &'a LatentCache,
    /// Their order.
    pub order: Shuffle,
    /// Captions to conditioning.
    pub conditioner: &'a Conditioner<'a>,
    /// Noise schedule and prediction type.
    pub schedule: &'a NoiseSchedule,
    /// Share of captions dropped, so that classifier-free guidance works.
    pub caption_dropout: f64,
    /// Seed of noise and timesteps.
    pub seed: u64,
    /// Samples per step.
    pub batch: u64,
    /// Where to compute.
    pub device: Device,
    /// Number type to compute in.
    pub compute: Compute,
}

/// One step's inputs, in the type to compute in, and what the U-Net should predict, in f32.
pub(crate) struct Noised {
    pub x_t: Tensor,
    pub timesteps: Tensor,
    pub cond: Cond,
    pub target: Tensor,
}

impl LatentData<'_> {
    /// The inputs of step `step`; they depend on nothing else.
    pub(crate) fn noised(&mut self, step: u64) -> Result<Noised> {
        let (x0, captions) = self.cache.batch(&self.order.batch(step, self.batch), self.device);
        let num_timesteps = self.schedule.config().num_train_timesteps;
        let draw = StepNoise::draw(self.seed, step, &x0.size(), num_timesteps, self.caption_dropout, self.device);
        let kind = self.compute.kind();
        Ok(Noised {
            x_t: self.schedule.add_noise(&x0, &draw.noise, &draw.timesteps)?.to_kind(kind),
            cond: drop_captions(&tch::no_grad(|| (self.conditioner)(&captions))?, &draw.keep).to_kind(kind),
            target: self.schedule.target(&x0, &draw.noise, &draw.timesteps)?,
            timesteps: draw.timesteps,
        })
    }
}

/// `cond`, with the samples whose `keep` is 0 set to zeros, which is what SDXL takes an empty prompt to be.
///
/// # Shapes
/// `keep [B]`
fn drop_captions(cond: &Cond, keep: &Tensor) -> Cond {
    let mut out = cond.shallow_clone();
    out.encoder_hidden_states = &out.encoder_hidden_states * keep.view([-1, 1, 1]);
    if let Some(added) = &mut out.added {
        added.text_embeds = &added.text_embeds * keep.view([-1, 1]);
    }
    out
}
