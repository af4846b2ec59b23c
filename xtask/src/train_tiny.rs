//! `cargo xtask train-tiny`: rebuilds the embedded model assets/tiny-sdxl from nothing, as a list of stages.
//!
//! Stands before the data flow: it makes the weights from which everything else starts.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

use crate::pipeline::{self, settings_file};
use crate::stages::{Options, Stage};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    seed: u64,
    /// Passed on as they stand; the subcommand knows their keys.
    vae: toml::Table,
    clip: toml::Table,
    unet: toml::Table,
}

/// Builds the binary, trains the parts in order and prints where the model is.
pub fn run(root: &Path, options: &Options, verbose: bool) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| "runs/train-tiny".into());
    let settings: Settings = pipeline::settings(root, options, "configs/train-tiny.toml")?;
    let mut stages = Vec::new();
    let mut model: Option<std::path::PathBuf> = None;
    for (part, table, seconds) in [("vae", &settings.vae, 1800.0), ("clip", &settings.clip, 1800.0), ("unet", &settings.unet, 7200.0)] {
        let config = settings_file(root, &out, part, table)?;
        let made = out.join(part);
        let mut stage = Stage::new(part, format!("trains the {part} of the embedded model"), seconds, "train")
            .set("--part", part)
            .input("--config", config)
            .set("--seed", settings.seed)
            .set("--device", &options.device)
            .scratch(out.join(format!("{part}-checkpoints")));
        if let Some(before) = &model {
            stage = stage.input("--model", before);
        }
        stages.push(stage.output("--out", &made));
        model = Some(made);
    }
    pipeline::run(root, options, "train-tiny", &out, stages, verbose)?;
    println!("model: {}", out.join("unet").display());
    Ok(())
}
