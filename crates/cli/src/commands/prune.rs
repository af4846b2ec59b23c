//! `laptop-diff prune`: cuts the layers of a plan out. `plan.json` -> **pruned model directory**.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use tch::{Device, Kind};
use unet::UNet;

use crate::common::{BadInput, Unwritable, file_hash, prepare_dir};
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
    if !args.unet_only && model.dir() == model.unet_dir() {
        return Err(BadInput(format!("--model {}: this is a U-Net's folder; add --unet-only", args.model.display())).into());
    }
    let staged = Staged::for_dir(&args.out)?;
    let stored = stored_kind(model.unet_dir())?;
    let full = UNet::open(model.unet_dir(), Device::Cpu, stored)?;
    let pruned = full.prune(&plan.removal_set())?;
    let extra = BTreeMap::from([
        ("laptop_diff.plan".to_string(), plan.to_json()?),
        ("laptop_diff.plan_sha256".to_string(), file_hash(&args.plan)?),
        ("laptop_diff.source".to_string(), plan.fingerprint.clone()),
    ]);
    let target = if args.unet_only { staged.path().to_path_buf() } else { staged.path().join("unet") };
    if !args.unet_only {
        copy_other_parts(model.dir(), staged.path())?;
    }
    pruned.save(&target, args.kind.map(StoredKind::kind), &extra)?;

    let again = UNet::open(&target, Device::Cpu, stored)?;
    anyhow::ensure!(
        again.num_parameters() == plan.params_left,
        "{} parameters were written, the plan leaves {}; nothing was kept, please report this",
        again.num_parameters(),
        plan.params_left
    );
    staged.keep(&args.out)?;
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

/// A folder that is filled beside its place and then moved there, so that it appears whole or not at all.
struct Staged(tempfile::TempDir);

impl Staged {
    /// # Errors
    /// [`BadInput`] when something is there already, [`Unwritable`] when the place cannot be written.
    fn for_dir(out: &Path) -> anyhow::Result<Self> {
        let taken = if out.is_dir() { std::fs::read_dir(out).is_ok_and(|mut d| d.next().is_some()) } else { out.exists() };
        if taken {
            return Err(BadInput(format!("--out {}: there is something already; remove it or choose another folder", out.display())).into());
        }
        let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        prepare_dir(parent)?;
        let dir = tempfile::Builder::new().prefix(".prune").tempdir_in(parent);
        Ok(Self(dir.map_err(|source| Unwritable { path: out.to_path_buf(), source })?))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Moves the folder to its place.
    fn keep(self, out: &Path) -> anyhow::Result<()> {
        let unwritable = |source| Unwritable { path: out.to_path_buf(), source };
        // A temporary folder is private to its owner; a result is as readable as any other folder.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(self.path(), std::fs::Permissions::from_mode(0o755)).map_err(unwritable)?;
        }
        std::fs::rename(self.path(), out).map_err(unwritable)?;
        // Nothing is left to remove.
        let _ = self.0.keep();
        Ok(())
    }
}

/// Copies everything but the `unet/` folder.
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
    std::fs::copy(from, to).map(|_| ()).with_context(|| format!("{} cannot be copied to {}", from.display(), to.display()))
}
