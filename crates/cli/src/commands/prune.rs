//! `laptop-diff prune`: cuts the layers of a plan out. `plan.json` -> **pruned model directory**.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use tch::{Device, Kind};
use unet::{Host, Target, UNet};

use crate::common::{BadInput, Unwritable, file_hash, prepare_dir, prepare_file};
use crate::hub::ModelArg;
use crate::model::Model;

/// Arguments of `prune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model directory to prune, its unet/ folder (with --unet-only), or a single checkpoint file.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Which layers go (written by `plan`). Leave it out to bring a model that is pruned already into another format.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// The model directory to write; with --unet-only the U-Net's folder; a file for `--format original`.
    #[arg(long)]
    out: PathBuf,
    /// Who is to load the result.
    #[arg(long, value_enum, default_value_t = Format::Own)]
    format: Format,
    /// Write the U-Net alone, without text encoders, autoencoder and the rest.
    #[arg(long)]
    unet_only: bool,
    /// Number type of the U-Net's written weights [default: as stored].
    #[arg(long, value_enum)]
    kind: Option<StoredKind>,
}

/// Forms of a pruned model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// This program's own: a diffusers directory without the removed weights, which says what was removed.
    Own,
    /// The own form with a Python file beside the weights that loads it into diffusers.
    DiffusersLoader,
    /// A directory that diffusers loads as it is: nested depths; what depths cannot say comes back as zeros.
    Diffusers,
    /// A single file in the original layout for ComfyUI and its like; what they cannot tell comes back as zeros.
    Original,
    /// The original's shape with zeros for all that was removed: loads everywhere, saves nothing.
    Neutral,
}

impl Format {
    /// The host's kind; `None` where no host is needed.
    pub fn target(self) -> Option<Target> {
        match self {
            Format::Own | Format::DiffusersLoader => None,
            Format::Diffusers => Some(Target::Diffusers),
            Format::Original => Some(Target::ComfyUi),
            Format::Neutral => Some(Target::Neutral),
        }
    }
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

/// The Python file of [`Format::DiffusersLoader`].
const LOADER: (&str, &str) = ("laptop_diff_unet.py", include_str!("../../python/laptop_diff_unet.py"));

/// Writes the pruned model and opens it again.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.model.open()?;
    let plan = args.plan.as_ref().map(|path| model.plan(path)).transpose()?;
    let to_file = args.format == Format::Original || (args.format == Format::Neutral && model.path().is_file());
    if !to_file && !args.unet_only && !model.is_whole() {
        return Err(BadInput(format!("--model {}: this is a U-Net alone or a single file; add --unet-only", args.model)).into());
    }
    let stored = unet::stored_kind(model.unet())?;
    let full = UNet::open(model.unet(), Device::Cpu, stored)?;
    let pruned = match &plan {
        Some(plan) => full.prune(&plan.removal_set())?,
        None => full,
    };
    let host = args.format.target().map(|target| Host::new(pruned.config(), pruned.removed(), target)).transpose().map_err(with_advice)?;
    let written = match &host {
        Some(host) => host.build(&pruned)?,
        None => pruned,
    };
    let mut extra = BTreeMap::new();
    if let (Some(plan), Some(path)) = (&plan, &args.plan) {
        extra.insert("laptop_diff.plan".to_string(), plan.to_json()?);
        extra.insert("laptop_diff.plan_sha256".to_string(), file_hash(path)?);
        extra.insert("laptop_diff.source".to_string(), plan.fingerprint.clone());
    }
    let kind = args.kind.map(StoredKind::kind);
    if to_file {
        write_file(args, &model, &written, kind, &extra)?;
    } else {
        write_folder(args, &model, &written, kind, &extra)?;
    }
    match &plan {
        Some(plan) => println!(
            "{}: {} of {} parameters left ({:.2} % removed, {} layers)",
            args.out.display(),
            plan.params_left,
            plan.params_left + plan.params_removed,
            100.0 * plan.params_ratio,
            plan.removed.len()
        ),
        None => println!("{}: {} parameters", args.out.display(), written.num_parameters()),
    }
    if let Some(host) = &host
        && !host.padding.is_empty()
    {
        println!("{} parameters came back as zeros in {} places (see `laptop-diff portability`)", host.padded_params(), host.padding.len());
    }
    Ok(())
}

fn write_folder(args: &Args, model: &Model, unet: &UNet, kind: Option<Kind>, extra: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let staged = Staged::for_dir(&args.out)?;
    let target = if args.unet_only { staged.path().to_path_buf() } else { staged.path().join("unet") };
    if !args.unet_only {
        copy_other_parts(model.path(), staged.path())?;
    }
    unet.save(&target, kind, extra)?;
    if args.format == Format::DiffusersLoader {
        let path = target.join(LOADER.0);
        prune_core::file::write_bytes(&path, LOADER.1.as_bytes()).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    check(&target, unet)?;
    staged.keep(&args.out)
}

fn write_file(args: &Args, model: &Model, unet: &UNet, kind: Option<Kind>, extra: &BTreeMap<String, String>) -> anyhow::Result<()> {
    if args.out.exists() {
        return Err(BadInput(format!("--out {}: there is something already; remove it or choose another file", args.out.display())).into());
    }
    prepare_file(&args.out)?;
    let beside = (model.path().is_file() && !args.unet_only).then(|| model.path());
    let dir = args.out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = tempfile::Builder::new().prefix(".prune").tempdir_in(dir);
    let staged = staged.map_err(|source| Unwritable { path: args.out.clone(), source })?;
    let path = staged.path().join("model.safetensors");
    unet.save_original(&path, kind, extra, beside).map_err(with_advice)?;
    check(&path, unet)?;
    std::fs::rename(&path, &args.out).map_err(|source| Unwritable { path: args.out.clone(), source })?;
    Ok(())
}

/// Says what can be done about a network that the other program cannot load.
fn with_advice(error: unet::Error) -> anyhow::Error {
    match error {
        unet::Error::Portable { .. } => BadInput(format!("{error}; choose another --format, or plan with --portable")).into(),
        other => other.into(),
    }
}

/// Opens what was written and counts it.
fn check(path: &Path, unet: &UNet) -> anyhow::Result<()> {
    let again = UNet::open(path, Device::Cpu, unet::stored_kind(path)?)?;
    anyhow::ensure!(
        again.num_parameters() == unet.num_parameters(),
        "{} parameters were written, {} read back; nothing was kept, please report this",
        unet.num_parameters(),
        again.num_parameters()
    );
    Ok(())
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

/// Copies a file, or a folder with all that it holds.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
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
