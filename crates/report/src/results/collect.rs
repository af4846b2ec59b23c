//! From the files of a run folder to its results. All stages -> **results** -> report.

use std::collections::BTreeMap;

use distill::Record;
use eval::EvalFile;
use prune_core::Scores;
use prune_core::audit::AuditFile;
use unet::scoring::{Criterion, OUTPUT_LOSS};

use super::training::settings;
use super::{AuditResult, CriterionScores, DistillRun, FrontCurve, PlanRow, Provenance, Results, UNetResult, assess};
use crate::error::{Error, Result};
use crate::run_dir::{RunDir, Training};

/// libtorch's version: the one that the workspace pins.
const LIBTORCH: &str = "2.11.0";

impl RunDir {
    /// Everything that the report says. `title` names the run, `headline` the plan that the summary speaks of; by default the exact
    /// plan by output loss that was retrained.
    ///
    /// # Errors
    /// When a file is damaged, made for another model, or does not fit the others; [`Error::Input`] for an unknown headline.
    pub fn results(&self, title: Option<&str>, headline: Option<&str>) -> Result<Results> {
        let (scores, audit, trainings, eval) = (self.scores()?, self.audit()?, self.trainings()?, self.evaluation()?);
        let output = scores.iter().find(|s| s.criterion() == OUTPUT_LOSS);
        let plans = self.plan_rows(output)?;
        let headline_plan = match headline {
            Some(name) if plans.iter().any(|p| p.name == name) => Some(name.to_string()),
            Some(name) => {
                let names: Vec<&str> = plans.iter().map(|p| p.name.as_str()).collect();
                return Err(Error::input("headline", format!("one of {}", names.join(", ")), name));
            }
            None => default_headline(&plans, &trainings),
        };
        let rows = eval.as_ref();
        let mut results = Results {
            title: title.map_or_else(|| format!("{} compressed with LAPTOP-Diff", self.table().model()), str::to_string),
            model: self.model().clone(),
            front: output.and_then(FrontCurve::of),
            headline_plan,
            distillations: trainings.iter().map(|training| DistillRun::of(training, &plans)).collect::<Result<_>>()?,
            protocol: rows.map(|e| e.protocol.clone()),
            metrics: rows.map_or(Vec::new(), |e| e.metrics.clone()),
            unets: rows.map_or(Ok(Vec::new()), |e| UNetResult::all(self, e, &plans, &trainings))?,
            by_category: rows.map_or(Vec::new(), |e| e.by_category.clone()),
            comparisons: rows.map_or(Vec::new(), |e| e.comparisons.clone()),
            published: self.published()?,
            gallery: rows.map(|e| e.gallery.clone()),
            claims: Vec::new(),
            provenance: self.provenance(&scores, audit.as_ref(), &trainings, rows)?,
            audit: audit.map(AuditResult::new).transpose()?,
            criteria: scores.into_iter().map(|s| CriterionScores::new(s, self.model().num_train_timesteps)).collect::<Result<_>>()?,
            plans,
        };
        results.claims = assess(&results);
        Ok(results)
    }

    /// By ratio, then in the order of the criteria, then by name.
    fn plan_rows(&self, output: Option<&Scores>) -> Result<Vec<PlanRow>> {
        let (joint, total) = (self.joint_losses()?, self.table().total_params());
        let row = |(name, plan)| PlanRow::new(name, plan, total, output, joint.as_ref());
        let mut rows = self.plans()?.into_iter().map(row).collect::<Result<Vec<_>>>()?;
        let place = |row: &PlanRow| Criterion::position(row.criterion().unwrap_or_default());
        rows.sort_by(|a, b| a.ratio.total_cmp(&b.ratio).then(place(a).cmp(&place(b))).then(a.name.cmp(&b.name)));
        Ok(rows)
    }

    fn provenance(
        &self,
        scores: &[Scores],
        audit: Option<&AuditFile>,
        trainings: &[Training],
        eval: Option<&EvalFile>,
    ) -> Result<Provenance> {
        let mut seeds = BTreeMap::new();
        for scores in scores {
            seeds.extend(scores.seed().map(|seed| (format!("scores, {}", scores.criterion()), seed)));
        }
        seeds.extend(audit.map(|audit| ("audit's removal sets".to_string(), audit.seed)));
        for training in trainings {
            seeds.insert(format!("distillation, {}", training.name), settings(training)?.1.seed);
        }
        if let Some(eval) = eval {
            seeds.insert("images".into(), eval.protocol.seed);
            seeds.insert("bootstrap".into(), eval.protocol.bootstrap.seed);
        }
        let mut hashes = BTreeMap::from([("U-Net weights of the model".to_string(), self.model().unet_sha256.clone())]);
        for path in self.sources()? {
            let relative = path.strip_prefix(self.path()).unwrap_or(&path);
            hashes.insert(relative.to_string_lossy().into_owned(), artifact::file_sha256(&path)?);
        }
        let versions = [("laptop-diff", env!("CARGO_PKG_VERSION")), ("libtorch", LIBTORCH)];
        let versions = versions.map(|(k, v)| (k.to_string(), v.to_string())).into();
        Ok(Provenance { commands: self.log()?.commands, seeds, config: self.config(scores, trainings)?, versions, hashes })
    }

    /// The settings that the files of the run record.
    fn config(&self, scores: &[Scores], trainings: &[Training]) -> Result<BTreeMap<String, String>> {
        let mut config = BTreeMap::new();
        for scores in scores.iter().filter(|s| !s.settings().is_empty()) {
            config.insert(format!("scores/{}.json", scores.criterion()), pretty(scores.settings()));
        }
        for training in trainings {
            config.insert(format!("distill/{}/{}", training.name, Record::FILE), pretty(&training.record.config));
        }
        for name in ["calibration", "heldout"] {
            // What the calibration set says of how it was made.
            let path = self.path().join(format!("{name}.safetensors"));
            if path.is_file() {
                let short = unet::weights::TensorFile::open(&path)?.metadata().clone().into_iter().filter(|(_, v)| v.len() < 500);
                config.insert(format!("{name}.safetensors"), pretty(&short.collect::<BTreeMap<_, _>>()));
            }
        }
        Ok(config)
    }
}

fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("settings come from JSON")
}

/// The exact plan by output loss that was retrained; else the one of half the parameters; else the largest.
fn default_headline(plans: &[PlanRow], trainings: &[Training]) -> Option<String> {
    let exact: Vec<&PlanRow> = plans.iter().filter(|p| p.method() == "exact" && p.criterion() == Some(OUTPUT_LOSS)).collect();
    let trained = |p: &&&PlanRow| trainings.iter().any(|t| t.record.plan.as_deref() == Some(p.name.as_str()));
    let chosen = exact.iter().find(trained).or_else(|| exact.iter().find(|p| p.ratio == 0.5)).or_else(|| exact.last());
    chosen.map(|p| p.name.clone())
}
