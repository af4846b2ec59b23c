//! From prompts to pictures with any U-Net: the teacher, or a pruned student in its place. Used by generation, by
//! evaluation (same prompts, same seeds) and by data-free calibration.
//!
//! Shapes: `B` pictures of one batch, `N` of a call, `C` latent channels, `h` `w` height and width of the latents.

use std::ops::ControlFlow;
use std::path::Path;

use image::RgbImage;
use tch::{Device, Kind, Tensor};
use unet::weights::seeded;
use unet::{Cond, UNet};

use crate::conditioning::{TextEncoders, TimeIds, without_text};
use crate::error::{Error, Result};
use crate::model_dir::{Family, ModelDir};
use crate::picture::{check_finite, from_tensor};
use crate::sampler::{Sampler, SamplerKind};
use crate::schedule::NoiseSchedule;
use crate::vae::AutoencoderKl;

/// What pictures to make, and how.
#[derive(Debug)]
pub struct GenerateOptions {
    /// One per picture.
    pub prompts: Vec<String>,
    /// What the pictures should not show; `None` means the model's own way of saying nothing.
    pub negative: Option<String>,
    /// Number of U-Net steps.
    pub steps: usize,
    /// Weight of classifier-free guidance (arXiv 2207.12598); at most 1 means none, at half the cost.
    pub guidance: f64,
    /// The sampler.
    pub sampler: SamplerKind,
    /// One per picture; the initial noise of a picture depends on nothing else.
    pub seeds: Vec<u64>,
    /// Height in pixels, a multiple of [`Pipeline::size_multiple`].
    pub height: i64,
    /// Width in pixels, likewise.
    pub width: i64,
    /// How many pictures are computed at once.
    pub batch: usize,
    /// Unit noise `[N, C, h, w]` to start from instead of the seeds' own.
    pub latents: Option<Tensor>,
}

/// Finished pictures.
#[derive(Debug)]
pub struct Generated {
    /// Final latents `[N, C, h, w]`, f32 on the CPU, at the U-Net's scale.
    pub latents: Tensor,
    /// The pictures, in the order of the prompts.
    pub pictures: Vec<RgbImage>,
}

/// How far generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Pictures that are finished.
    pub done: usize,
    /// Pictures in the batch that is being computed.
    pub batch: usize,
    /// All pictures.
    pub total: usize,
    /// Steps of this batch that are finished.
    pub step: usize,
    /// Steps of every batch.
    pub steps: usize,
}

/// One U-Net call during [`Pipeline::denoise`].
#[derive(Debug)]
pub struct Visit<'a> {
    /// Number of the step, from 0.
    pub step: usize,
    /// The timestep given to the U-Net.
    pub timestep: f64,
    /// The U-Net's input `[B, C, h, w]`, at the scale of training.
    pub x_t: &'a Tensor,
}

/// How [`Pipeline::denoise`] goes from noise to latents.
#[derive(Debug, Clone, Copy)]
pub struct Denoise<'a> {
    /// What the pictures should show, `B` of it.
    pub cond: &'a Cond,
    /// What they should not show, `B` of it; `None` switches guidance off.
    pub negative: Option<&'a Cond>,
    /// Weight of guidance.
    pub guidance: f64,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Number of steps.
    pub steps: usize,
}

/// Everything around the U-Net, and the model's own U-Net.
#[derive(Debug)]
pub struct Pipeline {
    dir: ModelDir,
    unet: UNet,
    text: TextEncoders,
    vae: AutoencoderKl,
    schedule: NoiseSchedule,
    device: Device,
}

impl Pipeline {
    /// Opens a model directory; with `unet`, the U-Net in that folder takes the place of the model's own.
    ///
    /// A VAE that overflows in f16 (`force_upcast` in its config) is computed in f32.
    ///
    /// # Errors
    /// As [`ModelDir::open`], and those of every part.
    pub fn open(dir: impl AsRef<Path>, unet: Option<&Path>, device: Device, kind: Kind) -> Result<Self> {
        let dir = ModelDir::open(dir, unet)?;
        let config = crate::vae::VaeConfig::open(dir.vae())?;
        let vae_kind = if config.force_upcast && kind == Kind::Half { Kind::Float } else { kind };
        Ok(Self {
            unet: UNet::open(dir.unet(), device, kind)?,
            text: TextEncoders::open(dir.family(), &dir.text_parts(), device, kind)?,
            vae: AutoencoderKl::open(dir.vae(), device, vae_kind)?,
            schedule: NoiseSchedule::open(dir.scheduler())?,
            device,
            dir,
        })
    }

    /// Where the parts lie.
    pub fn dir(&self) -> &ModelDir {
        &self.dir
    }

    /// The model's U-Net.
    pub fn unet(&self) -> &UNet {
        &self.unet
    }

    /// Tokenizers and text encoders.
    pub fn text(&self) -> &TextEncoders {
        &self.text
    }

    /// The VAE.
    pub fn vae(&self) -> &AutoencoderKl {
        &self.vae
    }

    /// The noise schedule.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// Where everything is computed.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Height and width of pictures must be a multiple of this: the VAE's factor, and the U-Net's in the latents.
    pub fn size_multiple(&self) -> i64 {
        self.vae.config().downscale() * self.unet.config().down_factor()
    }

    /// The size in pixels for which the model was made, when its configuration says so.
    pub fn native_size(&self) -> Option<(i64, i64)> {
        let f = self.vae.config().downscale();
        self.unet.config().sample_size.map(|(h, w)| (h * f, w * f))
    }

    /// As [`TextEncoders::encode`].
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn encode_prompts(&self, prompts: &[&str], size: TimeIds) -> Result<Cond> {
        self.text.encode(prompts, size)
    }

    /// The unconditional side of guidance for `cond`: the negative prompt's features, or without one the features of the
    /// empty prompt, or zeros where the model wants that (SDXL).
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn encode_negative(&self, negative: Option<&str>, cond: &Cond, size: TimeIds) -> Result<Cond> {
        if negative.is_none() && self.text.family() == Family::StableDiffusionXl && self.dir.force_zeros_for_empty_prompt() {
            return Ok(without_text(cond));
        }
        let one = self.text.encode(&[negative.unwrap_or("")], size)?;
        let index = Tensor::f_zeros([cond.batch()], (Kind::Int64, self.device))?;
        Ok(one.index_select(&index))
    }

    /// Makes pictures with `unet`, which may be the pipeline's own or a student's. Every picture depends on its own prompt
    /// and seed only, not on the batch it is computed in (up to rounding).
    ///
    /// # Errors
    /// [`Error::Input`] for settings that do not fit, before anything runs; [`Error::NotFinite`] when the U-Net or the VAE
    /// gives NaN.
    pub fn generate(&self, unet: &UNet, options: &GenerateOptions, progress: &mut dyn FnMut(Progress)) -> Result<Generated> {
        self.check(options)?;
        let _no_grad = tch::no_grad_guard();
        let size = TimeIds::uncropped(options.height, options.width);
        let total = options.prompts.len();
        let (mut latents, mut pictures) = (Vec::new(), Vec::with_capacity(total));
        for start in (0..total).step_by(options.batch) {
            let batch = options.batch.min(total - start);
            let noise = match &options.latents {
                Some(given) => given.f_narrow(0, start as i64, batch as i64)?,
                None => self.initial_noise(&options.seeds[start..start + batch], options.height, options.width)?,
            };
            let prompts: Vec<&str> = options.prompts[start..start + batch].iter().map(String::as_str).collect();
            let cond = self.encode_prompts(&prompts, size)?;
            let negative = match options.guidance > 1.0 {
                true => Some(self.encode_negative(options.negative.as_deref(), &cond, size)?),
                false => None,
            };
            let report = |step| Progress { done: start, batch, total, step, steps: options.steps };
            progress(report(0));
            let run = Denoise {
                cond: &cond,
                negative: negative.as_ref(),
                guidance: options.guidance,
                sampler: options.sampler,
                steps: options.steps,
            };
            let x = self.denoise(unet, &run, &noise, &mut |visit| {
                // A visit comes before its step is done.
                progress(report(visit.step));
                ControlFlow::Continue(())
            })?;
            check_finite(&x, &format!("a latent of pictures {} to {}", start + 1, start + batch))?;
            pictures.extend(self.decode(&x)?);
            latents.push(x.f_to_device(Device::Cpu)?);
            progress(Progress { done: start + batch, batch, total, step: options.steps, steps: options.steps });
        }
        Ok(Generated { latents: Tensor::f_cat(&latents, 0)?, pictures })
    }

    /// Runs the sampler from unit noise `[B, C, h, w]` to latents `[B, C, h, w]` (f32). `visit` sees every U-Net input
    /// before the call, and may end the run there; then what it saw last has not been denoised further.
    ///
    /// # Errors
    /// [`Error::Input`] for steps or shapes that do not fit.
    pub fn denoise(&self, unet: &UNet, run: &Denoise, noise: &Tensor, visit: &mut dyn FnMut(Visit) -> ControlFlow<()>) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let (device, kind) = (unet.device(), unet.kind());
        let mut sampler = Sampler::new(run.sampler, &self.schedule, run.steps)?;
        // Guided batches carry the unconditional half first.
        let cond = match run.negative {
            Some(negative) => Cond::cat(&[negative, run.cond])?,
            None => run.cond.shallow_clone(),
        };
        let cond = cond.to_device(device).to_kind(kind);
        // The sum over the steps is kept in f32, whatever the U-Net computes in.
        let mut x = noise.f_to_device(device)?.f_to_kind(Kind::Float)? * sampler.init_noise_sigma();
        for i in 0..run.steps {
            let input = sampler.scale_model_input(&x, i)?;
            let timestep = sampler.timesteps()[i];
            if visit(Visit { step: i, timestep, x_t: &input }).is_break() {
                break;
            }
            let doubled = if run.negative.is_some() { Tensor::f_cat(&[&input, &input], 0)? } else { input };
            let t = Tensor::f_full([doubled.size()[0]], timestep, (Kind::Float, device))?;
            let output = unet.forward(&doubled.f_to_kind(kind)?, &t, &cond)?.f_to_kind(Kind::Float)?;
            let output = match run.negative {
                Some(_) => {
                    // [2B, C, h, w] -> two of [B, C, h, w]
                    let halves = output.f_chunk(2, 0)?;
                    halves[0].f_add(&(halves[1].f_sub(&halves[0])? * run.guidance))?
                }
                None => output,
            };
            x = sampler.step(&output, i, &x)?;
        }
        Ok(x)
    }

    /// Latents at the U-Net's scale `[B, C, h, w]` -> pictures.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the VAE gives NaN.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<RgbImage>> {
        let _no_grad = tch::no_grad_guard();
        from_tensor(&self.vae.decode(&(latents.f_to_device(self.device)? / self.vae.config().scaling_factor))?)
    }

    /// Unit noise `[B, C, h, w]` for pictures of this size, each from its own seed, drawn on the CPU in f32: what diffusers
    /// draws with a CPU generator of that seed. libtorch's own generator is left seeded.
    ///
    /// # Errors
    /// [`Error::Torch`] when libtorch refuses the shape.
    pub fn initial_noise(&self, seeds: &[u64], height: i64, width: i64) -> Result<Tensor> {
        let f = self.vae.config().downscale();
        let shape = [self.unet.config().in_channels, height / f, width / f];
        seeded_noise(seeds, &shape)
    }

    fn check(&self, o: &GenerateOptions) -> Result<()> {
        let n = o.prompts.len();
        let wrong = |name: &str, expected: String, got: String| Err(Error::Input { name: name.into(), expected, got });
        if n == 0 {
            return wrong("prompts", "at least one".into(), "none".into());
        }
        if o.batch == 0 {
            return wrong("batch", "at least 1".into(), "0".into());
        }
        if o.latents.is_none() && o.seeds.len() != n {
            return wrong("seeds", format!("{n}, one per picture"), o.seeds.len().to_string());
        }
        if !o.guidance.is_finite() {
            return wrong("guidance", "a finite number".into(), o.guidance.to_string());
        }
        let m = self.size_multiple();
        for (name, side) in [("height", o.height), ("width", o.width)] {
            if side <= 0 || side % m != 0 {
                return wrong(name, format!("a positive multiple of {m}"), side.to_string());
            }
        }
        if let Some(given) = &o.latents {
            let f = self.vae.config().downscale();
            let expected = [n as i64, self.unet.config().in_channels, o.height / f, o.width / f];
            if given.size() != expected {
                return wrong("latents", format!("{expected:?}"), format!("{:?}", given.size()));
            }
        }
        Sampler::new(o.sampler, &self.schedule, o.steps).map(|_| ())
    }
}

/// Unit noise `[B, ..shape]` in f32 on the CPU, each row drawn after seeding libtorch's generator with its own seed: the
/// same numbers as `torch.randn` with a CPU generator of that seed.
pub(crate) fn seeded_noise(seeds: &[u64], shape: &[i64]) -> Result<Tensor> {
    let mut rows = Vec::with_capacity(seeds.len());
    for &seed in seeds {
        rows.push(seeded(seed as i64, || Tensor::f_randn(shape, (Kind::Float, Device::Cpu)))?);
    }
    Ok(Tensor::f_stack(&rows, 0)?)
}
