//! A run folder: which file lies where, each read as the type of the crate that it belongs to. Files of all stages -> **run folder**
//! -> results.

use std::path::{Path, PathBuf};

use artifact::Document;
use distill::{LogRow, Record};
use eval::{EvalFile, Hardware, StageTime, Timings};
use prune_core::audit::AuditFile;
use prune_core::{LayerTable, Plan, Scores};
use serde::{Deserialize, Serialize};
use unet::scoring::Criterion;
use unet::{Inspection, JointFile, plan_name};

use crate::error::{Error, Result};
use crate::results::{PublishedDecline, PublishedFile};

/// The folder of one run. Every file but `layers.json` may be missing: a run that stopped early is a run.
///
/// | file | what |
/// |---|---|
/// | `layers.json` | the model and its layers |
/// | `scores/<criterion>.json` | [`RunDir::scores`] |
/// | `audit.json` | [`RunDir::audit`] |
/// | `plans/<plan>.json` | [`RunDir::plans`] |
/// | `joint.json` | [`RunDir::joint_losses`] |
/// | `distill/<name>/` | [`RunDir::trainings`] |
/// | `eval.json` | [`RunDir::evaluation`] |
/// | `speed.json` | [`RunDir::timings`] |
/// | `published.json` | [`RunDir::published`] |
/// | `commands.json` | [`RunDir::log`] |
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
    model: Inspection,
}

/// `commands.json`: what was run, written by whoever drives the stages.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunLog {
    /// The commands, in order.
    pub commands: Vec<Command>,
    /// How long the stages took.
    pub stages: Vec<StageTime>,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Stage, such as `score`.
    pub stage: String,
    /// The line to type.
    pub line: String,
}

/// One retraining run.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// Its name: that of its folder.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// What it was.
    pub record: Record,
}

impl Training {
    /// The loss curve.
    ///
    /// # Errors
    /// [`Error::File`] when the log is missing or damaged.
    pub fn log(&self) -> Result<Vec<LogRow>> {
        let path = self.dir.join("log.jsonl");
        let bad = |problem: String| Error::file(&path, problem, "let `distill` write it again");
        let text = std::fs::read_to_string(&path).map_err(|e| bad(e.to_string()))?;
        text.lines().map(|line| serde_json::from_str(line).map_err(|e| bad(format!("not a row of a training log ({e})")))).collect()
    }
}

impl RunDir {
    /// Opens a run folder.
    ///
    /// # Errors
    /// [`Error::File`] when it is no folder; [`artifact::Error`] when `layers.json` is missing or damaged.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if !path.is_dir() {
            return Err(Error::file(path, "no such folder", "name a run directory"));
        }
        let model = Inspection::read(&path.join(Inspection::FILE))?;
        for dir in entries(&path.join("distill"))?.iter().filter(|dir| dir.is_dir() && !dir.join(Record::FILE).is_file()) {
            tracing::warn!("{}: no {}: a training that failed or is not finished, left out", dir.display(), Record::FILE);
        }
        Ok(Self { path, model })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model that was compressed.
    pub fn model(&self) -> &Inspection {
        &self.model
    }

    /// Its removable layers, in the order of execution.
    pub fn table(&self) -> &LayerTable {
        &self.model.table
    }

    /// The scores of all layers, one entry per criterion, in the order of the report.
    ///
    /// # Errors
    /// When a file is damaged, made for another model, or not complete.
    pub fn scores(&self) -> Result<Vec<Scores>> {
        let mut all = Vec::new();
        for path in files(&self.path.join("scores"))? {
            let scores = Scores::read_for(&path, self.table())?;
            scores.values()?;
            all.push(scores);
        }
        all.sort_by_key(|scores| Criterion::position(scores.criterion()));
        Ok(all)
    }

    /// The plans by name, in the order of their files.
    ///
    /// # Errors
    /// When a file is damaged or made for another model.
    pub fn plans(&self) -> Result<Vec<(String, Plan)>> {
        // Beside a refined plan lies what `refine` measured.
        let mut found = files(&self.path.join("plans"))?;
        found.retain(|path| !path.to_string_lossy().ends_with(".refinement.json"));
        found.iter().map(|path| Ok((plan_name(path), Plan::read(path, self.table())?))).collect()
    }

    /// What the plans really lose.
    ///
    /// # Errors
    /// When the file is damaged or made for another model.
    pub fn joint_losses(&self) -> Result<Option<JointFile>> {
        let file = self.optional(JointFile::FILE, |path| Ok(JointFile::read(path)?))?;
        if let Some(file) = &file {
            self.table().check_fingerprint("joint.json's model", &file.fingerprint)?;
        }
        Ok(file)
    }

    /// How well scores add up.
    ///
    /// # Errors
    /// When the file is damaged or made for another model.
    pub fn audit(&self) -> Result<Option<AuditFile>> {
        self.optional("audit.json", |path| Ok(AuditFile::read(path, self.table())?))
    }

    /// The retraining runs, ordered by name.
    ///
    /// # Errors
    /// When a record is damaged.
    pub fn trainings(&self) -> Result<Vec<Training>> {
        let mut all = Vec::new();
        for dir in entries(&self.path.join("distill"))?.into_iter().filter(|p| p.join(Record::FILE).is_file()) {
            all.push(Training { name: plan_name(&dir), record: Record::read_in(&dir)?, dir });
        }
        Ok(all)
    }

    /// What the images are worth.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn evaluation(&self) -> Result<Option<EvalFile>> {
        self.optional("eval.json", |path| Ok(EvalFile::read(path)?))
    }

    /// What others published, to be set beside the run's own.
    ///
    /// # Errors
    /// When the file is damaged.
    pub fn published(&self) -> Result<Vec<PublishedDecline>> {
        Ok(self.optional("published.json", |path| Ok(PublishedFile::read(path)?))?.map_or(Vec::new(), |file| file.results))
    }

    /// The commands that made the run; empty where nobody wrote them down.
    ///
    /// # Errors
    /// [`Error::File`] when the file is damaged.
    pub fn log(&self) -> Result<RunLog> {
        let read = |path: &Path| {
            let bad = |problem: String| Error::file(path, problem, "remove it, or let the pipeline write it again");
            let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
            serde_json::from_str(&text).map_err(|e| bad(e.to_string()))
        };
        Ok(self.optional("commands.json", read)?.unwrap_or_default())
    }

    /// What the clock said: latencies from `speed.json`, with the stages' times.
    ///
    /// # Errors
    /// When a file is damaged.
    pub fn timings(&self) -> Result<Timings> {
        let measured = self.optional("speed.json", |path| Ok(Timings::read(path)?))?;
        let mut timings = measured.unwrap_or_else(|| Timings::new(Hardware::detect("not measured")));
        timings.stages = self.log()?.stages;
        Ok(timings)
    }

    fn optional<T>(&self, name: &str, read: impl FnOnce(&Path) -> Result<T>) -> Result<Option<T>> {
        let path = self.path.join(name);
        path.is_file().then(|| read(&path)).transpose()
    }

    /// The files that the results are made from, relative names and paths, as far as they are there.
    pub(crate) fn sources(&self) -> Result<Vec<PathBuf>> {
        let mut named = files(&self.path.join("scores"))?;
        named.extend(files(&self.path.join("plans"))?);
        named.extend(
            ["layers.json", "calibration.safetensors", "heldout.safetensors", "audit.json", "joint.json", "eval.json", "per_prompt.json"]
                .map(|name| self.path.join(name)),
        );
        let weights = "unet/diffusion_pytorch_model.safetensors";
        named.extend(self.trainings()?.iter().map(|training| training.dir.join(weights)));
        named.retain(|path| path.is_file());
        Ok(named)
    }
}

/// What a folder holds, ordered by name; nothing where it is missing. Hidden entries are unfinished work.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let read = || std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>();
    let mut found = read().map_err(|e| Error::file(dir, e.to_string(), "make it readable"))?;
    found.retain(|p| p.file_name().is_some_and(|n| !n.to_string_lossy().starts_with('.')));
    found.sort();
    Ok(found)
}

/// The JSON files of a folder.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(dir)?.into_iter().filter(|p| p.is_file() && p.extension().is_some_and(|e| e == "json")).collect())
}
