//! `--model org/name`: models of the Hugging Face Hub, with the environment variables of its own tools. Hub -> **model directory**.

use std::path::{Path, PathBuf};

use anyhow::Context;
use diffusion::{Hub, HubModel};

use crate::common::BadInput;
use crate::progress;

/// The model directory that `named` stands for: itself, or for `org/name` and `org/name@revision` without a folder of that
/// name the one in the hub's cache, fetched where needed.
///
/// # Errors
/// When the model cannot be fetched and is not in the cache.
fn model_dir(named: &Path) -> anyhow::Result<PathBuf> {
    let model: HubModel = match named.to_str().map(str::parse) {
        Some(Ok(model)) if !named.exists() => model,
        _ => return Ok(named.into()),
    };
    let hub = hub()?;
    let bar = progress::bar("bytes", 0);
    let dir = hub.fetch(&model, &mut |part| {
        if bar.message() != part.file {
            bar.set_message(part.file.to_string());
        }
        bar.set_length(part.total);
        bar.set_position(part.done);
    });
    bar.finish_and_clear();
    dir.with_context(|| format!("{}: no such folder, so taken for a model of the hub", named.display()))
}

/// The weights that `named` stands for: a path that is there, else `org/name` (the folder of the repository) or `org/name:file`.
///
/// # Errors
/// When they cannot be fetched and are not in the cache.
pub fn weights(named: &Path) -> anyhow::Result<PathBuf> {
    let Some((repository, file)) = named.to_str().filter(|_| !named.exists()).and_then(|text| text.split_once(':')) else {
        return model_dir(named);
    };
    let model: HubModel = repository.parse()?;
    let bar = progress::bar("bytes", 0);
    let path = hub()?.fetch_file(&model, file, &mut |part| {
        bar.set_length(part.total);
        bar.set_position(part.done);
    });
    bar.finish_and_clear();
    path.with_context(|| format!("{}: no such file, so taken for one of the hub", named.display()))
}

fn hub() -> anyhow::Result<Hub> {
    let hub = Hub::from_environment(|name| std::env::var(name).ok(), std::env::home_dir().as_deref());
    hub.ok_or_else(|| BadInput("no home folder: set HF_HOME to the folder of the hub's cache".into()).into())
}
