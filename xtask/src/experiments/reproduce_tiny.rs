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
    plan: PlanSettings,
    students: StudentSettings,
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
struct PlanSettings {
    criterion: String,
    random_seeds: Vec<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StudentSettings {
    ratio: f64,
    plans: Vec<String>,
    feature_losses: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Eval {
    prompts: u32,
    num_inference_steps: u32,
    guidance_scale: f64,
    rendered_seed: u64,
    bench_rounds: u32,
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

/// The whole experiment, in the order in which it runs.
fn stages(settings: &Settings, out: &Path, device: &str, train: &Path) -> Vec<Stage> {
    let tiny = Tiny { s: settings, at: RunPaths { model: settings.model.clone(), out, device }, train };
    let plans = tiny.plans();
    let pruned: Vec<&Plan> = plans.iter().filter(|plan| tiny.has_student(plan)).collect();
    let students = tiny.students(&pruned);
    let unets: Vec<Drawn> = pruned.iter().map(|plan| tiny.pruned(plan)).chain(students.iter().map(|s| tiny.retrained(s))).collect();
    [
        vec![tiny.inspect()],
        tiny.calibrate(),
        tiny.score(),
        plans.iter().map(|plan| tiny.plan(plan)).collect(),
        vec![tiny.audit()],
        vec![tiny.joint(&plans)],
        pruned.iter().map(|plan| tiny.prune(plan)).collect(),
        students.iter().map(|student| tiny.distill(student)).collect(),
        vec![tiny.generate("teacher", None)],
        unets.iter().map(|drawn| tiny.generate(&drawn.name, Some(&drawn.unet))).collect(),
        vec![tiny.render()],
        vec![tiny.eval(&unets)],
        vec![tiny.bench(&pruned)],
        vec![tiny.report()],
    ]
    .concat()
}

/// A plan: by which way to choose, at which ratio.
struct Plan {
    way: String,
    ratio: f64,
    about: String,
    criterion: String,
    method: &'static str,
    seed: u64,
}

impl Plan {
    fn name(&self) -> String {
        format!("{}-{}", self.way, self.ratio)
    }
}

/// A retrained U-Net: from which plan, with which feature loss.
struct Student<'a> {
    plan: &'a Plan,
    feature_loss: &'a str,
}

impl Student<'_> {
    fn name(&self) -> String {
        format!("{}-{}", self.plan.name(), self.feature_loss)
    }
}

/// A U-Net that draws images: its name and folder.
struct Drawn {
    name: String,
    unet: PathBuf,
}

/// The settings and where things are, for the stages.
struct Tiny<'a> {
    s: &'a Settings,
    at: RunPaths<'a>,
    train: &'a Path,
}

impl Tiny<'_> {
    /// One plan per ratio and way to choose.
    fn plans(&self) -> Vec<Plan> {
        let s = self.s;
        let mut plans = Vec::new();
        for &ratio in &s.ratios {
            let plan = |way: String, about: String, criterion: &str, method, seed| {
                let about = format!("{about}, ratio {ratio}");
                Plan { way, ratio, about, criterion: criterion.into(), method, seed }
            };
            for criterion in s.score.groups.iter().flatten().filter(|criterion| *criterion != "random") {
                plans.push(plan(criterion.clone(), format!("solves exactly for {criterion}"), criterion, "exact", 0));
            }
            for &seed in &s.plan.random_seeds {
                plans.push(plan(format!("random-{seed}"), "removes random layers".into(), &s.plan.criterion, "random", seed));
            }
            plans.push(plan("bk-sdm".into(), "the hand-crafted plan".into(), &s.plan.criterion, "bk-sdm", 0));
        }
        plans
    }

    fn has_student(&self, plan: &Plan) -> bool {
        plan.ratio == self.s.students.ratio && self.s.students.plans.contains(&plan.way)
    }

    fn students<'a>(&'a self, pruned: &[&'a Plan]) -> Vec<Student<'a>> {
        let losses = &self.s.students.feature_losses;
        pruned.iter().flat_map(|plan| losses.iter().map(|feature_loss| Student { plan, feature_loss })).collect()
    }

    fn plan_file(&self, plan: &Plan) -> PathBuf {
        self.at.out.join(format!("plans/{}.json", plan.name()))
    }

    fn pruned(&self, plan: &Plan) -> Drawn {
        Drawn { name: plan.name(), unet: self.at.out.join(format!("models/{}", plan.name())) }
    }

    fn retrained(&self, student: &Student) -> Drawn {
        Drawn { name: student.name(), unet: self.at.out.join(format!("distill/{}/unet", student.name())) }
    }

    fn images(&self, name: &str) -> PathBuf {
        self.at.out.join(format!("images/{name}"))
    }

    fn real_images(&self) -> PathBuf {
        self.at.out.join("real")
    }

    fn inspect(&self) -> Stage {
        Stage::new("inspect", "the table of layers", 1.0, "inspect")
            .input("--model", &self.s.model)
            .output("--out", self.at.out.join("layers.json"))
    }

    fn calibrate(&self) -> Vec<Stage> {
        let Calibration { samples, held_out, held_out_seed, bins } = self.s.calibration;
        self.at.calibrate(Points { samples, seed: self.s.seed, held_out, held_out_seed, bins }).collect()
    }

    fn score(&self) -> Vec<Stage> {
        self.at.score(&self.s.score, self.s.seed).collect()
    }

    fn plan(&self, plan: &Plan) -> Stage {
        Stage::new(format!("plan-{}", plan.name()), &plan.about, 0.5, "plan")
            .input("--model", &self.s.model)
            .input("--scores", self.at.scores(&plan.criterion))
            .set("--ratio", plan.ratio)
            .set("--method", plan.method)
            .set("--seed", plan.seed)
            .output("--out", self.plan_file(plan))
    }

    fn audit(&self) -> Stage {
        self.at.audit(&self.s.audit, &self.s.score, self.s.seed)
    }

    fn joint(&self, plans: &[Plan]) -> Stage {
        let stage =
            self.at.stage("joint", "measures the true loss of every plan", 20.0, "joint").input("--calibration", self.at.held_out());
        let stage = plans.iter().fold(stage, |stage, plan| stage.input("--plan", self.plan_file(plan)));
        stage.output("--out", self.at.out.join("joint.json"))
    }

    fn prune(&self, plan: &Plan) -> Stage {
        Stage::new(format!("prune-{}", plan.name()), format!("cuts the layers of {} out", plan.name()), 1.0, "prune")
            .input("--model", &self.s.model)
            .input("--plan", self.plan_file(plan))
            .words(&["--unet-only"])
            .output("--out", self.pruned(plan).unet)
    }

    fn distill(&self, student: &Student) -> Stage {
        let (name, plan, feature_loss) = (student.name(), student.plan, student.feature_loss);
        let work = self.at.out.join(format!("work/{name}"));
        let about = format!("retrains {} with {feature_loss} feature loss", plan.name());
        self.at
            .stage(format!("distill-{name}"), about, 100.0, "distill")
            .input("--plan", self.plan_file(plan))
            .input("--config", self.train)
            .set("--feature-loss", feature_loss)
            .set("--work", work.display())
            .scratch(&work)
            .output("--out", self.at.out.join(format!("distill/{name}")))
    }

    fn generate(&self, name: &str, unet: Option<&Path>) -> Stage {
        let e = &self.s.eval;
        let mut stage = self
            .at
            .stage(format!("generate-{name}"), format!("draws the prompts with {name}"), 40.0, "generate")
            .set("--scene-prompts", e.prompts)
            .set("--num-inference-steps", e.num_inference_steps)
            .set("--guidance-scale", e.guidance_scale)
            .set("--seed", self.s.seed);
        if let Some(unet) = unet {
            stage = stage.input("--unet", unet);
        }
        stage.output("--out", self.images(name))
    }

    fn render(&self) -> Stage {
        Stage::new("render", "draws the same prompts with the renderer", 2.0, "render-scenes")
            .set("--scene-prompts", self.s.eval.prompts)
            .set("--seed", self.s.eval.rendered_seed)
            .output("--out", self.real_images())
    }

    fn eval(&self, unets: &[Drawn]) -> Stage {
        let s = self.s;
        let mut stage = Stage::new("eval", "measures the images", 15.0, "eval")
            .set("--device", self.at.device)
            .set("--reference", format!("teacher={}", self.images("teacher").display()))
            .reads(self.images("teacher"));
        for Drawn { name, .. } in unets {
            stage = stage.set("--images", format!("{name}={}", self.images(name).display())).reads(self.images(name));
        }
        for plan in &s.students.plans {
            if let [a, b] = s.students.feature_losses.as_slice() {
                let ratio = s.students.ratio;
                stage = stage.set("--compare", format!("{plan}-{ratio}-{b}:{plan}-{ratio}-{a}"));
            }
        }
        stage
            .input("--clip", s.model.join("clip"))
            .input("--real", self.real_images())
            .set("--seed", s.seed)
            .output("--out", self.at.out.join("eval.json"))
    }

    /// One student per plan: retraining changes no shape.
    fn bench(&self, pruned: &[&Plan]) -> Stage {
        let mut stage = self.at.stage("bench", "measures the latency of teacher and students", 30.0, "bench");
        stage = stage.set("--rounds", self.s.eval.bench_rounds);
        for Drawn { name, unet } in pruned.iter().map(|plan| self.pruned(plan)) {
            stage = stage.set("--unet", format!("{name}={}", unet.display())).reads(&unet);
        }
        stage.output("--out", self.at.out.join("speed.json"))
    }

    fn report(&self) -> Stage {
        let mut report = Stage::new("report", "writes report.html, report.md and results.json", 3.0, "report").words(&[&self
            .at
            .out
            .display()
            .to_string()]);
        for part in ["layers.json", "audit.json", "joint.json", "eval.json", "speed.json", "scores", "plans", "distill"] {
            report = report.reads(self.at.out.join(part));
        }
        if let Some(first) = self.s.students.plans.first() {
            report = report.set("--headline", format!("{first}-{}", self.s.students.ratio));
        }
        report.output("--out", self.at.out.join("report.html"))
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
