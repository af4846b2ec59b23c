//! From the files of a run directory to the rows of `results.json`. All stages -> **results** -> report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use artifact::Document;
use distill::{FeatureLosses, LogRow, Record};
use eval::{
    Command, DistillRun, EvalFile, LayerRow, LossPoint, Measured, ModelInfo, PlanRow, Provenance, PublishedFile, Results, Role, UNetResult,
    Versioned,
};
use prune_core::{AuditFile, Cost, LayerTable, Plan, Scores};
use unet::{Inspection, JointFile, plan_name};

use crate::ablation::{OUTPUT_LOSS, TASK_LOSS_DELTA};
use crate::collect_scores;
use crate::common::{BadFile, BadInput, file_hash};
use crate::criteria;

/// libtorch's version: the one that the workspace pins.
const LIBTORCH: &str = "2.11.0";
/// The order of the report; the paper's criterion first.
pub const CRITERIA: [&str; 6] =
    [OUTPUT_LOSS, TASK_LOSS_DELTA, criteria::CLIP_SCORE, criteria::MAGNITUDE, criteria::TAYLOR, criteria::RANDOM];

/// What was read of a run directory.
struct Run<'a> {
    dir: &'a Path,
    inspection: Inspection,
    scores: Vec<Scores>,
    plans: Vec<(String, Plan)>,
    joint: Option<JointFile>,
    distillations: Vec<(String, Record)>,
    eval: Option<EvalFile>,
}

/// Everything that the report says.
///
/// # Errors
/// When `layers.json` is missing, or a file is damaged or made for another model.
pub fn results(dir: &Path, commands: &[Command], title: Option<&str>, headline: Option<&str>) -> anyhow::Result<Results> {
    let inspection = Inspection::read(&dir.join(Inspection::FILE))?;
    let table = &inspection.table;
    let scores = read_scores(dir, table)?;
    // Beside a refined plan lies what `refine` measured.
    let is_plan = |path: &&PathBuf| !path.to_string_lossy().ends_with(".refinement.json");
    let plans = files(&dir.join("plans"), "json")?
        .iter()
        .filter(is_plan)
        .map(|path| Ok((plan_name(path), Plan::read(path, table)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let joint = optional(dir, JointFile::FILE, |path| Ok(JointFile::read(path)?))?;
    if let Some(joint) = &joint {
        table.check_fingerprint("joint.json's model", &joint.fingerprint)?;
    }
    let audit = optional(dir, "audit.json", |path| Ok(AuditFile::read(path, table)?))?;
    let mut distillations = Vec::new();
    for folder in folders(&dir.join("distill"))? {
        if folder.join(Record::FILE).is_file() {
            distillations.push((plan_name(&folder), Record::read_in(&folder)?));
        }
    }
    let eval = optional(dir, "eval.json", |path| Ok(EvalFile::read(path)?))?;
    let run = Run { dir, scores, plans, joint, distillations, eval, inspection };

    let plan_rows = run.plan_rows()?;
    let headline_plan = match headline {
        Some(name) if plan_rows.iter().any(|p| p.name == name) => Some(name.to_string()),
        Some(name) => {
            let names: Vec<&str> = plan_rows.iter().map(|p| p.name.as_str()).collect();
            return Err(BadInput(format!("--headline {name}: expected one of {}", names.join(", "))).into());
        }
        None => run.headline(&plan_rows),
    };
    let table = &run.inspection.table;
    let mut results = Results {
        format: Results::FORMAT.into(),
        version: Results::VERSION,
        title: title.map_or_else(|| format!("{} compressed with LAPTOP-Diff", table.model()), str::to_string),
        model: run.model(),
        layers: table
            .layers()
            .iter()
            .map(|l| LayerRow { id: l.id.to_string(), kind: kind(&l.kind).into(), params: l.params, macs: l.macs })
            .collect(),
        criteria: run
            .scores
            .iter()
            .map(|s| collect_scores::criterion(s, run.inspection.num_train_timesteps))
            .collect::<anyhow::Result<_>>()?,
        audits: audit.iter().flat_map(|file| file.audits.iter().map(|a| collect_scores::audit(a, file))).collect(),
        front: run.scores.iter().find(|s| s.criterion() == OUTPUT_LOSS).and_then(collect_scores::front),
        headline_plan,
        distillations: run.distill_rows(&plan_rows)?,
        protocol: run.eval.as_ref().map(|e| e.protocol.clone()),
        metrics: run.eval.as_ref().map_or(Vec::new(), |e| e.metrics.clone()),
        unets: run.unets(&plan_rows)?,
        by_category: run.eval.as_ref().map_or(Vec::new(), |e| e.by_category.clone()),
        comparisons: run.eval.as_ref().map_or(Vec::new(), |e| e.comparisons.clone()),
        published: optional(dir, "published.json", |path| Ok(PublishedFile::read(path)?))?.map_or(Vec::new(), |file| file.results),
        gallery: run.eval.as_ref().map(|e| e.gallery.clone()),
        claims: Vec::new(),
        provenance: run.provenance(commands, audit.as_ref())?,
        plans: plan_rows,
    };
    results.audits.sort_by_key(|a| CRITERIA.iter().position(|c| *c == a.criterion));
    results.claims = eval::assess(&results);
    Ok(results)
}

/// The report's word for a kind of layer.
fn kind(kind: &str) -> &str {
    match kind {
        "self_attention" => "attn1",
        "cross_attention" => "attn2",
        "feed_forward" => "ff",
        "transformer_block" => "block",
        other => other,
    }
}

fn optional<T>(dir: &Path, name: &str, read: impl Fn(&Path) -> anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    let path = dir.join(name);
    path.is_file().then(|| read(&path)).transpose()
}

/// What a folder holds, ordered by name; nothing where it is missing. Hidden entries are unfinished work.
fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let bad = |e: std::io::Error| BadFile::new(dir, e.to_string(), "make it readable");
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(dir).map_err(bad)?.map(|e| e.map(|e| e.path())).collect::<std::io::Result<_>>().map_err(bad)?;
    found.retain(|p| p.file_name().is_some_and(|n| !n.to_string_lossy().starts_with('.')));
    found.sort();
    Ok(found)
}

fn files(dir: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    Ok(entries(dir)?.into_iter().filter(|p| p.is_file() && p.extension().is_some_and(|e| e == extension)).collect())
}

fn folders(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    Ok(entries(dir)?.into_iter().filter(|p| p.is_dir()).collect())
}

fn read_scores(dir: &Path, table: &LayerTable) -> anyhow::Result<Vec<Scores>> {
    let mut scores = files(&dir.join("scores"), "json")?
        .iter()
        .map(|path| {
            let scores = Scores::read_for(path, table)?;
            scores.values()?;
            Ok(scores)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    scores.sort_by_key(|s| CRITERIA.iter().position(|c| *c == s.criterion()).unwrap_or(CRITERIA.len()));
    Ok(scores)
}

impl Run<'_> {
    fn model(&self) -> ModelInfo {
        let i = &self.inspection;
        let pair = |x: [i64; 2]| x.map(|n| n as u32);
        ModelInfo {
            name: i.table.model().into(),
            family: i.family.clone(),
            prediction_type: i.prediction_type.clone().unwrap_or_else(|| "unknown".into()),
            params: i.table.total_params(),
            macs: i.table.total_macs(),
            latent: pair(i.latent),
            picture: pair(i.picture.unwrap_or([0, 0])),
            unet_sha256: i.unet_sha256.clone(),
        }
    }

    fn plan_rows(&self) -> anyhow::Result<Vec<PlanRow>> {
        let output = self.scores.iter().find(|s| s.criterion() == OUTPUT_LOSS);
        let mut rows = Vec::new();
        for (name, plan) in &self.plans {
            let measured = self.joint.as_ref().and_then(|file| {
                let gap = file.plans.iter().find(|p| p.plan == *name)?.gaps.get(OUTPUT_LOSS)?;
                Some(Measured { mean: gap.mean, se: gap.standard_error.unwrap_or(0.0), samples: file.samples })
            });
            // Random and hand-crafted plans carry the criterion they were priced by, but do not minimise it.
            let chosen_by_scores = plan.method != "random" && !hand_crafted(&plan.method);
            let criterion = plan.criterion.clone().filter(|_| chosen_by_scores);
            rows.push(PlanRow {
                name: name.clone(),
                label: label(plan, criterion.as_deref()),
                method: if hand_crafted(&plan.method) { "hand-crafted".into() } else { plan.method.clone() },
                ratio: ratio(plan, self.inspection.table.total_params()),
                seed: plan.seed,
                removed: plan.removed.iter().map(ToString::to_string).collect(),
                removed_params: plan.params_removed,
                removed_macs: plan.macs_removed,
                predicted: plan.predicted.filter(|_| chosen_by_scores),
                predicted_output_loss: output.map(|s| s.predicted(&plan.removal_set())).transpose()?,
                measured,
                criterion,
            });
        }
        // By ratio, then in the order of the criteria, then by name.
        let place = |row: &PlanRow| CRITERIA.iter().position(|c| row.criterion.as_deref() == Some(*c)).unwrap_or(CRITERIA.len());
        rows.sort_by(|a, b| a.ratio.total_cmp(&b.ratio).then(place(a).cmp(&place(b))).then(a.name.cmp(&b.name)));
        Ok(rows)
    }

    fn headline(&self, plans: &[PlanRow]) -> Option<String> {
        let exact: Vec<&PlanRow> = plans.iter().filter(|p| p.method == "exact" && p.criterion.as_deref() == Some(OUTPUT_LOSS)).collect();
        let trained = |p: &&&PlanRow| self.distillations.iter().any(|(_, d)| d.plan.as_deref() == Some(p.name.as_str()));
        let chosen = exact.iter().find(trained).or_else(|| exact.iter().find(|p| p.ratio == 0.5)).or_else(|| exact.last());
        chosen.map(|p| p.name.clone())
    }

    fn distill_rows(&self, plans: &[PlanRow]) -> anyhow::Result<Vec<DistillRun>> {
        let mut rows = Vec::new();
        for (name, record) in &self.distillations {
            let dir = self.dir.join("distill").join(name);
            let bad = |problem: String| BadFile::new(&dir, problem, "give `distill` a plan of this run's plans/ folder");
            let plan = record.plan.clone().ok_or_else(|| bad("its record names no plan".into()))?;
            let of_plan = plans.iter().find(|p| p.name == plan).ok_or_else(|| bad(format!("its plan `{plan}` is not among plans/")))?;
            let log = read_log(&dir.join("log.jsonl"))?;
            let (losses, trainer) = (record.losses()?, record.trainer()?);
            let terms: Vec<String> =
                log.last().map_or(Vec::new(), |row| row.terms.keys().filter_map(|k| k.strip_prefix("feat.")).map(str::to_string).collect());
            // The log holds weighted terms.
            let plain = |row: &LogRow, key: &str, weight: f64| {
                let value = row.terms.get(key).copied().unwrap_or(0.0);
                if weight > 0.0 { value / weight } else { 0.0 }
            };
            let curve = log.iter().map(|row| {
                let of_terms: Vec<f64> = terms.iter().map(|t| plain(row, &format!("feat.{t}"), losses.feature_weight)).collect();
                LossPoint {
                    step: row.step,
                    total: row.loss,
                    task: plain(row, "task", losses.task_weight),
                    out_kd: plain(row, "out", losses.output_weight),
                    feat_kd: of_terms.iter().sum(),
                    terms: of_terms,
                }
            });
            let (feature_loss, word) = feature_loss(&losses.feature_loss)?;
            rows.push(DistillRun {
                name: name.clone(),
                label: format!("{} {}, {word}", of_plan.label, of_plan.ratio),
                plan,
                feature_loss,
                steps: trainer.steps,
                batch: trainer.batch,
                learning_rate: trainer.lr,
                seed: trainer.seed,
                weight_task: losses.task_weight,
                weight_out: losses.output_weight,
                weight_feat: losses.feature_weight,
                curve: curve.collect(),
                terms,
            });
        }
        Ok(rows)
    }

    fn unets(&self, plans: &[PlanRow]) -> anyhow::Result<Vec<UNetResult>> {
        let Some(eval) = &self.eval else { return Ok(Vec::new()) };
        let table = &self.inspection.table;
        let mut rows = Vec::new();
        for (i, unet) in eval.unets.iter().enumerate() {
            let trained = self.distillations.iter().find(|(name, _)| *name == unet.name);
            let plan = trained.and_then(|(_, d)| d.plan.clone()).unwrap_or_else(|| unet.name.clone());
            let of_plan = plans.iter().find(|p| p.name == plan);
            let (label, role, plan, distillation, removed) = match (i, trained, of_plan) {
                (0, ..) => ("teacher".to_string(), Role::Teacher, None, None, (0, 0)),
                (_, Some((name, d)), Some(p)) => {
                    let (_, word) = feature_loss(&d.losses()?.feature_loss)?;
                    let label = format!("{} {}, {word}", p.label, p.ratio);
                    (label, Role::Student, Some(p.name.clone()), Some(name.clone()), (p.removed_params, p.removed_macs))
                }
                (_, None, Some(p)) => {
                    let label = format!("{} {}, not retrained", p.label, p.ratio);
                    (label, Role::Pruned, Some(p.name.clone()), None, (p.removed_params, p.removed_macs))
                }
                (_, _, None) => {
                    let problem = format!("`{}` is neither a plan in plans/ nor a run in distill/", unet.name);
                    let path = self.dir.join("eval.json");
                    return Err(BadFile::new(&path, problem, "name the pictures after the plan or the run that made them").into());
                }
            };
            rows.push(UNetResult {
                name: unet.name.clone(),
                label,
                role,
                plan,
                distillation,
                params: table.total_params() - removed.0,
                macs: table.total_macs() - removed.1,
                metrics: unet.metrics.clone(),
                by_kind: unet.by_kind.clone(),
            });
        }
        Ok(rows)
    }

    /// The settings that the files of the run record.
    fn config(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut config = BTreeMap::new();
        for scores in self.scores.iter().filter(|s| !s.settings().is_empty()) {
            config.insert(format!("scores/{}.json", scores.criterion()), serde_json::to_string_pretty(scores.settings())?);
        }
        for (name, record) in &self.distillations {
            config.insert(format!("distill/{name}/{}", Record::FILE), serde_json::to_string_pretty(&record.config)?);
        }
        for name in ["calibration", "heldout"] {
            // What the calibration set says of how it was made.
            let path = self.dir.join(format!("{name}.safetensors"));
            if path.is_file() {
                let short = unet::weights::TensorFile::open(&path)?.metadata().clone().into_iter().filter(|(_, v)| v.len() < 500);
                config.insert(format!("{name}.safetensors"), serde_json::to_string_pretty(&short.collect::<BTreeMap<_, _>>())?);
            }
        }
        Ok(config)
    }

    fn provenance(&self, commands: &[Command], audit: Option<&AuditFile>) -> anyhow::Result<Provenance> {
        let mut seeds = BTreeMap::new();
        for scores in &self.scores {
            seeds.extend(scores.seed().map(|s| (format!("scores, {}", scores.criterion()), s)));
        }
        seeds.extend(audit.map(|a| ("audit's removal sets".to_string(), a.seed)));
        for (name, record) in &self.distillations {
            seeds.insert(format!("distillation, {name}"), record.trainer()?.seed);
        }
        if let Some(eval) = &self.eval {
            seeds.insert("pictures".into(), eval.protocol.seed);
            seeds.insert("bootstrap".into(), eval.protocol.bootstrap.seed);
        }
        let mut hashes = BTreeMap::from([("U-Net weights of the model".to_string(), self.inspection.unet_sha256.clone())]);
        let mut named: Vec<PathBuf> = files(&self.dir.join("scores"), "json")?;
        named.extend(files(&self.dir.join("plans"), "json")?);
        named.extend(
            ["layers.json", "calibration.safetensors", "heldout.safetensors", "audit.json", "joint.json", "eval.json", "per_prompt.json"]
                .map(|n| self.dir.join(n)),
        );
        let weights = "unet/diffusion_pytorch_model.safetensors";
        named.extend(self.distillations.iter().map(|(name, _)| self.dir.join("distill").join(name).join(weights)));
        for path in named.iter().filter(|p| p.is_file()) {
            let relative = path.strip_prefix(self.dir).unwrap_or(path);
            hashes.insert(relative.to_string_lossy().into_owned(), file_hash(path)?);
        }
        let versions = [("laptop-diff", env!("CARGO_PKG_VERSION")), ("libtorch", LIBTORCH)];
        let versions = versions.map(|(k, v)| (k.to_string(), v.to_string())).into();
        Ok(Provenance { commands: commands.to_vec(), seeds, config: self.config()?, versions, hashes })
    }
}

/// The share of the parameters that a plan was asked to remove, so that plans of one budget stand together; what it removes where it
/// had another kind of budget.
fn ratio(plan: &Plan, total_params: u64) -> f64 {
    let budget = plan.budget.as_ref();
    let asked = budget.and_then(|b| b.ratio).or_else(|| {
        let b = budget.filter(|b| b.cost == Cost::Params)?;
        Some(b.required as f64 / total_params.max(1) as f64)
    });
    // Nobody asks for more digits, and nobody reads them.
    (1e3 * asked.unwrap_or(plan.params_ratio)).round() / 1e3
}

/// Does a way to choose look at no scores, but at what people chose?
fn hand_crafted(method: &str) -> bool {
    method == "bk-sdm" || unet::Published::named(method).is_some()
}

/// A plan in words.
fn label(plan: &Plan, criterion: Option<&str>) -> String {
    let name = criterion.map(collect_scores::label);
    match (plan.method.as_str(), name) {
        ("bk-sdm", _) => "BK-SDM style".into(),
        // SSD-1B, KOALA-700M, BK-SDM-TINY.
        (published, _) if hand_crafted(published) => published.to_uppercase(),
        (method, Some(name)) => format!("{name}, {method}"),
        (method, None) => method.into(),
    }
}

fn read_log(path: &Path) -> anyhow::Result<Vec<LogRow>> {
    let bad = |problem: String| BadFile::new(path, problem, "let `distill` write it again");
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    text.lines().map(|line| Ok(serde_json::from_str(line).map_err(|e| bad(format!("not a row of a training log ({e})")))?)).collect()
}

/// A feature loss as the results name it, and in words.
fn feature_loss(name: &str) -> anyhow::Result<(eval::FeatureLoss, &'static str)> {
    let known = serde_json::from_value(name.into()).with_context(|| format!("feature loss `{name}`"))?;
    Ok((known, FeatureLosses::builtin().entry(name)?.words))
}
