//! The forms in which a pruned U-Net is written, what each costs, and the writing. Plan -> **model directory or file**.

use std::collections::BTreeMap;
use std::path::Path;

use prune_core::{Plan, RemovalSet};
use serde::{Serialize, Serializer};
use tch::{Device, Kind};

use super::{ExportTarget, Padding, Program};
use crate::error::{Error, Result};
use crate::layout::{Granularity, Layout};
use crate::source::{ModelSource, TableSizes};
use crate::unet::{UNet, stored_kind};

/// A form of a pruned model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// This program's own: a diffusers directory without the removed weights, which says what was removed.
    Own,
    /// The own form with a Python file beside the weights that loads it into diffusers.
    DiffusersLoader,
    /// A directory that diffusers loads as it is: nested depths; what depths cannot say comes back as zeros.
    Diffusers,
    /// A single file in the original layout for ComfyUI and its like; what they cannot tell comes back as zeros.
    SingleFile,
    /// The original's shape with zeros for all that was removed: loads everywhere, saves nothing.
    Neutral,
}

/// The Python file of [`ExportFormat::DiffusersLoader`].
const LOADER: (&str, &str) = ("laptop_diff_unet.py", include_str!("../../python/laptop_diff_unet.py"));

impl ExportFormat {
    /// All forms.
    pub const ALL: [Self; 5] = [Self::Own, Self::DiffusersLoader, Self::Diffusers, Self::SingleFile, Self::Neutral];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::DiffusersLoader => "diffusers-loader",
            Self::Diffusers => "diffusers",
            Self::SingleFile => "single-file",
            Self::Neutral => "neutral",
        }
    }

    /// What it is, in one sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Own => "This program's own: a diffusers directory without the removed weights, which says what was removed",
            Self::DiffusersLoader => "The own form with a Python file beside the weights that loads it into diffusers",
            Self::Diffusers => "A directory that diffusers loads as it is: nested depths; what depths cannot say comes back as zeros",
            Self::SingleFile => "A single file in the original layout for ComfyUI and its like; what they cannot tell comes back as zeros",
            Self::Neutral => "The original's shape with zeros for all that was removed: loads everywhere, saves nothing",
        }
    }

    /// Which programs load it.
    pub fn loads_in(self) -> &'static str {
        match self {
            Self::Own => "laptop-diff",
            Self::DiffusersLoader => "diffusers, with the Python file beside the weights",
            Self::Diffusers => "diffusers",
            Self::SingleFile => "ComfyUI and other programs that read single files",
            Self::Neutral => "every program that loads the original",
        }
    }

    /// The program whose shapes it takes; `None` where the network keeps its own.
    pub fn program(self) -> Option<Program> {
        match self {
            Self::Own | Self::DiffusersLoader => None,
            Self::Diffusers => Some(Program::Diffusers),
            Self::SingleFile => Some(Program::ComfyUi),
            Self::Neutral => Some(Program::Neutral),
        }
    }

    /// Whether the model is written as one file and not as a folder.
    pub fn is_file(self, model: &ModelSource) -> bool {
        self == Self::SingleFile || (self == Self::Neutral && model.path().is_file())
    }
}

impl Serialize for ExportFormat {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What a form makes of a pruned model.
#[derive(Debug, Clone, Serialize)]
pub struct Portability {
    /// The form.
    pub format: ExportFormat,
    /// Which programs load it.
    pub loads_in: &'static str,
    /// Parameters of the written U-Net; none where it cannot be made.
    pub params: Option<u64>,
    /// Those among them that are zero because the form cannot do without.
    pub padded: Option<u64>,
    /// Where these are.
    pub padding: Vec<Padding>,
    /// Why it cannot be made.
    pub impossible: Option<String>,
}

/// What every form makes of a model without the layers of a plan, from the settings alone.
///
/// # Errors
/// [`Error::Layer`] for a plan of another architecture; where the weights cannot be read.
pub fn portability(model: &ModelSource, plan: Option<&Plan>) -> Result<Vec<Portability>> {
    let (gone, left) = match plan {
        Some(plan) => (Layout::new(model.config()).expand(&plan.removal_set())?, plan.params_left),
        None => (RemovalSet::empty(), model.costs(TableSizes::own(Granularity::Branch))?.total_params()),
    };
    let removed: RemovalSet = model.removed()?.iter().chain(&gone).cloned().collect();
    ExportFormat::ALL.into_iter().map(|format| of_format(format, model, &removed, left)).collect()
}

fn of_format(format: ExportFormat, model: &ModelSource, removed: &RemovalSet, left: u64) -> Result<Portability> {
    let loads_in = format.loads_in();
    let whole = Portability { format, loads_in, params: Some(left), padded: Some(0), padding: Vec::new(), impossible: None };
    let Some(program) = format.program() else { return Ok(whole) };
    match ExportTarget::new(model.config(), removed, program) {
        Ok(target) => {
            let padded = target.padded_params();
            Ok(Portability { params: Some(left + padded), padded: Some(padded), padding: target.padding, ..whole })
        }
        Err(Error::Portable { reason, .. }) => Ok(Portability { params: None, padded: None, impossible: Some(reason), ..whole }),
        Err(other) => Err(other),
    }
}

/// How a pruned model is written.
#[derive(Debug, Clone, Copy)]
pub struct ExportOptions<'a> {
    /// Its form.
    pub format: ExportFormat,
    /// The U-Net alone, without text encoders, autoencoder and the rest.
    pub unet_only: bool,
    /// Number type of the U-Net's written weights; as stored by default.
    pub kind: Option<Kind>,
    /// The plan's file, whose hash goes along with the plan.
    pub plan_file: Option<&'a Path>,
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Exported {
    /// Parameters of the written U-Net.
    pub params: u64,
    /// What came back as zeros.
    pub padding: Vec<Padding>,
}

/// Writes a model without the layers of a plan, whole or not at all, and opens it again before it is kept.
///
/// # Errors
/// [`Error::Portable`] where the form cannot hold the network; as [`UNet::open`] and [`UNet::save`]; [`Error::Artifact`] where `out` is taken
/// or cannot be written.
pub fn export(model: &ModelSource, plan: Option<&Plan>, out: &Path, options: &ExportOptions) -> Result<Exported> {
    let full = UNet::open(model.unet(), Device::Cpu, stored_kind(model.unet())?)?;
    let pruned = match plan {
        Some(plan) => full.prune(&plan.removal_set())?,
        None => full,
    };
    let target = options.format.program().map(|program| ExportTarget::new(pruned.config(), pruned.removed(), program)).transpose()?;
    let written = match &target {
        Some(target) => target.build(&pruned)?,
        None => pruned,
    };
    let mut extra = BTreeMap::new();
    if let (Some(plan), Some(path)) = (plan, options.plan_file) {
        extra.insert("laptop_diff.plan".to_string(), plan.to_json()?);
        extra.insert("laptop_diff.plan_sha256".to_string(), artifact::file_sha256(path)?);
        extra.insert("laptop_diff.source".to_string(), plan.fingerprint.clone());
    }
    if options.format.is_file(model) {
        write_file(model, &written, out, options, &extra)?;
    } else {
        artifact::write_folder(out, |staged| write_folder(model, &written, staged, options, &extra))?;
    }
    Ok(Exported { params: written.num_parameters(), padding: target.map_or_else(Vec::new, |target| target.padding) })
}

fn write_folder(model: &ModelSource, unet: &UNet, staged: &Path, options: &ExportOptions, extra: &BTreeMap<String, String>) -> Result<()> {
    let dir = if options.unet_only { staged.to_path_buf() } else { staged.join("unet") };
    if !options.unet_only {
        artifact::copy_tree(model.path(), staged, Some("unet"))?;
    }
    unet.save(&dir, options.kind, extra)?;
    if options.format == ExportFormat::DiffusersLoader {
        artifact::write_bytes(&dir.join(LOADER.0), LOADER.1.as_bytes())?;
    }
    check(&dir, unet)
}

fn write_file(model: &ModelSource, unet: &UNet, out: &Path, options: &ExportOptions, extra: &BTreeMap<String, String>) -> Result<()> {
    let write = |source| artifact::Error::Write { path: out.into(), source };
    let beside = (model.path().is_file() && !options.unet_only).then(|| model.path());
    let name = out.file_stem().unwrap_or_default().to_string_lossy();
    let unchecked = out.with_file_name(format!(".{name}.unchecked.safetensors"));
    let written = unet.save_single_file(&unchecked, options.kind, extra, beside).and_then(|()| check(&unchecked, unet));
    if let Err(error) = written {
        // What is no good is not kept; that it stays behind would be the smaller failure.
        let _ = std::fs::remove_file(&unchecked);
        return Err(error);
    }
    Ok(std::fs::rename(&unchecked, out).map_err(write)?)
}

/// Opens what was written and counts it.
fn check(path: &Path, unet: &UNet) -> Result<()> {
    let (wrote, read) = (unet.num_parameters(), UNet::open(path, Device::Cpu, stored_kind(path)?)?.num_parameters());
    if wrote == read {
        return Ok(());
    }
    let problem = format!("{wrote} parameters were written, {read} read back");
    Err(Error::Format { path: path.into(), problem, hint: "nothing was kept; please report this".into() })
}
