//! `laptop-diff calibrate`: the points on which layers are scored and plans are measured. Model -> **calibration set** -> scores.

use std::path::{Path, PathBuf};

use diffusion::{CalibrationSet, Pipeline, TimeIds, TrajectoryOptions};
use distill::{PairSource, picture_batch};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::common::{BadFile, BadInput, Interrupted, file_hash, prepare_file, stop_flag, stopped};
use crate::device::{DeviceChoice, compute_kind};
use crate::hub;
use crate::progress;
use crate::scene_source::SceneSource;

/// Calibration scenes stand this far into their stream, where no training run comes.
const FIRST_SCENE: u64 = 1 << 41;

/// Arguments of `calibrate`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["scenes", "prompts"]))]
pub struct Args {
    /// A model directory in diffusers' layout, or a model of the Hugging Face Hub: org/name or org/name@revision.
    #[arg(long)]
    model: PathBuf,
    /// Number of points, from noised latents of rendered scenes.
    #[arg(long)]
    scenes: Option<u64>,
    /// Instead: a file with one prompt a line; the points come from the model's own sampling trajectories.
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// The calibration set to write.
    #[arg(long)]
    out: PathBuf,
    /// Seed of scenes, noise and timesteps. A held-out set is one with another seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of timestep bins.
    #[arg(long, default_value_t = 10)]
    bins: usize,
    /// Pictures or trajectories computed at once.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Steps of each trajectory.
    #[arg(long, default_value_t = 20, conflicts_with = "scenes")]
    steps: usize,
    /// Classifier-free guidance on the trajectories.
    #[arg(long, default_value_t = 3.0, conflicts_with = "scenes")]
    cfg: f64,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary {
    out: PathBuf,
    points: usize,
    bins: usize,
    source: &'static str,
    sha256: String,
}

/// Makes and writes the set.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for (flag, value) in [("--bins", args.bins), ("--batch", args.batch)] {
        if value == 0 {
            return Err(BadInput(format!("{flag} 0: expected at least 1")).into());
        }
    }
    prepare_file(&args.out)?;
    let prompts = args.prompts.as_deref().map(read_prompts).transpose()?;
    let device = args.device.open()?;
    let pipeline = Pipeline::open(hub::model_dir(&args.model)?, None, device, compute_kind(device))?;
    let (height, width) = pipeline.native_size().unwrap_or((512, 512));
    let set = match prompts {
        Some(prompts) => {
            let options = TrajectoryOptions {
                steps: args.steps,
                guidance: args.cfg,
                height,
                width,
                num_bins: args.bins,
                seed: args.seed,
                batch: args.batch,
            };
            let bar = progress::bar("trajectories", prompts.len() as u64);
            let hash = pipeline.dir().fingerprint()?;
            let set = CalibrationSet::from_trajectories(&pipeline, pipeline.unet(), &prompts, &hash, &options, &mut |done, _| {
                bar.set_position(done as u64);
            })?;
            bar.finish_and_clear();
            set
        }
        None => from_scenes(args, &pipeline, (height, width))?,
    };
    set.save(&args.out)?;
    let summary =
        Summary { out: args.out.clone(), points: set.len(), bins: set.num_bins, source: set.source.name(), sha256: file_hash(&args.out)? };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{}: {} points from {}, {} timestep bins", summary.out.display(), summary.points, summary.source, summary.bins);
    }
    Ok(())
}

fn from_scenes(args: &Args, pipeline: &Pipeline, (height, width): (i64, i64)) -> anyhow::Result<CalibrationSet> {
    let count = args.scenes.unwrap_or(0);
    if count == 0 {
        return Err(BadInput("--scenes 0: expected at least 1".into()).into());
    }
    if height != width {
        return Err(BadInput(format!("--scenes: scenes are square, this model makes {height} x {width} pixels; use --prompts")).into());
    }
    let source = SceneSource::new(args.seed, height as usize)?;
    let (stop, bar) = (stop_flag()?, progress::bar("scenes", count));
    let _no_grad = tch::no_grad_guard();
    let (mut latents, mut conds, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
    while (prompts.len() as u64) < count {
        if stopped(&stop) {
            return Err(Interrupted("stopped; nothing was written".into()).into());
        }
        let n = (args.batch as u64).min(count - prompts.len() as u64);
        let first = FIRST_SCENE + prompts.len() as u64;
        let indices: Vec<u64> = (first..first + n).collect();
        let (x, captions) = picture_batch(&source as &dyn PairSource, &indices, pipeline.device())?;
        let vae = pipeline.vae();
        let kind = vae.parameters().values().next().map_or(Kind::Float, Tensor::kind);
        let moments = vae.encode(&x.to_kind(kind))?;
        latents.push((moments.mean.to_kind(Kind::Float)) * vae.config().scaling_factor);
        let texts: Vec<&str> = captions.iter().map(String::as_str).collect();
        conds.push(pipeline.encode_prompts(&texts, TimeIds::uncropped(height, width))?);
        prompts.extend(captions);
        bar.set_position(prompts.len() as u64);
    }
    bar.finish_and_clear();
    let cond = unet::Cond::cat(&conds.iter().collect::<Vec<_>>())?;
    let made_from = format!("scenes seed {} first {FIRST_SCENE} size {height}", args.seed);
    Ok(CalibrationSet::from_latents(&Tensor::cat(&latents, 0), &cond, &prompts, pipeline.schedule(), args.bins, args.seed, &made_from)?)
}

/// The prompts of a text file, one a line; empty lines are left out.
///
/// # Errors
/// [`BadFile`] when it cannot be read or holds none.
pub fn read_prompts(path: &Path) -> anyhow::Result<Vec<String>> {
    let bad = |problem: String| BadFile::new(path, problem, "give a UTF-8 text file with one prompt a line");
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let prompts: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if prompts.is_empty() {
        return Err(bad("no prompt in it".into()).into());
    }
    Ok(prompts)
}
