//! `laptop-diff train`: a complete small text-to-image model from nothing, on rendered scenes: autoencoder, CLIP towers, U-Net.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use data::SceneSource;
use distill::{ScratchSession, ScratchSettings};

use crate::common::prepare_dir;
use crate::device::DeviceChoice;
use crate::training_display::TrainingDisplay;

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Settings of the run (see configs/train-tiny.toml).
    #[arg(long)]
    config: PathBuf,
    /// The model directory to write (diffusers layout).
    #[arg(long)]
    out: PathBuf,
    /// Folder for checkpoints, logs and caches; an interrupted run goes on from there.
    #[arg(long)]
    work: PathBuf,
    /// Which network to train. Each stage needs the ones before it.
    #[arg(long, value_enum, default_value_t = Stage::All)]
    stage: Stage,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

/// The stages of training, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// The autoencoder.
    Vae,
    /// The image tower and the text towers.
    Clip,
    /// The U-Net.
    Unet,
    /// All of them.
    All,
}

/// Trains what was asked for.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let settings: ScratchSettings = artifact::read_toml(&args.config, &ScratchSettings::RENAMED)?;
    settings.check().with_context(|| args.config.display().to_string())?;
    prepare_dir(&args.out)?;
    prepare_dir(&args.work)?;
    let seed = settings.data.seed;
    let source = SceneSource::new(seed, settings.data.size)?;
    let session = ScratchSession {
        architectures: args.config.parent().unwrap_or(Path::new(".")).join(&settings.architectures),
        settings,
        out: args.out.clone(),
        work: args.work.clone(),
        device: args.device.open()?,
        source: &source,
        words: scenes::vocabulary(),
        source_name: format!("scenes seed {seed}"),
    };
    let mut display = TrainingDisplay::new(true)?;
    let on = &mut |event: distill::Event| -> anyhow::Result<_> { Ok(display.show(event)) };
    let wanted = |stage| args.stage == Stage::All || args.stage == stage;
    if wanted(Stage::Vae) {
        session.train_vae(on)?;
    }
    if wanted(Stage::Clip) {
        session.train_clip(on)?;
    }
    if wanted(Stage::Unet) {
        session.train_unet(on)?;
    }
    println!("{}", args.out.display());
    Ok(())
}
