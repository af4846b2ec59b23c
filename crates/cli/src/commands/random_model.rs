//! `laptop-diff random-model`: a model with random weights of a given architecture, to rehearse a run before its weights are there.
//! config.json -> **model directory**.

use std::path::PathBuf;

use diffusion::RandomModel;
use unet::Compute;

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
    /// Number type of the written weights: f16, bf16 or f32.
    #[arg(long, default_value = "f16")]
    kind: Compute,
    /// The model directory to write.
    #[arg(long)]
    out: PathBuf,
}

/// Draws and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = RandomModel {
        unet: args.unet.clone(),
        vae: args.vae.clone(),
        text_encoders: [args.text_encoder.clone(), args.text_encoder_2.clone()],
        rest: args.rest.clone(),
        seed: args.seed,
        kind: args.kind.kind(),
    };
    model.write(&args.out)?;
    println!("{}", args.out.display());
    Ok(())
}
