//! `laptop-diff remap-lora`: a LoRA made for the original, for a pruned model. Beside the flow: adapter file -> adapter file.

use std::path::PathBuf;

use unet::{ExportFormat, ExportTarget, Layout, Program, remap_lora};

use super::prune::format;
use crate::common::{BadInput, prepare_file};
use crate::model::ModelArg;

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
    #[arg(long, value_parser = format(), default_value = "own")]
    format: ExportFormat,
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
    let removed = Layout::new(model.config()).expand(&model.plan(&args.plan)?.removal_set())?;
    // Without another program's shapes the names stay; the neutral form has the original's names too.
    let target = ExportTarget::new(model.config(), &removed, args.format.program().unwrap_or(Program::Neutral))?;
    let lora = remap_lora(model.config(), &target, &args.lora, &args.out)?;
    println!(
        "{}: {} keys kept, {} dropped with their layers, {} of text encoders and others untouched",
        args.out.display(),
        lora.kept,
        lora.dropped.len(),
        lora.foreign.len()
    );
    for key in lora.dropped.iter().filter(|_| args.list) {
        println!("dropped {key}");
    }
    Ok(())
}
