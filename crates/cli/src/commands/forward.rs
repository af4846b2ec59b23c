//! `laptop-diff forward`: one U-Net forward pass, files in, file out, so that anyone can compare with another implementation.

use std::collections::BTreeMap;
use std::path::PathBuf;

use unet::UNet;

use crate::common::prepare_file;
use crate::device::{DeviceArgs, DeviceDtype};
use crate::model::ModelArg;

/// Arguments of `forward`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout, its unet/ folder, or a single file (.safetensors, .ckpt).
    #[arg(long)]
    pub(super) model: ModelArg,
    /// safetensors file with `sample` (B,C,H,W), `timestep` (one number or one per sample), `encoder_hidden_states` (B,T,D) and, for
    /// SDXL, `text_embeds` (B,P) and `time_ids` (B,6); `timestep_cond` (B,G) for models that take an embedded guidance scale.
    #[arg(long)]
    inputs: PathBuf,
    /// safetensors file to write, with `sample` (B,C,H,W) in f32.
    #[arg(long)]
    out: PathBuf,
    /// Remove the layers of this plan first.
    #[arg(long)]
    plan: Option<PathBuf>,
    #[command(flatten)]
    place: DeviceArgs,
}

/// Runs the pass.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let model = args.model.open()?;
    let plan = args.plan.as_ref().map(|path| model.plan(path)).transpose()?;
    let DeviceDtype { device, kind } = args.place.open()?;
    let mut unet = UNet::open(model.unet(), device, kind)?;
    if let Some(plan) = &plan {
        unet = unet.prune(&plan.removal_set())?;
    }
    let metadata = BTreeMap::from([("model".to_string(), model.name()), ("removed".to_string(), unet.removed().len().to_string())]);
    let shape = unet.forward_files(&args.inputs, &args.out, &metadata)?;
    println!("{}: sample {shape:?}", args.out.display());
    Ok(())
}
