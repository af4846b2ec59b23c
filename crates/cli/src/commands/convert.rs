//! `laptop-diff convert`: checkpoint file <-> **model directory**.

use std::path::PathBuf;

use crate::common::{BadInput, prepare_file};
use crate::model::{ModelArg, OverrideArgs};

/// Arguments of `convert`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A whole checkpoint (.safetensors, .ckpt), a model directory in diffusers' layout, or org/name on the Hugging Face Hub.
    from: ModelArg,
    /// What to write: a model directory for a checkpoint, a checkpoint (.safetensors) for a model directory.
    out: PathBuf,
    /// A U-Net that takes the place of the model's own: a pruned or retrained one.
    #[arg(long)]
    unet: Option<PathBuf>,
    #[command(flatten)]
    overrides: OverrideArgs,
}

/// Converts, and compares every tensor with its source.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (model, out) = (args.overrides.of(&args.from)?, &args.out);
    if out.exists() {
        return Err(BadInput(format!("{}: there is something already; remove it or choose another place", out.display())).into());
    }
    prepare_file(out)?;
    diffusion::convert(model, args.unet.as_deref(), out)?;
    println!("{}: every tensor as in {}", out.display(), args.from);
    Ok(())
}
