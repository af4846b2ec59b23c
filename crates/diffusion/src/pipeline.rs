//! From prompts to images with any U-Net: the teacher, or a pruned student in its place. Used by generation, by
//! evaluation (same prompts, same seeds) and by data-free calibration.
//!
//! Shapes: `B` images of one batch, `N` of a call, `C` latent channels, `h` `w` height and width of the latents.

use std::ops::ControlFlow;
use std::path::Path;

use image::RgbImage;
use tch::{Device, Kind, Tensor};
use unet::weights::seeded;
use unet::{Conditioning, UNet, UNetConfig};

use crate::conditioning::{TextEncoders, TimeIds};
use crate::decoder::ImageDecoder;
use crate::error::{Error, Result};
use crate::guidance::{is_classifier_free, with_guidance};
use crate::images::check_finite;
use crate::model_dir::ModelDir;
use crate::model_ref::ModelRef;
use crate::sampler::{Sampler, SamplerKind};
use crate::schedule::NoiseSchedule;
use crate::vae::{AutoencoderKl, DecodeParts, VaeConfig};

/// What images to make, and how.
#[derive(Debug)]
pub struct GenerateOptions {
    /// One per image.
    pub prompts: Vec<String>,
    /// What the images should not show; `None` means the model's own way of saying nothing.
    pub negative: Option<String>,
    /// Number of U-Net steps.
    pub steps: usize,
    /// Weight of classifier-free guidance (arXiv 2207.12598); at most 1 means none, at half the cost. Models that were distilled
    /// to take the weight as an input always run at half the cost, and know no negative prompt.
    pub guidance: f64,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Asks the sampler for Karras' noise levels even where the model's scheduler does not; see [`Sampler::new`].
    pub karras: bool,
    /// Last layers of the text encoders that are left out for the prompt; see [`TextEncoders::encode_skipping`].
    pub clip_skip: usize,
    /// One per image; all noise of an image depends on nothing else.
    pub seeds: Vec<u64>,
    /// Height in pixels, a multiple of [`Pipeline::size_multiple`].
    pub height: i64,
    /// Width in pixels, likewise.
    pub width: i64,
    /// How many images are computed at once.
    pub batch: usize,
    /// Unit noise `[N, C, h, w]` to start from instead of the seeds' own. Stochastic samplers still take their further noise
    /// from the seeds, then from its beginning.
    pub latents: Option<Tensor>,
    /// How much the VAE decodes at once.
    pub decode: DecodeParts,
}

/// Finished images.
#[derive(Debug)]
pub struct Generated {
    /// Final latents `[N, C, h, w]`, f32 on the CPU, at the U-Net's scale.
    pub latents: Tensor,
    /// The images, in the order of the prompts.
    pub images: Vec<RgbImage>,
}

/// How far generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Images that are finished.
    pub done: usize,
    /// Images in the batch that is being computed.
    pub batch: usize,
    /// All images.
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
    /// What the images should show, `B` of it.
    pub cond: &'a Conditioning,
    /// What they should not show, `B` of it; `None` switches guidance off.
    pub negative: Option<&'a Conditioning>,
    /// Weight of guidance; an input of U-Nets that take it, unless `cond` has it already.
    pub guidance: f64,
    /// The sampler.
    pub sampler: SamplerKind,
    /// As [`GenerateOptions::karras`].
    pub karras: bool,
    /// Number of steps.
    pub steps: usize,
    /// Unit noise `[B, C, h, w]` for each step that [needs it](Sampler::needs_noise), which are all but the last; none for
    /// samplers that are not stochastic.
    pub step_noise: &'a [Tensor],
}

/// Everything around the U-Net, and the model's own U-Net.
#[derive(Debug)]
pub struct Pipeline {
    dir: ModelDir,
    unet: UNet,
    text: TextEncoders,
    decoder: ImageDecoder,
    schedule: NoiseSchedule,
    device: Device,
}

impl Pipeline {
    /// Opens a model directory or a whole checkpoint; with `unet`, the U-Net there takes the place of the model's own.
    ///
    /// A VAE that overflows in f16 (`force_upcast` in its config) is computed in f32.
    /// [`OffloadedPipeline`](crate::OffloadedPipeline) keeps less in memory.
    ///
    /// # Errors
    /// As [`ModelDir::open`], and those of every part.
    pub fn open(model: impl Into<ModelRef>, unet: Option<&Path>, device: Device, kind: Kind) -> Result<Self> {
        let dir = ModelDir::open(model, unet)?;
        let unet = UNet::open(dir.unet(), device, kind)?;
        Ok(Self {
            schedule: dir.schedule(Some(&unet))?,
            unet,
            text: dir.text_encoders(device, kind)?,
            decoder: ImageDecoder::open(&dir, device, kind)?,
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
        self.decoder.vae()
    }

    /// The noise schedule.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// Where everything is computed.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Height and width of images must be a multiple of this: the VAE's factor, and the U-Net's in the latents.
    pub fn size_multiple(&self) -> i64 {
        size_multiple(self.unet.config(), self.vae().config())
    }

    /// The size in pixels for which the model was made, when its configuration says so.
    pub fn native_size(&self) -> Option<(i64, i64)> {
        native_size(self.unet.config(), self.vae().config())
    }

    /// As [`TextEncoders::encode`].
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn encode_prompts(&self, prompts: &[&str], size: TimeIds) -> Result<Conditioning> {
        self.text.encode(prompts, size)
    }

    /// The unconditional side of guidance for `cond`: the negative prompt's features, or without one the features of the
    /// empty prompt, or zeros where the model wants that (SDXL).
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn encode_negative(&self, negative: Option<&str>, cond: &Conditioning, size: TimeIds) -> Result<Conditioning> {
        self.text.encode_negative(negative, self.dir.force_zeros_for_empty_prompt(), cond, size)
    }

    /// Makes images with `unet`, which may be the pipeline's own or a student's. Every image depends on its own prompt
    /// and seed only, not on the batch it is computed in (up to rounding).
    ///
    /// # Errors
    /// [`Error::Input`] for settings that do not fit, before anything runs; [`Error::NotFinite`] when the U-Net or the VAE
    /// gives NaN.
    pub fn generate(&self, unet: &UNet, options: &GenerateOptions, progress: &mut dyn FnMut(Progress)) -> Result<Generated> {
        let vae = self.vae().config();
        check(options, self.unet.config(), vae, &self.schedule)?;
        let _no_grad = tch::no_grad_guard();
        let total = options.prompts.len();
        let (mut latents, mut images) = (Vec::new(), Vec::with_capacity(total));
        for start in (0..total).step_by(options.batch) {
            let batch = Batch::new(options, start);
            let (cond, negative) = batch.encode(&self.text, self.unet.config(), self.dir.force_zeros_for_empty_prompt())?;
            let x = batch.denoise(&self.schedule, unet, vae, (&cond, negative.as_ref()), progress)?;
            images.extend(self.decoder.images(&x, options.decode)?);
            latents.push(x.f_to_device(Device::Cpu)?);
            progress(batch.progress(batch.len, options.steps));
        }
        Ok(Generated { latents: Tensor::f_cat(&latents, 0)?, images })
    }

    /// Runs the sampler from unit noise `[B, C, h, w]` to latents `[B, C, h, w]` (f32). `visit` sees every U-Net input
    /// before the call, and may end the run there; then what it saw last has not been denoised further.
    ///
    /// # Errors
    /// [`Error::Input`] for steps or shapes that do not fit.
    pub fn denoise(&self, unet: &UNet, run: &Denoise, noise: &Tensor, visit: &mut dyn FnMut(Visit) -> ControlFlow<()>) -> Result<Tensor> {
        denoise(&self.schedule, unet, run, noise, visit)
    }

    /// Latents at the U-Net's scale `[B, C, h, w]` -> images. What overflows in f16 or bf16 is decoded again in f32.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when the VAE gives NaN.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<RgbImage>> {
        self.decoder.images(latents, DecodeParts::default())
    }

    /// Unit noise `[B, C, h, w]` for images of this size, each from its own seed, drawn on the CPU in f32: what diffusers
    /// draws with a CPU generator of that seed. libtorch's own generator is left seeded.
    ///
    /// # Errors
    /// [`Error::Torch`] when libtorch refuses the shape.
    pub fn initial_noise(&self, seeds: &[u64], height: i64, width: i64) -> Result<Tensor> {
        let shape = latent_shape(self.unet.config(), self.vae().config(), height, width);
        Ok(seeded_noise(seeds, &shape, 1)?.swap_remove(0))
    }
}

/// Height and width in pixels must be a multiple of this.
pub(crate) fn size_multiple(unet: &UNetConfig, vae: &VaeConfig) -> i64 {
    vae.downscale() * unet.down_factor()
}

/// The size in pixels for which the model was made, when its configuration says so.
pub fn native_size(unet: &UNetConfig, vae: &VaeConfig) -> Option<(i64, i64)> {
    let f = vae.downscale();
    unet.sample_size.map(|(h, w)| (h * f, w * f))
}

// [C, h, w]
fn latent_shape(unet: &UNetConfig, vae: &VaeConfig, height: i64, width: i64) -> [i64; 3] {
    let f = vae.downscale();
    [unet.in_channels, height / f, width / f]
}

/// One batch of a call.
pub(crate) struct Batch<'a> {
    options: &'a GenerateOptions,
    start: usize,
    /// Images in it.
    pub(crate) len: usize,
}

impl<'a> Batch<'a> {
    /// The batch that begins with image `start`. `options` have passed [`check`].
    pub(crate) fn new(options: &'a GenerateOptions, start: usize) -> Self {
        Self { options, start, len: options.batch.min(options.prompts.len() - start) }
    }

    // Unit noise [B, C, h, w] to start from, and for each step that needs it.
    fn noise(&self, schedule: &NoiseSchedule, unet: &UNetConfig, vae: &VaeConfig) -> Result<(Tensor, Vec<Tensor>)> {
        let o = self.options;
        let shape = latent_shape(unet, vae, o.height, o.width);
        let sampler = Sampler::new(o.sampler, schedule, o.steps, o.karras)?;
        let steps = (0..o.steps).filter(|&i| sampler.needs_noise(i)).count();
        let seeds = o.seeds.get(self.start..self.start + self.len).unwrap_or_default();
        Ok(match &o.latents {
            Some(all) => {
                let given = all.f_narrow(0, self.start as i64, self.len as i64)?;
                (given, if steps == 0 { Vec::new() } else { seeded_noise(seeds, &shape, steps)? })
            }
            None => {
                let mut drawn = seeded_noise(seeds, &shape, 1 + steps)?;
                (drawn.remove(0), drawn)
            }
        })
    }

    /// What its images should show, and what not; `zeros` as in [`TextEncoders::encode_negative`].
    pub(crate) fn encode(&self, text: &TextEncoders, unet: &UNetConfig, zeros: bool) -> Result<(Conditioning, Option<Conditioning>)> {
        let o = self.options;
        let size = TimeIds::uncropped(o.height, o.width);
        let prompts: Vec<&str> = o.prompts[self.start..self.start + self.len].iter().map(String::as_str).collect();
        let cond = text.encode_skipping(&prompts, size, o.clip_skip)?;
        let negative = match is_classifier_free(o.guidance, unet) {
            true => Some(text.encode_negative(o.negative.as_deref(), zeros, &cond, size)?),
            false => None,
        };
        Ok((cond, negative))
    }

    /// Its finished latents `[B, C, h, w]`, f32 on the U-Net's device.
    pub(crate) fn denoise(
        &self,
        schedule: &NoiseSchedule,
        unet: &UNet,
        vae: &VaeConfig,
        (cond, negative): (&Conditioning, Option<&Conditioning>),
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Tensor> {
        let o = self.options;
        let (initial, step_noise) = self.noise(schedule, unet.config(), vae)?;
        progress(self.progress(0, 0));
        let run =
            Denoise { cond, negative, guidance: o.guidance, sampler: o.sampler, karras: o.karras, steps: o.steps, step_noise: &step_noise };
        let x = denoise(schedule, unet, &run, &initial, &mut |visit| {
            // A visit comes before its step is done.
            progress(self.progress(0, visit.step));
            ControlFlow::Continue(())
        })?;
        check_finite(&x, &format!("a latent of images {} to {}", self.start + 1, self.start + self.len))?;
        Ok(x)
    }

    /// How far it is, with `done` of its own images finished.
    pub(crate) fn progress(&self, done: usize, step: usize) -> Progress {
        let o = self.options;
        Progress { done: self.start + done, batch: self.len, total: o.prompts.len(), step, steps: o.steps }
    }
}

// As `Pipeline::denoise`.
fn denoise(
    schedule: &NoiseSchedule,
    unet: &UNet,
    run: &Denoise,
    noise: &Tensor,
    visit: &mut dyn FnMut(Visit) -> ControlFlow<()>,
) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let (device, kind) = (unet.device(), unet.kind());
    let mut sampler = Sampler::new(run.sampler, schedule, run.steps, run.karras)?;
    // Guided batches carry the unconditional half first.
    let cond = match run.negative {
        Some(_) if unet.config().time.guidance.is_some() => return refuse_negative(),
        Some(negative) => Conditioning::cat(&[negative, run.cond])?,
        None => with_guidance(run.cond.shallow_clone(), unet.config(), run.guidance)?,
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
        x = sampler.step(&output, i, &x, run.step_noise.get(i))?;
    }
    Ok(x)
}

fn refuse_negative<T>() -> Result<T> {
    let expected = "none: this U-Net takes the weight of guidance as an input (time_cond_proj_dim)".to_string();
    Err(Error::Input { name: "negative".into(), expected, got: "a negative prompt".into() })
}

/// Refuses settings that do not fit the model or each other.
pub(crate) fn check(o: &GenerateOptions, unet: &UNetConfig, vae: &VaeConfig, schedule: &NoiseSchedule) -> Result<()> {
    let n = o.prompts.len();
    let wrong = |name: &str, expected: String, got: String| Err(Error::Input { name: name.into(), expected, got });
    if n == 0 {
        return wrong("prompts", "at least one".into(), "none".into());
    }
    if o.batch == 0 {
        return wrong("batch", "at least 1".into(), "0".into());
    }
    if (o.latents.is_none() || o.sampler.is_stochastic()) && o.seeds.len() != n {
        return wrong("seeds", format!("{n}, one per image"), o.seeds.len().to_string());
    }
    if !o.guidance.is_finite() {
        return wrong("guidance", "a finite number".into(), o.guidance.to_string());
    }
    if o.negative.is_some() && unet.time.guidance.is_some() {
        return refuse_negative();
    }
    let m = size_multiple(unet, vae);
    for (name, side) in [("height", o.height), ("width", o.width)] {
        if side <= 0 || side % m != 0 {
            return wrong(name, format!("a positive multiple of {m}"), side.to_string());
        }
    }
    if let Some(given) = &o.latents {
        let [c, h, w] = latent_shape(unet, vae, o.height, o.width);
        let expected = [n as i64, c, h, w];
        if given.size() != expected {
            return wrong("latents", format!("{expected:?}"), format!("{:?}", given.size()));
        }
    }
    Sampler::new(o.sampler, schedule, o.steps, o.karras).map(|_| ())
}

/// `count` tensors of unit noise `[B, ..shape]` in f32 on the CPU. Row `b` of all of them is drawn, one tensor after the
/// other, after seeding libtorch's generator with its own seed: the numbers that `torch.randn` gives when it is called
/// `count` times with a CPU generator of that seed.
///
/// # Errors
/// [`Error::Torch`] when memory runs out.
pub fn seeded_noise(seeds: &[u64], shape: &[i64], count: usize) -> Result<Vec<Tensor>> {
    let mut rows = Vec::with_capacity(seeds.len());
    for &seed in seeds {
        let draw = || (0..count).map(|_| Tensor::f_randn(shape, (Kind::Float, Device::Cpu))).collect::<std::result::Result<Vec<_>, _>>();
        rows.push(seeded(seed as i64, draw)?);
    }
    (0..count).map(|i| Ok(Tensor::f_stack(&rows.iter().map(|row| &row[i]).collect::<Vec<_>>(), 0)?)).collect()
}
