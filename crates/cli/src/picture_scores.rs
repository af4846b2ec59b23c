//! `picture_scores.json`: the score of every picture, kept so that an evaluation goes on where it stopped and adds students or
//! metrics without computing the others again. Evaluation -> evaluation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::common::read_versioned;

/// The scores of one U-Net's pictures by one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Hash of the metric's weights.
    pub weights_sha256: String,
    /// Hash of the pictures; for a likeness to the teacher, of the teacher's pictures after it.
    pub pictures_sha256: String,
    /// One value per picture, in the folder's order.
    pub values: Vec<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    version: u32,
    /// U-Net -> metric -> scores.
    unets: BTreeMap<String, BTreeMap<String, Scores>>,
}

const FORMAT: &str = "laptop-diff/picture-scores";
const VERSION: u32 = 1;

/// The file, and what it holds.
pub struct PictureScores {
    path: PathBuf,
    file: File,
}

impl PictureScores {
    /// Opens `path`, or starts it.
    ///
    /// # Errors
    /// [`crate::common::BadFile`] when it is damaged or of another format.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = match path.is_file() {
            true => read_versioned(path, FORMAT, VERSION, "remove it; `eval` computes the scores again")?,
            false => File { format: FORMAT.into(), version: VERSION, unets: BTreeMap::new() },
        };
        Ok(Self { path: path.into(), file })
    }

    /// The kept scores of `unet` by `metric`, where weights and pictures are still the same; else those of `compute`, which are
    /// written at once.
    ///
    /// # Errors
    /// Those of `compute`, or when the file cannot be written.
    pub fn get(
        &mut self,
        unet: &str,
        metric: &str,
        weights_sha256: &str,
        pictures_sha256: &str,
        compute: impl FnOnce() -> anyhow::Result<Vec<f64>>,
    ) -> anyhow::Result<Vec<f64>> {
        let kept = self.file.unets.get(unet).and_then(|m| m.get(metric));
        if let Some(kept) = kept.filter(|s| s.weights_sha256 == weights_sha256 && s.pictures_sha256 == pictures_sha256) {
            return Ok(kept.values.clone());
        }
        let values = compute()?;
        let scores = Scores { weights_sha256: weights_sha256.into(), pictures_sha256: pictures_sha256.into(), values: values.clone() };
        self.file.unets.entry(unet.into()).or_default().insert(metric.into(), scores);
        prune_core::write_json_atomically(&self.path, &self.file)?;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_kept_until_weights_or_pictures_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("picture_scores.json");
        let get = |weights: &str, pictures: &str, value: f64| {
            PictureScores::open(&path).unwrap().get("student", "pickscore", weights, pictures, || Ok(vec![value])).unwrap()[0]
        };
        assert_eq!(get("w", "p", 0.1 + 0.2), 0.1 + 0.2);
        assert_eq!(get("w", "p", 2.0), 0.1 + 0.2);
        assert_eq!(get("w", "q", 3.0), 3.0);
        assert_eq!(get("v", "q", 4.0), 4.0);
        std::fs::write(&path, "{").unwrap();
        assert!(PictureScores::open(&path).err().unwrap().to_string().contains("picture_scores.json"));
    }
}
