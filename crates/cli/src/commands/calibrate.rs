//! `laptop-diff calibrate`: the points on which layers are scored and plans are measured. Model -> **calibration set** -> scores.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use data::{CalibrationSet, PairSource, TrajectoryOptions, picture_batch};
use diffusion::picture::{fit, to_tensor};
use diffusion::{AutoencoderKl, ModelDir, NoiseSchedule, Pipeline, TextEncoders, TimeIds, native_size};
use image::RgbImage;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use unet::UNetConfig;
use unet::weights::hex;

use crate::captioned::{Columns, visit};
use crate::common::{BadFile, BadInput, Interrupted, file_hash, prepare_file, stop_flag, stopped};
use crate::device::{Place, PlaceArgs};
use crate::hub::ModelArg;
use crate::progress;
use crate::scene_source::SceneSource;

/// Calibration scenes stand this far into their stream, where no training run comes.
const FIRST_SCENE: u64 = 1 << 41;

/// Arguments of `calibrate`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["scenes", "prompts", "images"]))]
pub struct Args {
    /// A model directory in diffusers' layout, or org/name on the Hugging Face Hub.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Number of points, from noised latents of rendered scenes.
    #[arg(long)]
    scenes: Option<u64>,
    /// Instead: a file with one prompt a line; the points come from the model's own sampling trajectories.
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Instead: folders or WebDataset tars of pictures with captions (0001.jpg beside 0001.txt), or .parquet tables of them; the
    /// points are noised latents of their middles, at the model's own size.
    #[arg(long, num_args = 1..)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    columns: Columns,
    /// Take this many pictures, the first ones [default: all].
    #[arg(long, conflicts_with_all = ["scenes", "prompts"])]
    count: Option<usize>,
    /// Stop when more pictures than this are damaged or have no caption; each is named in the log.
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
    /// Pictures or trajectories computed at once.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Steps of each trajectory.
    #[arg(long, default_value_t = 20, conflicts_with_all = ["scenes", "images"])]
    steps: usize,
    /// Classifier-free guidance on the trajectories.
    #[arg(long, default_value_t = 3.0, conflicts_with_all = ["scenes", "images"])]
    cfg: f64,
    #[command(flatten)]
    place: PlaceArgs,
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
    let place = args.place.open()?;
    let set = match prompts {
        Some(prompts) => {
            let pipeline = Pipeline::open(args.model.path()?, None, place.device, place.kind)?;
            let (height, width) = pipeline.native_size().unwrap_or((512, 512));
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
        None => {
            let encoders = Encoders::open(args.model.path()?, place)?;
            if args.images.is_empty() { from_scenes(args, &encoders)? } else { from_images(args, &encoders)? }
        }
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

/// What turns pictures with captions into points. The U-Net, by far the largest part of a model, is not among it.
struct Encoders {
    vae: AutoencoderKl,
    text: TextEncoders,
    schedule: NoiseSchedule,
    device: Device,
    /// The model's own pictures.
    height: i64,
    width: i64,
}

impl Encoders {
    fn open(model: &Path, Place { device, kind }: Place) -> anyhow::Result<Self> {
        let dir = ModelDir::open(model, None)?;
        let vae = AutoencoderKl::open(dir.vae(), device, kind)?;
        let (height, width) = native_size(&UNetConfig::open(dir.unet())?, vae.config()).unwrap_or((512, 512));
        let text = TextEncoders::open(dir.family(), &dir.text_parts(), device, kind)?;
        Ok(Self { vae, text, schedule: NoiseSchedule::open(dir.scheduler())?, device, height, width })
    }
}

fn from_scenes(args: &Args, encoders: &Encoders) -> anyhow::Result<CalibrationSet> {
    let (height, width) = (encoders.height, encoders.width);
    let count = args.scenes.unwrap_or(0);
    if count == 0 {
        return Err(BadInput("--scenes 0: expected at least 1".into()).into());
    }
    if height != width {
        return Err(BadInput(format!(
            "--scenes: scenes are square, this model makes {height} x {width} pixels; use --images or --prompts"
        ))
        .into());
    }
    let source = SceneSource::new(args.seed, height as usize)?;
    let (stop, bar) = (stop_flag()?, progress::bar("scenes", count));
    let mut points = Points::new(encoders);
    while (points.prompts.len() as u64) < count {
        go_on(&stop)?;
        let n = (args.batch as u64).min(count - points.prompts.len() as u64);
        let first = FIRST_SCENE + points.prompts.len() as u64;
        let indices: Vec<u64> = (first..first + n).collect();
        let (x, captions) = picture_batch(&source as &dyn PairSource, &indices, encoders.device)?;
        points.add(&x, captions)?;
        bar.set_position(points.prompts.len() as u64);
    }
    bar.finish_and_clear();
    points.finish(args, &format!("scenes seed {} first {FIRST_SCENE} size {height}", args.seed))
}

fn from_images(args: &Args, encoders: &Encoders) -> anyhow::Result<CalibrationSet> {
    if args.count == Some(0) {
        return Err(BadInput("--count 0: expected at least 1".into()).into());
    }
    let most = args.count.unwrap_or(usize::MAX);
    let (stop, bar) = (stop_flag()?, progress::bar("pictures", args.count.unwrap_or(0) as u64));
    let mut points = Points::new(encoders);
    let mut waiting: Vec<(RgbImage, String)> = Vec::new();
    let (mut hash, mut bad, mut taken) = (Sha256::new(), 0, 0);
    for source in &args.images {
        let flow = visit(source, &args.columns, &mut |found| {
            go_on(&stop)?;
            let read = found.and_then(|pair| match image::load_from_memory(&pair.bytes) {
                Ok(picture) => Ok((picture.to_rgb8(), pair)),
                Err(e) => Err((pair.name, e.to_string())),
            });
            let (picture, pair) = match read {
                Ok(read) => read,
                Err((name, reason)) => {
                    tracing::warn!("{}: {name} is left out: {reason}", source.display());
                    bad += 1;
                    if bad > args.max_bad {
                        let problem = format!("{bad} pictures are damaged or have no caption, {name} is the last ({reason})");
                        return Err(BadFile::new(source, problem, "repair them, or allow more with --max-bad").into());
                    }
                    return Ok(ControlFlow::Continue(()));
                }
            };
            for part in [pair.name.as_bytes(), pair.caption.as_bytes(), pair.bytes.as_slice()] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
            waiting.push((fit(&picture, encoders.width as u32, encoders.height as u32)?, pair.caption));
            taken += 1;
            if waiting.len() == args.batch {
                points.add_pictures(&mut waiting)?;
                bar.set_position(taken as u64);
            }
            Ok(if taken == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if flow.is_break() {
            break;
        }
    }
    points.add_pictures(&mut waiting)?;
    bar.finish_and_clear();
    if taken == 0 {
        return Err(BadFile::new(&args.images[0], "no picture with a caption", "put 0001.txt beside 0001.jpg, and so on").into());
    }
    if args.count.is_some_and(|n| taken < n) {
        let problem = format!("only {taken} pictures with captions, {most} are asked for");
        return Err(BadFile::new(&args.images[0], problem, "lower --count, or name more folders").into());
    }
    points.finish(args, &format!("pictures {}", hex(&hash.finalize())))
}

fn go_on(stop: &AtomicBool) -> anyhow::Result<()> {
    if stopped(stop) { Err(Interrupted("stopped; nothing was written".into()).into()) } else { Ok(()) }
}

/// Latents and text features of pictures, as they come.
struct Points<'a> {
    encoders: &'a Encoders,
    size: TimeIds,
    latents: Vec<Tensor>,
    conds: Vec<unet::Cond>,
    prompts: Vec<String>,
}

impl<'a> Points<'a> {
    fn new(encoders: &'a Encoders) -> Self {
        let size = TimeIds::uncropped(encoders.height, encoders.width);
        Self { encoders, size, latents: Vec::new(), conds: Vec::new(), prompts: Vec::new() }
    }

    // x [B, 3, H, W] in -1..1
    fn add(&mut self, x: &Tensor, captions: Vec<String>) -> anyhow::Result<()> {
        let _no_grad = tch::no_grad_guard();
        let vae = &self.encoders.vae;
        let moments = vae.encode(&x.to_kind(vae.kind()))?;
        self.latents.push(moments.mean.to_kind(Kind::Float) * vae.config().scaling_factor);
        let texts: Vec<&str> = captions.iter().map(String::as_str).collect();
        self.conds.push(self.encoders.text.encode(&texts, self.size)?);
        self.prompts.extend(captions);
        Ok(())
    }

    fn add_pictures(&mut self, waiting: &mut Vec<(RgbImage, String)>) -> anyhow::Result<()> {
        if waiting.is_empty() {
            return Ok(());
        }
        let (pictures, captions): (Vec<RgbImage>, Vec<String>) = waiting.drain(..).unzip();
        let x = to_tensor(&pictures.iter().collect::<Vec<_>>())?;
        self.add(&x.to_device(self.encoders.device), captions)
    }

    fn finish(self, args: &Args, made_from: &str) -> anyhow::Result<CalibrationSet> {
        let cond = unet::Cond::cat(&self.conds.iter().collect::<Vec<_>>())?;
        let x0 = Tensor::cat(&self.latents, 0);
        Ok(CalibrationSet::from_latents(&x0, &cond, &self.prompts, &self.encoders.schedule, args.bins, args.seed, made_from)?)
    }
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
