//! `laptop-diff prune`: cuts the layers of a plan out. `plan.json` -> **pruned model directory**.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use tch::{Device, Kind};
use unet::UNet;

use crate::common::{BadInput, file_hash, prepare_dir};
use crate::model::Model;

/// Arguments of `prune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory to prune, or its unet/ folder (with --unet-only).
    #[arg(long)]
    model: PathBuf,
    /// Which layers go (written by `plan`).
    #[arg(long)]
    plan: PathBuf,
    /// The model directory to write; with --unet-only the U-Net's folder.
    #[arg(long)]
    out: PathBuf,
    /// Write the U-Net alone, without text encoders, autoencoder and the rest.
    #[arg(long)]
    unet_only: bool,
    /// Number type of the written weights [default: as stored].
    #[arg(long, value_enum)]
    kind: Option<StoredKind>,
}

/// Number types of weight files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoredKind {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Single precision.
    F32,
}

impl StoredKind {
    /// libtorch's name of the type.
    pub fn kind(self) -> Kind {
        match self {
            StoredKind::F16 => Kind::Half,
            StoredKind::Bf16 => Kind::BFloat16,
            StoredKind::F32 => Kind::Float,
        }
    }
}

/// Writes the pruned model and opens it again.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = Model::open(&args.model)?;
    let plan = model.plan(&args.plan)?;
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(&args.out, model.dir()) || same(&args.out, model.unet_dir()) {
        return Err(BadInput(format!("--out {}: this is the model itself; choose another folder", args.out.display())).into());
    }
    if !args.unet_only && model.dir() == model.unet_dir() {
        return Err(BadInput(format!("--model {}: this is a U-Net's folder; add --unet-only", args.model.display())).into());
    }
    prepare_dir(&args.out)?;

    let stored = stored_kind(model.unet_dir())?;
    let full = UNet::open(model.unet_dir(), Device::Cpu, stored)?;
    let pruned = full.prune(&plan.removal_set())?;
    let extra = BTreeMap::from([
        ("laptop_diff.plan".to_string(), plan.to_json()?),
        ("laptop_diff.plan_sha256".to_string(), file_hash(&args.plan)?),
        ("laptop_diff.source".to_string(), plan.fingerprint.clone()),
    ]);
    let target = if args.unet_only { args.out.clone() } else { args.out.join("unet") };
    if !args.unet_only {
        copy_other_parts(model.dir(), &args.out)?;
    }
    // The U-Net comes last: a directory without it does not pass for a model.
    pruned.save(&target, args.kind.map(StoredKind::kind), &extra)?;

    let again = UNet::open(&target, Device::Cpu, stored)?;
    anyhow::ensure!(
        again.num_parameters() == plan.params_left,
        "{}: {} parameters were written, the plan leaves {}; remove the folder and report this",
        target.display(),
        again.num_parameters(),
        plan.params_left
    );
    println!(
        "{}: {} of {} parameters left ({:.2} % removed, {} layers)",
        args.out.display(),
        plan.params_left,
        plan.params_left + plan.params_removed,
        100.0 * plan.params_ratio,
        plan.removed.len()
    );
    Ok(())
}

/// The type in which a U-Net's first weight is stored.
pub fn stored_kind(unet_dir: &Path) -> anyhow::Result<Kind> {
    let files = unet::weights::component_files(unet_dir, "diffusion_pytorch_model")?;
    let file = unet::weights::TensorFile::open(&files[0])?;
    let first = file.shapes().next().map(|(name, _)| name.to_string());
    let kind = match first {
        Some(name) => file.tensor(&name)?.map(|t| t.kind()),
        None => None,
    };
    Ok(kind.filter(|k| matches!(k, Kind::Half | Kind::BFloat16 | Kind::Float)).unwrap_or(Kind::Float))
}

/// Copies everything but the `unet/` folder.
fn copy_other_parts(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| format!("{} cannot be read", from.display()))? {
        let entry = entry.with_context(|| format!("{} cannot be read", from.display()))?;
        let name = entry.file_name();
        if name != "unet" {
            copy(&entry.path(), &to.join(name))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_dir() {
        prepare_dir(to)?;
        for entry in std::fs::read_dir(from).with_context(|| format!("{} cannot be read", from.display()))? {
            let path = entry.with_context(|| format!("{} cannot be read", from.display()))?.path();
            if let Some(name) = path.file_name() {
                copy(&path, &to.join(name))?;
            }
        }
        return Ok(());
    }
    // Whole or not at all, as every other file.
    let dir = to.parent().unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new().prefix(".copy").tempfile_in(dir)?.into_temp_path();
    std::fs::copy(from, &temporary).with_context(|| format!("{} cannot be copied to {}", from.display(), to.display()))?;
    temporary.persist(to).with_context(|| format!("{} cannot be written", to.display()))
}
