//! `cargo xtask reproduce-tiny`: the main job on the embedded model, as a list of stages.
//!
//! This is the whole data flow in one place: weights -> scores -> plan -> pruned model -> distillation -> evaluation ->
//! report. Each stage is one call of `laptop-diff` that a user can make alone.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;

use crate::pipeline::{self, Audit, Options, Points, RunPaths, Score, Stage, settings_file};

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
    students: Students,
    /// Passed on as it stands; the subcommand knows its keys.
    distill: toml::Table,
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
struct Plan {
    criterion: String,
    random_seeds: Vec<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Students {
    ratio: f64,
    plans: Vec<String>,
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Eval {
    prompts: u32,
    steps: u32,
    cfg: f64,
    rendered_seed: u64,
    speed_rounds: u32,
}

/// Builds the binary, runs the stages and prints the path of the report.
pub fn run(root: &Path, options: &Options, verbose: bool) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| "runs/tiny".into());
    let settings: Settings = pipeline::settings(root, options, "configs/reproduce-tiny.toml")?;
    let train = settings_file(root, &out, "distill", &settings.distill)?;
    let stages = stages(&settings, &out, &options.device, &train);
    pipeline::run(root, options, "reproduce-tiny", &out, stages, verbose)?;
    println!("report: {}", out.join("report.html").display());
    Ok(())
}

fn stages(settings: &Settings, out: &Path, device: &str, train: &Path) -> Vec<Stage> {
    let run = Run { settings, at: RunPaths { model: settings.model.clone(), out, device }, train };
    let mut stages = run.score();
    let plans = run.plan(&mut stages);
    run.measure(&plans, &mut stages);
    let unets = run.distill(&plans, &mut stages);
    run.evaluate(&unets, &mut stages);
    stages
}

/// A plan: its name, its file, and whether students are made from it.
struct Made {
    name: String,
    path: PathBuf,
    student: bool,
}

/// A U-Net that draws pictures: its name and folder.
struct Drawn {
    name: String,
    unet: PathBuf,
}

/// The settings and where things are, for the parts of the list below, which follow the data flow.
struct Run<'a> {
    settings: &'a Settings,
    at: RunPaths<'a>,
    train: &'a Path,
}

impl Run<'_> {
    fn criteria(&self) -> impl Iterator<Item = &String> {
        self.settings.score.groups.iter().flatten()
    }

    /// The table of layers, the calibration sets, the scores.
    fn score(&self) -> Vec<Stage> {
        let s = self.settings;
        let mut stages = vec![
            Stage::new("inspect", "the table of layers", 1.0, "inspect")
                .input("--model", &s.model)
                .output("--out", self.at.out.join("layers.json")),
        ];
        let Calibration { samples, held_out, held_out_seed, bins } = s.calibration;
        stages.extend(self.at.calibrate(Points { samples, seed: s.seed, held_out, held_out_seed, bins }));
        stages.extend(self.at.score(&s.score, s.seed));
        stages
    }

    /// One plan per ratio and way to choose.
    fn plan(&self, stages: &mut Vec<Stage>) -> Vec<Made> {
        let s = self.settings;
        let mut plans = Vec::new();
        for &ratio in &s.ratios {
            let mut add = |name: &str, about: &str, criterion: &str, method: &str, seed: u64| {
                let path = self.at.out.join(format!("plans/{name}-{ratio}.json"));
                stages.push(
                    Stage::new(format!("plan-{name}-{ratio}"), format!("{about}, ratio {ratio}"), 0.5, "plan")
                        .input("--model", &s.model)
                        .input("--scores", self.at.scores(criterion))
                        .set("--ratio", ratio)
                        .set("--method", method)
                        .set("--seed", seed)
                        .output("--out", &path),
                );
                let student = ratio == s.students.ratio && s.students.plans.iter().any(|plan| plan == name);
                plans.push(Made { name: format!("{name}-{ratio}"), path, student });
            };
            for criterion in self.criteria().filter(|criterion| *criterion != "random") {
                add(criterion, &format!("solves exactly for {criterion}"), criterion, "exact", 0);
            }
            for &seed in &s.plan.random_seeds {
                add(&format!("random-{seed}"), "removes random layers", &s.plan.criterion, "random", seed);
            }
            add("bk-sdm", "the hand-crafted plan", &s.plan.criterion, "bk-sdm", 0);
        }
        plans
    }

    /// Additivity of each criterion, and the true loss of each plan.
    fn measure(&self, plans: &[Made], stages: &mut Vec<Stage>) {
        let s = self.settings;
        stages.push(self.at.audit(&s.audit, &s.score, s.seed));
        let mut joint =
            self.at.stage("joint", "measures the true loss of every plan", 20.0, "joint").input("--calibration", self.at.held_out());
        for plan in plans {
            joint = joint.input("--plan", &plan.path);
        }
        stages.push(joint.output("--out", self.at.out.join("joint.json")));
    }

    /// The pruned U-Nets of the chosen ratio, and their retrained students.
    fn distill(&self, plans: &[Made], stages: &mut Vec<Stage>) -> Vec<Drawn> {
        let mut unets = Vec::new();
        for plan in plans.iter().filter(|plan| plan.student) {
            let pruned = self.at.out.join(format!("models/{}", plan.name));
            stages.push(
                Stage::new(format!("prune-{}", plan.name), format!("cuts the layers of {} out", plan.name), 1.0, "prune")
                    .input("--model", &self.settings.model)
                    .input("--plan", &plan.path)
                    .words(&["--unet-only"])
                    .output("--out", &pruned),
            );
            unets.push(Drawn { name: plan.name.clone(), unet: pruned });
        }
        for plan in plans.iter().filter(|plan| plan.student) {
            for features in &self.settings.students.features {
                let name = format!("{}-{features}", plan.name);
                let folder = self.at.out.join(format!("distill/{name}"));
                let work = self.at.out.join(format!("work/{name}"));
                stages.push(
                    self.at
                        .stage(
                            format!("distill-{name}"),
                            format!("retrains {} with {features} feature distillation", plan.name),
                            100.0,
                            "distill",
                        )
                        .input("--plan", &plan.path)
                        .input("--config", self.train)
                        .set("--features", features)
                        .set("--work", work.display())
                        .scratch(&work)
                        .output("--out", &folder),
                );
                unets.push(Drawn { unet: folder.join("unet"), name });
            }
        }
        unets
    }

    /// Pictures and measures of every U-Net, and the report.
    fn evaluate(&self, unets: &[Drawn], stages: &mut Vec<Stage>) {
        let s = self.settings;
        let pictures = |name: &str| self.at.out.join(format!("images/{name}"));
        let draw = |name: &str, unet: Option<&Path>| {
            let mut stage = self
                .at
                .stage(format!("generate-{name}"), format!("draws the prompts with {name}"), 40.0, "generate")
                .set("--scene-prompts", s.eval.prompts)
                .set("--steps", s.eval.steps)
                .set("--cfg", s.eval.cfg)
                .set("--seed", s.seed);
            if let Some(unet) = unet {
                stage = stage.input("--unet", unet);
            }
            stage.output("--out", pictures(name))
        };
        stages.push(draw("teacher", None));
        stages.extend(unets.iter().map(|drawn| draw(&drawn.name, Some(&drawn.unet))));

        let real = self.at.out.join("real");
        stages.push(
            Stage::new("render", "draws the same prompts with the renderer", 2.0, "render-scenes")
                .set("--scene-prompts", s.eval.prompts)
                .set("--seed", s.eval.rendered_seed)
                .output("--out", &real),
        );
        let eval_file = self.at.out.join("eval.json");
        let mut eval = Stage::new("eval", "measures the pictures", 15.0, "eval")
            .set("--device", self.at.device)
            .set("--reference", format!("teacher={}", pictures("teacher").display()))
            .reads(pictures("teacher"));
        for drawn in unets {
            eval = eval.set("--images", format!("{}={}", drawn.name, pictures(&drawn.name).display())).reads(pictures(&drawn.name));
        }
        for plan in &s.students.plans {
            if let [a, b] = s.students.features.as_slice() {
                let ratio = s.students.ratio;
                eval = eval.set("--compare", format!("{plan}-{ratio}-{b}:{plan}-{ratio}-{a}"));
            }
        }
        stages.push(eval.input("--clip", s.model.join("clip")).input("--real", &real).set("--seed", s.seed).output("--out", &eval_file));

        let speed_file = self.at.out.join("speed.json");
        let mut speed =
            self.at.stage("speed", "measures the latency of teacher and students", 30.0, "speed").set("--rounds", s.eval.speed_rounds);
        // One student per plan: retraining changes no shape.
        for drawn in unets.iter().filter(|drawn| drawn.unet.starts_with(self.at.out.join("models"))) {
            speed = speed.set("--unet", format!("{}={}", drawn.name, drawn.unet.display())).reads(&drawn.unet);
        }
        stages.push(speed.output("--out", &speed_file));

        let mut report = Stage::new("report", "writes report.html, report.md and results.json", 3.0, "report")
            .words(&[&self.at.out.display().to_string()])
            .reads(self.at.out.join("layers.json"))
            .reads(self.at.out.join("audit.json"))
            .reads(self.at.out.join("joint.json"))
            .reads(&eval_file)
            .reads(&speed_file)
            .reads(self.at.out.join("scores"))
            .reads(self.at.out.join("plans"))
            .reads(self.at.out.join("distill"));
        if let Some(first) = s.students.plans.first() {
            report = report.set("--headline", format!("{first}-{}", s.students.ratio));
        }
        stages.push(report.output("--out", self.at.out.join("report.html")));
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
