//! `laptop-diff forward`: one U-Net forward pass, files in, file out, so that anyone can compare with another implementation.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};
use unet::{AddedCond, Cond, UNet};

use crate::common::prepare_file;
use crate::device::{Place, PlaceArgs};
use crate::hub::ModelArg;

/// Arguments of `forward`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout, or its unet/ folder.
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
    place: PlaceArgs,
}

/// Runs the pass.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let model = args.model.open()?;
    let plan = args.plan.as_ref().map(|path| model.plan(path)).transpose()?;
    let inputs = TensorFile::open(&args.inputs)?;
    let Place { device, kind } = args.place.open()?;

    let get = |name: &str| inputs.tensor(name);
    let need = |name: &str, shape: &str| -> anyhow::Result<Tensor> {
        let names: Vec<&str> = inputs.shapes().map(|(n, _)| n).collect();
        Ok(get(name)?.ok_or_else(|| unet::Error::Format {
            path: args.inputs.clone(),
            problem: format!("no tensor `{name}`; the file has {}", names.join(", ")),
            hint: format!("add `{name}` {shape}"),
        })?)
    };
    let sample = need("sample", "(B,C,H,W)")?;
    let timestep = need("timestep", "(B)")?;
    let text = need("encoder_hidden_states", "(B,T,D)")?;
    let added = match (get("text_embeds")?, get("time_ids")?) {
        (Some(text_embeds), Some(time_ids)) => Some(AddedCond { text_embeds, time_ids }),
        (None, None) => None,
        (None, Some(_)) => Some(AddedCond { text_embeds: need("text_embeds", "(B,P)")?, time_ids: need("time_ids", "(B,6)")? }),
        (Some(_), None) => Some(AddedCond { text_embeds: need("text_embeds", "(B,P)")?, time_ids: need("time_ids", "(B,6)")? }),
    };
    // A scalar, or one number for all, stands for every sample.
    let batch = sample.size().first().copied().unwrap_or(1);
    let timestep = if timestep.numel() == 1 { timestep.reshape([1]).expand([batch], false) } else { timestep };

    let mut unet = UNet::open(model.unet(), device, kind)?;
    if let Some(plan) = &plan {
        unet = unet.prune(&plan.removal_set())?;
    }
    let cond = Cond { encoder_hidden_states: text, added, guidance: get("timestep_cond")? }.to_device(device);
    let out = tch::no_grad(|| unet.forward(&sample.to_device(device), &timestep.to_device(device), &cond))?;
    let out = out.to_device(Device::Cpu).to_kind(Kind::Float);
    if !bool::try_from(out.isfinite().all())? {
        return Err(unet::Error::NotFinite { what: "the output sample".into(), hint: "check the inputs and the weights".into() }.into());
    }
    let shape = out.size();
    let metadata = BTreeMap::from([("model".to_string(), model.name()), ("removed".to_string(), unet.removed().len().to_string())]);
    save_tensors(&args.out, &Tensors::from([("sample".to_string(), out)]), &metadata, None)?;
    println!("{}: sample {shape:?}", args.out.display());
    Ok(())
}
