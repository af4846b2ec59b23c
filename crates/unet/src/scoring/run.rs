//! The scoring run: several criteria over one U-Net, one file each, continued where an earlier run stopped. Calibration set ->
//! **scores** -> plan.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use prune_core::score::{AblateError, AdaptiveEvent, AdaptiveOptions, AdaptiveScores, HeavyTails, ScoreEvent, ScoreOptions, Shard};
use prune_core::{Ablate, Budget, LayerTable, Scorer, Scores};
use serde_json::Value;

use super::ablate::UNetPasses;
use super::calibration::Calibration;
use super::magnitude::{magnitude, random};
use super::registry::{CLIP_SCORE, CRITERIA, Criterion, MAGNITUDE, Needs, OUTPUT_LOSS, RANDOM, TASK_LOSS_DELTA, TAYLOR};
use super::taylor::taylor;
use crate::error::{Error, Result};
use crate::unet::UNet;

/// Key of the settings in a score file: calibration points of the whole run, whatever part of them the file holds.
pub const POINTS: &str = "points";

/// How layers are scored.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ScoringOptions {
    /// The folder for one file per criterion, `<criterion>.json`, written after each layer; an interrupted run goes on from there. `None`
    /// writes nothing.
    pub out: Option<PathBuf>,
    /// Samples to use, from the first on; `None` for all.
    pub samples: Option<usize>,
    /// Samples per call of the network; 0 for 16.
    pub batch: usize,
    /// The seed that the samples were drawn with; recorded, and compared when a run goes on.
    pub samples_seed: Option<u64>,
    /// Seed of [`RANDOM`].
    pub seed: u64,
    /// Anything else that fixes the result; recorded, and compared when a run goes on.
    pub settings: BTreeMap<String, Value>,
    /// Measures only this part of the samples.
    pub shard: Option<Shard>,
    /// Stops measuring layers on which no plan depends any more.
    pub adaptive: Option<Adaptive>,
}

/// The plans for which layers are scored, and how sure they must be.
#[derive(Debug, Clone, PartialEq)]
pub struct Adaptive {
    /// Shares of the parameters that the plans remove.
    pub ratios: Vec<f64>,
    /// Samples that every layer gets; layers that matter then get a quarter more, and so on.
    pub first_samples: usize,
    /// Chance allowed that a plan is another than after full scoring.
    pub delta: f64,
    /// What is done where single samples carry the means, as they do in most trained networks.
    pub heavy_tails: HeavyTails,
}

/// What a scoring run tells its callback, which may stop the run by an error.
#[derive(Debug)]
pub enum ScoringEvent<'a> {
    /// Some of the work of one pass over the layers or samples is done.
    Progress {
        /// What is computed, such as `score` or `taylor`.
        what: &'a str,
        /// Units done.
        done: u64,
        /// Units in all.
        all: u64,
    },
    /// One call of the network has come back.
    Batch,
    /// Adaptive scoring has ended.
    Decided(&'a AdaptiveScores),
}

/// Scores every layer of `table` by the named criteria, of [`CRITERIA`] without [`CLIP_SCORE`]; in the order of reports, each once. One pass
/// serves those that need ablation. Criteria of a caller's own go through [`score_model`].
///
/// # Errors
/// [`Error::Criterion`] for an unknown name, or samples that are missing or lack what it needs; [`Error::Removed`] with the layer where a
/// pass fails; [`prune_core::Error::ResumeMismatch`] for files of another run; what the callback returns.
pub fn score<E>(
    unet: &UNet,
    table: &LayerTable,
    data: Option<&Calibration>,
    criteria: &[&str],
    options: &ScoringOptions,
    on_event: &mut dyn FnMut(ScoringEvent<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<Vec<Scores>, E>
where
    E: From<Error> + From<prune_core::Error> + From<AblateError<Error>>,
{
    let wanted = known(criteria)?;
    let (mut forward, mut done) = (Vec::new(), Vec::new());
    for criterion in &wanted {
        let reason = match (criterion.id, criterion.needs, data) {
            (CLIP_SCORE, ..) => "it draws images, which a U-Net alone cannot",
            (_, Needs::Nothing, _) => continue,
            (.., None) => "it needs a calibration set",
            (OUTPUT_LOSS | TASK_LOSS_DELTA, _, Some(_)) => {
                forward.push(criterion.id);
                continue;
            }
            (.., Some(_)) => continue,
        };
        return Err(Error::Criterion { id: criterion.id.into(), reason: reason.into() }.into());
    }
    let data = data.map(|data| data.first(options.samples.unwrap_or(data.num_samples()))).transpose()?;
    if let Some(data) = data.as_ref().filter(|_| !forward.is_empty()) {
        let mut model = UNetPasses::model(unet, table, data.shallow_clone(), &forward)?;
        done.extend(score_model(&mut model, options, on_event)?);
    }
    for criterion in wanted {
        let scores = match (criterion.id, &data) {
            (MAGNITUDE, _) => magnitude(unet, table)?,
            (RANDOM, _) => random(table, options.seed)?,
            (TAYLOR, Some(data)) => {
                let mut progress =
                    |done: usize, all: usize| on_event(ScoringEvent::Progress { what: TAYLOR, done: done as u64, all: all as u64 });
                taylor(unet, table, data, &mut progress)?.with_settings(options.samples_seed, options.settings.clone())
            }
            _ => continue,
        };
        options.save(std::slice::from_ref(&scores))?;
        done.push(scores);
    }
    Ok(done)
}

/// The criteria of these names, in the order of reports, each once.
fn known(names: &[&str]) -> Result<Vec<&'static Criterion>> {
    for name in names {
        if Criterion::named(name).is_none() {
            let near =
                artifact::nearest(name, CRITERIA.iter().map(|c| c.id)).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            return Err(Error::Criterion { id: name.to_string(), reason: format!("there is no such criterion{near}") });
        }
    }
    Ok(CRITERIA.iter().filter(|criterion| names.contains(&criterion.id)).collect())
}

/// Scores every layer by any model that can be ablated, a [`super::CustomLoss`] for example: from and to the files of `options`, over its
/// shard, adaptively where that is asked for.
///
/// # Errors
/// Those of [`Scorer::run_with`] and [`Scorer::run_adaptively_with`]; [`prune_core::Error::SampleRange`] for a shard without samples.
pub fn score_model<M: Ablate, E>(
    model: &mut M,
    options: &ScoringOptions,
    on_event: &mut dyn FnMut(ScoringEvent<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<Vec<Scores>, E>
where
    E: From<prune_core::Error> + From<AblateError<M::Error>>,
{
    let table = model.table().clone();
    let names = model.criteria();
    let all = options.samples.unwrap_or(model.num_samples());
    let batch = if options.batch == 0 { BATCH } else { options.batch };
    let samples: Range<usize> = match &options.shard {
        None => 0..all,
        Some(shard) => shard.samples(0..all, batch)?,
    };
    if samples.is_empty() {
        return Err(prune_core::Error::SampleRange { start: samples.start, end: samples.end, available: all }.into());
    }
    let mut run = ScoreOptions::new(samples).batch(batch).settings(options.settings.clone());
    run.seed = options.samples_seed;
    let earlier = options.earlier(&names, &table)?;
    let what = names[0].as_str();
    let Some(adaptive) = &options.adaptive else {
        return Scorer::new(model).options(run).resume(earlier).run_with(|event| match event {
            ScoreEvent::Batch { .. } => on_event(ScoringEvent::Batch),
            ScoreEvent::Layer { layers, scores, .. } => {
                options.save(scores)?;
                on_event(ScoringEvent::Progress { what, done: layers.0 as u64, all: layers.1 as u64 })
            }
            _ => Ok(()),
        });
    };
    let budgets = adaptive.ratios.iter().map(|ratio| Budget::params_ratio(*ratio));
    let adaptive =
        AdaptiveOptions::new(what, budgets).first_samples(adaptive.first_samples).delta(adaptive.delta).heavy_tails(adaptive.heavy_tails);
    let found = Scorer::new(model).options(run).resume(earlier).run_adaptively_with(&adaptive, |event| match event {
        AdaptiveEvent::Batch { evaluations } => {
            on_event(ScoringEvent::Batch)?;
            on_event(ScoringEvent::Progress { what, done: evaluations.0, all: evaluations.1 })
        }
        AdaptiveEvent::Layers { scores, .. } => Ok(options.save(scores)?),
        _ => Ok(()),
    })?;
    options.save(&found.scores)?;
    on_event(ScoringEvent::Decided(&found))?;
    Ok(found.scores)
}

const BATCH: usize = 16;

impl ScoringOptions {
    /// The file of a criterion, where files are written.
    pub fn path(&self, criterion: &str) -> Option<PathBuf> {
        Some(file_in(self.out.as_deref()?, criterion))
    }

    /// The files of an earlier run, where all of them are there.
    fn earlier(&self, names: &[String], table: &LayerTable) -> std::result::Result<Vec<Scores>, prune_core::Error> {
        let paths: Vec<PathBuf> = names.iter().filter_map(|name| self.path(name)).collect();
        if paths.len() < names.len() || !paths.iter().all(|path| path.is_file()) {
            return Ok(Vec::new());
        }
        paths.iter().map(|path| Scores::read_for(path, table)).collect()
    }

    fn save(&self, scores: &[Scores]) -> std::result::Result<(), prune_core::Error> {
        let Some(out) = &self.out else { return Ok(()) };
        scores.iter().try_for_each(|scores| scores.write(&file_in(out, scores.criterion())))
    }
}

/// The file of a criterion's scores in a folder of them.
fn file_in(folder: &Path, criterion: &str) -> PathBuf {
    folder.join(format!("{criterion}.json"))
}
