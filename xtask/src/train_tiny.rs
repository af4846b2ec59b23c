//! `cargo xtask train-tiny`: rebuilds the embedded model assets/tiny-sdxl from nothing, as a list of stages.
//!
//! Stands before the data flow: it makes the weights from which everything else starts.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::pipeline::{self, settings_file};
use crate::stages::{Options, Stage};

const CONFIG: &str = "configs/train-tiny.toml";

/// The parts in the order of their training, with typical seconds on two CPU cores. Each needs the ones before it.
const PARTS: [(&str, f64); 3] = [("vae", 3000.0), ("clip", 2400.0), ("unet", 7200.0)];

/// Builds the binary, trains the parts in order and prints where the model is.
pub fn run(root: &Path, options: &Options, verbose: bool) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| "runs/train-tiny".into());
    let config = options.config.clone().unwrap_or_else(|| CONFIG.into());
    let settings: toml::Table = pipeline::settings(root, options, CONFIG)?;
    let mut slices = Vec::new();
    for (part, _) in PARTS {
        slices.push(settings_file(root, &out, part, &slice(&settings, part))?);
    }
    pipeline::run(root, options, "train-tiny", &out, stages(&config, &slices, &out, &options.device), verbose)?;
    println!("model: {}", out.join("model").display());
    Ok(())
}

/// What one part is trained with: the settings without the tables of the other parts.
fn slice(settings: &toml::Table, part: &str) -> toml::Table {
    let others = |key: &str| key != part && PARTS.iter().any(|(name, _)| *name == key);
    settings.iter().filter(|(key, _)| !others(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn stages(config: &Path, slices: &[PathBuf], out: &Path, device: &str) -> Vec<Stage> {
    let model = out.join("model");
    let mut made: Vec<PathBuf> = Vec::new();
    let mut stages = Vec::new();
    for ((part, seconds), slice) in PARTS.into_iter().zip(slices) {
        // The subcommand reads the whole file; the stage depends on its own slice of it only.
        let mut stage = Stage::new(part, format!("trains the {part} of the embedded model"), seconds, "train")
            .set("--part", part)
            .set("--config", config.display())
            .set("--device", device)
            .reads(slice)
            .scratch(out.join(format!("checkpoints/{part}")));
        for before in &made {
            stage = stage.reads(before);
        }
        let done = out.join(format!("trained/{part}.safetensors"));
        stages.push(stage.output("--out", &done));
        made.push(done);
    }
    let mut assemble = Stage::new("assemble", "puts the parts together to a model directory", 5.0, "train").set("--part", "assemble");
    for path in &made {
        assemble = assemble.input("--trained", path);
    }
    stages.push(assemble.set("--config", config.display()).output("--out", model));
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
        let slices: Vec<PathBuf> = PARTS.iter().map(|(part, _)| format!("settings/{part}.toml").into()).collect();
        let stages = stages(Path::new(CONFIG), &slices, Path::new("runs/train-tiny"), "cpu");
        pipeline::check_wiring(&stages, &[Path::new("settings")]);
    }
}
