//! `laptop-diff train`: a complete small text-to-image model from nothing, on rendered scenes: autoencoder, CLIP towers, U-Net.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use data::{PairSource, picture_batch};
use diffusion::{AutoencoderKl, ClipConfig, ClipModel, ClipPreprocess, ClipTextConfig, ClipTextModel, Tokenizer, VaeConfig};
use distill::{
    ClipTask, ClipTaskConfig, DenoiserTaskConfig, GroundingTaskConfig, Task, Trainer, TrainerConfig, VaeTask, VaeTaskConfig, below,
};
use serde::Deserialize;
use tch::{Device, Kind};
use unet::weights::{Tensors, Weights};

use super::train_unet;
use crate::common::{BadInput, prepare_dir};
use crate::device::DeviceChoice;
use crate::scene_source::SceneSource;
use crate::training::Training;

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
    /// The picture tower and the text towers.
    Clip,
    /// The U-Net.
    Unet,
    /// All of them.
    All,
}

/// The settings file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub architectures: PathBuf,
    pub seed: u64,
    pub data: Data,
    pub vae: Section<VaeTaskConfig>,
    pub clip: Section<ClipTaskConfig>,
    pub unet: UnetSection,
}

/// Settings of the U-Net's stage.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnetSection {
    /// Grounding of the first text encoder.
    pub grounding: Section<GroundingTaskConfig>,
    /// Phases of the training; each starts from the averaged weights of the one before, with a fresh optimizer.
    pub phases: Vec<Phase>,
}

/// One phase.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub text_encoder: FirstTextEncoder,
    pub task: DenoiserTaskConfig,
    pub trainer: TrainerConfig,
}

/// A state of the first text encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstTextEncoder {
    /// As contrast with pictures leaves it.
    Contrastive,
    /// After grounding.
    Grounded,
}

/// Settings of the data.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    pub seed: u64,
    pub size: usize,
    pub latents: u64,
    pub max_tokens: usize,
}

/// One stage's task and loop.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section<T> {
    pub task: T,
    pub trainer: TrainerConfig,
}

/// What every stage works with.
pub struct Run {
    pub config: Config,
    pub architectures: PathBuf,
    pub out: PathBuf,
    pub work: PathBuf,
    pub device: Device,
    pub source: SceneSource,
}

impl Run {
    /// The first text encoder as the CLIP stage leaves it.
    pub fn contrastive_text_encoder(&self) -> PathBuf {
        self.work.join("text_encoder")
    }
}

/// Trains what was asked for.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let config: Config = artifact::read_toml(&args.config, &[("schedule", "lr_schedule"), ("stretches", "phases")])?;
    for trainer in [&config.vae.trainer, &config.clip.trainer]
        .into_iter()
        .chain([&config.unet.grounding.trainer])
        .chain(config.unet.phases.iter().map(|phase| &phase.trainer))
    {
        trainer.check()?;
    }
    if config.unet.phases.is_empty() {
        return Err(BadInput(format!("{}: unet.phases: expected at least one", args.config.display())).into());
    }
    config.clip.task.check(config.clip.trainer.batch)?;
    prepare_dir(&args.out)?;
    prepare_dir(&args.work)?;
    let device = args.device.open()?;
    let base = args.config.parent().unwrap_or(Path::new("."));
    let architectures = base.join(&config.architectures);
    let source = SceneSource::new(config.data.seed, config.data.size)?;
    let run = Run { config, architectures, out: args.out.clone(), work: args.work.clone(), device, source };

    let wanted = |stage| args.stage == Stage::All || args.stage == stage;
    if wanted(Stage::Vae) {
        train_vae(&run)?;
    }
    if wanted(Stage::Clip) {
        train_clip(&run)?;
    }
    if wanted(Stage::Unet) {
        train_unet::run(&run)?;
    }
    println!("{}", run.out.display());
    Ok(())
}

/// Runs one trainer with a progress bar and a log file `<dir>/log.jsonl`; a signal leaves a checkpoint.
pub fn drive(name: &str, trainer: &mut Trainer, task: &mut dyn Task, steps: u64, dir: &Path) -> anyhow::Result<()> {
    Training { name, steps, dir, first: true, events: true }.drive(trainer, task, None).map(|_| ())
}

fn train_vae(run: &Run) -> anyhow::Result<()> {
    let section = &run.config.vae;
    let mut architecture = VaeConfig::open(run.architectures.join("vae.json"))?;
    let dir = run.work.join("vae");
    let initial = AutoencoderKl::random(&architecture, run.config.seed, run.device, Kind::Float)?;
    let identity = BTreeMap::from([
        ("data".to_string(), format!("scenes seed {} size {}", run.config.data.seed, run.config.data.size)),
        ("architecture".to_string(), architecture.to_json().to_string()),
    ]);
    let mut trainer = Trainer::new(section.trainer.clone(), initial.parameters(), run.device, identity, Some(&dir))?;
    let mut task = VaeTask {
        vae: &architecture.clone(),
        source: &run.source,
        config: section.task.clone(),
        seed: section.trainer.seed,
        batch: section.trainer.batch,
        device: run.device,
        compute: section.trainer.compute,
    };
    drive("vae", &mut trainer, &mut task, section.trainer.steps, &dir)?;

    // The scaling factor brings latents to unit variance (arXiv 2112.10752, appendix G).
    let vae = AutoencoderKl::from_weights(&architecture, Weights::from_tensors(trainer.averaged()?))?;
    let mut squares = 0.0;
    const BATCHES: u64 = 16;
    for i in 0..BATCHES {
        let indices: Vec<u64> = (0..32).map(|j| (1 << 40) + i * 32 + j).collect();
        let (x, _) = picture_batch(&run.source, &indices, run.device)?;
        let moments = tch::no_grad(|| vae.encode(&x))?;
        squares += moments.mean.square().mean(Kind::Double).double_value(&[]);
        if i == 0 {
            let y = tch::no_grad(|| vae.decode(&moments.mean))?.clamp(-1.0, 1.0);
            let mse = ((y - x) * 0.5).square().mean(Kind::Double).double_value(&[]);
            tracing::info!(psnr_db = -10.0 * mse.log10(), "autoencoder on unseen pictures");
        }
    }
    architecture.scaling_factor = (squares / BATCHES as f64).sqrt().recip();
    AutoencoderKl::from_weights(&architecture, Weights::from_tensors(trainer.averaged()?))?.save(run.out.join("vae"), Some(Kind::Half))?;
    Ok(())
}

fn train_clip(run: &Run) -> anyhow::Result<()> {
    let section = &run.config.clip;
    let words = scenes::vocabulary();
    let max = run.config.data.max_tokens;
    let folders = [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!"), ("clip", "!")];
    for (folder, pad) in folders {
        Tokenizer::write_from_words(run.out.join(folder), &words, max, pad)?;
    }
    let first_tokenizer = Tokenizer::open(run.out.join("tokenizer"))?;
    let tokenizer = Tokenizer::open(run.out.join("tokenizer_2"))?;

    let mut first = ClipTextConfig::open(run.architectures.join("text_encoder.json"))?;
    let mut clip = ClipConfig::open(run.architectures.join("clip.json"))?;
    for (text, tokenizer) in [(&mut first, &first_tokenizer), (&mut clip.text, &tokenizer)] {
        text.vocab_size = tokenizer.vocab_size();
        text.bos_token_id = tokenizer.bos();
        text.eos_token_id = tokenizer.eos();
        text.pad_token_id = tokenizer.pad();
    }
    let dir = run.work.join("clip");
    let preprocess = ClipPreprocess::new(run.source.size() as u32);
    let mut task = ClipTask {
        clip: &clip,
        first: &first,
        tokenizer: &tokenizer,
        first_tokenizer: &first_tokenizer,
        source: &run.source,
        config: section.task.clone(),
        preprocess: &preprocess,
        batch: section.trainer.batch,
        device: run.device,
        compute: section.trainer.compute,
    };
    let identity = BTreeMap::from([
        ("data".to_string(), format!("scenes seed {} size {}", run.config.data.seed, run.config.data.size)),
        ("architecture".to_string(), serde_json::json!([clip.to_json(), first.to_json()]).to_string()),
    ]);
    let mut trainer = Trainer::new(section.trainer.clone(), &task.initial(run.config.seed)?, run.device, identity, Some(&dir))?;
    drive("clip", &mut trainer, &mut task, section.trainer.steps, &dir)?;

    let averaged = trainer.averaged()?;
    let scorer = ClipModel::from_weights(&clip, Weights::from_tensors(below(&averaged, "clip")))?;
    scorer.save(run.out.join("clip"), Some(Kind::Half), &preprocess)?;
    // Not in the model directory yet: the U-Net's stage grounds the first encoder.
    ClipTextModel::from_weights(&first, Weights::from_tensors(below(&averaged, "first")))?
        .save(run.contrastive_text_encoder(), Some(Kind::Half))?;
    // The second text encoder is the scorer's own text tower, as SDXL's is that of OpenCLIP's bigG.
    let second = ClipTextConfig { with_projection: true, ..clip.text.clone() };
    let keep = |(name, t): (&String, &tch::Tensor)| {
        (name.starts_with("text_model.") || name.starts_with("text_projection.")).then(|| (name.clone(), t.shallow_clone()))
    };
    let tensors: Tensors = below(&averaged, "clip").iter().filter_map(keep).collect();
    ClipTextModel::from_weights(&second, Weights::from_tensors(tensors))?.save(run.out.join("text_encoder_2"), Some(Kind::Half))?;
    Ok(())
}
