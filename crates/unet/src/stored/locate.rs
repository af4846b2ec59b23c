//! From the path that a user has to the files of its U-Net.

use std::path::{Path, PathBuf};

use super::STEM;
use crate::error::{Error, Result};
use crate::weights::{component_files, index_of_shard, indexed_files, is_index, is_weights};

/// The files of a U-Net.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    pub files: Vec<PathBuf>,
    /// The `config.json` beside them.
    pub config: Option<PathBuf>,
    /// Whether the configuration belongs to the files, as in a folder of diffusers; beside a single file it is only likely.
    pub folder: bool,
}

/// The `unet/` folder of a model directory; the folder itself where there is none.
pub(crate) fn unet_folder(dir: &Path) -> PathBuf {
    let inner = dir.join("unet");
    let there = config_in(&inner).is_some() || component_files(&inner, STEM).is_ok();
    if there { inner } else { dir.to_path_buf() }
}

pub(super) fn config_in(folder: &Path) -> Option<PathBuf> {
    Some(folder.join("config.json")).filter(|path| path.is_file())
}

/// The files at a path.
pub(super) fn locate(path: &Path) -> Result<Located> {
    if path.is_dir() {
        let folder = unet_folder(path);
        let config = config_in(&folder);
        return match component_files(&folder, STEM) {
            Ok(files) => Ok(Located { files, config, folder: true }),
            Err(e) if config.is_some() => Err(e),
            Err(_) => Err(no_unet(&folder).unwrap_or_else(|| {
                let config = folder.join("config.json");
                Error::io(&config)(std::io::ErrorKind::NotFound.into())
            })),
        };
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let index = if is_index(&name) { Some(path.to_path_buf()) } else { index_of_shard(path) };
    let config = path.parent().and_then(config_in);
    match index {
        Some(index) => Ok(Located { files: indexed_files(&index)?, config, folder: true }),
        None => Ok(Located { files: vec![path.to_path_buf()], config, folder: false }),
    }
}

/// What a folder without a U-Net is, where that can be told.
fn no_unet(folder: &Path) -> Option<Error> {
    let bad = |problem: String, hint: &str| Error::Format { path: folder.into(), problem, hint: hint.into() };
    let index = std::fs::read_to_string(folder.join("model_index.json")).ok();
    if let Some(index) = index.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok()) {
        let class = index["_class_name"].as_str().unwrap_or("unknown");
        return Some(bad(
            format!("a model directory of the class {class} without unet/ folder"),
            "name a model with a U-Net: Stable Diffusion v1, v2 or XL",
        ));
    }
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let names = entries.filter(|e| e.path().is_file()).filter_map(|e| e.file_name().into_string().ok());
    let mut files: Vec<String> = names.filter(|name| is_weights(name)).collect();
    files.sort();
    let first = files.first()?;
    Some(bad(
        format!("no model directory, but a folder with {}", files.join(", ")),
        &format!("name the file, such as {}", folder.join(first).display()),
    ))
}
