//! `cargo xtask study-tiny`: does normalized feature distillation bring more back than plain one, at equal steps? Every ratio,
//! searched and hand-crafted students, several seeds; the differences with intervals over seeds.
//!
//! Runs across the data flow: scores -> plan -> distillation -> evaluation, many times.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::pipeline::{self, settings_file};
use crate::stages::{Options, Stage, write_whole};

const CONFIG: &str = "configs/study-tiny.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    model: PathBuf,
    ratios: Vec<f64>,
    plans: Vec<String>,
    features: [String; 2],
    seeds: Vec<u64>,
    calibration: Calibration,
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
struct Eval {
    prompts: u32,
    steps: u32,
    cfg: f64,
    seed: u64,
}

/// One student's training.
struct Trained {
    plan: String,
    features: String,
    seed: u64,
}

impl Trained {
    fn name(&self) -> String {
        format!("{}-{}-{}", self.plan, self.features, self.seed)
    }
}

/// Runs the stages and writes study.json and study.md.
pub fn run(root: &Path, options: &Options, verbose: bool) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| "runs/study-tiny".into());
    let settings: Settings = pipeline::settings(root, options, CONFIG)?;
    if settings.seeds.len() < 2 {
        bail!("{CONFIG}: seeds: expected at least 2, got {}", settings.seeds.len());
    }
    let train = settings_file(root, &out, "distill", &with_validation(&settings)?)?;
    let (stages, students) = stages(&settings, &out, &options.device, &train);
    pipeline::run(root, options, "study-tiny", &out, stages, verbose)?;
    let study = summarise(root, &settings, &out, &students)?;
    write_whole(&root.join(&out).join("study.json"), &study)?;
    let table = study.table();
    let path = out.join("study.md");
    fs::write(root.join(&path), &table).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{table}\nstudy: {}", path.display());
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

fn stages(s: &Settings, out: &Path, device: &str, train: &Path) -> (Vec<Stage>, Vec<Trained>) {
    let stage = |name: String, about: String, seconds: f64, subcommand: &str| {
        Stage::new(name, about, seconds, subcommand).input("--model", &s.model).set("--device", device)
    };
    let c = &s.calibration;
    let held_out = out.join("heldout.safetensors");
    let calibration = out.join("calibration.safetensors");
    let scores = out.join("scores/output_loss.json");
    let mut stages = Vec::new();
    for (name, path, points, seed) in
        [("calibrate", &calibration, c.samples, c.seed), ("calibrate-heldout", &held_out, c.held_out, c.held_out_seed)]
    {
        stages.push(
            stage(name.into(), format!("makes {points} calibration points"), 2.0, "calibrate")
                .set("--scenes", points)
                .set("--bins", c.bins)
                .set("--seed", seed)
                .output("--out", path),
        );
    }
    stages.push(
        stage("score".into(), "scores every layer by the output loss".into(), 30.0, "score")
            .input("--calibration", &calibration)
            .set("--criterion", "output_loss")
            .set("--out", out.join("scores").display())
            .writes(&scores),
    );
    let mut students = Vec::new();
    for &ratio in &s.ratios {
        for plan in &s.plans {
            let name = format!("{plan}-{ratio}");
            let path = out.join(format!("plans/{name}.json"));
            let method = if plan == "bk-sdm" { "bk-sdm" } else { "exact" };
            stages.push(
                Stage::new(format!("plan-{name}"), format!("plans {name}"), 0.5, "plan")
                    .input("--model", &s.model)
                    .input("--scores", &scores)
                    .set("--ratio", ratio)
                    .set("--method", method)
                    .output("--out", &path),
            );
            for &seed in &s.seeds {
                for features in &s.features {
                    let student = Trained { plan: name.clone(), features: features.clone(), seed };
                    let work = out.join(format!("work/{}", student.name()));
                    stages.push(
                        stage(
                            format!("distill-{}", student.name()),
                            format!("retrains {name} with {features} features, seed {seed}"),
                            30.0,
                            "distill",
                        )
                        .input("--plan", &path)
                        .input("--config", train)
                        .reads(&held_out)
                        .set("--features", features)
                        .set("--seed", seed)
                        .set("--work", work.display())
                        .scratch(&work)
                        .output("--out", out.join(format!("distill/{}", student.name()))),
                    );
                    students.push(student);
                }
            }
        }
    }
    let pictures = |name: &str| out.join(format!("images/{name}"));
    let draw = |name: &str| {
        stage(format!("generate-{name}"), format!("draws the prompts with {name}"), 15.0, "generate")
            .set("--scene-prompts", s.eval.prompts)
            .set("--steps", s.eval.steps)
            .set("--cfg", s.eval.cfg)
            .set("--seed", s.eval.seed)
    };
    stages.push(draw("teacher").output("--out", pictures("teacher")));
    let mut eval = Stage::new("eval", "measures the pictures", 30.0, "eval")
        .set("--device", device)
        .set("--reference", format!("teacher={}", pictures("teacher").display()))
        .reads(pictures("teacher"));
    for student in &students {
        let name = student.name();
        stages.push(draw(&name).input("--unet", out.join(format!("distill/{name}/unet"))).output("--out", pictures(&name)));
        eval = eval.set("--images", format!("{name}={}", pictures(&name).display())).reads(pictures(&name));
    }
    stages.push(eval.input("--clip", s.model.join("clip")).output("--out", out.join("eval.json")));
    (stages, students)
}

/// `study.json`.
#[derive(Serialize)]
struct Study {
    format: &'static str,
    version: u32,
    /// What the second kind of features is compared with, and it.
    features: [String; 2],
    seeds: Vec<u64>,
    rows: Vec<Row>,
}

/// One plan by one measure.
#[derive(Serialize)]
struct Row {
    plan: String,
    measure: String,
    higher_is_better: bool,
    /// Before retraining, where it was measured.
    before: Option<f64>,
    /// Means over seeds, by kind of features.
    means: [f64; 2],
    /// The second less the first, mean over seeds and its 95 % interval (Student's t, paired by seed).
    difference: f64,
    low: f64,
    high: f64,
}

impl Row {
    fn verdict(&self, features: &[String; 2]) -> String {
        match (self.low > 0.0, self.high < 0.0) {
            (true, _) | (_, true) => format!("{} better", features[usize::from((self.low > 0.0) == self.higher_is_better)]),
            _ => "cannot be told apart".into(),
        }
    }
}

impl Study {
    fn table(&self) -> String {
        let [a, b] = &self.features;
        let mut text = format!("| plan | measure | before | {a} | {b} | {b} less {a} [95 %] | verdict |\n|---|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let n = |x: f64| if x != 0.0 && x.abs() < 0.01 { format!("{x:.2e}") } else { format!("{x:.2}") };
            let before = row.before.map_or("".into(), n);
            let interval = format!("{} [{}, {}]", n(row.difference), n(row.low), n(row.high));
            let [x, y] = row.means.map(n);
            let (plan, measure, verdict) = (&row.plan, &row.measure, row.verdict(&self.features));
            text += &format!("| {plan} | {measure} | {before} | {x} | {y} | {interval} | {verdict} |\n");
        }
        text
    }
}

/// Measures of pictures to report, and the factor that makes shares per cent.
const MEASURES: [(&str, &str, f64); 4] = [
    ("clip_score", "CLIP score", 1.0),
    ("prompts_correct", "prompts all right, %", 100.0),
    ("attribute_accuracy", "attributes right, %", 100.0),
    ("psnr_teacher", "PSNR against the teacher, dB", 1.0),
];

fn summarise(root: &Path, s: &Settings, out: &Path, students: &[Trained]) -> Result<Study> {
    let read = |path: PathBuf| fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {}", path.display()));
    let eval: Value = serde_json::from_str(&read(out.join("eval.json"))?).context("eval.json is no JSON")?;
    let unets = eval["unets"].as_array().context("eval.json lists no U-Nets")?;
    let metric = |name: &str, id: &str| -> Option<f64> {
        let unet = unets.iter().find(|u| u["name"] == name)?;
        unet["metrics"].as_array()?.iter().find(|m| m["metric"] == id)?["value"]["value"].as_f64()
    };
    // Values by plan, measure and kind of features, in the order of seeds.
    let mut values: BTreeMap<(String, usize), [Vec<f64>; 2]> = BTreeMap::new();
    let mut before = BTreeMap::new();
    for student in students {
        let kind = usize::from(student.features == s.features[1]);
        let lines = read(out.join(format!("distill/{}/validation.jsonl", student.name())))?;
        let losses: Vec<f64> = lines.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()?["joint_output_loss"].as_f64()).collect();
        let (&first, &last) = losses.first().zip(losses.last()).with_context(|| format!("{} was not validated", student.name()))?;
        before.insert(student.plan.clone(), first);
        values.entry((student.plan.clone(), 0)).or_default()[kind].push(last);
        for (i, (id, _, factor)) in MEASURES.iter().enumerate() {
            let value = metric(&student.name(), id).with_context(|| format!("eval.json has no {id} of {}", student.name()))?;
            values.entry((student.plan.clone(), i + 1)).or_default()[kind].push(value * factor);
        }
    }
    let rows = values.into_iter().map(|((plan, measure), pair)| {
        let (difference, half) = paired(&pair[0], &pair[1]);
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        Row {
            before: if measure == 0 { before.get(&plan).copied() } else { None },
            measure: if measure == 0 { "joint output loss".into() } else { MEASURES[measure - 1].1.into() },
            higher_is_better: measure > 0,
            means: [mean(&pair[0]), mean(&pair[1])],
            difference,
            low: difference - half,
            high: difference + half,
            plan,
        }
    });
    let rows = rows.collect();
    Ok(Study { format: "laptop-diff/study", version: 1, features: s.features.clone(), seeds: s.seeds.clone(), rows })
}

/// 97.5 % points of Student's t with 1, 2, ... degrees of freedom.
const T: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];

/// Mean of `b - a` and half the width of its 95 % interval.
fn paired(a: &[f64], b: &[f64]) -> (f64, f64) {
    let d: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    let n = d.len() as f64;
    let mean = d.iter().sum::<f64>() / n;
    let variance = d.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, T.get(d.len() - 2).copied().unwrap_or(1.96) * (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc;

    #[test]
    fn the_committed_settings_make_a_pipeline_without_gaps() {
        let text = fs::read_to_string(proc::root().join(CONFIG)).unwrap();
        let settings: Settings = toml::from_str(&text).unwrap();
        assert!(with_validation(&settings).unwrap().contains_key("validation"));
        let (stages, students) = stages(&settings, Path::new("runs/study-tiny"), "cpu", Path::new("configs/study-tiny.toml"));
        pipeline::check_wiring(&stages, &[&settings.model, Path::new("configs")]);
        assert_eq!(students.len(), 36);
    }

    #[test]
    fn the_interval_is_students() {
        // By hand: differences 1, 2, 3; mean 2, standard error 1 / sqrt(3).
        let (mean, half) = paired(&[0.0, 1.0, 2.0], &[1.0, 3.0, 5.0]);
        assert!((mean - 2.0).abs() < 1e-12 && (half - 4.303 / 3f64.sqrt()).abs() < 1e-9);
        let row = |low, high, higher_is_better| {
            let (plan, measure) = (String::new(), String::new());
            Row { plan, measure, higher_is_better, before: None, means: [0.0; 2], difference: 0.0, low, high }
                .verdict(&["plain".into(), "normalized".into()])
        };
        assert_eq!(row(0.1, 0.2, true), "normalized better");
        assert_eq!(row(0.1, 0.2, false), "plain better");
        assert_eq!(row(-0.2, -0.1, false), "normalized better");
        assert_eq!(row(-0.2, 0.1, true), "cannot be told apart");
    }
}
