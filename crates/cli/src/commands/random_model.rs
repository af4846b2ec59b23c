//! `laptop-diff random-model`: a model with random weights of a given architecture, to rehearse a run before its weights are there.
//! config.json -> **model directory**.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diffusion::{AutoencoderKl, ClipTextConfig, ClipTextModel, Family, NoiseSchedule, Tokenizer, VaeConfig, write_model_index};
use tch::Device;
use unet::{UNet, UNetConfig};

use super::prune::{StoredKind, copy};
use crate::common::{BadInput, prepare_dir};

/// Arguments of `random-model`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// config.json of the U-Net.
    #[arg(long)]
    unet: PathBuf,
    /// config.json of the autoencoder [default: the autoencoder of --rest, as it is].
    #[arg(long)]
    vae: Option<PathBuf>,
    /// config.json of the text encoder [default: that of --rest].
    #[arg(long)]
    text_encoder: Option<PathBuf>,
    /// config.json of SDXL's second text encoder [default: that of --rest].
    #[arg(long)]
    text_encoder_2: Option<PathBuf>,
    /// The model directory from which all other parts are copied: tokenizers, scheduler and whatever is not named above.
    #[arg(long)]
    pub(super) rest: PathBuf,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number type of the written weights.
    #[arg(long, value_enum, default_value_t = StoredKind::F16)]
    kind: StoredKind,
    /// The model directory to write.
    #[arg(long)]
    out: PathBuf,
}

/// Draws and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = UNetConfig::open(&args.unet)?;
    let family = if config.added.is_some() { Family::StableDiffusionXl } else { Family::StableDiffusion };
    let second = family.text_parts().len() > 1;
    if args.text_encoder_2.is_some() && !second {
        return Err(BadInput(format!("--text-encoder-2: the U-Net of {} takes one text encoder", args.unet.display())).into());
    }
    let schedule = NoiseSchedule::open(args.rest.join("scheduler"))?;
    let encoders = [("text_encoder", &args.text_encoder), ("text_encoder_2", &args.text_encoder_2)];
    let kind = args.kind.kind();
    prepare_dir(&args.out)?;
    for ((encoder, tokenizer), (_, drawn)) in family.text_parts().iter().zip(encoders) {
        copy(&args.rest.join(tokenizer), &args.out.join(tokenizer))?;
        match drawn {
            None => copy(&args.rest.join(encoder), &args.out.join(encoder))?,
            Some(path) => text_encoder(path, &args.rest.join(tokenizer), args.seed, kind)?.save(args.out.join(encoder), Some(kind))?,
        }
    }
    match &args.vae {
        None => copy(&args.rest.join("vae"), &args.out.join("vae"))?,
        Some(path) => {
            AutoencoderKl::random(&VaeConfig::open(path)?, args.seed, Device::Cpu, kind)?.save(args.out.join("vae"), Some(kind))?
        }
    }
    if args.rest.join("clip").is_dir() {
        copy(&args.rest.join("clip"), &args.out.join("clip"))?;
    }
    schedule.save(args.out.join("scheduler"))?;
    UNet::random(&config, args.seed, Device::Cpu, kind)?.save(args.out.join("unet"), Some(kind), &BTreeMap::new())?;
    write_model_index(&args.out, family, &schedule.config().class_name, second)?;
    println!("{}", args.out.display());
    Ok(())
}

/// A text encoder that ends texts as its tokenizer does.
fn text_encoder(path: &Path, tokenizer: &Path, seed: u64, kind: tch::Kind) -> anyhow::Result<ClipTextModel> {
    let mut config = ClipTextConfig::open(path)?;
    let tokenizer = Tokenizer::open(tokenizer)?;
    if tokenizer.vocab_size() > config.vocab_size {
        let problem = format!("{}: vocab_size: expected at least the tokenizer's {}", path.display(), tokenizer.vocab_size());
        return Err(BadInput(format!("{problem}, got {}", config.vocab_size)).into());
    }
    (config.bos_token_id, config.eos_token_id, config.pad_token_id) = (tokenizer.bos(), tokenizer.eos(), tokenizer.pad());
    Ok(ClipTextModel::random(&config, seed, Device::Cpu, kind)?)
}
