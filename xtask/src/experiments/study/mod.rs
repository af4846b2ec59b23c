//! `cargo xtask study-tiny`: every way to choose layers, every ratio, plain and normalized feature distillation at equal steps, several
//! seeds; the differences with intervals over seeds.
//!
//! Runs across the data flow: scores -> plan -> distillation -> evaluation, many times.

mod summary;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::pipeline::{self, Audit, Options, Points, RunPaths, Score, Stage, settings_file, write_whole};

const CONFIG: &str = "configs/study-tiny.toml";
/// The plan from which `refined` starts and with which others are compared.
const PAPERS: &str = "output_loss";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    model: PathBuf,
    ratios: Vec<f64>,
    plans: Vec<String>,
    feature_losses: [String; 2],
    seeds: Vec<u64>,
    calibration: Calibration,
    score: Score,
    audit: Audit,
    refine: Refine,
    /// Passed on as it stands; the subcommand knows its keys.
    distill: toml::Table,
    eval: Eval,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Calibration {
    samples: u64,
    bins: u64,
    seed: u64,
    held_out: u64,
    held_out_seed: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refine {
    method: String,
    max_forwards: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Eval {
    prompts: u32,
    num_inference_steps: u32,
    guidance_scale: f64,
    seed: u64,
}

/// One student's training.
struct Trained {
    ratio: f64,
    plan: String,
    feature_loss: String,
    seed: u64,
}

impl Trained {
    fn name(&self) -> String {
        format!("{}-{}-{}-{}", self.plan, self.ratio, self.feature_loss, self.seed)
    }
}

/// Runs the stages and writes study.json and study.md.
pub fn run(root: &Path, options: &Options, verbose: bool) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| "runs/study-tiny".into());
    let settings: Settings = pipeline::settings(root, options, CONFIG)?;
    check(&settings)?;
    let train = settings_file(root, &out, "distill", &with_validation(&settings)?)?;
    let (stages, students) = stages(&settings, &out, &options.device, &train);
    pipeline::run(root, options, "study-tiny", &out, stages, verbose)?;
    if options.only.is_some() {
        return Ok(());
    }
    let study = summary::summarise(root, &settings, &out, &students)?;
    write_whole(&root.join(&out).join("study.json"), &study)?;
    let table = study.markdown();
    let path = out.join("study.md");
    fs::write(root.join(&path), &table).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{table}\nstudy: {}", path.display());
    Ok(())
}

fn check(s: &Settings) -> Result<()> {
    if s.seeds.len() < 2 {
        bail!("{CONFIG}: seeds: expected at least 2, got {}", s.seeds.len());
    }
    let criteria: Vec<&str> = s.score.groups.iter().flatten().map(String::as_str).collect();
    for plan in &s.plans {
        let needs = if ["refined", "bk-sdm", "random"].contains(&plan.as_str()) { PAPERS } else { plan };
        if !criteria.contains(&needs) {
            bail!("{CONFIG}: plans: `{plan}` needs the scores `{needs}`, which score.groups does not list ({})", criteria.join(", "));
        }
    }
    Ok(())
}

/// The distillation's settings, with a validation before the first and after the last step.
fn with_validation(settings: &Settings) -> Result<toml::Table> {
    let mut table = settings.distill.clone();
    let steps = table.get("trainer").and_then(|t| t.get("steps")).and_then(toml::Value::as_integer);
    let steps = steps.with_context(|| format!("{CONFIG}: distill.trainer.steps is missing"))?;
    let mut validation = toml::Table::new();
    validation.insert("every".into(), steps.into());
    // Relative to the settings' own folder.
    validation.insert("held_out".into(), "../heldout.safetensors".into());
    validation.insert("batch".into(), 16.into());
    table.insert("validation".into(), validation.into());
    Ok(table)
}

/// The settings and where things are, for the stages.
struct Run<'a> {
    s: &'a Settings,
    at: RunPaths<'a>,
}

/// The whole study, in the order in which it runs, and the students that it trains.
fn stages(s: &Settings, out: &Path, device: &str, train: &Path) -> (Vec<Stage>, Vec<Trained>) {
    let run = Run { s, at: RunPaths { model: s.model.clone(), out, device } };
    let students = run.students();
    let stages = [
        run.calibrate(),
        run.score(),
        vec![run.audit()],
        run.plans().map(|(plan, ratio)| run.plan(plan, ratio)).collect(),
        vec![run.joint()],
        students.iter().map(|student| run.distill(student, train)).collect(),
        vec![run.generate("teacher", false)],
        students.iter().map(|student| run.generate(&student.name(), true)).collect(),
        vec![run.eval(&students)],
    ];
    (stages.concat(), students)
}

impl<'a> Run<'a> {
    fn plan_file(&self, plan: &str, ratio: f64) -> PathBuf {
        self.at.out.join(format!("plans/{plan}-{ratio}.json"))
    }

    /// Every plan at every ratio.
    fn plans(&self) -> impl Iterator<Item = (&'a str, f64)> {
        let s = self.s;
        s.ratios.iter().flat_map(move |&ratio| s.plans.iter().map(move |plan| (plan.as_str(), ratio)))
    }

    /// Every plan with every feature loss and every seed.
    fn students(&self) -> Vec<Trained> {
        let mut students = Vec::new();
        for (plan, ratio) in self.plans() {
            for &seed in &self.s.seeds {
                let student = |feature_loss: &String| Trained { ratio, plan: plan.into(), feature_loss: feature_loss.clone(), seed };
                students.extend(self.s.feature_losses.iter().map(student));
            }
        }
        students
    }

    fn images(&self, name: &str) -> PathBuf {
        self.at.out.join(format!("images/{name}"))
    }

    fn calibrate(&self) -> Vec<Stage> {
        let Calibration { samples, bins, seed, held_out, held_out_seed } = self.s.calibration;
        self.at.calibrate(Points { samples, seed, held_out, held_out_seed, bins }).collect()
    }

    fn score(&self) -> Vec<Stage> {
        self.at.score(&self.s.score, self.s.calibration.seed).collect()
    }

    /// How well scores add up.
    fn audit(&self) -> Stage {
        self.at.audit(&self.s.audit, &self.s.score, self.s.calibration.seed)
    }

    fn joint(&self) -> Stage {
        let stage =
            self.at.stage("joint", "measures the true loss of every plan", 20.0, "joint").input("--calibration", self.at.held_out());
        let stage = self.plans().fold(stage, |stage, (plan, ratio)| stage.input("--plan", self.plan_file(plan, ratio)));
        stage.output("--out", self.at.out.join("joint.json"))
    }

    fn plan(&self, plan: &str, ratio: f64) -> Stage {
        let s = self.s;
        let name = format!("plan-{plan}-{ratio}");
        if plan == "refined" {
            return self
                .at
                .stage(name, format!("refines the exact plan of ratio {ratio}"), 40.0, "refine")
                .input("--scores", self.at.scores(PAPERS))
                .input("--plan", self.plan_file(PAPERS, ratio))
                .input("--calibration", self.at.calibration())
                .set("--method", &s.refine.method)
                .set("--max-forwards", s.refine.max_forwards)
                .output("--out", self.plan_file(plan, ratio));
        }
        let (criterion, method) = match plan {
            "bk-sdm" | "random" => (PAPERS, plan),
            _ => (plan, "exact"),
        };
        Stage::new(name, format!("plans {plan}, ratio {ratio}"), 0.5, "plan")
            .input("--model", &s.model)
            .input("--scores", self.at.scores(criterion))
            .set("--ratio", ratio)
            .set("--method", method)
            .set("--seed", s.calibration.seed)
            .output("--out", self.plan_file(plan, ratio))
    }

    fn distill(&self, student: &Trained, train: &Path) -> Stage {
        let Trained { ratio, plan, feature_loss, seed } = student;
        let name = student.name();
        let work = self.at.out.join(format!("work/{name}"));
        self.at
            .stage(
                format!("distill-{name}"),
                format!("retrains {plan}-{ratio} with the {feature_loss} feature loss, seed {seed}"),
                30.0,
                "distill",
            )
            .input("--plan", self.plan_file(plan, *ratio))
            .input("--config", train)
            .reads(self.at.held_out())
            .set("--feature-loss", feature_loss)
            .set("--seed", seed)
            .set("--work", work.display())
            .scratch(&work)
            .output("--out", self.at.out.join(format!("distill/{name}")))
    }

    /// Images of a student, or of the teacher.
    fn generate(&self, name: &str, is_student: bool) -> Stage {
        let e = &self.s.eval;
        let mut stage = self
            .at
            .stage(format!("generate-{name}"), format!("draws the prompts with {name}"), 15.0, "generate")
            .set("--scene-prompts", e.prompts)
            .set("--num-inference-steps", e.num_inference_steps)
            .set("--guidance-scale", e.guidance_scale)
            .set("--seed", e.seed);
        if is_student {
            stage = stage.input("--unet", self.at.out.join(format!("distill/{name}/unet")));
        }
        stage.output("--out", self.images(name))
    }

    fn eval(&self, students: &[Trained]) -> Stage {
        let mut stage = Stage::new("eval", "measures the images", 60.0, "eval")
            .set("--device", self.at.device)
            .set("--reference", format!("teacher={}", self.images("teacher").display()))
            .reads(self.images("teacher"));
        for name in students.iter().map(Trained::name) {
            stage = stage.set("--images", format!("{name}={}", self.images(&name).display())).reads(self.images(&name));
        }
        stage.input("--clip", self.s.model.join("clip")).output("--out", self.at.out.join("eval.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc;

    #[test]
    fn the_committed_settings_make_pipelines_without_gaps() {
        for (file, count) in [(CONFIG, 144), ("configs/study-mid.toml", 144)] {
            let text = fs::read_to_string(proc::root().join(file)).unwrap();
            let settings: Settings = toml::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
            check(&settings).unwrap();
            assert!(with_validation(&settings).unwrap().contains_key("validation"));
            let (stages, students) = stages(&settings, Path::new("runs/study"), "cpu", Path::new("configs/study.toml"));
            pipeline::check_wiring(&stages, &[&settings.model, Path::new("configs")]);
            assert_eq!(students.len(), count, "{file}");
        }
    }

    #[test]
    fn a_plan_without_its_scores_is_an_error_that_names_it() {
        let text = fs::read_to_string(proc::root().join(CONFIG)).unwrap();
        let mut settings: Settings = toml::from_str(&text).unwrap();
        settings.plans.push("tailor".into());
        let error = check(&settings).unwrap_err().to_string();
        assert!(error.contains("`tailor`") && error.contains("output_loss"), "{error}");
    }
}
