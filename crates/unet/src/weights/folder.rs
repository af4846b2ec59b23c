//! Where the weight files of a component lie in its folder: one file, a variant, or the shards of an index. Folder -> **files**.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::weight_name::{WeightFile, WeightName, shard_number};
use crate::error::{Error, Result};

/// Finds the weight files of a component's folder: `<stem>.safetensors`, a variant of it (`<stem>.fp16.safetensors`), or the shards of
/// an index, which may be a variant too; where there is none of them, the same of PyTorch's `.bin` form.
///
/// # Errors
/// [`Error::Format`] when none is there, or a shard is missing.
pub fn component_files(dir: &Path, stem: &str) -> Result<Vec<PathBuf>> {
    // transformers names its files `model.safetensors` and `pytorch_model.bin`.
    let old = if stem == "model" { "pytorch_model" } else { stem };
    let names = names(dir);
    for (stem, ending) in [(stem, "safetensors"), (old, "bin")] {
        let whole = |name: &WeightName<'_>| name.file != WeightFile::Shard;
        let found = names.iter().filter_map(|name| Some((rank(&WeightName::of(name, stem, ending).filter(whole)?), name)));
        let Some((_, name)) = found.min() else { continue };
        let path = dir.join(name);
        return if name.ends_with(".json") { indexed_files(&path) } else { Ok(vec![path]) };
    }
    if let Some(shards) = [(stem, "safetensors"), (old, "bin")].into_iter().find_map(|(stem, ending)| loose_shards(&names, stem, ending)) {
        return Ok(shards.into_iter().map(|name| dir.join(name)).collect());
    }
    let others: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_weights(name)).collect();
    let problem = format!(
        "no `{stem}.safetensors`, no variant of it (`{stem}.fp16.safetensors`) and no `{stem}.safetensors.index.json`, nor `{old}.bin`"
    );
    Err(Error::Format {
        path: dir.into(),
        problem: if others.is_empty() { problem } else { format!("{problem}; there is {}", others.join(", ")) },
        hint: "name a diffusers model directory, or the component's folder in it".into(),
    })
}

/// The files that an index names, in the order of their names.
///
/// # Errors
/// [`Error::Io`] when it cannot be read; [`Error::Format`] when it is no index, or a file that it names is not beside it.
pub fn indexed_files(index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).map_err(Error::io(index))?;
    let bad = |problem: String| Error::Format { path: index.into(), problem, hint: "fetch it again".into() };
    let parsed: Index = serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|e| bad(format!("bad index ({e})")))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(bad("an index that names no file".into()));
    }
    let dir = index.parent().unwrap_or(Path::new("."));
    let file = |name: String| {
        if !Path::new(&name).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(bad(format!("an index with the file name `{name}`, which leads out of its folder")));
        }
        let path = dir.join(&name);
        if path.is_file() { Ok(path) } else { Err(bad(format!("its file `{name}` is not there"))) }
    };
    names.into_iter().map(file).collect()
}

/// The index beside a file that is one of several, as `..-00001-of-00003.safetensors` is.
pub(crate) fn index_of_shard(path: &Path) -> Option<PathBuf> {
    let dir = path.parent()?;
    let name = path.file_name()?.to_str()?;
    shard_number(name)?;
    let indices = names(dir).into_iter().filter(|other| is_index(other)).map(|other| dir.join(other));
    indices.into_iter().find(|index| indexed_files(index).is_ok_and(|files| files.iter().any(|file| file.file_name() == path.file_name())))
}

/// Whether a name is that of an index, plain or of a variant.
pub(crate) fn is_index(name: &str) -> bool {
    name.ends_with(".json") && name.contains(".index.")
}

/// The names in a folder, sorted; none where there is no folder, which whoever opens the files says.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter(|e| e.path().is_file()).filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Whether a name has an ending of weight files.
pub(crate) fn is_weights(name: &str) -> bool {
    let ending = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    ["safetensors", "ckpt", "bin", "pt", "pth", "gguf", "onnx", "msgpack"].contains(&ending.as_str())
}

/// The plain file and the half one before their shards, these before other variants.
fn rank(name: &WeightName<'_>) -> (usize, bool) {
    let index = name.file == WeightFile::Index;
    match name.rank() {
        of_variant @ (0 | 1) => (usize::from(index), of_variant == 1),
        of_variant => (of_variant, index),
    }
}

/// All shards of a model whose index was not fetched.
fn loose_shards(names: &[String], stem: &str, ending: &str) -> Option<Vec<String>> {
    let of_stem = |name: &&String| name.starts_with(stem) && name.ends_with(&format!(".{ending}"));
    let shards: Vec<(usize, usize, &String)> =
        names.iter().filter(of_stem).filter_map(|name| shard_number(name).map(|(n, of)| (n, of, name))).collect();
    let (_, of, _) = *shards.first()?;
    let whole = shards.len() == of && shards.iter().enumerate().all(|(i, (n, total, _))| *n == i + 1 && *total == of);
    whole.then(|| shards.into_iter().map(|(_, _, name)| name.clone()).collect())
}
