//! `cargo xtask reproduce-tiny`: the main job on the embedded model, as a list of stages.
//!
//! This is the whole data flow in one place: weights -> scores -> plan -> pruned model -> distillation -> evaluation ->
//! report. Each stage is one call of `laptop-diff` that a user can make alone.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;

use crate::pipeline::{self, settings_file};
use crate::stages::{Options, Stage};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    model: PathBuf,
    seed: u64,
    ratios: Vec<f64>,
    calibration: Calibration,
    score: Score,
    audit: Audit,
    plan: Plan,
    distill: Distill,
    eval: Eval,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Calibration {
    samples: u64,
    held_out: u64,
    held_out_seed: u64,
    bins: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Score {
    groups: Vec<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Audit {
    sets: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    criterion: String,
    random_seeds: Vec<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Distill {
    ratio: f64,
    features: Vec<String>,
    /// Passed on as it stands; the subcommand knows its keys.
    train: toml::Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Eval {
    prompts: u32,
    steps: u32,
    cfg: f64,
}

/// Builds the binary, runs the stages and prints the path of the report.
pub fn run(root: &Path, options: &Options, verbose: bool) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| "runs/tiny".into());
    let settings: Settings = pipeline::settings(root, options, "configs/reproduce-tiny.toml")?;
    let train = settings_file(root, &out, "distill", &settings.distill.train)?;
    let stages = stages(&settings, &out, &options.device, &train);
    pipeline::run(root, options, "reproduce-tiny", &out, stages, verbose)?;
    println!("report: {}", out.join("report.html").display());
    Ok(())
}

fn stages(settings: &Settings, out: &Path, device: &str, train: &Path) -> Vec<Stage> {
    let files = Files { model: &settings.model, out, device, train };
    let mut stages = files.score(settings);
    let plans = files.plan(settings, &mut stages);
    files.measure(settings, &plans, &mut stages);
    let models = files.distill(settings, &plans, &mut stages);
    files.evaluate(settings, &models, &mut stages);
    stages
}

/// A plan: its name, the ratio that it was made for, its file.
struct Made {
    name: String,
    ratio: f64,
    path: PathBuf,
}

/// Where things are, for the parts of the list below, which follow the data flow.
struct Files<'a> {
    model: &'a Path,
    out: &'a Path,
    device: &'a str,
    train: &'a Path,
}

impl Files<'_> {
    fn calibration(&self) -> PathBuf {
        self.out.join("calibration.safetensors")
    }

    fn held_out(&self) -> PathBuf {
        self.out.join("held-out.safetensors")
    }

    fn scores(&self, criterion: &str) -> PathBuf {
        self.out.join(format!("scores/{criterion}.json"))
    }

    /// The table of layers, the calibration sets, the scores.
    fn score(&self, settings: &Settings) -> Vec<Stage> {
        let mut stages = vec![
            Stage::new("inspect", "the table of layers", 2.0, "inspect")
                .input("--model", self.model)
                .output("--out", self.out.join("layers.json")),
        ];
        let Calibration { samples, held_out, held_out_seed, bins } = settings.calibration;
        let sets =
            [("calibrate", self.calibration(), samples, settings.seed), ("calibrate-held-out", self.held_out(), held_out, held_out_seed)];
        for (name, path, points, seed) in sets {
            stages.push(
                Stage::new(name, format!("makes {points} calibration points"), 5.0, "calibrate")
                    .input("--model", self.model)
                    .set("--scenes", points)
                    .set("--bins", bins)
                    .set("--seed", seed)
                    .set("--device", self.device)
                    .output("--out", path),
            );
        }
        for group in &settings.score.groups {
            let mut stage =
                Stage::new(format!("score-{}", group[0]), format!("scores every layer by {}", group.join(" and ")), 60.0, "score")
                    .input("--model", self.model)
                    .input("--calibration", self.calibration())
                    .set("--criterion", group.join(","))
                    .set("--seed", settings.seed)
                    .set("--device", self.device)
                    .set("--out", self.out.join("scores").display());
            for criterion in group {
                stage = stage.writes(self.scores(criterion));
            }
            stages.push(stage);
        }
        stages
    }

    /// One plan per ratio and way to choose.
    fn plan(&self, settings: &Settings, stages: &mut Vec<Stage>) -> Vec<Made> {
        let mut plans = Vec::new();
        for &ratio in &settings.ratios {
            let mut add = |name: String, about: &str, criterion: &str, method: &str, seed: u64| {
                let path = self.out.join(format!("plans/{name}-{ratio}.json"));
                let stage = Stage::new(format!("plan-{name}-{ratio}"), format!("{about}, ratio {ratio}"), 1.0, "plan")
                    .input("--model", self.model)
                    .input("--scores", self.scores(criterion))
                    .set("--ratio", ratio)
                    .set("--method", method)
                    .set("--seed", seed);
                stages.push(stage.output("--out", &path));
                plans.push(Made { name: format!("{name}-{ratio}"), ratio, path });
            };
            for criterion in settings.score.groups.iter().flatten().filter(|criterion| *criterion != "random") {
                add(criterion.clone(), &format!("solves exactly for {criterion}"), criterion, "exact", 0);
            }
            for &seed in &settings.plan.random_seeds {
                add(format!("random{seed}"), "removes random layers", &settings.plan.criterion, "random", seed);
            }
            add("bk-sdm".to_owned(), "the hand-crafted plan", &settings.plan.criterion, "bk-sdm", 0);
        }
        plans
    }

    /// Additivity of each criterion, and the true loss of each plan.
    fn measure(&self, settings: &Settings, plans: &[Made], stages: &mut Vec<Stage>) {
        for criterion in settings.score.groups.iter().flatten() {
            stages.push(
                Stage::new(format!("audit-{criterion}"), format!("measures the additivity of {criterion}"), 30.0, "audit")
                    .input("--model", self.model)
                    .input("--calibration", self.held_out())
                    .input("--scores", self.scores(criterion))
                    .set("--sets", settings.audit.sets)
                    .set("--seed", settings.seed)
                    .set("--device", self.device)
                    .output("--out", self.out.join(format!("audit/{criterion}.json"))),
            );
        }
        let mut measure = Stage::new("measure", "measures the true loss of every plan", 30.0, "audit")
            .input("--model", self.model)
            .input("--calibration", self.held_out())
            .set("--device", self.device);
        for plan in plans {
            measure = measure.input("--plan", &plan.path);
        }
        stages.push(measure.output("--out", self.out.join("audit/plans.json")));
    }

    /// The students of the chosen ratio, pruned and retrained. Returns the name and folder of each model, the teacher first.
    fn distill(&self, settings: &Settings, plans: &[Made], stages: &mut Vec<Stage>) -> Vec<(String, PathBuf)> {
        let mut models = vec![("teacher".to_owned(), self.model.to_path_buf())];
        for plan in plans.iter().filter(|plan| plan.ratio == settings.distill.ratio) {
            let name = &plan.name;
            let pruned = self.out.join(format!("models/{name}"));
            stages.push(
                Stage::new(format!("prune-{name}"), format!("cuts the layers of {name} out"), 1.0, "prune")
                    .input("--model", self.model)
                    .input("--plan", &plan.path)
                    .output("--out", &pruned),
            );
            for features in &settings.distill.features {
                let student = self.out.join(format!("models/{name}-{features}"));
                stages.push(
                    Stage::new(format!("distill-{name}-{features}"), format!("retrains {name} with {features} features"), 120.0, "distill")
                        .input("--teacher", self.model)
                        .input("--student", &pruned)
                        .input("--config", self.train)
                        .set("--features", features)
                        .set("--seed", settings.seed)
                        .set("--device", self.device)
                        .output("--out", &student),
                );
                models.push((format!("{name}-{features}"), student));
            }
        }
        models
    }

    /// Pictures and measures of every model, and the report.
    fn evaluate(&self, settings: &Settings, models: &[(String, PathBuf)], stages: &mut Vec<Stage>) {
        let mut report = Stage::new("report", "writes report.html and results.json", 5.0, "report")
            .set("--run", self.out.display())
            .reads(self.out.join("layers.json"))
            .reads(self.out.join("audit"));
        for (name, model) in models {
            let pictures = self.out.join(format!("pictures/{name}"));
            let result = self.out.join(format!("eval/{name}.json"));
            stages.push(
                Stage::new(format!("generate-{name}"), format!("draws the prompts with {name}"), 30.0, "generate")
                    .input("--model", model)
                    .set("--scene-prompts", settings.eval.prompts)
                    .set("--steps", settings.eval.steps)
                    .set("--cfg", settings.eval.cfg)
                    .set("--seed", settings.seed)
                    .set("--device", self.device)
                    .output("--out", &pictures),
            );
            stages.push(
                Stage::new(format!("eval-{name}"), format!("measures the pictures of {name}"), 10.0, "eval")
                    .input("--model", model)
                    .input("--pictures", &pictures)
                    .set("--device", self.device)
                    .output("--out", &result),
            );
            report = report.reads(result);
        }
        stages.push(report.output("--out", self.out.join("report.html")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc;

    #[test]
    fn the_committed_settings_make_a_pipeline_without_gaps() {
        let root = proc::root();
        let text = std::fs::read_to_string(root.join("configs/reproduce-tiny.toml")).unwrap();
        let settings: Settings = toml::from_str(&text).unwrap();
        let stages = stages(&settings, Path::new("runs/tiny"), "cpu", Path::new("configs/reproduce-tiny.toml"));
        pipeline::check_wiring(&stages, &[&settings.model, Path::new("configs")]);
    }
}
