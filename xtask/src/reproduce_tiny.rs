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
    score: Score,
    audit: Audit,
    plan: Plan,
    distill: Distill,
    eval: Eval,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Score {
    criteria: Vec<String>,
    samples: u32,
    timestep_bins: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Audit {
    sets_per_size: u32,
    samples: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    random_seeds: Vec<u64>,
    hand_crafted: String,
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
    guidance: f64,
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
    let model = &settings.model;
    let seed = settings.seed;
    let scores = |criterion: &str| out.join(format!("scores/{criterion}.json"));
    let mut stages =
        vec![Stage::new("inspect", "the table of layers", 2.0, "inspect").input("--model", model).output("--out", out.join("layers.json"))];

    for criterion in &settings.score.criteria {
        stages.push(
            Stage::new(format!("score-{criterion}"), format!("scores every layer with {criterion}"), 60.0, "score")
                .input("--model", model)
                .set("--criterion", criterion)
                .set("--samples", settings.score.samples)
                .set("--timestep-bins", settings.score.timestep_bins)
                .set("--seed", seed)
                .set("--device", device)
                .output("--out", scores(criterion)),
        );
    }
    for criterion in &settings.score.criteria {
        stages.push(
            Stage::new(format!("audit-{criterion}"), format!("measures the additivity of {criterion}"), 30.0, "audit")
                .input("--model", model)
                .input("--scores", scores(criterion))
                .set("--sets", settings.audit.sets_per_size)
                .set("--samples", settings.audit.samples)
                .set("--seed", seed)
                .set("--device", device)
                .output("--out", out.join(format!("audit/{criterion}.json"))),
        );
    }

    let mut plans = Vec::new();
    for ratio in &settings.ratios {
        let mut add = |name: String, stage: Stage| {
            let path = out.join(format!("plans/{name}.json"));
            plans.push((name, *ratio, path.clone()));
            stages.push(stage.input("--model", model).set("--ratio", ratio).output("--out", path));
        };
        for criterion in settings.score.criteria.iter().filter(|criterion| *criterion != "random") {
            let name = format!("{criterion}-{ratio}");
            let stage = Stage::new(format!("plan-{name}"), format!("solves for ratio {ratio} by {criterion}"), 1.0, "plan");
            add(name, stage.input("--scores", scores(criterion)));
        }
        for random_seed in &settings.plan.random_seeds {
            let name = format!("random{random_seed}-{ratio}");
            let stage = Stage::new(format!("plan-{name}"), format!("removes random layers to ratio {ratio}"), 1.0, "plan");
            add(name, stage.set("--random", random_seed));
        }
        let name = format!("{}-{ratio}", settings.plan.hand_crafted);
        let stage = Stage::new(format!("plan-{name}"), format!("the hand-crafted plan for ratio {ratio}"), 1.0, "plan");
        add(name, stage.set("--builtin", &settings.plan.hand_crafted));
    }

    let mut measure = Stage::new("measure", "measures the true loss of every plan", 30.0, "audit")
        .input("--model", model)
        .set("--samples", settings.audit.samples)
        .set("--seed", seed)
        .set("--device", device);
    for (_, _, path) in &plans {
        measure = measure.input("--plan", path);
    }
    stages.push(measure.output("--out", out.join("audit/plans.json")));

    let chosen = settings.distill.ratio;
    let mut models = vec![("teacher".to_owned(), model.clone())];
    for (name, _, plan) in plans.iter().filter(|(_, ratio, _)| *ratio == chosen) {
        let pruned = out.join(format!("models/{name}"));
        stages.push(
            Stage::new(format!("prune-{name}"), format!("cuts the layers of {name} out"), 1.0, "prune")
                .input("--model", model)
                .input("--plan", plan)
                .output("--out", &pruned),
        );
        for features in &settings.distill.features {
            let student = out.join(format!("models/{name}-{features}"));
            stages.push(
                Stage::new(format!("distill-{name}-{features}"), format!("retrains {name} with {features} features"), 120.0, "distill")
                    .input("--teacher", model)
                    .input("--student", &pruned)
                    .input("--config", train)
                    .set("--features", features)
                    .set("--seed", seed)
                    .set("--device", device)
                    .output("--out", &student),
            );
            models.push((format!("{name}-{features}"), student));
        }
    }

    let mut report = Stage::new("report", "writes report.html and results.json", 5.0, "report").input("--run", out.join("layers.json"));
    for (name, model) in &models {
        let pictures = out.join(format!("pictures/{name}"));
        let result = out.join(format!("eval/{name}.json"));
        stages.push(
            Stage::new(format!("generate-{name}"), format!("draws the prompts with {name}"), 30.0, "generate")
                .input("--model", model)
                .set("--prompts", settings.eval.prompts)
                .set("--steps", settings.eval.steps)
                .set("--guidance", settings.eval.guidance)
                .set("--seed", seed)
                .set("--device", device)
                .output("--out", &pictures),
        );
        stages.push(
            Stage::new(format!("eval-{name}"), format!("measures the pictures of {name}"), 10.0, "eval")
                .input("--model", model)
                .input("--pictures", &pictures)
                .set("--device", device)
                .output("--out", &result),
        );
        report = report.input("--eval", result);
    }
    stages.push(report.output("--out", out.join("report.html")));
    stages
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
