//! The settings of an experiment: one TOML, with a profile or a rehearsal laid over it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Everything that the stages need to know.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The headline of the report.
    pub title: String,
    pub seed: u64,
    /// Kinds of stages that are left out, such as `audit`.
    pub skip: Vec<String>,
    pub model: Model,
    /// What must be there before the first stage.
    pub needs: Vec<Need>,
    pub data: Data,
    pub calibration: Calibration,
    pub score: Score,
    pub audit: Audit,
    pub plan: Plan,
    pub students: Vec<Student>,
    /// Passed on as it stands; the subcommand knows its keys.
    pub distill: toml::Table,
    pub export: Export,
    pub eval: Eval,
    /// Results that others published, for the report.
    pub published: Vec<Published>,
}

/// The teacher.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// A model directory in diffusers' layout.
    pub path: PathBuf,
    /// Its architecture, which the dry run measures before the weights are there.
    pub unet_config: PathBuf,
    pub vae_config: PathBuf,
    /// Instead of `path`: random weights.
    pub random: Option<Random>,
}

/// A model with random weights (`laptop-diff random-model`).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {
    pub unet: PathBuf,
    pub vae: Option<PathBuf>,
    pub text_encoder: Option<PathBuf>,
    pub text_encoder_2: Option<PathBuf>,
    pub rest: PathBuf,
    pub kind: String,
}

/// A file or folder from elsewhere.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Need {
    pub path: PathBuf,
    /// What it is for.
    pub what: String,
    /// Its files, with their sizes in gigabytes.
    pub files: BTreeMap<String, f64>,
    pub licence: String,
    /// On the hub: `org/name` or `org/name:file`. The run fetches it.
    pub fetch: Option<String>,
    /// How to get it where the run cannot.
    pub how: Option<String>,
}

impl Need {
    /// Bytes of all files.
    pub fn bytes(&self) -> f64 {
        1e9 * self.files.values().sum::<f64>()
    }
}

/// Images with captions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    pub train: PathBuf,
    pub calibration: PathBuf,
    pub held_out: PathBuf,
    /// How many `train` holds, for the estimates.
    pub images: u64,
    /// Side of the training images in pixels.
    pub size: u32,
    /// Instead of the three folders: so many rendered scenes.
    pub render: Option<Render>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Render {
    pub train: u64,
    pub calibration: u64,
    pub held_out: u64,
    pub size: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub samples: u64,
    pub held_out: u64,
    pub bins: u64,
    pub batch: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Criteria of one group share their forward passes.
    pub groups: Vec<Vec<String>>,
    /// Parts into which the points are cut for the criteria that allow it, so that several GPUs share them.
    pub shards: u32,
    pub batch: u64,
    pub granularity: String,
    /// Number type in which networks are compared: scores, additivity, joint losses. The program's own choice if unset.
    pub compute: Option<String>,
    pub clip: Option<PathBuf>,
    pub clip_prompts: u32,
    pub clip_steps: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    pub sets_per_size: u32,
    pub ratios: Vec<f64>,
    pub layers: Vec<u32>,
    /// Points of the held-out set that the audit uses.
    pub samples: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Shares of the U-Net's parameters to remove, at least.
    pub ratios: Vec<f64>,
    /// Published reductions by name; each is met by the exact plan of the same budget.
    pub rivals: Vec<String>,
    pub random_seeds: Vec<u64>,
    /// The criterion of the rivals' prices and of refinement.
    pub criterion: String,
    pub refine: Refine,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refine {
    pub method: String,
    /// Evaluations allowed, points times sets; 0 leaves refinement out.
    pub max_forwards: u64,
}

/// A plan whose U-Net is retrained, once for each kind of feature loss.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Student {
    pub plan: String,
    pub feature_losses: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Of the first student with the last feature loss; see `laptop-diff prune --format`.
    pub formats: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    pub prompts: Vec<PathBuf>,
    /// How many they are, for the estimates.
    pub prompt_count: u64,
    pub num_images_per_prompt: u64,
    pub num_inference_steps: u32,
    pub guidance_scale: f64,
    pub sampler: String,
    pub batch: u64,
    /// `--metric NAME=FILES`.
    pub metrics: BTreeMap<String, String>,
    pub tokenizer: Option<PathBuf>,
    pub clip: Option<PathBuf>,
    pub bench_rounds: u32,
}

/// A published relative decline against the teacher.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// What was pruned, and how.
    pub name: String,
    pub metric: String,
    pub ratio: f64,
    pub decline_percent: f64,
    pub source: String,
}

/// Reads `text` with the table `group.name` laid over it: tables key by key, everything else whole.
pub fn read(text: &str, file: &str, group: &str, name: Option<&str>) -> Result<Settings> {
    let mut all: toml::Table = toml::from_str(text).with_context(|| format!("in the settings {file}"))?;
    let mut variants = BTreeMap::new();
    for key in ["profile", "rehearse"] {
        variants.insert(key, all.remove(key).and_then(|value| if let toml::Value::Table(table) = value { Some(table) } else { None }));
    }
    if let Some(name) = name {
        let known = variants.remove(group).flatten().unwrap_or_default();
        match known.get(name) {
            Some(toml::Value::Table(over)) => lay_over(&mut all, over),
            _ => bail!("{file} has no [{group}.{name}]; it has: {}", known.keys().cloned().collect::<Vec<_>>().join(", ")),
        }
    }
    let mut settings: Settings = all.try_into().with_context(|| {
        let over = name.map_or(String::new(), |name| format!(" with [{group}.{name}]"));
        format!("in the settings {file}{over}")
    })?;
    settings.eval.metrics.retain(|_, files| !files.is_empty());
    check(&settings).with_context(|| format!("in the settings {file}"))?;
    Ok(settings)
}

fn lay_over(base: &mut toml::Table, over: &toml::Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => lay_over(base, over),
            _ => drop(base.insert(key.clone(), value.clone())),
        }
    }
}

/// The kinds of stages that `skip` may name.
pub const KINDS: [&str; 13] =
    ["inspect", "calibrate", "score", "audit", "plan", "joint", "prune", "cache", "distill", "export", "generate", "eval", "bench"];

fn check(s: &Settings) -> Result<()> {
    if let Some(kind) = s.skip.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
        bail!("skip: there is no kind of stages `{kind}`; they are {}", KINDS.join(", "));
    }
    for need in &s.needs {
        if need.fetch.is_some() == need.how.is_some() {
            bail!("needs: {}: give one of `fetch` and `how`", need.path.display());
        }
    }
    let criteria: Vec<&str> = s.score.groups.iter().flatten().map(String::as_str).collect();
    if !criteria.contains(&s.plan.criterion.as_str()) {
        bail!("plan.criterion: `{}` is not in score.groups ({})", s.plan.criterion, criteria.join(", "));
    }
    let batches = s.calibration.samples.div_ceil(s.score.batch.max(1));
    if u64::from(s.score.shards) > batches {
        bail!("score.shards: expected at most {batches}, the batches of calibration.samples / score.batch, got {}", s.score.shards);
    }
    let plans = s.plan_names();
    if let Some(student) = s.students.iter().find(|student| !plans.contains(&student.plan)) {
        bail!("students: there is no plan `{}`; the plans are {}", student.plan, plans.join(", "));
    }
    if s.students.is_empty() {
        bail!("students: expected at least one");
    }
    Ok(())
}

impl Settings {
    /// Is a kind of stages left out?
    pub fn skips(&self, kind: &str) -> bool {
        self.skip.iter().any(|skipped| skipped == kind)
    }

    /// The names of all plans, in the order in which they are made.
    pub fn plan_names(&self) -> Vec<String> {
        let p = &self.plan;
        let mut names = Vec::new();
        for ratio in &p.ratios {
            let criteria = self.score.groups.iter().flatten().filter(|criterion| *criterion != "random");
            names.extend(criteria.map(|criterion| format!("{criterion}-{ratio}")));
            names.extend(p.random_seeds.iter().map(|seed| format!("random-{seed}-{ratio}")));
            names.push(format!("bk-sdm-{ratio}"));
            if p.refine.max_forwards > 0 {
                names.push(format!("refined-{ratio}"));
            }
        }
        for rival in &p.rivals {
            names.extend([rival.clone(), format!("{}-at-{rival}", p.criterion)]);
        }
        names
    }
}
