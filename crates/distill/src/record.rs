//! `distill.json`: what a training run was, beside the student's weights. Pruned model -> distillation -> **record** -> report.

use std::path::Path;

use artifact::Document;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{FeatureLosses, LossConfig, TrainerConfig};

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
    /// The feature loss in words, for labels.
    pub feature_loss: String,
    /// The settings, with what the command line changed: its tables `losses` and `trainer` are [`Record::losses`] and
    /// [`Record::trainer`].
    pub config: Map<String, Value>,
}

/// Table of the settings (the first one: the settings themselves), and its keys' names in version 1 and now.
const RENAMED_SINCE_1: [(&str, &[(&str, &str)]); 5] = [
    ("", &[("local", "layerwise")]),
    ("losses", &[("task", "task_weight"), ("out", "output_weight"), ("feat", "feature_weight"), ("features", "feature_loss")]),
    ("trainer", &[("schedule", "lr_schedule")]),
    ("layerwise", &[("schedule", "lr_schedule")]),
    ("validation", &[("cfg", "guidance_scale")]),
];

impl Document for Record {
    const FORMAT: &'static str = "laptop-diff/distill";
    const VERSION: u32 = 2;
    const HINT: &'static str = "let `distill` write it again";

    fn upgrade(version: u32, mut keys: Map<String, Value>) -> Option<Map<String, Value>> {
        let config = keys.get_mut("config").filter(|_| version == 1)?.as_object_mut()?;
        for (table, renamed) in RENAMED_SINCE_1 {
            let table = if table.is_empty() { Some(&mut *config) } else { config.get_mut(table).and_then(Value::as_object_mut) };
            let Some(table) = table else { continue };
            for (old, new) in renamed {
                if let Some(value) = table.remove(*old) {
                    table.insert((*new).into(), value);
                }
            }
        }
        let name = config.get("losses")?.get("feature_loss")?.as_str()?;
        let words = FeatureLosses::builtin().entry(name).ok()?.words;
        keys.insert("feature_loss".into(), words.into());
        Some(keys)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_version_1_is_read_by_the_names_of_today() {
        let trainer = r#"{"steps": 4, "batch": 2, "lr": 0.1, "warmup": 1, "schedule": "cosine", "lr_end_ratio": 0.5, "beta1": 0.9,
            "beta2": 0.99, "weight_decay": 0.0, "clip_norm": 1.0, "ema_decay": 0.0, "seed": 3, "compute": "f32", "log_every": 2,
            "checkpoint_every": 2}"#;
        let old = format!(
            r#"{{"format": "laptop-diff/distill", "version": 1, "plan": "a", "teacher": "t", "params": 7, "config": {{
            "losses": {{"task": 1.0, "out": 2.0, "feat": 3.0, "features": "masked", "norm_power": 2, "norm_scope": "batch"}},
            "trainer": {trainer}, "local": {trainer}, "validation": {{"every": 2, "cfg": 7.5}}}}}}"#
        );
        let record = Record::parse(old.as_bytes(), Path::new("distill.json")).unwrap();
        let losses = record.losses().unwrap();
        assert_eq!((losses.task_weight, losses.output_weight, losses.feature_weight), (1.0, 2.0, 3.0));
        assert_eq!((losses.feature_loss.as_str(), record.feature_loss.as_str()), ("masked", "masked features"));
        assert_eq!(record.trainer().unwrap().seed, 3);
        assert_eq!(record.config["layerwise"]["lr_schedule"], "cosine");
        assert_eq!(record.config["validation"]["guidance_scale"], 7.5);
        let again = record.to_text(Path::new("distill.json")).unwrap();
        assert_eq!(Record::parse(again.as_bytes(), Path::new("distill.json")).unwrap(), record);
    }
}
