//! `laptop-diff render-scenes`: captioned images from the project's own renderer, as data and as truth.

use std::path::PathBuf;

use clap::ValueEnum;
use data::{SceneChoice, SceneOptions, render_scenes};
use scenes::Split;

use crate::common::{Interrupted, prepare_dir, stop_flag, stopped};
use crate::image_source::with_flags;
use crate::progress;

/// Arguments of `render-scenes`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["count", "scene_prompts"]))]
pub struct Args {
    /// Number of scenes from the stream.
    #[arg(long)]
    count: Option<u64>,
    /// Instead: scenes of this many held-out prompts, the same as those of `generate --scene-prompts`.
    #[arg(long)]
    scene_prompts: Option<usize>,
    /// Seed of the choice of prompts.
    #[arg(long, default_value_t = 0, requires = "scene_prompts")]
    prompt_seed: u64,
    /// Images per prompt.
    #[arg(
        long, alias = "per-prompt", default_value_t = 1, requires = "scene_prompts",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    num_images_per_prompt: u64,
    /// Seed of the stream, and of all that the captions leave open.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Width and height in pixels.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Which captions to use.
    #[arg(long, value_enum, default_value_t = SplitArg::Train, conflicts_with = "scene_prompts")]
    split: SplitArg,
    /// Also write each caption beside its image (00001.txt), as `calibrate`, `cache` and others read images with captions.
    #[arg(long)]
    captions: bool,
    /// The folder to write: PNG files and scenes.jsonl.
    #[arg(long)]
    out: PathBuf,
}

/// The two disjoint sets of captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitArg {
    /// The captions that models are trained on.
    Train,
    /// The captions that only evaluation uses.
    HeldOut,
}

/// Draws and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let split = match args.split {
        SplitArg::Train => Split::Train,
        SplitArg::HeldOut => Split::HeldOut,
    };
    let choice = match (args.count, args.scene_prompts) {
        (Some(count), _) => SceneChoice::Stream { count, split },
        (None, prompts) => {
            SceneChoice::HeldOut { prompts: prompts.unwrap_or(0), prompt_seed: args.prompt_seed, per_prompt: args.num_images_per_prompt }
        }
    };
    let options = SceneOptions { seed: args.seed, size: args.size, captions: args.captions };
    prepare_dir(&args.out)?;
    let (stop, bar) = (stop_flag()?, progress::bar("scenes", 0));
    let drawn = render_scenes(&args.out, &choice, &options, &mut |done, all| -> anyhow::Result<()> {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        if stopped(&stop) { Err(Interrupted("stopped; run the same command again".into()).into()) } else { Ok(()) }
    })
    .map_err(with_flags)?;
    bar.finish_and_clear();
    println!("{}: {drawn} scenes of {} x {} pixels", args.out.display(), args.size, args.size);
    Ok(())
}
