//! Points without any data: those that the model meets on its own way from noise to images. Prompts -> **points** -> scores.

use std::ops::ControlFlow;

use diffusion::images::check_finite;
use diffusion::{Denoise, Pipeline, Sampler, SamplerKind, TimeIds, is_classifier_free, with_guidance};
use tch::{Device, Kind, Tensor};
use unet::{Conditioning, UNet};

use super::{CalibrationSet, CalibrationSource, at_least_one, bins_of, seed_of, shuffled};
use crate::error::{Error, Result};

/// How a data-free set is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrajectoryOptions {
    /// Steps of each trajectory.
    pub steps: usize,
    /// Weight of guidance on the way.
    pub guidance: f64,
    /// Height of the images in pixels.
    pub height: i64,
    /// Width of the images in pixels.
    pub width: i64,
    /// Number of timestep bins.
    pub num_bins: usize,
    /// Seed of the noise and of the choice of points.
    pub seed: u64,
    /// How many trajectories are computed at once.
    pub batch: usize,
}

impl CalibrationSet {
    /// Makes a set without any data: one point per prompt, met on a DDIM trajectory of `unet` from noise under guidance. The
    /// steps at which the points are taken are spread evenly over the trajectory. The condition kept is the prompt's.
    ///
    /// `progress` hears how many points are done, of how many.
    ///
    /// # Errors
    /// [`Error::Input`] for settings that do not fit, [`diffusion::Error::NotFinite`] when the U-Net gives NaN; what `progress`
    /// fails with.
    pub fn from_trajectories<E: From<Error>>(
        pipeline: &Pipeline,
        unet: &UNet,
        prompts: &[String],
        source_hash: &str,
        options: &TrajectoryOptions,
        progress: &mut dyn FnMut(usize, usize) -> std::result::Result<(), E>,
    ) -> std::result::Result<Self, E> {
        let _no_grad = tch::no_grad_guard();
        let n = prompts.len();
        let run = Trajectories::new(pipeline, unet, prompts, options)?;
        let mut points: Vec<Option<(Tensor, Conditioning)>> = (0..n).map(|_| None).collect();
        // Points that are taken early share a batch, which then ends early.
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&i| (run.step_of[i], i));
        let mut done = 0;
        for part in order.chunks(options.batch) {
            progress(done, n)?;
            run.walk(part, &mut points)?;
            done += part.len();
        }
        progress(n, n)?;
        Ok(run.collect(points.into_iter().flatten().collect(), source_hash)?)
    }
}

struct Trajectories<'a> {
    pipeline: &'a Pipeline,
    unet: &'a UNet,
    prompts: &'a [String],
    options: &'a TrajectoryOptions,
    timesteps: Vec<f64>,
    // At which step each point is taken.
    step_of: Vec<usize>,
}

impl<'a> Trajectories<'a> {
    fn new(pipeline: &'a Pipeline, unet: &'a UNet, prompts: &'a [String], options: &'a TrajectoryOptions) -> Result<Self> {
        let (o, n, multiple) = (options, prompts.len(), pipeline.size_multiple());
        for (name, value) in [("prompts", n), ("bins", o.num_bins), ("batch", o.batch)] {
            at_least_one(name, value)?;
        }
        let fits = |side: i64| side > 0 && side % multiple == 0;
        if !fits(o.height) || !fits(o.width) {
            let expected = format!("sides that are multiples of {multiple}");
            return Err(Error::Input { name: "size".into(), expected, got: format!("{} x {}", o.height, o.width) });
        }
        // DDIM's timesteps are integers, and its x needs no scaling: its points are points of the schedule.
        let timesteps = Sampler::new(SamplerKind::Ddim, pipeline.schedule(), o.steps, false)?.timesteps().to_vec();
        let step_of = shuffled(n, o.seed).into_iter().map(|s| s * o.steps / n).collect();
        Ok(Self { pipeline, unet, prompts, options, timesteps, step_of })
    }

    /// Follows the trajectories of some of the points, as far as the last of them.
    fn walk(&self, part: &[usize], points: &mut [Option<(Tensor, Conditioning)>]) -> Result<()> {
        let (o, pipeline) = (self.options, self.pipeline);
        let size = TimeIds::uncropped(o.height, o.width);
        let seeds: Vec<u64> = part.iter().map(|&i| seed_of(o.seed, i as u64)).collect();
        let noise = pipeline.initial_noise(&seeds, o.height, o.width)?;
        let text: Vec<&str> = part.iter().map(|&i| self.prompts[i].as_str()).collect();
        let cond = with_guidance(pipeline.encode_prompts(&text, size)?, self.unet.config(), o.guidance)?;
        let guided = is_classifier_free(o.guidance, self.unet.config());
        let negative = if guided { Some(pipeline.encode_negative(None, &cond, size)?) } else { None };
        let kept = cond.to_device(Device::Cpu).to_kind(Kind::Float);
        let last = part.iter().map(|&i| self.step_of[i]).max().unwrap_or(0);
        let run = Denoise {
            cond: &cond,
            negative: negative.as_ref(),
            guidance: o.guidance,
            sampler: SamplerKind::Ddim,
            karras: false,
            steps: o.steps,
            step_noise: &[],
        };
        let _unfinished = pipeline.denoise(self.unet, &run, &noise, &mut |visit| {
            for (row, &i) in part.iter().enumerate() {
                if self.step_of[i] == visit.step {
                    let x = visit.x_t.narrow(0, row as i64, 1).to_device(Device::Cpu).copy();
                    points[i] = Some((x, kept.narrow(row as i64, 1)));
                }
            }
            if visit.step == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(())
    }

    fn collect(&self, points: Vec<(Tensor, Conditioning)>, source_hash: &str) -> Result<CalibrationSet> {
        let (o, schedule) = (self.options, self.pipeline.schedule());
        let x_t = Tensor::f_cat(&points.iter().map(|(x, _)| x).collect::<Vec<_>>(), 0)?;
        check_finite(&x_t, "a point of a sampling trajectory")?;
        let t: Vec<i64> = self.step_of.iter().map(|&s| self.timesteps[s] as i64).collect();
        let timesteps = Tensor::f_from_slice(&t)?;
        Ok(CalibrationSet {
            x_t,
            bins: bins_of(&timesteps, o.num_bins, schedule.config().num_train_timesteps)?,
            timesteps,
            cond: Conditioning::cat(&points.iter().map(|(_, c)| c).collect::<Vec<_>>())?,
            target: None,
            num_bins: o.num_bins,
            prompts: self.prompts.to_vec(),
            prediction_type: schedule.prediction_type(),
            source: CalibrationSource::Trajectories,
            source_hash: source_hash.into(),
            seed: o.seed,
        })
    }
}
