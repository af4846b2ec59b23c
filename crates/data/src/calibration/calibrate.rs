//! Points from images with captions or from rendered scenes. Images -> latents -> **points** -> scores.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::Path;

use artifact::hex;
use diffusion::images::{decode, fit, to_tensor};
use diffusion::{NoiseSchedule, TimeIds};
use image::RgbImage;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};
use unet::Conditioning;

use super::{CalibrationSet, at_least_one};
use crate::encoders::Encoders;
use crate::error::{Error, Result};
use crate::image_text::{Found, ImageText, Rejected};
use crate::pairs::image_batch;
use crate::scene_source::SceneSource;

/// Calibration scenes stand this far into their stream, where no training run comes.
const FIRST_SCENE: u64 = 1 << 41;

/// What the points are made of.
#[derive(Debug, Clone, Copy)]
pub enum CalibrationPoints<'a> {
    /// Rendered scenes of the training split, as many as there should be points.
    Scenes(usize),
    /// The middles of images, at the model's own size.
    Images {
        /// Where they come from.
        source: &'a ImageText,
        /// Take this many, the first ones; by default all.
        count: Option<usize>,
        /// The run stops when more images than this are damaged or have no caption.
        max_bad: usize,
    },
}

/// How points are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CalibrationOptions {
    /// Number of timestep bins.
    pub bins: usize,
    /// Seed of scenes, noise and timesteps.
    pub seed: u64,
    /// Images computed at once.
    pub batch: usize,
}

impl Default for CalibrationOptions {
    fn default() -> Self {
        Self { bins: 10, seed: 0, batch: 16 }
    }
}

/// Makes a set of noised latents. `progress` hears how many images are encoded.
///
/// ```no_run,standalone_crate
/// # fn main() -> data::Result<()> {
/// use data::{CalibrationOptions, CalibrationPoints, Encoders, ImageText, calibrate};
///
/// let encoders = Encoders::open("model", tch::Device::Cpu, tch::Kind::Float)?;
/// let source = ImageText::open(["photos"])?;
/// let points = CalibrationPoints::Images { source: &source, count: Some(256), max_bad: 10 };
/// let set = calibrate(&encoders, &points, &CalibrationOptions::default(), &mut |_| data::Result::Ok(()))?;
/// set.save("calibration.safetensors")?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Input`] for options out of range, [`Error::TooManyBad`], [`Error::Format`] where a source has too few images; what sources
/// and encoders report; what `progress` fails with.
pub fn calibrate<E: From<Error>>(
    encoders: &Encoders,
    points: &CalibrationPoints,
    options: &CalibrationOptions,
    progress: &mut dyn FnMut(usize) -> std::result::Result<(), E>,
) -> std::result::Result<CalibrationSet, E> {
    let mut encoded = Encoded::new(encoders, options)?;
    let made_from = match *points {
        CalibrationPoints::Scenes(count) => encoded.scenes(count, progress)?,
        CalibrationPoints::Images { source, count, max_bad } => encoded.images(source, count, max_bad, progress)?,
    };
    Ok(encoded.finish(&made_from)?)
}

/// Latents and text features of images, as they come.
struct Encoded<'a> {
    encoders: &'a Encoders,
    options: &'a CalibrationOptions,
    schedule: NoiseSchedule,
    // Height and width.
    size: (i64, i64),
    latents: Vec<Tensor>,
    conds: Vec<Conditioning>,
    prompts: Vec<String>,
}

impl<'a> Encoded<'a> {
    fn new(encoders: &'a Encoders, options: &'a CalibrationOptions) -> Result<Self> {
        for (name, value) in [("bins", options.bins), ("batch", options.batch)] {
            at_least_one(name, value)?;
        }
        let schedule = encoders.dir().schedule(None)?;
        let size = encoders.native_size();
        Ok(Self { encoders, options, schedule, size, latents: Vec::new(), conds: Vec::new(), prompts: Vec::new() })
    }

    /// Encodes `count` scenes; returns what they are.
    fn scenes<E: From<Error>>(
        &mut self,
        count: usize,
        progress: &mut dyn FnMut(usize) -> std::result::Result<(), E>,
    ) -> std::result::Result<String, E> {
        at_least_one("scenes", count)?;
        let ((height, width), seed) = (self.size, self.options.seed);
        if height != width {
            let got = format!("a model that makes {height} x {width} pixels, and scenes are square");
            let expected = "images or prompts".to_string();
            return Err(Error::Input { name: "scenes".into(), expected, got }.into());
        }
        let source = SceneSource::new(seed, height as usize)?;
        while self.prompts.len() < count {
            progress(self.prompts.len())?;
            let n = self.options.batch.min(count - self.prompts.len());
            let first = FIRST_SCENE + self.prompts.len() as u64;
            let indices: Vec<u64> = (first..first + n as u64).collect();
            let (x, captions) = image_batch(&source, &indices, self.encoders.device())?;
            self.add(&x, captions)?;
        }
        Ok(format!("scenes seed {seed} first {FIRST_SCENE} size {height}"))
    }

    /// Encodes the first `count` images of `source`; returns what they are.
    fn images<E: From<Error>>(
        &mut self,
        source: &ImageText,
        count: Option<usize>,
        max_bad: usize,
        progress: &mut dyn FnMut(usize) -> std::result::Result<(), E>,
    ) -> std::result::Result<String, E> {
        at_least_one("count", count.unwrap_or(1))?;
        let mut taking = Taking { size: self.size, max_bad, hash: Sha256::new(), bad: Vec::new(), waiting: Vec::new(), taken: 0 };
        let _all = source.visit(&mut |source, found| -> std::result::Result<_, E> {
            progress(taking.taken)?;
            taking.add(source, found)?;
            if taking.waiting.len() == self.options.batch {
                self.add_images(&mut taking.waiting)?;
            }
            Ok(if Some(taking.taken) == count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        self.add_images(&mut taking.waiting)?;
        Ok(taking.finish(source, count)?)
    }

    // x [B, 3, H, W] in -1..1
    fn add(&mut self, x: &Tensor, captions: Vec<String>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let vae = self.encoders.vae();
        let moments = vae.encode(&x.to_kind(vae.kind()))?;
        self.latents.push(moments.mean.to_kind(Kind::Float) * vae.config().scaling_factor);
        let texts: Vec<&str> = captions.iter().map(String::as_str).collect();
        self.conds.push(self.encoders.text().encode(&texts, TimeIds::uncropped(self.size.0, self.size.1))?);
        self.prompts.extend(captions);
        Ok(())
    }

    fn add_images(&mut self, waiting: &mut Vec<(RgbImage, String)>) -> Result<()> {
        if waiting.is_empty() {
            return Ok(());
        }
        let (images, captions): (Vec<RgbImage>, Vec<String>) = waiting.drain(..).unzip();
        let x = to_tensor(&images.iter().collect::<Vec<_>>())?;
        self.add(&x.to_device(self.encoders.device()), captions)
    }

    fn finish(self, made_from: &str) -> Result<CalibrationSet> {
        let cond = Conditioning::cat(&self.conds.iter().collect::<Vec<_>>())?;
        let x0 = Tensor::f_cat(&self.latents, 0)?;
        let CalibrationOptions { bins, seed, .. } = *self.options;
        CalibrationSet::builder(&x0, &cond, &self.prompts, &self.schedule).bins(bins).seed(seed).source_hash(made_from).build()
    }
}

/// Images on their way from a source.
struct Taking {
    // Height and width.
    size: (i64, i64),
    max_bad: usize,
    // Of names, captions and files.
    hash: Sha256,
    bad: Vec<Rejected>,
    waiting: Vec<(RgbImage, String)>,
    taken: usize,
}

impl Taking {
    fn add(&mut self, source: &Path, found: Found) -> Result<()> {
        let read = found.and_then(|file| {
            let bytes = file.bytes().map_err(|e| e.to_string()).map(Cow::into_owned);
            match bytes.and_then(|bytes| Ok((decode(&bytes).map_err(|e| e.to_string())?, bytes))) {
                Ok((image, bytes)) => Ok((image, bytes, file)),
                Err(reason) => Err(Rejected { name: file.name, reason }),
            }
        });
        match read {
            Ok((image, bytes, file)) => {
                for part in [file.name.as_bytes(), file.caption.as_bytes(), bytes.as_slice()] {
                    self.hash.update((part.len() as u64).to_le_bytes());
                    self.hash.update(part);
                }
                self.waiting.push((fit(&image, self.size.1 as u32, self.size.0 as u32)?, file.caption));
                self.taken += 1;
                Ok(())
            }
            Err(bad) => {
                tracing::warn!("{}: {} is left out: {}", source.display(), bad.name, bad.reason);
                self.bad.push(bad);
                Error::check_bad(source, &self.bad, self.max_bad)
            }
        }
    }

    fn finish(self, source: &ImageText, count: Option<usize>) -> Result<String> {
        let path = source.paths().next().unwrap_or(Path::new(""));
        let few = |problem: String, hint: &str| Error::Format { path: path.into(), problem, hint: hint.into() };
        match (self.taken, count) {
            (0, _) => Err(Error::all_bad(path, &self.bad)),
            (taken, Some(n)) if taken < n => {
                let problem = format!("only {taken} images with captions, {n} are asked for");
                Err(few(problem, "ask for fewer, or name more folders"))
            }
            // The word stands in files of earlier versions.
            _ => Ok(format!("pictures {}", hex(&self.hash.finalize()))),
        }
    }
}
