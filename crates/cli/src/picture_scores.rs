//! `picture_scores.json`: the score of every picture, kept so that an evaluation goes on where it stopped and adds students,
//! prompts or metrics without computing the others again. Evaluation -> evaluation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::common::{Interrupted, read_versioned, stopped};

/// The scores of one U-Net's pictures by one metric.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Hash of the metric's weights.
    pub weights_sha256: String,
    /// What each value is of: a hash of the picture's file and its prompt; for a likeness to the teacher, of its picture too.
    pub pictures: Vec<String>,
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
const VERSION: u32 = 2;
/// So long at most a score is only in memory: the whole file is written each time.
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// The file, and what it holds.
pub struct PictureScores {
    path: PathBuf,
    file: File,
}

/// Whose scores, by which network, of which pictures.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The U-Net.
    pub unet: &'a str,
    /// The metric.
    pub metric: &'a str,
    /// Hash of the metric's weights.
    pub weights_sha256: &'a str,
    /// See [`Scores::pictures`].
    pub pictures: &'a [String],
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

    /// The kept score of every picture where weights and picture are still the same; `compute` gives those of the others, which
    /// it is asked for by their places, at most `batch` at a time. What was computed is written before an error or a stop ends it.
    ///
    /// Batches are cut from all pictures alike, whatever is kept, so that a run that goes on passes the same pictures through
    /// the network together: the numbers are then the same to the last bit.
    ///
    /// # Errors
    /// Those of `compute`, [`Interrupted`] when `stop` is up, or when the file cannot be written.
    pub fn get(
        &mut self,
        wanted: Wanted,
        batch: usize,
        stop: &AtomicBool,
        mut compute: impl FnMut(&[usize]) -> anyhow::Result<Vec<f64>>,
    ) -> anyhow::Result<Vec<f64>> {
        let n = wanted.pictures.len();
        let own = self.file.unets.get(wanted.unet).and_then(|m| m.get(wanted.metric)).filter(|s| s.weights_sha256 == wanted.weights_sha256);
        let kept: BTreeMap<&str, f64> =
            own.into_iter().flat_map(|s| s.pictures.iter().map(String::as_str).zip(s.values.iter().copied())).collect();
        let mut values: Vec<Option<f64>> = wanted.pictures.iter().map(|key| kept.get(key.as_str()).copied()).collect();
        let missing = values.iter().filter(|v| v.is_none()).count();
        if missing == 0 {
            return Ok(values.into_iter().flatten().collect());
        }
        let (start, mut written) = (Instant::now(), Instant::now());
        for first in (0..n).step_by(batch.max(1)) {
            let places: Vec<usize> = (first..(first + batch.max(1)).min(n)).filter(|&i| values[i].is_none()).collect();
            if places.is_empty() {
                continue;
            }
            let interrupted = stopped(stop).then(|| Interrupted("stopped; run the same command to go on".into()).into());
            let computed = interrupted.map_or_else(|| compute(&places), Err);
            match computed {
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
        self.keep(wanted, &values)?;
        // tests/speed/compare_scorers.py reads this.
        tracing::info!(
            "{missing} of {n} pictures of {} scored by {} in {:.4} s",
            wanted.unet,
            wanted.metric,
            start.elapsed().as_secs_f64()
        );
        Ok(values.into_iter().flatten().collect())
    }

    fn keep(&mut self, wanted: Wanted, values: &[Option<f64>]) -> anyhow::Result<()> {
        let known = wanted.pictures.iter().zip(values).filter_map(|(key, value)| Some((key.clone(), (*value)?)));
        let (pictures, values) = known.unzip();
        let scores = Scores { weights_sha256: wanted.weights_sha256.into(), pictures, values };
        self.file.unets.entry(wanted.unet.into()).or_default().insert(wanted.metric.into(), scores);
        Ok(prune_core::file::write_json(&self.path, &self.file)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static RUNS: AtomicBool = AtomicBool::new(false);

    /// Asks a freshly opened file for the scores of `pictures`, two at a time; a score is the place of its picture plus `value`.
    fn get(path: &Path, weights: &str, pictures: &[&str], value: f64, asked: &mut Vec<usize>) -> anyhow::Result<Vec<f64>> {
        let pictures: Vec<String> = pictures.iter().map(ToString::to_string).collect();
        let wanted = Wanted { unet: "student", metric: "pickscore", weights_sha256: weights, pictures: &pictures };
        PictureScores::open(path).unwrap().get(wanted, 2, &RUNS, |places| {
            asked.extend(places);
            anyhow::ensure!(places[0] < 4, "a picture too many");
            Ok(places.iter().map(|&i| value + i as f64).collect())
        })
    }

    #[test]
    fn each_score_is_kept_until_its_weights_or_its_picture_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("picture_scores.json");
        let mut asked = Vec::new();
        assert_eq!(get(&path, "w", &["a", "b", "c"], 0.1, &mut asked).unwrap(), [0.1, 1.1, 2.1]);
        assert_eq!(get(&path, "w", &["a", "b", "c"], 5.0, &mut asked).unwrap(), [0.1, 1.1, 2.1]);
        assert_eq!(asked, [0, 1, 2]);
        // One changed, one new; the order of the folder counts.
        assert_eq!(get(&path, "w", &["c", "x", "a", "y"], 5.0, &mut asked).unwrap(), [2.1, 6.0, 0.1, 8.0]);
        assert_eq!(asked[3..], [1, 3]);
        assert_eq!(get(&path, "v", &["a"], 7.0, &mut asked).unwrap(), [7.0]);
        std::fs::write(&path, "{").unwrap();
        assert!(PictureScores::open(&path).err().unwrap().to_string().contains("picture_scores.json"));
    }

    #[test]
    fn what_was_scored_before_an_error_or_a_stop_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("picture_scores.json");
        let (mut asked, all) = (Vec::new(), ["a", "b", "c", "d", "e"]);
        assert!(get(&path, "w", &all, 0.5, &mut asked).unwrap_err().to_string().contains("too many"));
        asked.clear();
        assert_eq!(get(&path, "w", &all[..4], 9.0, &mut asked).unwrap(), [0.5, 1.5, 2.5, 3.5]);
        assert!(asked.is_empty());
        let pictures = all.map(String::from);
        let wanted = Wanted { unet: "student", metric: "pickscore", weights_sha256: "w", pictures: &pictures };
        let stop = AtomicBool::new(true);
        let stopped = PictureScores::open(&path).unwrap().get(wanted, 2, &stop, |_| unreachable!("it is stopped")).unwrap_err();
        assert!(stopped.is::<Interrupted>(), "{stopped}");
    }
}
