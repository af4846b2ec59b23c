//! `laptop-diff prune`: cuts the layers of a plan out. `plan.json` -> **pruned model directory**.

use std::path::PathBuf;

use clap::builder::TypedValueParser;
use diffusion::Companions;
use unet::{Compute, ExportFormat, ExportOptions, export};

use crate::common::{BadInput, prepare_file};
use crate::model::ModelArg;
use crate::one_of::one_of;

/// Arguments of `prune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory to prune, its unet/ folder (with --unet-only), or a single checkpoint file.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Which layers go (written by `plan`). Leave it out to bring a model that is pruned already into another format.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// The model directory to write; with --unet-only the U-Net's folder; a file for `--format single-file` and `checkpoint`.
    #[arg(long)]
    out: PathBuf,
    /// Who is to load the result.
    #[arg(long, value_parser = format(), default_value = "own")]
    format: ExportFormat,
    /// Write the U-Net alone, without text encoders, autoencoder and the rest.
    #[arg(long)]
    unet_only: bool,
    /// Number type of the U-Net's written weights, f16, bf16 or f32 [default: as stored].
    #[arg(long)]
    kind: Option<Compute>,
}

/// The forms of a pruned model.
pub fn format() -> impl TypedValueParser<Value = ExportFormat> {
    one_of(ExportFormat::ALL.map(|format| (format, format.name(), format.meaning())), &[("original", "single-file")])
}

/// Writes the pruned model and opens it again.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.model.open()?;
    let plan = args.plan.as_ref().map(|path| model.plan(path)).transpose()?;
    let to_file = args.format.is_file(&model);
    if !to_file && !args.unet_only && !model.is_whole() {
        return Err(BadInput(format!("--model {}: this is a U-Net alone or a single file; add --unet-only", args.model)).into());
    }
    let empty = !to_file && std::fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_none());
    if args.out.exists() && !empty {
        let what = if to_file { "file" } else { "folder" };
        return Err(
            BadInput(format!("--out {}: there is something already; remove it or choose another {what}", args.out.display())).into()
        );
    }
    if !empty {
        prepare_file(&args.out)?;
    }
    let companions = Companions::of(&model, args.format, args.unet_only)?;
    let beside = companions.as_ref().map(Companions::beside).transpose()?;
    let options = ExportOptions {
        format: args.format,
        unet_only: args.unet_only,
        kind: args.kind.map(Compute::kind),
        plan_file: args.plan.as_deref(),
        beside: beside.as_ref(),
    };
    let written = export(&model, plan.as_ref(), &args.out, &options).map_err(|error| match error {
        unet::Error::Portable { .. } => BadInput(format!("{error}; choose another --format, or plan with --portable")).into(),
        other => anyhow::Error::from(other),
    })?;
    match &plan {
        Some(plan) => println!(
            "{}: {} of {} parameters left ({:.2} % removed, {} layers)",
            args.out.display(),
            plan.params_left,
            plan.params_left + plan.params_removed,
            100.0 * plan.params_ratio,
            plan.removed.len()
        ),
        None => println!("{}: {} parameters", args.out.display(), written.params),
    }
    if !written.padding.is_empty() {
        let zeros: u64 = written.padding.iter().map(|p| p.params).sum();
        println!("{zeros} parameters came back as zeros in {} places (see `laptop-diff portability`)", written.padding.len());
    }
    Ok(())
}
