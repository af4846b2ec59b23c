//! Drawing a folder of images: many prompts, any U-Net, and what is there already is kept. Model -> **images** -> evaluation.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use artifact::{Document, file_sha256, sha256};
use data::image_file_name;
use diffusion::images::{read_png_text, write_png};
use diffusion::{DecodeParts, GenerateOptions, Generated, ModelRef, OffloadedPipeline, Pipeline, Progress, SamplerKind};
use tch::{Device, Kind, Tensor};
use unet::Compute;
use unet::weights::{TensorFile, Tensors, save_tensors};

use crate::error::{Error, Result};
use crate::image_folder::{IMAGES_FILE, ImageEntry, ImageSettings, ImagesFile};
use crate::prompts::Prompts;

/// How images are sampled; the same for every U-Net that is compared.
#[derive(Debug, Clone)]
pub struct SamplingOptions {
    /// What not to show.
    pub negative: Option<String>,
    /// Images per prompt, each from a seed of its own; at least 1.
    pub per_prompt: usize,
    /// Seed of the first image; image `i` has this plus `i`.
    pub seed: u64,
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scale; 1 switches guidance off.
    pub guidance: f64,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Karras' noise levels, even where the model's scheduler does not ask for them.
    pub karras: bool,
    /// Last layers of the text encoders to leave out for the prompt.
    pub clip_skip: usize,
    /// Height and width in pixels; none for the model's own.
    pub size: Option<i64>,
    /// How much the VAE decodes at once.
    pub decode: DecodeParts,
}

/// The images of one U-Net, to be drawn into a folder.
#[derive(Debug, Clone, Copy)]
pub struct Drawing<'a> {
    /// A model directory or a whole checkpoint.
    pub model: &'a ModelRef,
    /// A U-Net that takes the place of the model's own.
    pub unet: Option<&'a Path>,
    /// What the images should show.
    pub prompts: &'a Prompts,
    /// How they are sampled.
    pub sampling: &'a SamplingOptions,
    /// Images computed at once; at least 1.
    pub batch: usize,
    /// The folder to write.
    pub out: &'a Path,
    /// A file with unit noise `latents` `[N, C, h, w]` to start from, one per image.
    pub latents: Option<&'a Path>,
    /// A file to write the final `latents` `[N, C, h, w]` to; every image is then drawn anew.
    pub save_latents: Option<&'a Path>,
    /// One part of the model in memory at a time.
    pub offload: bool,
    /// Where the networks compute.
    pub device: Device,
    /// In what.
    pub kind: Kind,
}

/// How far drawing is, in sampling steps of single images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrawEvent {
    /// Between two batches, before the next one: all that was drawn so far is kept. A good place to stop.
    Batch {
        /// Steps done.
        done: usize,
        /// All steps.
        total: usize,
    },
    /// Inside a batch, which is finished and written before an error of the callback ends the drawing.
    Step {
        /// Steps done.
        done: usize,
        /// All steps.
        total: usize,
    },
}

/// What [`Drawing::draw`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// Images drawn now.
    pub drawn: usize,
    /// Images that were there already.
    pub kept: usize,
    /// Height and width.
    pub size: [i64; 2],
}

impl<'a> Drawing<'a> {
    /// A drawing by the model's own U-Net into `out`, eight images at once, all parts in memory, from noise of the seeds.
    pub fn new(
        model: &'a ModelRef,
        prompts: &'a Prompts,
        sampling: &'a SamplingOptions,
        out: &'a Path,
        device: Device,
        kind: Kind,
    ) -> Self {
        Self { model, unet: None, prompts, sampling, batch: 8, out, latents: None, save_latents: None, offload: false, device, kind }
    }

    /// Draws what is missing and writes `images.json` last: a folder without it is not complete.
    ///
    /// Images are written batch by batch; with `offload` all at the end, since each call loads everything.
    ///
    /// # Errors
    /// The callback's own; [`Error::Input`] for numbers or noise that do not fit; those of loading, drawing and writing.
    pub fn draw<E: From<Error>>(&self, mut on: impl FnMut(DrawEvent) -> std::result::Result<(), E>) -> std::result::Result<Drawn, E> {
        let job = Job::new(self)?;
        let rounds = job.rounds();
        let total = rounds.iter().map(Vec::len).sum::<usize>() * self.sampling.steps;
        let (mut source, mut latents, mut before, mut done) = (None, Vec::new(), 0, 0);
        for round in &rounds {
            on(DrawEvent::Batch { done, total })?;
            if source.is_none() {
                source = Some(Source::open(self)?);
            }
            let mut failed = None;
            let made = job.generate(source.as_ref(), round, &mut |p| {
                // A batch that has all its steps counts as done; with offloading, which decodes last, never go back.
                let steps = (before + p.done) * p.steps + if p.step < p.steps { p.batch * p.step } else { 0 };
                done = done.max(steps);
                if failed.is_none() {
                    failed = on(DrawEvent::Step { done, total }).err();
                }
            })?;
            job.write(round, &made)?;
            if let Some(error) = failed {
                return Err(error);
            }
            before += round.len();
            latents.push(made.latents);
        }
        Ok(job.finish(&latents)?)
    }
}

/// The model, all of it in memory or one part after the other.
enum Source {
    Resident(Box<Pipeline>),
    Offloaded(Box<OffloadedPipeline>),
}

impl Source {
    fn open(d: &Drawing) -> Result<Self> {
        Ok(match d.offload {
            true => Self::Offloaded(Box::new(OffloadedPipeline::open(d.model, d.unet, d.device, d.kind)?)),
            false => Self::Resident(Box::new(Pipeline::open(d.model, d.unet, d.device, d.kind)?)),
        })
    }
}

/// A drawing with all that follows from its model's configuration; no weights yet, since nothing may be missing.
struct Job<'a> {
    of: &'a Drawing<'a>,
    noise: Option<Tensor>,
    settings: ImageSettings,
    entries: Vec<ImageEntry>,
    keys: Vec<String>,
    missing: Vec<bool>,
}

impl<'a> Job<'a> {
    fn new(of: &'a Drawing<'a>) -> Result<Self> {
        let s = of.sampling;
        for (name, value) in [("per_prompt", s.per_prompt), ("steps", s.steps), ("batch", of.batch), ("prompts", of.prompts.list.len())] {
            if value == 0 {
                return Err(Error::input(name, "at least 1", "0"));
            }
        }
        let noise = of.latents.map(read_latents).transpose()?;
        let parts = OffloadedPipeline::open(of.model, of.unet, of.device, of.kind)?;
        let (height, width) = s.size.map(|n| (n, n)).or(parts.native_size()).unwrap_or((512, 512));
        let settings = ImageSettings {
            model: of.model.name(),
            unet: unet::fingerprint(parts.dir().unet())?,
            prompt_source: of.prompts.source.clone(),
            negative: s.negative.clone().unwrap_or_default(),
            per_prompt: s.per_prompt,
            seed: s.seed,
            sampler: s.sampler.name().into(),
            karras: s.karras,
            clip_skip: s.clip_skip,
            vae_tiling: s.decode.tiled,
            compute: Compute::of(of.kind).name().into(),
            steps: s.steps,
            guidance: s.guidance,
            size: [height, width],
            latents: of.latents.map(file_sha256).transpose()?,
        };
        let all = of.prompts.list.iter().flat_map(|p| std::iter::repeat_n(p, s.per_prompt)).enumerate();
        let entries: Vec<ImageEntry> = all
            .map(|(i, p)| ImageEntry {
                file: image_file_name(i),
                prompt: p.text.clone(),
                seed: s.seed.wrapping_add(i as u64),
                category: p.category.clone(),
            })
            .collect();
        let keys: Vec<String> = entries.iter().enumerate().map(|(i, e)| key(&settings, e, noise.is_some().then_some(i))).collect();
        let there = |i: usize| of.save_latents.is_none() && has_key(&of.out.join(&entries[i].file), &keys[i]);
        let missing = (0..entries.len()).map(|i| !there(i)).collect();
        Ok(Self { of, noise, settings, entries, keys, missing })
    }

    /// What each call of the model computes, by the images' positions.
    ///
    /// Batches are cut from all images alike, and one with a gap is computed whole: the last bits of an image depend on how many are
    /// computed with it, and a run that goes on shall give the images of one that was never stopped.
    fn rounds(&self) -> Vec<Vec<usize>> {
        let (n, batch) = (self.entries.len(), self.of.batch);
        let all = (0..n).step_by(batch).map(|first| first..(first + batch).min(n));
        let batches: Vec<Vec<usize>> = all.filter(|b| b.clone().any(|i| self.missing[i])).map(Iterator::collect).collect();
        if self.of.offload && !batches.is_empty() { vec![batches.concat()] } else { batches }
    }

    fn options(&self, which: &[usize]) -> Result<GenerateOptions> {
        let s = self.of.sampling;
        let [height, width] = self.settings.size;
        Ok(GenerateOptions {
            prompts: which.iter().map(|&i| self.entries[i].prompt.clone()).collect(),
            negative: s.negative.clone(),
            steps: s.steps,
            guidance: s.guidance,
            sampler: s.sampler,
            karras: s.karras,
            clip_skip: s.clip_skip,
            seeds: which.iter().map(|&i| self.entries[i].seed).collect(),
            height,
            width,
            batch: self.of.batch,
            latents: self.noise.as_ref().map(|t| rows(t, which, self.entries.len())).transpose()?,
            decode: s.decode,
        })
    }

    fn generate(&self, source: Option<&Source>, which: &[usize], progress: &mut dyn FnMut(Progress)) -> Result<Generated> {
        let (options, start) = (self.options(which)?, Instant::now());
        let made = match source {
            Some(Source::Resident(p)) => p.generate(p.unet(), &options, progress)?,
            Some(Source::Offloaded(p)) => p.generate(&options, progress)?,
            None => unreachable!("a model is opened where a batch is missing"),
        };
        // tests/speed/compare_pipelines.py reads this.
        tracing::info!("{} images in {:.4} s", which.len(), start.elapsed().as_secs_f64());
        Ok(made)
    }

    fn write(&self, which: &[usize], made: &Generated) -> Result<()> {
        std::fs::create_dir_all(self.of.out).map_err(Error::io(self.of.out))?;
        let settings = serde_json::to_string(&self.settings).expect("settings are JSON");
        for (&i, image) in which.iter().zip(&made.images).filter(|(i, _)| self.missing[**i]) {
            let text = BTreeMap::from([
                (KEY.to_string(), self.keys[i].clone()),
                ("prompt".to_string(), self.entries[i].prompt.clone()),
                ("seed".to_string(), self.entries[i].seed.to_string()),
                ("settings".to_string(), settings.clone()),
            ]);
            write_png(self.of.out.join(&self.entries[i].file), image, &text)?;
        }
        Ok(())
    }

    fn finish(self, latents: &[Tensor]) -> Result<Drawn> {
        if let Some(path) = self.of.save_latents {
            let tensors = Tensors::from([("latents".to_string(), Tensor::f_cat(latents, 0)?)]);
            save_tensors(path, &tensors, &BTreeMap::new(), None)?;
        }
        let size = self.settings.size;
        ImagesFile { settings: self.settings, images: self.entries }.write(&self.of.out.join(IMAGES_FILE))?;
        let drawn = self.missing.iter().filter(|gone| **gone).count();
        Ok(Drawn { drawn, kept: self.missing.len() - drawn, size })
    }
}

/// Name of the PNG text entry that tells images made in another way apart.
const KEY: &str = "laptop-diff.key";

/// A hash of everything that decides what an image looks like; `row` is its row in the file of latents, which then decides and not
/// the seed.
fn key(settings: &ImageSettings, entry: &ImageEntry, row: Option<usize>) -> String {
    let s = settings;
    let parts = (&s.unet, &s.negative, &s.sampler, s.steps, s.guidance.to_bits(), s.size, &s.latents, &entry.prompt, entry.seed, row);
    // Apart, and only when one is used, so that the images of earlier versions keep their keys.
    let further = (s.karras, s.clip_skip, s.vae_tiling);
    let further = if further == (false, 0, false) { String::new() } else { format!("{further:?}") };
    let compute = if s.in_f32() { "" } else { &s.compute };
    sha256(format!("{parts:?}{further}{compute}"))
}

/// Whether `path` is an intact image with this key.
fn has_key(path: &Path, key: &str) -> bool {
    path.is_file() && read_png_text(path).is_ok_and(|text| text.get(KEY).is_some_and(|k| k == key))
}

fn read_latents(path: &Path) -> Result<Tensor> {
    let missing =
        || Error::Format { path: path.into(), problem: "no tensor `latents`".into(), hint: "give a file with `latents` (N,C,h,w)".into() };
    TensorFile::open(path)?.tensor("latents")?.ok_or_else(missing)
}

/// The rows of some images.
fn rows(noise: &Tensor, which: &[usize], total: usize) -> Result<Tensor> {
    let n = noise.size().first().copied().unwrap_or(0);
    if n != total as i64 {
        return Err(Error::input("latents", format!("{total} rows, one per image"), n.to_string()));
    }
    let index: Vec<i64> = which.iter().map(|&i| i as i64).collect();
    Ok(noise.f_index_select(0, &Tensor::from_slice(&index))?)
}
