//! `distill.json`: what a training run was, beside the student's weights. Pruned model -> distillation -> **record** -> report.

use std::path::Path;

use artifact::Document;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{LossConfig, TrainerConfig};

/// What a run was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Name of the plan, where the student was named by one or carries one.
    pub plan: Option<String>,
    /// Fingerprint of the teacher.
    pub teacher: String,
    /// Parameters of the student.
    pub params: u64,
    /// The settings, with what the command line changed: its tables `losses` and `trainer` are [`Record::losses`] and
    /// [`Record::trainer`].
    pub config: Map<String, Value>,
}

impl Document for Record {
    const FORMAT: &'static str = "laptop-diff/distill";
    const VERSION: u32 = 1;
    const HINT: &'static str = "let `distill` write it again";
}

impl Record {
    /// The file's name in the run's folder.
    pub const FILE: &'static str = "distill.json";

    /// Reads the record of the run in the folder `dir`.
    ///
    /// # Errors
    /// Those of [`Document::read`]; [`artifact::Error::Format`] where the settings lack the loss or the loop.
    pub fn read_in(dir: &Path) -> artifact::Result<Self> {
        let path = dir.join(Self::FILE);
        let record = Self::read(&path)?;
        let bad = |e: serde_json::Error| artifact::Error::Format { path, problem: e.to_string(), hint: Self::HINT.into() };
        match (record.losses(), record.trainer()) {
            (Ok(_), Ok(_)) => Ok(record),
            (Err(e), _) | (_, Err(e)) => Err(bad(e)),
        }
    }

    /// Settings of the loss.
    ///
    /// # Errors
    /// When `config` holds none.
    pub fn losses(&self) -> serde_json::Result<LossConfig> {
        self.setting("losses")
    }

    /// Settings of the loop.
    ///
    /// # Errors
    /// When `config` holds none.
    pub fn trainer(&self) -> serde_json::Result<TrainerConfig> {
        self.setting("trainer")
    }

    fn setting<T: serde::de::DeserializeOwned>(&self, key: &str) -> serde_json::Result<T> {
        serde_json::from_value(self.config.get(key).cloned().unwrap_or(Value::Null))
    }
}
