//! What a U-Net costs on this device: latency of calls and of whole images, memory, files. Models -> **timings** -> report.
//!
//! - [`Bench`]: teacher and students in turns, for `speed.json`.
//! - [`profile_layers`]: what each layer of one U-Net takes, for budgets in time.
//! - [`estimate_cost`]: how long a model's passes take, from its configuration alone.

mod latency;
mod inputs;
mod profile;
mod cost;

use std::path::{Path, PathBuf};

use diffusion::{DecodeParts, GenerateOptions, ModelDir, Pipeline, SamplerKind};
use tch::{Device, Kind};
use unet::{LayerTable, UNet};

use crate::error::{Error, Result};
use crate::timings::{Footprint, ImageTimes, LatencyRow, PeakMemory};
use inputs::UNetInputs;

pub use cost::{CostEstimate, estimate_cost};
pub use latency::{Subject, measure_latency, peak_rss, wait_for};
pub use profile::{ProfileOptions, profile_layers};

/// The teacher's name in the rows.
pub const TEACHER: &str = "teacher";

/// Calls or steps for [`Bench::peak`]: the second one may need more than the first, further ones do not.
const PEAK_TIMES: usize = 3;

/// A model and what is measured of it and of U-Nets in its place.
#[derive(Debug, Clone, Copy)]
pub struct Bench<'a> {
    /// A model directory, or the folder or file of a U-Net alone.
    pub model: &'a Path,
    /// Its own U-Net: what speed-ups refer to.
    pub unet: &'a Path,
    /// Height and width of the latents of a call.
    pub latent: (i64, i64),
    /// Text tokens of a call.
    pub tokens: i64,
    /// Samples per call.
    pub batch: i64,
    /// Timed calls of each U-Net.
    pub rounds: usize,
    /// Untimed calls before.
    pub warmup: usize,
    /// Whole images that are timed; none for a model without text encoders and VAE.
    pub images: Option<ImageBench>,
    /// Where.
    pub device: Device,
    /// In what.
    pub kind: Kind,
}

/// Timed images, from prompt to pixels.
#[derive(Debug, Clone, Copy)]
pub struct ImageBench {
    /// Timed images of each U-Net, after an untimed one.
    pub rounds: usize,
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scale.
    pub guidance: f64,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Height and width in pixels; none for the model's own.
    pub size: Option<i64>,
}

/// What a process does while its memory is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeakTask {
    /// Load a U-Net and call it.
    Call,
    /// Load a whole model and draw an image.
    Image,
}

/// A call or an image was timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BenchEvent {
    /// Calls of U-Nets.
    Call {
        /// Done.
        done: usize,
        /// All.
        total: usize,
    },
    /// Whole images.
    Image {
        /// Done.
        done: usize,
        /// All.
        total: usize,
    },
}

impl ImageBench {
    fn options(&self, pipeline: &Pipeline, steps: usize) -> GenerateOptions {
        let (height, width) = self.size.map(|n| (n, n)).or(pipeline.native_size()).unwrap_or((512, 512));
        GenerateOptions {
            prompts: vec!["a red circle".into()],
            negative: None,
            steps,
            guidance: self.guidance,
            sampler: self.sampler,
            karras: false,
            clip_skip: 0,
            seeds: vec![0],
            height,
            width,
            batch: 1,
            latents: None,
            decode: DecodeParts { sliced: false, tiled: false },
        }
    }
}

impl Bench<'_> {
    /// Latency of calls of the model's own U-Net and of `students`, and of whole images where those are asked for.
    ///
    /// # Errors
    /// The callback's own; those of loading and running.
    pub fn latency<E: From<Error>>(
        &self,
        students: &[(String, PathBuf)],
        mut on: impl FnMut(BenchEvent) -> std::result::Result<(), E>,
    ) -> std::result::Result<(Vec<LatencyRow>, Option<ImageTimes>), E> {
        let unets = students.iter().map(|(_, dir)| Ok(UNet::open(dir, self.device, self.kind)?)).collect::<Result<Vec<_>>>()?;
        let (pipeline, lone) = self.open()?;
        let teacher = pipeline.as_ref().map(Pipeline::unet).or(lone.as_ref());
        let students = students.iter().map(|(name, _)| name.as_str()).zip(&unets);
        let all: Vec<(&str, &UNet)> = teacher.map(|unet| (TEACHER, unet)).into_iter().chain(students).collect();
        let calls = self.calls(&all, |done, total| on(BenchEvent::Call { done, total }))?;
        let images = match (&pipeline, &self.images) {
            (Some(pipeline), Some(images)) => Some(drawn(images, pipeline, &all, |done, total| on(BenchEvent::Image { done, total }))?),
            _ => None,
        };
        Ok((calls, images))
    }

    /// The whole model where images are drawn, else its U-Net alone.
    fn open(&self) -> Result<(Option<Pipeline>, Option<UNet>)> {
        Ok(match self.images {
            Some(_) => (Some(Pipeline::open(self.model, None, self.device, self.kind)?), None),
            None => (None, Some(UNet::open(self.unet, self.device, self.kind)?)),
        })
    }

    fn calls<E: From<Error>>(
        &self,
        all: &[(&str, &UNet)],
        on_call: impl FnMut(usize, usize) -> std::result::Result<(), E>,
    ) -> std::result::Result<Vec<LatencyRow>, E> {
        let inputs: Vec<UNetInputs> =
            all.iter().map(|(_, unet)| UNetInputs::random(unet.config(), self.batch, self.latent, self.tokens, self.device)).collect();
        let (mut subjects, device): (Vec<Subject<'_>>, _) = (Vec::new(), self.device);
        for (&(name, unet), UNetInputs { x, t, cond }) in all.iter().zip(&inputs) {
            let call = move || {
                tch::no_grad(|| unet.forward(x, t, cond).map(drop))?;
                wait_for(device);
                Ok(())
            };
            subjects.push(Subject { name: name.into(), call: Box::new(call) });
        }
        measure_latency(&mut subjects, self.batch as u64, self.warmup, self.rounds, on_call)
    }

    /// Does `task` in this process with the U-Net `unet`, or the model's own, and gives the peaks; none where the system does not tell.
    /// Only a fresh process tells one U-Net's own. `device_memory` gives the bytes of the device that are taken, for a GPU.
    ///
    /// # Errors
    /// Those of loading and running; [`Error::Input`] for an image without [`Bench::images`].
    pub fn peak(&self, unet: Option<&Path>, task: PeakTask, device_memory: impl Fn(Device) -> Option<u64>) -> Result<Option<PeakMemory>> {
        let (before, taken) = (peak_rss(), device_memory(self.device));
        match (task, &self.images) {
            (PeakTask::Call, _) => {
                let unet = UNet::open(unet.unwrap_or(self.unet), self.device, self.kind)?;
                let UNetInputs { x, t, cond } = UNetInputs::random(unet.config(), self.batch, self.latent, self.tokens, self.device);
                for _ in 0..PEAK_TIMES {
                    tch::no_grad(|| unet.forward(&x, &t, &cond).map(drop))?;
                }
            }
            (PeakTask::Image, Some(images)) => {
                let pipeline = Pipeline::open(self.model, unet, self.device, self.kind)?;
                let options = images.options(&pipeline, images.steps.min(PEAK_TIMES));
                pipeline.generate(pipeline.unet(), &options, &mut |_| {})?;
            }
            (PeakTask::Image, None) => return Err(Error::input("images", "how an image is drawn", "none")),
        }
        wait_for(self.device);
        let device_bytes = device_memory(self.device).zip(taken).map(|(now, before)| now.saturating_sub(before));
        let both = peak_rss().zip(before);
        Ok(both.map(|(resident_bytes, before_bytes)| PeakMemory { resident_bytes, before_bytes, device_bytes }))
    }

    /// Costs and files of the U-Net `name` in `unet`, whose layers are `table`'s, with the memory that was measured apart.
    ///
    /// # Errors
    /// When a weight file is missing.
    pub fn footprint(&self, name: &str, unet: &Path, table: &LayerTable, peaks: [Option<PeakMemory>; 2]) -> Result<Footprint> {
        let unet_file_bytes = size_of(&unet::weight_files(unet)?)?;
        let parts = self.images.map(|_| other_parts(&ModelDir::open(self.model, None)?)).transpose()?;
        let [call, image] = peaks;
        Ok(Footprint {
            unet: name.into(),
            params: table.total_params(),
            macs: table.total_macs(),
            latent: [self.latent.0 as u32, self.latent.1 as u32],
            unet_file_bytes,
            model_file_bytes: parts.map(|n| n + unet_file_bytes),
            call,
            image,
        })
    }
}

/// Latency of whole images.
fn drawn<E: From<Error>>(
    images: &ImageBench,
    pipeline: &Pipeline,
    all: &[(&str, &UNet)],
    on_call: impl FnMut(usize, usize) -> std::result::Result<(), E>,
) -> std::result::Result<ImageTimes, E> {
    let options = images.options(pipeline, images.steps);
    let mut subjects: Vec<Subject<'_>> = Vec::new();
    for &(name, unet) in all {
        let options = &options;
        let call = move || {
            pipeline.generate(unet, options, &mut |_| {})?;
            wait_for(pipeline.device());
            Ok(())
        };
        subjects.push(Subject { name: name.into(), call: Box::new(call) });
    }
    let rows = measure_latency(&mut subjects, 1, 1, images.rounds, on_call)?;
    Ok(ImageTimes {
        sampler: images.sampler.name().into(),
        steps: images.steps as u32,
        guidance: images.guidance,
        size: [options.height as u32, options.width as u32],
        rows,
    })
}

/// Bytes of the weights of text encoders and VAE.
fn other_parts(dir: &ModelDir) -> Result<u64> {
    size_of(&dir.encoder_files()?)
}

fn size_of(files: &[PathBuf]) -> Result<u64> {
    files.iter().map(|file| Ok(std::fs::metadata(file).map_err(Error::io(file))?.len())).sum()
}
