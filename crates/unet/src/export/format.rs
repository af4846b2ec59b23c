//! The forms in which a pruned U-Net is written, what each costs, and the writing. Plan -> **model directory or file**.

use std::collections::BTreeMap;
use std::path::Path;

use prune_core::{Plan, RemovalSet};
use serde::{Serialize, Serializer};
use tch::{Kind, Tensor};

use super::{ExportTarget, Padding, Program};
use crate::error::{Error, Result};
use crate::layout::{Granularity, Layout};
use crate::single_file::SingleFileNames;
use crate::source::{ModelSource, TableSizes};
use crate::stored::{IN_CHECKPOINT, STEM, StoredUNet};
use crate::unet::UNet;
use crate::weights::{Piece, TensorFile, check_pieces, save_pieces};

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
    /// That file with autoencoder, text encoders, markers and metadata: what is shared and loaded as a checkpoint.
    Checkpoint,
    /// The original's shape with zeros for all that was removed: loads everywhere, saves nothing.
    Neutral,
}

/// The Python file of [`ExportFormat::DiffusersLoader`].
const LOADER: (&str, &str) = ("laptop_diff_unet.py", include_str!("../../python/laptop_diff_unet.py"));

impl ExportFormat {
    /// All forms.
    pub const ALL: [Self; 6] = [Self::Own, Self::DiffusersLoader, Self::Diffusers, Self::SingleFile, Self::Checkpoint, Self::Neutral];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::DiffusersLoader => "diffusers-loader",
            Self::Diffusers => "diffusers",
            Self::SingleFile => "single-file",
            Self::Checkpoint => "checkpoint",
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
            Self::Checkpoint => "A whole checkpoint for the same: that file with autoencoder, text encoders, markers and metadata",
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
            Self::Checkpoint => "ComfyUI, A1111, Forge, and diffusers' from_single_file where its depths allow",
            Self::Neutral => "every program that loads the original",
        }
    }

    /// The program whose shapes it takes; `None` where the network keeps its own.
    pub fn program(self) -> Option<Program> {
        match self {
            Self::Own | Self::DiffusersLoader => None,
            Self::Diffusers => Some(Program::Diffusers),
            Self::SingleFile | Self::Checkpoint => Some(Program::ComfyUi),
            Self::Neutral => Some(Program::Neutral),
        }
    }

    /// Whether the model is written as one file and not as a folder.
    pub fn is_file(self, model: &ModelSource) -> bool {
        matches!(self, Self::SingleFile | Self::Checkpoint) || (self == Self::Neutral && model.path().is_file())
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
    /// What goes into a file beside the U-Net and what its own file holds.
    pub beside: Option<&'a Beside<'a>>,
}

/// Tensors and metadata beside a U-Net in a file. What the model's own file says goes before.
#[derive(Debug, Default)]
pub struct Beside<'a> {
    /// Tensors by their names in the file.
    pub pieces: BTreeMap<String, Piece<'a>>,
    /// Metadata.
    pub metadata: BTreeMap<String, String>,
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Exported {
    /// Parameters of the written U-Net.
    pub params: u64,
    /// What came back as zeros.
    pub padding: Vec<Padding>,
}

/// A network to be written: its outline, and where its numbers lie.
struct Written {
    outline: UNet,
    /// By name in the outline, the name in the source; what is not here is zero.
    from: BTreeMap<String, String>,
    source: StoredUNet,
    metadata: BTreeMap<String, String>,
}

/// Writes a model without the layers of a plan, whole or not at all, and checks it before it is kept. Tensors go from file to file, each
/// in its own type unless the options say another; nothing is computed, and one tensor at a time is in memory.
///
/// # Errors
/// [`Error::Portable`] where the form cannot hold the network; as [`StoredUNet::open`]; [`Error::Weights`] for weights that do not fit;
/// [`Error::Artifact`] where `out` is taken or cannot be written.
pub fn export(model: &ModelSource, plan: Option<&Plan>, out: &Path, options: &ExportOptions) -> Result<Exported> {
    let source = StoredUNet::open(model.unet())?;
    let full = StoredUNet::open(model.unet())?.outline()?;
    let pruned = match plan {
        Some(plan) => full.prune(&plan.removal_set())?,
        None => full,
    };
    // What is whole keeps its shape, whichever that is.
    let as_it_is = options.format == ExportFormat::Checkpoint && pruned.removed().is_empty();
    let program = options.format.program().filter(|_| !as_it_is);
    let target = program.map(|program| ExportTarget::new(pruned.config(), pruned.removed(), program)).transpose()?;
    let name_there = |key: &String| target.as_ref().map_or(Some(key.clone()), |target| target.rename(key));
    let from = pruned.parameters().keys().filter_map(|key| Some((name_there(key)?, key.clone()))).collect();
    let outline = match &target {
        Some(target) => target.build(&pruned)?,
        None => pruned,
    };
    let mut extra = BTreeMap::new();
    if let (Some(plan), Some(path)) = (plan, options.plan_file) {
        extra.insert("laptop_diff.plan".to_string(), plan.to_json()?);
        extra.insert("laptop_diff.plan_sha256".to_string(), artifact::file_sha256(path)?);
        extra.insert("laptop_diff.source".to_string(), plan.fingerprint.clone());
    }
    let outline = outline.with_metadata(source.metadata().clone());
    let metadata = outline.saved_metadata(&extra);
    let written = Written { outline, from, source, metadata };
    if options.format.is_file(model) {
        written.write_file(out, options)?;
    } else {
        artifact::write_folder(out, |staged| written.write_folder(model, staged, options))?;
    }
    Ok(Exported { params: written.outline.num_parameters(), padding: target.map_or_else(Vec::new, |target| target.padding) })
}

impl Written {
    /// The U-Net's tensors, under the names that `named` gives.
    fn pieces(&self, kind: Option<Kind>, named: impl Fn(&str) -> String) -> BTreeMap<String, Piece<'_>> {
        let widened = kind.unwrap_or(self.source.kind());
        let piece = |(key, t): (&String, &Tensor)| {
            let stored = self.from.get(key).and_then(|name| Some((self.source.file_of(name)?, name)));
            let piece = match stored {
                None => Piece::Zeros(t.size(), widened),
                // A product has no type of its own.
                Some((file, name)) if file.is_scaled(name) => Piece::Stored(file, name, Some(widened)),
                Some((file, name)) => Piece::Stored(file, name, kind),
            };
            (named(key), piece)
        };
        self.outline.parameters().iter().map(piece).collect()
    }

    fn write_folder(&self, model: &ModelSource, staged: &Path, options: &ExportOptions) -> Result<()> {
        let dir = if options.unet_only { staged.to_path_buf() } else { staged.join("unet") };
        if !options.unet_only {
            artifact::copy_tree(model.path(), staged, Some("unet"))?;
        }
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let mut pieces = self.pieces(options.kind, str::to_string);
        // Loaders of other programs know no markers in a folder, whose scheduler says what they say.
        let beside = if options.format == ExportFormat::Own { self.source.beside_files(false)? } else { Vec::new() };
        pieces.extend(carried(&beside));
        save_pieces(dir.join(format!("{STEM}.safetensors")), &pieces, &self.metadata)?;
        artifact::write_config(&dir.join("config.json"), &self.outline.config().to_json())?;
        if options.format == ExportFormat::DiffusersLoader {
            artifact::write_bytes(&dir.join(LOADER.0), LOADER.1.as_bytes())?;
        }
        self.check(&dir)
    }

    fn write_file(&self, out: &Path, options: &ExportOptions) -> Result<()> {
        let names = SingleFileNames::new(self.outline.config());
        let named = |key: &str| {
            let name = names.to_single_file(key).expect("the names come from the same configuration as the network");
            format!("{IN_CHECKPOINT}{name}")
        };
        let beside = self.source.beside_files(!options.unet_only)?;
        let mut pieces = self.pieces(options.kind, named);
        let mut metadata = self.metadata.clone();
        if let Some(beside) = options.beside {
            pieces.extend(beside.pieces.iter().map(|(name, piece)| (name.clone(), piece.clone())));
            metadata = beside.metadata.clone().into_iter().chain(metadata).collect();
        }
        pieces.extend(carried(&beside));
        let name = out.file_stem().unwrap_or_default().to_string_lossy();
        let unchecked = out.with_file_name(format!(".{name}.unchecked.safetensors"));
        let written = save_pieces(&unchecked, &pieces, &metadata)
            .and_then(|()| self.check(&unchecked))
            .and_then(|()| check_pieces(&unchecked, &pieces));
        if let Err(error) = written {
            // What is no good is not kept; that it stays behind would be the smaller failure.
            let _ = std::fs::remove_file(&unchecked);
            return Err(error);
        }
        Ok(std::fs::rename(&unchecked, out).map_err(|source| artifact::Error::Write { path: out.into(), source })?)
    }

    /// Opens what was written and compares every name and shape.
    fn check(&self, path: &Path) -> Result<()> {
        let read = StoredUNet::open(path)?.outline()?;
        let shapes = |unet: &UNet| unet.parameters().iter().map(|(key, t)| (key.clone(), t.size())).collect::<Vec<_>>();
        if shapes(&self.outline) == shapes(&read) {
            return Ok(());
        }
        let problem = format!("{} parameters were written, {} read back", self.outline.num_parameters(), read.num_parameters());
        Err(Error::Format { path: path.into(), problem, hint: "nothing was kept; please report this".into() })
    }
}

/// Tensors that go along as they are.
fn carried(files: &[TensorFile]) -> impl Iterator<Item = (String, Piece<'_>)> {
    files.iter().flat_map(|file| file.shapes().map(move |(name, _)| (name.to_string(), Piece::Stored(file, name, None))))
}
