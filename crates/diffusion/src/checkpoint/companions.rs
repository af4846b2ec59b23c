//! What stands beside the U-Net in a whole checkpoint, made from a model directory: autoencoder and text encoders under the original names,
//! markers, metadata. Model directory -> **pieces** -> file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tch::Kind;
use unet::weights::{Form, Piece, Slice, TensorFile, component_files};
use unet::{Beside, ExportFormat, ModelSource, StoredUNet};

use super::model_spec::model_spec;
use super::names::{self, Names};
use super::part_files::{self, PartFiles};
use super::parts::{self, TextLayout, TextPlace, Version};
use super::{Checkpoint, WRAPPER, prediction};
use crate::error::{Error, Result};
use crate::model_dir::ModelDir;
use crate::scheduler_config::SchedulerConfig;
use crate::vae::{component_dir, modern};

/// What a checkpoint held beyond its parts, in a model directory that was made from one: under the original names.
pub(super) const REST: &str = "checkpoint_rest.safetensors";
const AUTOENCODER: &str = "first_stage_model.";
const STEM: &str = "diffusion_pytorch_model";

/// A part under our names, its tensors already in the checkpoint's form, with the pairs of names.
struct Part {
    files: Vec<TensorFile>,
    names: Names,
    /// Beginnings of the names of a layer, and of one more that the checkpoint has: it is written as zeros, which add nothing.
    zeros: Option<(String, String)>,
}

/// The mapped files of a model directory.
pub struct Companions {
    parts: Vec<Part>,
    rest: Option<TensorFile>,
    markers: Vec<&'static str>,
    metadata: BTreeMap<String, String>,
}

impl Companions {
    /// What goes into the file that `model` is written to as `format`: nothing where it stays a directory, or brings its own along.
    ///
    /// # Errors
    /// Where a part of a model is missing that is to be a whole checkpoint.
    pub fn of(model: &ModelSource, format: ExportFormat, unet_only: bool) -> Result<Option<Self>> {
        let whole = format == ExportFormat::Checkpoint && !unet_only;
        if model.path().is_dir() && model.is_whole() && !unet_only && format.is_file(model) {
            return Self::open(model.path(), None, whole).map(Some);
        }
        if whole {
            // Says what is missing.
            ModelDir::open(model.path(), None)?;
        }
        Ok(None)
    }

    /// All of the whole checkpoint `path` but its U-Net.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub(super) fn of_checkpoint(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let stored = StoredUNet::open(path)?;
        let beside: BTreeSet<&str> = stored.beside().iter().map(|name| name.strip_prefix(WRAPPER).unwrap_or(name)).collect();
        let mut rest = checkpoint.file;
        // The average is that of another network.
        rest.retain(|name| (beside.contains(name) && !name.starts_with("model_ema.")).then(|| name.to_string()));
        let mut metadata = rest.metadata().clone();
        metadata.retain(|key, _| key == part_files::KEY || !key.starts_with("laptop_diff."));
        Ok(Self { parts: Vec::new(), rest: Some(rest), markers: Vec::new(), metadata })
    }

    /// Maps the parts of the model directory `dir`, with the autoencoder in `vae` instead where one is named: all of them for a `whole`
    /// checkpoint, else its markers and metadata alone.
    ///
    /// # Errors
    /// Where a part is missing or cannot be read.
    pub(super) fn open(dir: &Path, vae: Option<&Path>, whole: bool) -> Result<Self> {
        let stored = StoredUNet::open(dir)?;
        let version = Version::of_config(stored.config());
        let scheduler = SchedulerConfig::open(dir.join("scheduler"))?;
        let rest = Some(dir.join(REST)).filter(|path| path.is_file() && whole).map(TensorFile::open).transpose()?;
        let marked = |marker: &str| stored.beside().iter().any(|name| name == marker) || rest.as_ref().is_some_and(|rest| rest.has(marker));
        let markers = prediction::markers(&scheduler).into_iter().filter(|marker| !marked(marker)).collect();
        let mut metadata = model_spec(version, stored.config(), &scheduler, &unet::model_name(dir));
        let mut parts = Vec::new();
        if whole {
            parts.push(autoencoder(&vae.map_or_else(|| dir.join("vae"), Path::to_path_buf))?);
            for (place, (folder, _)) in version.text_places().into_iter().zip(version.family().text_parts()) {
                parts.push(text_encoder(&dir.join(folder), place)?);
            }
            metadata.insert(part_files::KEY.into(), PartFiles::read(dir)?.to_metadata(dir)?);
        }
        Ok(Self { parts, rest, markers, metadata })
    }

    /// The tensors, which are read when they are written, and the metadata.
    ///
    /// # Errors
    /// [`Error::Format`] where tensors are missing that stand together in a checkpoint.
    pub fn beside(&self) -> Result<Beside<'_>> {
        let mut pieces: BTreeMap<String, Piece<'_>> = BTreeMap::new();
        if let Some(file) = &self.rest {
            pieces.extend(file.shapes().map(|(name, _)| (name.to_string(), Piece::Stored(file, name, None))));
        }
        for part in &self.parts {
            part.add_to(&mut pieces)?;
        }
        pieces.extend(self.markers.iter().map(|marker| ((*marker).to_string(), Piece::Zeros(vec![0], Kind::Float))));
        Ok(Beside { pieces, metadata: self.metadata.clone() })
    }
}

impl Part {
    fn new(files: Vec<TensorFile>, names: Names, zeros: Option<(String, String)>) -> Self {
        let forms: BTreeMap<&str, Form> = names.links().iter().map(|link| (link.ours.as_str(), inverse(link.form))).collect();
        let shaped =
            |file: TensorFile| file.view(|name| forms.get(name).map(|form| Slice { name: name.into(), form: *form }).into_iter().collect());
        Self { files: files.into_iter().map(shaped).collect(), names, zeros }
    }

    fn add_to<'a>(&'a self, pieces: &mut BTreeMap<String, Piece<'a>>) -> Result<()> {
        for (theirs, slices) in self.names.by_theirs() {
            let stored = |slice: &Slice| self.files.iter().find(|file| file.has(&slice.name)).map(|file| (file, slice.name.clone()));
            let found: Vec<(&TensorFile, String)> = slices.iter().filter_map(stored).collect();
            let Some((file, name)) = found.first() else { continue };
            if found.len() < slices.len() {
                return Err(Error::Format {
                    path: file.path().into(),
                    problem: format!(
                        "has `{name}`, but {} of the {} tensors that stand together in a checkpoint",
                        found.len(),
                        slices.len()
                    ),
                    hint: "is the file whole? fetch it again".into(),
                });
            }
            if let Some(further) = self.further(&theirs, &found) {
                pieces.insert(further.0, further.1);
            }
            pieces.insert(theirs, Piece::Joined(found));
        }
        Ok(())
    }

    /// The zeros of the further layer that are shaped as the tensor `theirs`.
    fn further<'a>(&self, theirs: &str, found: &[(&TensorFile, String)]) -> Option<(String, Piece<'a>)> {
        let (like, further) = self.zeros.as_ref()?;
        let rest = theirs.strip_prefix(like.as_str())?;
        let (file, name) = found.first()?;
        let mut shape = file.shape(name)?.to_vec();
        *shape.first_mut()? *= found.len() as i64;
        Some((format!("{further}{rest}"), Piece::Zeros(shape, file.kind(name)?)))
    }
}

/// How a tensor of a model directory is written, that is read as `form`.
fn inverse(form: Form) -> Form {
    match form {
        Form::Matrix => Form::Kernel,
        Form::Kernel => Form::Matrix,
        Form::Third(_) | Form::Whole => Form::Whole,
        Form::Transposed => Form::Transposed,
    }
}

fn open_all(folder: &Path, stem: &str) -> Result<Vec<TensorFile>> {
    let open = |file| Ok(TensorFile::open(file)?.dequantised()?);
    component_files(folder, stem)?.into_iter().map(open).collect()
}

/// The autoencoder in the folder or file `path`.
fn autoencoder(path: &Path) -> Result<Part> {
    let mut files = if path.is_file() { vec![TensorFile::open(path)?] } else { open_all(&component_dir(path), STEM)? };
    for file in &mut files {
        match parts::autoencoder(file) {
            Some(slices) => *file = parts::under(&slices, file),
            // A further shard.
            None => file.retain(|name| Some(modern(name))),
        }
    }
    let has = |level: usize, n: usize| {
        let kernel = format!("encoder.down_blocks.{level}.resnets.{n}.conv1.weight");
        files.iter().any(|file| file.has(&kernel))
    };
    let (levels, layers) = ((0..).take_while(|level| has(*level, 0)).count(), (0..).take_while(|n| has(0, *n)).count());
    match files.first() {
        Some(file) if levels == 0 => Err(parts::no_autoencoder(file)),
        _ => Ok(Part::new(files, names::autoencoder(levels, layers).within(AUTOENCODER), None)),
    }
}

/// The text encoder in `folder`, written to `place`.
fn text_encoder(folder: &Path, place: TextPlace) -> Result<Part> {
    let prefixed = |name: &str| if name.starts_with("text_") { name.to_string() } else { format!("text_model.{name}") };
    let mut files = open_all(folder, "model")?;
    files.iter_mut().for_each(|file| file.retain(|name| Some(prefixed(name))));
    let norm = |n: usize| format!("text_model.encoder.layers.{n}.layer_norm1.weight");
    let layers = (0..).take_while(|n| files.iter().any(|file| file.has(&norm(*n)))).count();
    let layer = |n: usize| format!("{}transformer.resblocks.{n}.", place.prefix);
    let zeros = (place.layout == TextLayout::OpenClip { without_last: true }).then(|| (layer(0), layer(layers)));
    Ok(Part::new(files, place.names(layers, "text_model."), zeros))
}
