//! `laptop-diff calibrate`: the points on which layers are scored and plans are measured. Model -> **calibration set** -> scores.

use std::path::PathBuf;

use artifact::file_sha256;
use data::{
    CalibrationOptions, CalibrationPoints, CalibrationSet, Encoders, ImageText, Prompt, TrajectoryOptions, calibrate, read_prompts,
};
use diffusion::Pipeline;
use serde::Serialize;

use crate::common::{Interrupted, prepare_file, stop_flag, stopped};
use crate::device::{DeviceArgs, DeviceDtype};
use crate::image_source::{ColumnArgs, with_flags};
use crate::model::WholeModelArgs;
use crate::progress;

/// Arguments of `calibrate`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["scenes", "prompts", "images"]))]
pub struct Args {
    #[command(flatten)]
    whole: WholeModelArgs,
    /// Number of points, from noised latents of rendered scenes.
    #[arg(long)]
    scenes: Option<usize>,
    /// Instead: a file of prompts, one a line, or a table or JSON of them; the points come from the model's own sampling trajectories.
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Instead: folders or WebDataset tars of images with captions (0001.jpg beside 0001.txt), or .parquet tables of them; the points
    /// are noised latents of their middles, at the model's own size.
    #[arg(long, num_args = 1..)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Take this many images, the first ones [default: all].
    #[arg(long, conflicts_with_all = ["scenes", "prompts"])]
    count: Option<usize>,
    /// Stop when more images than this are damaged or have no caption; each is named in the log.
    #[arg(long, default_value_t = 10, conflicts_with_all = ["scenes", "prompts"])]
    max_bad: usize,
    /// The calibration set to write.
    #[arg(long)]
    out: PathBuf,
    /// Seed of scenes, noise and timesteps. A held-out set is one with another seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of timestep bins.
    #[arg(long, default_value_t = 10)]
    bins: usize,
    /// Images or trajectories computed at once.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Steps of each trajectory.
    #[arg(long, alias = "steps", default_value_t = 20, conflicts_with_all = ["scenes", "images"])]
    num_inference_steps: usize,
    /// Classifier-free guidance on the trajectories.
    #[arg(long, alias = "cfg", default_value_t = 3.0, conflicts_with_all = ["scenes", "images"])]
    guidance_scale: f64,
    #[command(flatten)]
    place: DeviceArgs,
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
    make(args).map_err(with_flags)
}

fn make(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let prompts = args.prompts.as_deref().map(read_prompts).transpose()?;
    let place = args.place.open()?;
    let set = match prompts {
        Some(prompts) => from_trajectories(args, place, prompts)?,
        None => from_images(args, place)?,
    };
    set.save(&args.out)?;
    let (out, sha256) = (args.out.clone(), file_sha256(&args.out)?);
    let summary = Summary { out, points: set.len(), bins: set.num_bins, source: set.source.name(), sha256 };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{}: {} points from {}, {} timestep bins", summary.out.display(), summary.points, summary.source, summary.bins);
    }
    Ok(())
}

fn from_trajectories(args: &Args, place: DeviceDtype, prompts: Vec<Prompt>) -> anyhow::Result<CalibrationSet> {
    let pipeline = Pipeline::open(args.whole.named()?, None, place.device, place.kind)?;
    let (height, width) = pipeline.native_size().unwrap_or((512, 512));
    let options = TrajectoryOptions {
        steps: args.num_inference_steps,
        guidance: args.guidance_scale,
        height,
        width,
        num_bins: args.bins,
        seed: args.seed,
        batch: args.batch,
    };
    let prompts: Vec<String> = prompts.into_iter().map(|prompt| prompt.text).collect();
    let (hash, mut tell) = (pipeline.dir().fingerprint()?, teller("trajectories", prompts.len())?);
    CalibrationSet::from_trajectories(&pipeline, pipeline.unet(), &prompts, &hash, &options, &mut |done, _| tell(done))
}

fn from_images(args: &Args, place: DeviceDtype) -> anyhow::Result<CalibrationSet> {
    let options = CalibrationOptions { bins: args.bins, seed: args.seed, batch: args.batch };
    let source = match args.images.is_empty() {
        true => None,
        false => Some(ImageText::open(&args.images)?.with_columns(args.columns.columns())),
    };
    let (points, mut tell) = match &source {
        Some(source) => {
            let points = CalibrationPoints::Images { source, count: args.count, max_bad: args.max_bad };
            (points, teller("images", args.count.unwrap_or(0))?)
        }
        None => (CalibrationPoints::Scenes(args.scenes.unwrap_or(0)), teller("scenes", args.scenes.unwrap_or(0))?),
    };
    let encoders = Encoders::open(args.whole.named()?, place.device, place.kind)?;
    calibrate(&encoders, &points, &options, &mut tell)
}

/// A bar that moves, until a signal stops the work.
fn teller(what: &str, len: usize) -> anyhow::Result<impl FnMut(usize) -> anyhow::Result<()>> {
    let (stop, bar) = (stop_flag()?, progress::bar(what, len as u64));
    Ok(move |done| {
        bar.set_position(done as u64);
        if stopped(&stop) { Err(Interrupted("stopped; nothing was written".into()).into()) } else { Ok(()) }
    })
}
