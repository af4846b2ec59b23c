//! Checkpoints: one safetensors file each, written whole, the newest ones kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::Tensor;
use unet::weights::{TensorFile, Tensors, save_tensors};

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

fn bad(path: &Path, problem: impl Into<String>) -> Error {
    Error::Format { path: path.into(), problem: problem.into(), hint: "delete it to start over".into() }
}

/// The newest checkpoint of `dir`, where its version is this program's.
fn open_newest(dir: &Path) -> Result<Option<(PathBuf, TensorFile)>> {
    let Some(path) = all(dir)?.pop() else { return Ok(None) };
    let file = TensorFile::open(&path)?;
    let meta = file.metadata();
    if meta.get("format").map(String::as_str) != Some(FORMAT) {
        return Err(bad(&path, "not a checkpoint"));
    }
    let version = meta.get("version").map_or("nothing", String::as_str);
    if version != VERSION {
        let problem = format!("a checkpoint of version {version}, this program goes on from version {VERSION} alone");
        let hint = "finish the run with the program that began it, or delete the folder of its checkpoints to start over".into();
        return Err(Error::Format { path, problem, hint });
    }
    Ok(Some((path, file)))
}

/// Refuses a folder whose newest checkpoint is of another program's version, before work that its run would need.
pub(crate) fn check(dir: &Path) -> Result<()> {
    open_newest(dir).map(|_| ())
}

/// The newest checkpoint of `dir`, refused when its identity differs from `identity`.
pub(crate) fn newest(dir: &Path, identity: &BTreeMap<String, String>) -> Result<Option<State>> {
    let Some((path, file)) = open_newest(dir)? else { return Ok(None) };
    let meta = file.metadata();
    let bad = |problem: &str| bad(&path, problem);
    for (key, expected) in identity {
        let found = meta.get(&format!("identity.{key}")).cloned().unwrap_or_else(|| "absent".into());
        if found != *expected {
            let (expected, found) = difference(expected, &found);
            return Err(Error::ForeignCheckpoint { path: path.clone(), key: key.clone(), expected, found });
        }
    }
    let number = |key: &str| meta.get(key).and_then(|v| v.parse::<u64>().ok()).ok_or_else(|| bad(&format!("no number `{key}`")));
    let tensor = |key: &str| -> Result<Tensor> { file.tensor(key)?.ok_or_else(|| bad(&format!("no tensor `{key}`"))) };
    let log = meta.get("log").and_then(|l| serde_json::from_str(l).ok()).ok_or_else(|| bad("no readable log"))?;
    let window = meta.get("window").and_then(|w| serde_json::from_str(w).ok()).ok_or_else(|| bad("no readable sums"))?;
    let mut task = Tensors::new();
    for (name, _) in file.shapes() {
        if let Some(key) = name.strip_prefix("task.") {
            task.insert(key.to_string(), tensor(name)?);
        }
    }
    Ok(Some(State {
        flat: tensor("params")?,
        m: tensor("adam.m")?,
        v: tensor("adam.v")?,
        ema: file.tensor("ema")?,
        updates: number("updates")?,
        step: number("step")?,
        skipped: number("skipped")?,
        log,
        window,
        task,
    }))
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
