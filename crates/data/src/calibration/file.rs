//! The calibration set's file: one safetensors file whose metadata says what the set is.

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::PredictionType;
use unet::weights::{TensorFile, Tensors, save_tensors};
use unet::{AddedConditioning, Conditioning};

use super::{CalibrationSet, CalibrationSource};
use crate::error::{Error, Result};

const FORMAT: &str = "laptop-diff calibration set";
const VERSION: &str = "1";

impl CalibrationSet {
    /// Writes one safetensors file, whole or not at all; the same set gives the same bytes.
    ///
    /// # Errors
    /// [`Error::Unet`] with the file's name when it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut tensors = Tensors::from([
            ("x_t".to_string(), self.x_t.shallow_clone()),
            ("timesteps".to_string(), self.timesteps.shallow_clone()),
            ("bins".to_string(), self.bins.shallow_clone()),
            ("encoder_hidden_states".to_string(), self.cond.encoder_hidden_states.shallow_clone()),
        ]);
        if let Some(a) = &self.cond.added {
            tensors.insert("text_embeds".into(), a.text_embeds.shallow_clone());
            tensors.insert("time_ids".into(), a.time_ids.shallow_clone());
        }
        if let Some(t) = &self.cond.guidance {
            tensors.insert("guidance".into(), t.shallow_clone());
        }
        if let Some(t) = &self.target {
            tensors.insert("target".into(), t.shallow_clone());
        }
        let metadata = BTreeMap::from(
            [
                ("format", FORMAT.to_string()),
                ("version", VERSION.to_string()),
                ("seed", self.seed.to_string()),
                ("source", self.source.name().to_string()),
                ("source_hash", self.source_hash.clone()),
                ("prediction_type", self.prediction_type.name().to_string()),
                ("num_bins", self.num_bins.to_string()),
                ("prompts", serde_json::to_string(&self.prompts).expect("strings are JSON")),
            ]
            .map(|(k, v)| (k.to_string(), v)),
        );
        Ok(save_tensors(path, &tensors, &metadata, None)?)
    }

    /// Opens a file that [`CalibrationSet::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Unet`] when it is no intact safetensors file; [`Error::Format`] when it is no calibration set, of another
    /// version, or its parts do not fit each other.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bad = |problem: String| Error::Format { path: path.into(), problem, hint: "make the calibration set again".into() };
        let file = TensorFile::open(path)?;
        let text =
            |key: &str| file.metadata().get(key).cloned().ok_or_else(|| bad(format!("not a calibration set: no `{key}` in its metadata")));
        let number = |key: &str| text(key)?.parse::<u64>().map_err(|_| bad(format!("`{key}` in its metadata is no number")));
        if text("format")? != FORMAT {
            return Err(bad(format!("not a calibration set but `{}`", text("format")?)));
        }
        if text("version")? != VERSION {
            return Err(bad(format!("version {} of the format; this program knows {VERSION}", text("version")?)));
        }
        let tensor = |key: &str| file.tensor(key)?.ok_or_else(|| bad(format!("tensor `{key}` is missing")));
        let prediction = text("prediction_type")?;
        let source = text("source")?;
        let added = match file.tensor("text_embeds")? {
            Some(text_embeds) => Some(AddedConditioning { text_embeds, time_ids: tensor("time_ids")? }),
            None => None,
        };
        let set = Self {
            x_t: tensor("x_t")?,
            timesteps: tensor("timesteps")?,
            cond: Conditioning { encoder_hidden_states: tensor("encoder_hidden_states")?, added, guidance: file.tensor("guidance")? },
            target: file.tensor("target")?,
            bins: tensor("bins")?,
            num_bins: number("num_bins")? as usize,
            prompts: serde_json::from_str(&text("prompts")?).map_err(|e| bad(format!("bad list of prompts ({e})")))?,
            prediction_type: PredictionType::from_name(&prediction)
                .ok_or_else(|| bad(format!("unknown prediction type `{prediction}`")))?,
            source: [CalibrationSource::Latents, CalibrationSource::Trajectories]
                .into_iter()
                .find(|s| s.name() == source)
                .ok_or_else(|| bad(format!("unknown source `{source}`")))?,
            source_hash: text("source_hash")?,
            seed: number("seed")?,
        };
        let n = set.prompts.len() as i64;
        let mut all = vec![&set.x_t, &set.timesteps, &set.bins, &set.cond.encoder_hidden_states];
        all.extend(set.cond.added.iter().flat_map(|a| [&a.text_embeds, &a.time_ids]));
        all.extend(set.cond.guidance.iter().chain(&set.target));
        if n == 0 || all.iter().any(|t| t.size().first() != Some(&n)) {
            return Err(bad(format!("not every tensor has {n} rows, one per prompt")));
        }
        // Networks for inpainting take more channels than they predict.
        let sides = |t: &tch::Tensor| t.size().split_off(2.min(t.dim()));
        if set.target.as_ref().is_some_and(|t| t.dim() != set.x_t.dim() || sides(t) != sides(&set.x_t)) {
            return Err(bad("`target` and `x_t` differ in height or width".into()));
        }
        Ok(set)
    }
}
