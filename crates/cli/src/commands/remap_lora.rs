//! `laptop-diff remap-lora`: a LoRA made for the original, for a pruned model. Beside the flow: adapter file -> adapter file.

use std::path::PathBuf;

use prune_core::RemovalSet;
use tch::Kind;
use unet::weights::{TensorFile, Tensors, save_tensors};
use unet::{AdapterNames, Host, Layout, Remapped, Target};

use super::prune::Format;
use crate::common::{BadFile, BadInput, prepare_file};
use crate::hub::ModelArg;

/// Arguments of `remap-lora`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model that the LoRA was made for: a directory, its unet/ folder or a single file.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// The LoRA (safetensors).
    #[arg(long)]
    lora: PathBuf,
    /// Which layers the pruned model lacks.
    #[arg(long)]
    plan: PathBuf,
    /// The form in which the pruned model was written (`prune --format`).
    #[arg(long, value_enum, default_value_t = Format::Own)]
    format: Format,
    /// The LoRA to write.
    #[arg(long)]
    out: PathBuf,
    /// Print the names of all dropped keys.
    #[arg(long)]
    list: bool,
}

/// Renames what stays and leaves out what was removed.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let model = args.model.open()?;
    if !model.removed()?.is_empty() {
        return Err(BadInput(format!("--model {}: this model is pruned; name the original", args.model)).into());
    }
    let removed: RemovalSet = Layout::new(&model.config).expand(&model.plan(&args.plan)?.removal_set())?;
    // Without a host the names stay; the neutral one has the original's names too.
    let host = Host::new(&model.config, &removed, args.format.target().unwrap_or(Target::Neutral))?;
    let names = AdapterNames::new(&model.config, &host)?;
    let lora = TensorFile::open(&args.lora)?;
    let mut kept = Tensors::new();
    let (mut dropped, mut foreign, mut unknown) = (Vec::new(), 0, Vec::new());
    for key in lora.shapes().map(|(key, _)| key.to_string()).collect::<Vec<_>>() {
        let name = match names.remap(&key) {
            Remapped::Kept(name) => name,
            Remapped::Foreign => {
                foreign += 1;
                key.clone()
            }
            Remapped::Dropped => {
                dropped.push(key);
                continue;
            }
            Remapped::Unknown => {
                unknown.push(key);
                continue;
            }
        };
        kept.extend(lora.tensor(&key)?.map(|t| (name, t)));
    }
    if let Some(first) = unknown.first() {
        let problem = format!("{} keys name no module of this U-Net, the first is `{first}`", unknown.len());
        return Err(BadFile::new(&args.lora, problem, "name the model that the LoRA was made for").into());
    }
    let keys = kept.len();
    save_tensors(&args.out, &kept, lora.metadata(), None::<Kind>)?;
    println!(
        "{}: {} keys kept, {} dropped with their layers, {foreign} of text encoders untouched",
        args.out.display(),
        keys - foreign,
        dropped.len()
    );
    for key in dropped.iter().filter(|_| args.list) {
        println!("dropped {key}");
    }
    Ok(())
}
