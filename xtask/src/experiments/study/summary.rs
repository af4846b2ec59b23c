//! What a study found: `study.json` and its tables.
//!
//! Reads what audit, joint, distill and eval wrote for every student and compares, paired by seed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::{PAPERS, Settings, Trained};

/// `study.json`.
#[derive(Serialize)]
pub struct Study {
    format: &'static str,
    version: u32,
    /// Two kinds of feature loss; the second is compared with the first, and plans are compared by it.
    features: [String; 2],
    seeds: Vec<u64>,
    additivity: Vec<Additivity>,
    joint: Vec<Joint>,
    /// The second kind of features less the first, plan by plan.
    features_compared: Vec<Row>,
    /// Each plan less the paper's, after retraining with the second kind of features.
    plans_compared: Vec<Row>,
}

/// How well single scores of one criterion add up.
#[derive(Serialize)]
struct Additivity {
    criterion: String,
    against: String,
    pearson: f64,
    spearman: f64,
    slope: f64,
}

/// One plan before retraining, on held-out points.
#[derive(Serialize)]
struct Joint {
    plan: String,
    ratio: f64,
    loss: f64,
    standard_error: f64,
}

/// One comparison by one measure.
#[derive(Serialize)]
struct Row {
    plan: String,
    ratio: f64,
    measure: &'static str,
    higher_is_better: bool,
    /// Means over seeds of what is compared with, and of what is compared.
    means: [f64; 2],
    /// The second less the first, mean over seeds and its 95 % interval (Student's t, paired by seed).
    difference: f64,
    low: f64,
    high: f64,
}

impl Row {
    fn new(plan: &str, ratio: f64, measure: usize, a: &[f64], b: &[f64]) -> Self {
        let (difference, half) = paired(a, b);
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        Row {
            plan: plan.into(),
            ratio,
            measure: MEASURES[measure].1,
            higher_is_better: MEASURES[measure].0 != JOINT,
            means: [mean(a), mean(b)],
            difference,
            low: difference - half,
            high: difference + half,
        }
    }

    fn verdict(&self, names: [&str; 2]) -> String {
        match (self.low > 0.0, self.high < 0.0) {
            (true, _) | (_, true) => format!("{} better", names[usize::from((self.low > 0.0) == self.higher_is_better)]),
            _ => "cannot be told apart".into(),
        }
    }

    fn line(&self, names: [&str; 2]) -> String {
        let interval = format!("{} [{}, {}]", number(self.difference), number(self.low), number(self.high));
        let [a, b] = self.means.map(number);
        format!("| {} {} | {} | {a} | {b} | {interval} | {} |\n", self.plan, self.ratio, self.measure, self.verdict(names))
    }
}

fn number(x: f64) -> String {
    if x != 0.0 && x.abs() < 0.01 { format!("{x:.2e}") } else { format!("{x:.2}") }
}

impl Study {
    /// The tables as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from("| criterion | against | Pearson | Spearman | slope |\n|---|---|---|---|---|\n");
        for a in &self.additivity {
            text += &format!("| {} | {} | {:.3} | {:.3} | {} |\n", a.criterion, a.against, a.pearson, a.spearman, number(a.slope));
        }
        text += &self.joint_table();
        let [a, b] = &self.features;
        text += &format!("\n| plan | measure | {a} | {b} | {b} less {a} [95 %] | verdict |\n|---|---|---|---|---|---|\n");
        self.features_compared.iter().for_each(|row| text += &row.line([a, b]));
        let by = format!("{PAPERS}, exact");
        text += &format!("\n| plan | measure | {by} | this plan | this plan less {by} [95 %] | verdict |\n|---|---|---|---|---|---|\n");
        self.plans_compared.iter().for_each(|row| text += &row.line([&by, &row.plan]));
        text
    }

    /// Plans by ratios, before retraining.
    fn joint_table(&self) -> String {
        let mut ratios: Vec<f64> = self.joint.iter().map(|joint| joint.ratio).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.dedup();
        let head: String = ratios.iter().map(|ratio| format!(" ratio {ratio} |")).collect();
        let mut text = format!("\n| plan |{head}\n|---|{}\n", "---|".repeat(ratios.len()));
        let mut plans: Vec<&str> = Vec::new();
        for joint in &self.joint {
            if !plans.contains(&joint.plan.as_str()) {
                plans.push(&joint.plan);
            }
        }
        for plan in plans {
            text += &format!("| {plan} |");
            for &ratio in &ratios {
                let cell = self.joint.iter().find(|joint| joint.plan == plan && joint.ratio == ratio);
                text += &cell.map_or(" |".into(), |joint| format!(" {:.2e} ± {:.0e} |", joint.loss, joint.standard_error));
            }
            text.push('\n');
        }
        text
    }
}

/// Of the validation, not of images; the only measure of which less is better.
const JOINT: &str = "joint_output_loss";

/// Measures to report, and the factor that makes shares per cent.
const MEASURES: [(&str, &str, f64); 5] = [
    (JOINT, "joint output loss", 1.0),
    ("clip_score", "CLIP score", 1.0),
    ("prompts_correct", "prompts all right, %", 100.0),
    ("attribute_accuracy", "attributes right, %", 100.0),
    ("psnr_teacher", "PSNR against the teacher, dB", 1.0),
];

/// Collects and compares.
pub fn summarise(root: &Path, s: &Settings, out: &Path, students: &[Trained]) -> Result<Study> {
    let read = |path: PathBuf| fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {}", path.display()));
    let json = |name: &str| -> Result<Value> { serde_json::from_str(&read(out.join(name))?).with_context(|| format!("{name} is no JSON")) };
    let (eval, audit, joint) = (json("eval.json")?, json("audit.json")?, json("joint.json")?);
    let unets = eval["unets"].as_array().context("eval.json lists no U-Nets")?;
    let metric = |name: &str, id: &str| -> Option<f64> {
        let unet = unets.iter().find(|u| u["name"] == name)?;
        unet["metrics"].as_array()?.iter().find(|m| m["metric"] == id)?["value"]["value"].as_f64()
    };
    // Values in the order of seeds.
    let mut values: BTreeMap<(String, String, usize, usize), Vec<f64>> = BTreeMap::new();
    for student in students {
        let name = student.name();
        let kind = usize::from(student.feature_loss == s.feature_losses[1]);
        let lines = read(out.join(format!("distill/{name}/validation.jsonl")))?;
        let last = lines.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()?[JOINT].as_f64()).next_back();
        for (i, (id, _, factor)) in MEASURES.iter().enumerate() {
            let value = if *id == JOINT { last } else { metric(&name, id) };
            let value = value.with_context(|| format!("there is no {id} of {name}"))?;
            values.entry((student.plan.clone(), student.ratio.to_string(), i, kind)).or_default().push(value * factor);
        }
    }
    let of = |plan: &str, ratio: f64, i: usize, kind: usize| &values[&(plan.to_owned(), ratio.to_string(), i, kind)];
    let (mut features_compared, mut plans_compared) = (Vec::new(), Vec::new());
    for &ratio in &s.ratios {
        for plan in &s.plans {
            for i in 0..MEASURES.len() {
                features_compared.push(Row::new(plan, ratio, i, of(plan, ratio, i, 0), of(plan, ratio, i, 1)));
                if plan != PAPERS && s.plans.iter().any(|plan| plan == PAPERS) {
                    plans_compared.push(Row::new(plan, ratio, i, of(PAPERS, ratio, i, 1), of(plan, ratio, i, 1)));
                }
            }
        }
    }
    Ok(Study {
        format: "laptop-diff/study",
        version: 2,
        features: s.feature_losses.clone(),
        seeds: s.seeds.clone(),
        additivity: additivity(&audit)?,
        joint: joint_losses(&joint, s)?,
        features_compared,
        plans_compared,
    })
}

fn additivity(audit: &Value) -> Result<Vec<Additivity>> {
    let audits = audit["audits"].as_array().context("audit.json lists no audits")?;
    let rows = audits.iter().map(|a| {
        let number = |key: &str| a["overall"][key].as_f64().unwrap_or(f64::NAN);
        let text = |key: &str| a[key].as_str().unwrap_or_default().to_owned();
        let (pearson, spearman, slope) = (number("pearson"), number("spearman"), number("slope"));
        Additivity { criterion: text("criterion"), against: text("against"), pearson, spearman, slope }
    });
    Ok(rows.collect())
}

fn joint_losses(joint: &Value, s: &Settings) -> Result<Vec<Joint>> {
    let plans = joint["plans"].as_array().context("joint.json lists no plans")?;
    let mut rows = Vec::new();
    for &ratio in &s.ratios {
        for plan in &s.plans {
            let name = format!("{plan}-{ratio}");
            let entry = plans.iter().find(|p| p["plan"] == name).with_context(|| format!("joint.json lacks the plan {name}"))?;
            let measured = &entry["losses"]["output_loss"];
            let number = |key: &str| measured[key].as_f64().with_context(|| format!("joint.json: {name} has no output loss"));
            rows.push(Joint { plan: plan.clone(), ratio, loss: number("mean")?, standard_error: number("standard_error")? });
        }
    }
    Ok(rows)
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

    #[test]
    fn the_interval_is_students() {
        // By hand: differences 1, 2, 3; mean 2, standard error 1 / sqrt(3).
        let (mean, half) = paired(&[0.0, 1.0, 2.0], &[1.0, 3.0, 5.0]);
        assert!((mean - 2.0).abs() < 1e-12 && (half - 4.303 / 3f64.sqrt()).abs() < 1e-9);
        let row = |low, high, measure: usize| {
            let row = Row::new("taylor", 0.5, measure, &[0.0; 2], &[0.0; 2]);
            Row { low, high, ..row }.verdict(["plain", "normalized"])
        };
        assert_eq!(row(0.1, 0.2, 1), "normalized better");
        assert_eq!(row(0.1, 0.2, 0), "plain better");
        assert_eq!(row(-0.2, -0.1, 0), "normalized better");
        assert_eq!(row(-0.2, 0.1, 1), "cannot be told apart");
    }
}
