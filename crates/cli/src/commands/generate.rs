//! `laptop-diff generate`: images of the same prompts and seeds by any U-Net. Model -> **images** -> evaluation.

use std::path::PathBuf;

use eval::{Drawing, Prompts};

use crate::common::{prepare_dir, prepare_file};
use crate::device::{DeviceArgs, DeviceDtype};
use crate::model::WholeModelArgs;
use crate::sampling::{SamplingArgs, draw, positive};

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["prompt", "prompts_file", "scene_prompts"]))]
pub struct Args {
    #[command(flatten)]
    pub(super) whole: WholeModelArgs,
    /// A U-Net that takes the place of the model's own: a pruned or retrained one.
    #[arg(long)]
    unet: Option<PathBuf>,
    /// What to show; several prompts may follow.
    #[arg(long, num_args = 1..)]
    prompt: Vec<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Seed of the first image; image i has this plus i.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images computed at once.
    #[arg(long, default_value_t = 8, value_parser = positive)]
    batch: usize,
    /// The folder to write: PNG files and images.json. Images that are there already, made the same way, are kept.
    #[arg(long)]
    out: PathBuf,
    /// safetensors file with unit noise `latents` (N,C,h,w) to start from, one per image. Stochastic samplers
    /// (euler-ancestral, lcm) draw their further noise from the seeds.
    #[arg(long)]
    latents: Option<PathBuf>,
    /// safetensors file to write, with the final `latents` (N,C,h,w); draws every image anew.
    #[arg(long)]
    save_latents: Option<PathBuf>,
    /// Keep text encoders, U-Net and VAE in memory one after the other, not together. All images are then drawn before the
    /// first is written, and an interrupted run begins anew.
    #[arg(long)]
    offload: bool,
    #[command(flatten)]
    place: DeviceArgs,
}

/// Draws and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let prompts = args.sampling.prompts()?.unwrap_or_else(|| Prompts::of_texts("the command line", &args.prompt));
    prepare_dir(&args.out)?;
    if let Some(path) = &args.save_latents {
        prepare_file(path)?;
    }
    let (DeviceDtype { device, kind }, sampling, model) = (args.place.open()?, args.sampling.options(args.seed), args.whole.named()?);
    let done = draw(&Drawing {
        unet: args.unet.as_deref(),
        batch: args.batch,
        latents: args.latents.as_deref(),
        save_latents: args.save_latents.as_deref(),
        offload: args.offload,
        ..Drawing::new(&model, &prompts, &sampling, &args.out, device, kind)
    })?;
    let ([height, width], count) = (done.size, done.drawn + done.kept);
    println!("{}: {count} images of {height} x {width} pixels, {} drawn now, {} kept", args.out.display(), done.drawn, done.kept);
    Ok(())
}
