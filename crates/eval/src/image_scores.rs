//! `image_scores.json`: the score of every image, kept so that an evaluation goes on where it stopped and adds students, prompts or
//! metrics without computing the others again. Evaluation -> evaluation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use artifact::Document;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The scores of one U-Net's images by one metric.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scores {
    /// Hash of the metric's weights.
    weights_sha256: String,
    /// What the metric's network computed in; empty where that is not known.
    #[serde(default)]
    computed_in: String,
    /// What each value is of: a hash of the image's file and its prompt; for a likeness to the teacher, of its image too.
    images: Vec<String>,
    /// One value per image, in the folder's order.
    values: Vec<f64>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// U-Net -> metric -> scores.
    unets: BTreeMap<String, BTreeMap<String, Scores>>,
}

/// The file's format and name when images were called pictures.
const OLD_FORMAT: &str = "laptop-diff/picture-scores";
const OLD_NAME: &str = "picture_scores.json";

impl Document for File {
    const FORMAT: &'static str = "laptop-diff/image-scores";
    const VERSION: u32 = 4;
    const HINT: &'static str = "remove it; `eval` computes the scores again";

    fn upgrade(version: u32, mut keys: Map<String, Value>) -> Option<Map<String, Value>> {
        // Version 3 did not know what was computed in.
        if version != 2 {
            return (version == 3).then_some(keys);
        }
        for metrics in keys.get_mut("unets")?.as_object_mut()?.values_mut() {
            for scores in metrics.as_object_mut()?.values_mut().filter_map(Value::as_object_mut) {
                let images = scores.remove("pictures")?;
                scores.insert("images".into(), images);
            }
        }
        Some(keys)
    }
}

/// So long at most a score is only in memory: the whole file is written each time.
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// Scores of images, by U-Net and metric, with the file that keeps them.
pub struct ImageScores {
    path: Option<PathBuf>,
    file: File,
}

/// Whose scores, by which network, of which images.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// The U-Net.
    pub unet: &'a str,
    /// The metric.
    pub metric: &'a str,
    /// Hash of the metric's weights; without one nothing is kept.
    pub weights_sha256: Option<&'a str>,
    /// What the metric's network computes in.
    pub computed_in: &'a str,
    /// See [`Scores::images`].
    pub images: &'a [String],
}

impl ImageScores {
    /// Nothing is kept.
    pub fn in_memory() -> Self {
        Self { path: None, file: File::default() }
    }

    /// Opens `path`, or starts it; where it is not there, the scores of an earlier version's `picture_scores.json` beside it count.
    ///
    /// # Errors
    /// [`Error::Artifact`] when it is damaged or of another format.
    pub fn open(path: &Path) -> Result<Self> {
        let old = path.with_file_name(OLD_NAME);
        let file = [path, &old].into_iter().find(|p| p.is_file()).map_or(Ok(File::default()), read)?;
        Ok(Self { path: Some(path.into()), file })
    }

    /// The kept score of every image where weights, number type and image are still the same; `compute` gives those of the others, which it is asked
    /// for by their positions, at most `batch` at a time. What was computed is written before an error ends it.
    ///
    /// Batches are cut from all images alike, whatever is kept, so that a run that goes on passes the same images through the network
    /// together: the numbers are then the same to the last bit.
    ///
    /// # Errors
    /// Those of `compute`, or when the file cannot be written.
    pub(crate) fn get<E: From<Error>>(
        &mut self,
        wanted: Wanted,
        batch: usize,
        mut compute: impl FnMut(&[usize]) -> std::result::Result<Vec<f64>, E>,
    ) -> std::result::Result<Vec<f64>, E> {
        let n = wanted.images.len();
        let mut values = self.kept(wanted);
        let missing = values.iter().filter(|v| v.is_none()).count();
        let (start, mut written) = (Instant::now(), Instant::now());
        for first in (0..n).step_by(batch.max(1)) {
            let places: Vec<usize> = (first..(first + batch.max(1)).min(n)).filter(|&i| values[i].is_none()).collect();
            if places.is_empty() {
                continue;
            }
            match compute(&places).and_then(|new| Ok(all_finite(wanted, &places, new)?)) {
                Ok(new) => places.iter().zip(new).for_each(|(&i, value)| values[i] = Some(value)),
                Err(error) => {
                    self.keep(wanted, &values)?;
                    return Err(error);
                }
            }
            if written.elapsed() > WRITE_EVERY {
                self.keep(wanted, &values)?;
                written = Instant::now();
            }
        }
        if missing > 0 {
            self.keep(wanted, &values)?;
            let seconds = start.elapsed().as_secs_f64();
            // tests/speed/compare_scorers.py reads this.
            tracing::info!("{missing} of {n} images of {} scored by {} in {seconds:.4} s", wanted.unet, wanted.metric);
        }
        let all: Vec<f64> = values.into_iter().flatten().collect();
        if all.len() != n {
            return Err(Error::input(wanted.metric, format!("{n} scores, one per image"), all.len().to_string()).into());
        }
        Ok(all)
    }

    fn kept(&self, wanted: Wanted) -> Vec<Option<f64>> {
        let own = self.file.unets.get(wanted.unet).and_then(|metrics| metrics.get(wanted.metric));
        let own = own.filter(|s| Some(s.weights_sha256.as_str()) == wanted.weights_sha256 && s.computed_in == wanted.computed_in);
        let known: BTreeMap<&str, f64> =
            own.into_iter().flat_map(|s| s.images.iter().map(String::as_str).zip(s.values.iter().copied())).collect();
        wanted.images.iter().map(|key| known.get(key.as_str()).copied()).collect()
    }

    fn keep(&mut self, wanted: Wanted, values: &[Option<f64>]) -> Result<()> {
        let (Some(path), Some(weights)) = (&self.path, wanted.weights_sha256) else { return Ok(()) };
        let known = wanted.images.iter().zip(values).filter_map(|(key, value)| Some((key.clone(), (*value)?)));
        let (images, values) = known.unzip();
        let scores = Scores { weights_sha256: weights.into(), computed_in: wanted.computed_in.into(), images, values };
        self.file.unets.entry(wanted.unet.into()).or_default().insert(wanted.metric.into(), scores);
        Ok(self.file.write(path)?)
    }
}

/// Refuses a score that is NaN or infinite: its means say nothing.
fn all_finite(wanted: Wanted, places: &[usize], scores: Vec<f64>) -> Result<Vec<f64>> {
    match places.iter().zip(&scores).find(|(_, score)| !score.is_finite()) {
        None => Ok(scores),
        Some((place, _)) => Err(Error::NotFinite {
            what: format!("{} of image {place} of {}", wanted.metric, wanted.unet),
            hint: "look at that image and at the metric's weights; --compute f32 has the widest range".into(),
        }),
    }
}

/// Reads the file under its new or old name of format.
fn read(path: &Path) -> Result<File> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let renamed = serde_json::from_slice::<Value>(&bytes).ok().filter(|json| json.get("format").is_some_and(|f| f == OLD_FORMAT));
    Ok(match renamed {
        Some(mut json) => {
            json["format"] = File::FORMAT.into();
            File::parse(json.to_string().as_bytes(), path)?
        }
        None => File::parse(&bytes, path)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks a freshly opened file for the scores of `images`, two at a time; a score is the position of its image plus `value`.
    fn get(path: &Path, weights: &str, images: &[&str], value: f64, asked: &mut Vec<usize>) -> Result<Vec<f64>> {
        get_in(path, weights, "", images, value, asked)
    }

    fn get_in(path: &Path, weights: &str, computed_in: &str, images: &[&str], value: f64, asked: &mut Vec<usize>) -> Result<Vec<f64>> {
        let images: Vec<String> = images.iter().map(ToString::to_string).collect();
        let wanted = Wanted { unet: "student", metric: "pickscore", weights_sha256: Some(weights), computed_in, images: &images };
        ImageScores::open(path).unwrap().get(wanted, 2, |places| {
            asked.extend(places);
            if places[0] >= 4 {
                return Err(Error::input("images", "4", "an image too many"));
            }
            Ok(places.iter().map(|&i| value + i as f64).collect())
        })
    }

    #[test]
    fn each_score_is_kept_until_its_weights_or_its_image_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image_scores.json");
        let mut asked = Vec::new();
        assert_eq!(get(&path, "w", &["a", "b", "c"], 0.1, &mut asked).unwrap(), [0.1, 1.1, 2.1]);
        assert_eq!(get(&path, "w", &["a", "b", "c"], 5.0, &mut asked).unwrap(), [0.1, 1.1, 2.1]);
        assert_eq!(asked, [0, 1, 2]);
        // One changed, one new; the order of the folder counts.
        assert_eq!(get(&path, "w", &["c", "x", "a", "y"], 5.0, &mut asked).unwrap(), [2.1, 6.0, 0.1, 8.0]);
        assert_eq!(asked[3..], [1, 3]);
        assert_eq!(get(&path, "v", &["a"], 7.0, &mut asked).unwrap(), [7.0]);
        std::fs::write(&path, "{").unwrap();
        assert!(ImageScores::open(&path).err().unwrap().to_string().contains("image_scores.json"));
    }

    #[test]
    fn a_score_counts_for_the_number_type_that_it_was_computed_in() {
        let dir = tempfile::tempdir().unwrap();
        let old = r#"{"format": "laptop-diff/image-scores", "version": 3, "unets": {"student": {"pickscore":
            {"weights_sha256": "w", "images": ["a", "b"], "values": [0.25, 4.0]}}}}"#;
        let path = dir.path().join("image_scores.json");
        std::fs::write(&path, old).unwrap();
        let mut asked = Vec::new();
        assert_eq!(get_in(&path, "w", "f16 on cuda", &["a", "b"], 1.0, &mut asked).unwrap(), [1.0, 2.0], "of the old ones it is not known");
        assert_eq!(get_in(&path, "w", "f16 on cuda", &["a", "b"], 5.0, &mut asked).unwrap(), [1.0, 2.0]);
        assert_eq!(get_in(&path, "w", "f32", &["a", "b"], 7.0, &mut asked).unwrap(), [7.0, 8.0]);
        assert_eq!(asked, [0, 1, 0, 1]);
    }

    #[test]
    fn a_score_that_is_no_number_is_an_error_and_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut asked) = (dir.path().join("image_scores.json"), Vec::new());
        let error = get(&path, "w", &["a", "b"], f64::NAN, &mut asked).unwrap_err();
        assert!(matches!(&error, Error::NotFinite { what, .. } if what == "pickscore of image 0 of student"), "{error}");
        assert_eq!(get(&path, "w", &["a", "b"], 0.5, &mut asked).unwrap(), [0.5, 1.5]);
    }

    #[test]
    fn what_was_scored_before_an_error_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image_scores.json");
        let (mut asked, all) = (Vec::new(), ["a", "b", "c", "d", "e"]);
        assert!(get(&path, "w", &all, 0.5, &mut asked).unwrap_err().to_string().contains("too many"));
        asked.clear();
        assert_eq!(get(&path, "w", &all[..4], 9.0, &mut asked).unwrap(), [0.5, 1.5, 2.5, 3.5]);
        assert!(asked.is_empty());
    }

    #[test]
    fn the_scores_of_an_earlier_version_count() {
        let dir = tempfile::tempdir().unwrap();
        let old = r#"{"format": "laptop-diff/picture-scores", "version": 2, "unets": {"student": {"pickscore":
            {"weights_sha256": "w", "pictures": ["a", "b"], "values": [0.25, 4.0]}}}}"#;
        std::fs::write(dir.path().join("picture_scores.json"), old).unwrap();
        let (path, mut asked) = (dir.path().join("image_scores.json"), Vec::new());
        assert_eq!(get(&path, "w", &["a", "b", "c"], 1.0, &mut asked).unwrap(), [0.25, 4.0, 3.0]);
        assert_eq!(asked, [2]);
        assert!(path.is_file());
    }
}
