//! What a finished distillation leaves: the trained student, its adapters, and the record.

use std::collections::BTreeMap;

use artifact::Document;
use serde_json::Value;
use unet::weights::Tensors;

use super::student::with_weights;
use super::{Session, json};
use crate::error::Result;
use crate::lora::Lora;
use crate::record::Record;
use crate::train::check_stored;

/// The adapters' file, under the name that diffusers looks for.
const ADAPTERS: &str = "pytorch_lora_weights.safetensors";
/// Key of the settings in the student's file.
const SETTINGS: &str = "laptop_diff.distill";

impl Session {
    /// Writes what was trained.
    pub(super) fn write(&self, averaged: Tensors, lora: Option<&Lora>) -> Result<Record> {
        let out = &self.options.out;
        let weights = match lora {
            None => averaged,
            Some(lora) => {
                lora.save(&out.join(ADAPTERS), &averaged)?;
                lora.merge(&averaged)?
            }
        };
        let kind = unet::stored_kind(&self.options.model.path)?;
        check_stored(&weights, kind)?;
        let trained = with_weights(&self.student, weights)?;
        let mut extra = BTreeMap::from([(SETTINGS.to_string(), json(&self.settings))]);
        extra.extend(self.chosen.clone());
        trained.save(out.join("unet"), Some(kind), &extra)?;
        let known = self.options.feature_losses.entry(&self.settings.losses.feature_loss)?;
        let record = Record {
            plan: Some(self.options.student.name()),
            teacher: self.teacher.clone(),
            params: trained.num_parameters(),
            feature_loss: known.words.into(),
            config: match serde_json::to_value(&self.settings) {
                Ok(Value::Object(config)) => config,
                _ => serde_json::Map::new(),
            },
        };
        record.write(&out.join(Record::FILE))?;
        Ok(record)
    }
}
