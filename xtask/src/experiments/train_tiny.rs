//! `cargo xtask train-tiny`: rebuilds the embedded model assets/tiny-sdxl from nothing, as a list of stages.
//!
//! Stands before the data flow: it makes the weights from which everything else starts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::pipeline::{self, Options, Stage, settings_file};

const CONFIG: &str = "configs/train-tiny.toml";
const ASSET: &str = "assets/tiny-sdxl";

/// One network or group of networks that is trained together.
struct Part {
    name: &'static str,
    about: &'static str,
    /// On two CPU cores.
    typical_seconds: f64,
    /// The folders of the model directory that it needs and that it writes.
    reads: &'static [&'static str],
    writes: &'static [&'static str],
}

/// What the CLIP stage leaves in the work folder for the U-Net's to train further.
const CONTRASTIVE_TEXT_ENCODER: &str = "text_encoder";

/// In the order of their training.
const PARTS: [Part; 3] = [
    Part { name: "vae", about: "trains the autoencoder", typical_seconds: 2400.0, reads: &[], writes: &["vae"] },
    Part {
        name: "clip",
        about: "trains the scorer and both text encoders by contrast",
        typical_seconds: 1800.0,
        reads: &[],
        writes: &["clip", "text_encoder_2", "tokenizer", "tokenizer_2"],
    },
    Part {
        name: "unet",
        about: "encodes the images, trains the U-Net and with it the first text encoder",
        typical_seconds: 9000.0,
        reads: &["vae", "text_encoder_2", "tokenizer", "tokenizer_2"],
        writes: &["unet", "text_encoder", "scheduler"],
    },
];

/// Builds the binary, trains the parts in order and prints where the model is. The committed settings in their usual folder
/// renew the embedded model; other settings or another folder are experiments and leave it alone.
pub fn run(root: &Path, options: &Options, verbose: bool) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| "runs/train-tiny".into());
    let config = options.config.clone().unwrap_or_else(|| CONFIG.into());
    let settings: toml::Table = pipeline::settings(root, options, CONFIG)?;
    let architectures = settings.get("architectures").and_then(toml::Value::as_str).context("the settings lack `architectures`")?;
    let architectures = config.parent().unwrap_or(Path::new("")).join(architectures);
    let mut slices = Vec::new();
    for part in &PARTS {
        slices.push(settings_file(root, &out, part.name, &slice(&settings, part.name))?);
    }
    let stages = stages(&config, &architectures, &slices, &out, &options.device);
    pipeline::run(root, options, "train-tiny", &out, stages, verbose)?;
    let model = out.join("model");
    let whole = options.only.is_none() && options.config.is_none() && options.out.is_none();
    if whole {
        pipeline::replace_folder(&root.join(&model), &root.join(ASSET))?;
    }
    println!("model: {}", if whole { Path::new(ASSET) } else { &model }.display());
    Ok(())
}

/// What one part is trained with: the settings without the tables of the other parts.
fn slice(settings: &toml::Table, part: &str) -> toml::Table {
    let others = |key: &str| key != part && PARTS.iter().any(|other| other.name == key);
    settings.iter().filter(|(key, _)| !others(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn stages(config: &Path, architectures: &Path, slices: &[PathBuf], out: &Path, device: &str) -> Vec<Stage> {
    let (model, work) = (out.join("model"), out.join("work"));
    let mut stages = Vec::new();
    for (part, slice) in PARTS.iter().zip(slices) {
        // The subcommand reads all settings; the stage depends on its own slice of them only.
        let mut stage = Stage::new(part.name, part.about, part.typical_seconds, "train")
            .set("--stage", part.name)
            .set("--config", config.display())
            .set("--out", model.display())
            .set("--work", work.display())
            .set("--device", device)
            .reads(slice)
            .reads(architectures)
            .scratch(work.join(part.name));
        for folder in part.reads {
            stage = stage.reads(model.join(folder));
        }
        for folder in part.writes {
            stage = stage.writes(model.join(folder));
        }
        let text_encoder = work.join(CONTRASTIVE_TEXT_ENCODER);
        stages.push(match part.name {
            "clip" => stage.writes(text_encoder),
            "unet" => stage.reads(text_encoder),
            _ => stage,
        });
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc;

    #[test]
    fn a_part_depends_on_the_common_settings_and_its_own() {
        let text = std::fs::read_to_string(proc::root().join(CONFIG)).unwrap();
        let settings: toml::Table = toml::from_str(&text).unwrap();
        let keys: Vec<String> = slice(&settings, "clip").keys().cloned().collect();
        assert!(keys.contains(&"clip".to_owned()) && keys.contains(&"data".to_owned()), "{keys:?}");
        assert!(!keys.contains(&"unet".to_owned()) && !keys.contains(&"vae".to_owned()), "{keys:?}");
    }

    #[test]
    fn the_stages_make_a_pipeline_without_gaps() {
        let slices: Vec<PathBuf> = PARTS.iter().map(|part| format!("settings/{}.toml", part.name).into()).collect();
        let stages = stages(Path::new(CONFIG), Path::new("configs/tiny-sdxl"), &slices, Path::new("runs/train-tiny"), "cpu");
        pipeline::check_wiring(&stages, &[Path::new("settings"), Path::new("configs/tiny-sdxl")]);
    }
}
