//! Checkpoints: one safetensors file each, written whole, the newest ones kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::Tensor;
use unet::weights::{TensorFile, Tensors, save_tensors};

use super::config::comparable;
use super::finite::is_finite;
use super::log::{LogRow, Window};
use crate::error::{Error, Result};

const FORMAT: &str = "laptop-diff/checkpoint";
const VERSION: &str = "4";

/// Everything that a run needs to go on with the same bits.
#[derive(Debug)]
pub(crate) struct State {
    pub flat: Tensor,
    pub m: Tensor,
    pub v: Tensor,
    pub ema: Option<Tensor>,
    pub updates: u64,
    pub step: u64,
    pub skipped: u64,
    pub log: Vec<LogRow>,
    pub window: Window,
    pub task: Tensors,
}

fn path_of(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("checkpoint-{step:08}.safetensors"))
}

/// The checkpoints in `dir`, oldest first.
fn all(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with("checkpoint-") && name.ends_with(".safetensors") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn write(dir: &Path, identity: &BTreeMap<String, String>, state: &State, keep: usize) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    artifact::remove_leftovers(dir);
    let mut tensors = Tensors::new();
    tensors.insert("params".into(), state.flat.shallow_clone());
    tensors.insert("adam.m".into(), state.m.shallow_clone());
    tensors.insert("adam.v".into(), state.v.shallow_clone());
    if let Some(ema) = &state.ema {
        tensors.insert("ema".into(), ema.shallow_clone());
    }
    tensors.extend(state.task.iter().map(|(k, t)| (format!("task.{k}"), t.shallow_clone())));
    let mut meta = BTreeMap::from([
        ("format".to_string(), FORMAT.to_string()),
        ("version".to_string(), VERSION.to_string()),
        ("step".to_string(), state.step.to_string()),
        ("updates".to_string(), state.updates.to_string()),
        ("skipped".to_string(), state.skipped.to_string()),
        ("log".to_string(), serde_json::to_string(&state.log).expect("rows are JSON")),
        ("window".to_string(), serde_json::to_string(&state.window).expect("sums are JSON")),
    ]);
    meta.extend(identity.iter().map(|(k, v)| (format!("identity.{k}"), v.clone())));
    save_tensors(path_of(dir, state.step), &tensors, &meta, None)?;

    let files = all(dir)?;
    for old in &files[..files.len().saturating_sub(keep)] {
        std::fs::remove_file(old).map_err(Error::io(old))?;
    }
    Ok(())
}

/// The newest checkpoint of `dir`.
pub(super) fn newest_path(dir: &Path) -> Option<PathBuf> {
    all(dir).ok()?.pop()
}

/// Opens a checkpoint of this program's version.
fn open(path: &Path) -> Result<TensorFile> {
    let file = TensorFile::open(path).map_err(|e| damaged(path, in_short(&e)))?;
    let meta = file.metadata();
    if meta.get("format").map(String::as_str) != Some(FORMAT) {
        return Err(damaged(path, "not a checkpoint"));
    }
    let version = meta.get("version").map_or("nothing", String::as_str);
    if version != VERSION {
        let problem = format!("a checkpoint of version {version}, this program goes on from version {VERSION} alone");
        let hint = "finish the run with the program that began it, or delete the folder of its checkpoints to start over".into();
        return Err(Error::Format { path: path.into(), problem, hint });
    }
    Ok(file)
}

fn damaged(path: &Path, problem: impl Into<String>) -> Error {
    Error::DamagedCheckpoint { path: path.into(), problem: problem.into(), whole: None }
}

/// What is wrong with a file, without the advice that fits files from elsewhere.
fn in_short(error: &unet::Error) -> String {
    match error {
        unet::Error::Format { problem, .. } => problem.clone(),
        unet::Error::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// The error, with the newest older checkpoint that is whole, where the one it speaks of is damaged.
fn with_older(error: Error, older: &[PathBuf]) -> Error {
    let Error::DamagedCheckpoint { path, problem, .. } = error else { return error };
    let whole = older.iter().rev().find(|path| open(path).and_then(|file| load(path, &file)).is_ok()).cloned();
    Error::DamagedCheckpoint { path, problem, whole }
}

/// Refuses a folder whose newest checkpoint is damaged or of another program's version, before work that its run would need.
pub(crate) fn check(dir: &Path) -> Result<()> {
    let mut files = all(dir)?;
    let Some(path) = files.pop() else { return Ok(()) };
    open(&path).map(|_| ()).map_err(|e| with_older(e, &files))
}

/// The newest checkpoint of `dir`, refused when its identity differs from `identity`.
pub(crate) fn newest(dir: &Path, identity: &BTreeMap<String, String>) -> Result<Option<State>> {
    let mut files = all(dir)?;
    let Some(path) = files.pop() else { return Ok(None) };
    let state = || {
        let file = open(&path)?;
        check_identity(&path, file.metadata(), identity)?;
        load(&path, &file)
    };
    state().map(Some).map_err(|e| with_older(e, &files))
}

/// Refuses the checkpoint of another run.
fn check_identity(path: &Path, meta: &BTreeMap<String, String>, identity: &BTreeMap<String, String>) -> Result<()> {
    for (key, expected) in identity {
        let found = meta.get(&format!("identity.{key}")).cloned().unwrap_or_else(|| "absent".into());
        // A warm-up that is over must have been as long as it is now.
        let settings = ["config", "layerwise"].contains(&key.as_str()).then(|| comparable(expected, &found, key == "config"));
        let (expected, found) = settings.flatten().unwrap_or_else(|| (expected.clone(), found));
        if found != expected {
            let (expected, found) = difference(&expected, &found);
            return Err(Error::ForeignCheckpoint { path: path.into(), key: key.clone(), expected, found });
        }
    }
    Ok(())
}

fn load(path: &Path, file: &TensorFile) -> Result<State> {
    let meta = file.metadata();
    let bad = |problem: &str| damaged(path, problem);
    let number = |key: &str| meta.get(key).and_then(|v| v.parse::<u64>().ok()).ok_or_else(|| bad(&format!("no number `{key}`")));
    let read = |key: &str| file.tensor(key).map_err(|e| bad(&in_short(&e)));
    let tensor = |key: &str| -> Result<Tensor> { read(key)?.ok_or_else(|| bad(&format!("no tensor `{key}`"))) };
    let log = meta.get("log").and_then(|l| serde_json::from_str(l).ok()).ok_or_else(|| bad("no readable log"))?;
    let window = meta.get("window").and_then(|w| serde_json::from_str(w).ok()).ok_or_else(|| bad("no readable sums"))?;
    let mut task = Tensors::new();
    for (name, _) in file.shapes() {
        if let Some(key) = name.strip_prefix("task.") {
            task.insert(key.to_string(), tensor(name)?);
        }
    }
    let flat = tensor("params")?;
    if !is_finite(&flat)? {
        return Err(bad("its weights are NaN or infinite"));
    }
    Ok(State {
        flat,
        m: tensor("adam.m")?,
        v: tensor("adam.v")?,
        ema: read("ema")?,
        updates: number("updates")?,
        step: number("step")?,
        skipped: number("skipped")?,
        log,
        window,
        task,
    })
}

/// Where two JSON objects differ, as two short texts; the whole texts when they are not objects.
fn difference(expected: &str, found: &str) -> (String, String) {
    type Object = serde_json::Map<String, serde_json::Value>;
    let (Ok(a), Ok(b)) = (serde_json::from_str::<Object>(expected), serde_json::from_str::<Object>(found)) else {
        return (expected.into(), found.into());
    };
    let pick = |x: &Object, y: &Object| {
        let parts: Vec<String> = x.iter().filter(|(k, v)| y.get(*k) != Some(v)).map(|(k, v)| format!("{k} = {v}")).collect();
        parts.join(", ")
    };
    (pick(&a, &b), pick(&b, &a))
}
