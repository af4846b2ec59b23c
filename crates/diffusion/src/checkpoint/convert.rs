//! Model directory <-> whole checkpoint, bit for bit. Nothing but the tensor that is being written is in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use unet::weights::{Piece, TensorFile, check_pieces, save_pieces};
use unet::{ExportFormat, ExportOptions, ModelSource, StoredUNet, export};

use super::companions::{Companions, REST};
use super::{Checkpoint, TOKENS, WRAPPER};
use crate::error::{Error, Result};
use crate::model_dir::{ModelDir, write_model_index};
use crate::model_ref::ModelRef;
use crate::tokenizer::Tokenizer;
use crate::vae::component_dir;

/// Names of the weight files of the parts.
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const TEXT_WEIGHTS: &str = "model.safetensors";

/// Writes a model as the whole checkpoint `out`, if that is the name of a `.safetensors` file, or else a checkpoint as the model directory
/// `out`; whole or not at all. With `unet`, the U-Net is that one instead, such as a student. Every tensor is compared with its source
/// before the output is kept.
///
/// # Errors
/// Where a part of the model is missing or cannot be read; [`Error::Input`] for two directories, or a checkpoint that would only be copied;
/// [`Error::Artifact`] where `out` is taken or cannot be written.
pub fn convert(model: impl Into<ModelRef>, unet: Option<&Path>, out: &Path) -> Result<()> {
    let model = model.into();
    let is_file = model.path.is_file();
    let to_file = out.extension().is_some_and(|ending| ending == "safetensors");
    match (is_file, to_file) {
        (true, false) => artifact::write_folder(out, |staged| to_directory(&model, unet, staged)),
        (true, true) if unet.is_some() => to_file_with(Companions::of_checkpoint(&model.path)?, unet.unwrap_or(&model.path), out),
        (false, true) => {
            let companions = Companions::open(&model.path, model.overrides.vae.as_deref(), true)?;
            to_file_with(companions, unet.unwrap_or(&model.path), out)
        }
        _ => {
            let expected =
                if is_file { "the name of a folder for this checkpoint" } else { "the name of a .safetensors file for this directory" };
            Err(Error::Input { name: "out".into(), expected: expected.into(), got: out.display().to_string() })
        }
    }
}

fn to_file_with(companions: Companions, unet: &Path, out: &Path) -> Result<()> {
    let beside = companions.beside()?;
    let options = ExportOptions { format: ExportFormat::Checkpoint, unet_only: true, kind: None, plan_file: None, beside: Some(&beside) };
    export(&ModelSource::open(unet)?, None, out, &options)?;
    if let Err(error) = ModelDir::open(out, None) {
        // What cannot be opened is not kept; that it stays behind would be the smaller failure.
        let _ = std::fs::remove_file(out);
        return Err(error);
    }
    Ok(())
}

fn to_directory(model: &ModelRef, unet: Option<&Path>, out: &Path) -> Result<()> {
    // Finds whatever is missing before anything is written.
    let dir = ModelDir::open(model, unet)?;
    let checkpoint = Checkpoint::open(&model.path)?;
    let own_unet = ExportOptions { format: ExportFormat::Own, unet_only: true, kind: None, plan_file: None, beside: None };
    export(&ModelSource::open(unet.unwrap_or(&model.path))?, None, &out.join("unet"), &own_unet)?;
    let stored = StoredUNet::open(&model.path)?;
    // Markers go along with the U-Net.
    let marked = &stored.markers().tensors;
    let beside = stored.beside().iter().filter(|name| !marked.contains(name));
    let mut left: BTreeSet<&str> = beside.map(|name| name.strip_prefix(WRAPPER).unwrap_or(name)).collect();

    match &model.overrides.vae {
        Some(folder) if folder.is_dir() => artifact::copy_tree(&component_dir(folder), &out.join("vae"), None)?,
        _ => write_part(&dir.vae_tensors(&checkpoint)?, &out.join("vae"), WEIGHTS)?,
    }
    artifact::write_config(&out.join("vae/config.json"), &dir.vae_config()?.to_json())?;
    let taken = checkpoint.taken();
    left.retain(|name| !taken.contains(*name));

    for (place, folder, words) in checkpoint.text_places() {
        let tensors = place.tensors(&checkpoint.file);
        write_part(&tensors, &out.join(folder), TEXT_WEIGHTS)?;
        let config = checkpoint.text_config(place, folder, &tensors)?;
        artifact::write_config(&out.join(folder).join("config.json"), &config.to_json())?;
        let to = out.join(words);
        match &model.overrides.tokenizer {
            Some(given) if given.join(words).is_dir() => artifact::copy_tree(&given.join(words), &to, None)?,
            Some(given) => artifact::copy_tree(given, &to, None)?,
            None if checkpoint.files.write_folder(words, &to)? => {}
            None => {
                checkpoint.check_vocabulary(&config)?;
                Tokenizer::write_published(&to, TOKENS, place.pad())?;
            }
        }
    }
    let schedule = dir.schedule(None)?;
    schedule.save(out.join("scheduler"))?;
    write_model_index(out, dir.family(), &schedule.config().class_name, dir.force_zeros_for_empty_prompt())?;
    write_rest(&checkpoint.file, &left, out)?;
    ModelDir::open(out, None)?;
    Ok(())
}

fn write_part(tensors: &TensorFile, folder: &Path, name: &str) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let pieces = tensors.shapes().map(|(name, _)| (name.to_string(), Piece::Stored(tensors, name, None))).collect();
    save(&folder.join(name), &pieces)
}

/// What belongs to no part: under its own names.
fn write_rest(file: &TensorFile, names: &BTreeSet<&str>, out: &Path) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let pieces = names.iter().map(|name| ((*name).to_string(), Piece::Stored(file, name, None))).collect();
    save(&out.join(REST), &pieces)
}

fn save(path: &Path, pieces: &BTreeMap<String, Piece<'_>>) -> Result<()> {
    // Loaders of the Python world look for it.
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    save_pieces(path, pieces, &metadata)?;
    Ok(check_pieces(path, pieces)?)
}
