//! What the pipelines share: where the files of a run lie, and on rendered scenes its calibration sets, scores and audit.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Stage, list};

/// A model, a run's folder, and where tensors live.
pub struct RunPaths<'a> {
    pub model: PathBuf,
    pub out: &'a Path,
    pub device: &'a str,
}

/// Points from rendered scenes: those that layers are scored on, and those on which removal sets and plans are measured.
pub struct Points {
    pub samples: u64,
    pub seed: u64,
    pub held_out: u64,
    pub held_out_seed: u64,
    pub bins: u64,
}

/// Settings of scoring.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Criteria of one group share their forward passes.
    pub groups: Vec<Vec<String>>,
    pub clip_prompts: u32,
    pub clip_steps: u32,
}

/// Settings of the audit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    pub sets_per_size: u32,
    pub ratios: Vec<f64>,
    pub layers: Vec<u32>,
}

impl RunPaths<'_> {
    pub fn calibration(&self) -> PathBuf {
        self.out.join("calibration.safetensors")
    }

    pub fn held_out(&self) -> PathBuf {
        self.out.join("heldout.safetensors")
    }

    pub fn scores(&self, criterion: &str) -> PathBuf {
        self.out.join(format!("scores/{criterion}.json"))
    }

    /// A stage that reads the model and computes.
    pub fn stage(&self, name: impl Into<String>, about: impl Into<String>, seconds: f64, subcommand: &str) -> Stage {
        Stage::new(name, about, seconds, subcommand).input("--model", &self.model).set("--device", self.device)
    }

    /// Both calibration sets.
    pub fn calibrate(&self, points: Points) -> impl Iterator<Item = Stage> {
        let Points { samples, seed, held_out, held_out_seed, bins } = points;
        let sets = [("calibrate", self.calibration(), samples, seed), ("calibrate-heldout", self.held_out(), held_out, held_out_seed)];
        sets.into_iter().map(move |(name, path, points, seed)| {
            self.stage(name, format!("makes {points} calibration points"), 4.0, "calibrate")
                .set("--scenes", points)
                .set("--bins", bins)
                .set("--seed", seed)
                .output("--out", path)
        })
    }

    /// The scores, one stage for each group of criteria.
    pub fn score(&self, score: &Score, seed: u64) -> impl Iterator<Item = Stage> {
        score.groups.iter().map(move |group| {
            let mut stage = self
                .stage(format!("score-{}", group[0]), format!("scores every layer by {}", group.join(", ")), 60.0, "score")
                .input("--calibration", self.calibration())
                .set("--criterion", list(group))
                .set("--seed", seed)
                .set("--out", self.out.join("scores").display());
            if group.iter().any(|criterion| criterion == "clip_score") {
                stage = stage.set("--prompts", score.clip_prompts).set("--num-inference-steps", score.clip_steps);
            }
            group.iter().fold(stage, |stage, criterion| stage.writes(self.scores(criterion)))
        })
    }

    /// The additivity of every criterion.
    pub fn audit(&self, audit: &Audit, score: &Score, seed: u64) -> Stage {
        let stage = self
            .stage("audit", "measures the additivity of every criterion", 60.0, "audit")
            .input("--calibration", self.held_out())
            .set("--sets-per-size", audit.sets_per_size)
            .set("--ratios", list(&audit.ratios))
            .set("--layers", list(&audit.layers))
            .set("--seed", seed);
        let criteria = score.groups.iter().flatten();
        criteria
            .fold(stage, |stage, criterion| stage.input("--scores", self.scores(criterion)))
            .output("--out", self.out.join("audit.json"))
    }
}
