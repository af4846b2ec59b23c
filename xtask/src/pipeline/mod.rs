//! A small make for the experiments: what they share, and the engine that runs their stages.
//!
//! Stands between the lists of stages (`experiments`) and the built program. `stage` is one step, `run_paths` where its files lie,
//! `engine` runs the steps and skips what is up to date (`hashes`), `parallel` several at once, `process` a child while it lives.

mod engine;
mod hashes;
mod parallel;
mod process;
mod run_paths;
mod stage;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{proc, setup};

pub use engine::{Options, duration, write_whole};
pub use process::{INTERRUPTED_CODE, Interrupted};
pub use run_paths::{Audit, Points, RunPaths, Score};
pub use stage::{Stage, Work};

/// Reads the settings that the user named, else `default`; an error names the line and the key.
pub fn settings<T: DeserializeOwned>(root: &Path, options: &Options, default: &str) -> Result<T> {
    let path = options.config.as_deref().unwrap_or(Path::new(default));
    let text = fs::read_to_string(root.join(path)).with_context(|| format!("cannot read the settings {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in the settings {}", path.display()))
}

/// Writes one table of the settings to a file of its own, `<out>/settings/<name>.toml`, so that it can be a stage's input:
/// a change in one table then does not rerun the stages that read another.
pub fn settings_file(root: &Path, out: &Path, name: &str, table: &toml::Table) -> Result<PathBuf> {
    let path = out.join(format!("settings/{name}.toml"));
    let full = root.join(&path);
    let text = toml::to_string(table)?;
    if fs::read_to_string(&full).ok().as_deref() != Some(&text) {
        fs::create_dir_all(out_parent(&full)).with_context(|| format!("cannot write to {}", out.display()))?;
        fs::write(&full, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(path)
}

fn out_parent(path: &Path) -> &Path {
    path.parent().expect("the path has a folder before its name")
}

/// Sets libtorch up, builds `laptop-diff` and runs `stages`.
pub fn run(root: &Path, options: &Options, name: &str, out: &Path, stages: Vec<Stage>, verbose: bool) -> Result<()> {
    let program = build(root, verbose)?;
    process::outlive_interrupts();
    let pipeline =
        engine::Pipeline { command: format!("cargo xtask {name}"), program, root: root.to_path_buf(), out: out.to_path_buf(), stages };
    pipeline.run(options)?;
    Ok(())
}

/// Sets libtorch up and builds `laptop-diff`; returns the program.
pub fn build(root: &Path, verbose: bool) -> Result<PathBuf> {
    setup::run(root, verbose)?;
    proc::run(&mut proc::cargo(root, &["build", "--package=laptop-diff"]))?;
    let program = target_folder(root)?.join("debug/laptop-diff");
    setup::nccl::put_beside(root, &program)?;
    Ok(program)
}

/// Makes `target` a copy of the folder `source`. The old folder goes only when the copy is complete.
pub fn replace_folder(source: &Path, target: &Path) -> Result<()> {
    let partial = target.with_extension("partial");
    let old = target.with_extension("old");
    for leftover in [&partial, &old] {
        if leftover.exists() {
            fs::remove_dir_all(leftover).with_context(|| format!("cannot remove {}", leftover.display()))?;
        }
    }
    copy_folder(source, &partial).with_context(|| format!("cannot copy {} to {}", source.display(), partial.display()))?;
    if target.exists() {
        fs::rename(target, &old).with_context(|| format!("cannot replace {}", target.display()))?;
    }
    fs::rename(&partial, target).with_context(|| format!("cannot replace {}", target.display()))?;
    if old.exists() {
        fs::remove_dir_all(&old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    Ok(())
}

fn copy_folder(source: &Path, target: &Path) -> std::io::Result<()> {
    fs::create_dir_all(target)?;
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let copy = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &copy)?;
        } else {
            fs::copy(entry.path(), copy)?;
        }
    }
    Ok(())
}

/// Values as one word of a command line.
pub fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

/// Where cargo puts what it builds, whatever configuration or environment decides it.
fn target_folder(root: &Path) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let text = proc::capture(&mut proc::cargo(root, &["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cannot read the output of `cargo metadata`")?;
    Ok(metadata.target_directory)
}

/// Asserts that names are unique and that every input comes from `given` or from an earlier stage.
#[cfg(test)]
pub fn check_wiring(stages: &[Stage], given: &[&Path]) {
    let mut names = std::collections::BTreeSet::new();
    let mut made: Vec<PathBuf> = given.iter().map(|path| path.to_path_buf()).collect();
    for stage in stages {
        assert!(names.insert(stage.name()), "two stages are named {}", stage.name());
        for input in stage.inputs() {
            let comes = made.iter().any(|path| input.starts_with(path) || path.starts_with(input));
            assert!(comes, "{} reads {}, which nothing made", stage.name(), input.display());
        }
        for output in stage.outputs() {
            assert!(!made.contains(output), "{} writes {}, which another stage made", stage.name(), output.display());
            made.push(output.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::tests_support::scratch;

    #[test]
    fn a_replaced_folder_is_the_copy_and_nothing_else() {
        let root = scratch("replace");
        fs::create_dir_all(root.join("new/unet")).unwrap();
        fs::write(root.join("new/unet/config.json"), "{}").unwrap();
        fs::create_dir_all(root.join("asset")).unwrap();
        fs::write(root.join("asset/stale"), "x").unwrap();
        replace_folder(&root.join("new"), &root.join("asset")).unwrap();
        assert!(root.join("asset/unet/config.json").exists() && !root.join("asset/stale").exists());
        assert!(!root.join("asset.partial").exists() && !root.join("asset.old").exists());
        assert!(replace_folder(&root.join("absent"), &root.join("asset")).is_err());
        assert!(root.join("asset/unet/config.json").exists(), "a failed copy leaves the old folder");
    }

    #[test]
    fn a_settings_file_is_rewritten_only_when_it_changes() {
        let root = scratch("settings-file");
        let table: toml::Table = toml::from_str("steps = 3").unwrap();
        let path = root.join(settings_file(&root, Path::new("run"), "train", &table).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "steps = 3\n");
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        settings_file(&root, Path::new("run"), "train", &table).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    }
}
