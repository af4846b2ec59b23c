//! `laptop-diff generate`: pictures of the same prompts and seeds by any U-Net. Model -> **pictures** -> evaluation.

use std::path::PathBuf;

use crate::common::{BadInput, prepare_dir, prepare_file};
use crate::device::PlaceArgs;
use crate::drawing::{Drawing, How};
use crate::hub::ModelArg;
use crate::prompts::Prompt;

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["prompt", "prompts_file", "scene_prompts"]))]
pub struct Args {
    /// A model directory in diffusers' layout, or org/name on the Hugging Face Hub.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// A U-Net that takes the place of the model's own: a pruned or retrained one.
    #[arg(long)]
    unet: Option<PathBuf>,
    /// What to show; several prompts may follow.
    #[arg(long, num_args = 1..)]
    prompt: Vec<String>,
    #[command(flatten)]
    how: How,
    /// Seed of the first picture; picture i has this plus i.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures computed at once.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// The folder to write: PNG files and images.json. Pictures that are there already, made the same way, are kept.
    #[arg(long)]
    out: PathBuf,
    /// safetensors file with unit noise `latents` (N,C,h,w) to start from, one per picture. Stochastic samplers
    /// (euler-ancestral, lcm) draw their further noise from the seeds.
    #[arg(long)]
    latents: Option<PathBuf>,
    /// safetensors file to write, with the final `latents` (N,C,h,w); draws every picture anew.
    #[arg(long)]
    save_latents: Option<PathBuf>,
    /// Keep text encoders, U-Net and VAE in memory one after the other, not together. All pictures are then drawn before the
    /// first is written, and an interrupted run begins anew.
    #[arg(long)]
    offload: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Draws and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.batch == 0 {
        return Err(BadInput("--batch 0: expected at least 1".into()).into());
    }
    args.how.check()?;
    let plain = || args.prompt.iter().map(|text| Prompt { text: text.clone(), category: None }).collect();
    let (source, prompts) = args.how.prompts()?.unwrap_or_else(|| ("the command line".into(), plain()));
    prepare_dir(&args.out)?;
    if let Some(path) = &args.save_latents {
        prepare_file(path)?;
    }
    let drawing = Drawing {
        model: args.model.path()?,
        unet: args.unet.as_deref(),
        how: &args.how,
        seed: args.seed,
        batch: args.batch,
        out: &args.out,
        latents: args.latents.as_deref(),
        save_latents: args.save_latents.as_deref(),
        offload: args.offload,
        place: args.place.open()?,
    };
    let done = drawing.draw(source, &prompts)?;
    let ([height, width], count) = (done.size, done.drawn + done.kept);
    println!("{}: {count} pictures of {height} x {width} pixels, {} drawn now, {} kept", args.out.display(), done.drawn, done.kept);
    Ok(())
}
