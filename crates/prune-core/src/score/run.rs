//! The scoring run: drives a model through all single removals, saves as it goes, resumes where it stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::Value;

use crate::ablate::{Ablate, Gaps};
use crate::error::{AblateError, Error};
use crate::layer::{LayerId, RemovalSet};
use crate::score::{LayerScore, Scores, ScoresParts};

/// Settings of [`score_all`].
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreOptions {
    /// The calibration samples to use.
    pub samples: Range<usize>,
    /// Samples per call of [`Ablate::evaluate`], at least 1.
    pub batch: usize,
    /// Seed that the calibration was drawn with; recorded, and compared when resuming.
    pub seed: Option<u64>,
    /// Anything else that fixes the result; recorded, and compared when resuming.
    pub settings: BTreeMap<String, Value>,
}

/// What [`score_all`] tells its callback.
#[derive(Debug)]
pub enum ScoreEvent<'a> {
    /// One call of the model has come back.
    Batch {
        /// The layer being scored.
        layer: &'a LayerId,
        /// Samples of this layer done, and in all.
        samples: (usize, usize),
        /// Layers done before this one, and in all.
        layers: (usize, usize),
    },
    /// A layer is complete: the moment to save.
    Layer {
        /// The layer.
        layer: &'a LayerId,
        /// Layers done, and in all.
        layers: (usize, usize),
        /// All scores so far, one entry per criterion; written to files they can be resumed from.
        scores: &'a [Scores],
    },
}

/// Scores every layer alone, in the order of the forward pass: one [`Scores`] per criterion of the model.
///
/// `resume` takes the scores that an interrupted run handed to the callback (empty: from the start); layers that have
/// a score under every criterion are not measured again, and the result is the same as without interruption.
///
/// # Errors
/// [`AblateError::Model`] with the layer; [`Error::SampleRange`]; [`Error::OutOfRange`] for a batch of 0;
/// [`Error::ResumeMismatch`], [`Error::OtherModel`] and [`Error::OtherLayers`] for results of another run; [`Error::Length`] and
/// [`Error::NotFinite`] for bad answers of the model; whatever the callback returns.
pub fn score_all<M: Ablate>(
    model: &mut M,
    options: &ScoreOptions,
    resume: Vec<Scores>,
    on_event: &mut dyn FnMut(ScoreEvent<'_>) -> Result<(), Error>,
) -> Result<Vec<Scores>, AblateError<M::Error>> {
    check_samples(model, &options.samples, options.batch)?;
    let mut scores = empty_scores(model, options)?;
    if !resume.is_empty() {
        scores = check_resume(scores, resume)?;
    }
    let ids: Vec<LayerId> = scores[0].table().layers().iter().map(|layer| layer.id.clone()).collect();
    let total = options.samples.len();
    for (done, id) in ids.iter().enumerate() {
        if scores.iter().all(|scores| scores.layer(id.as_str()).is_some()) {
            continue;
        }
        let columns = evaluate_all(model, &RemovalSet::single(id.clone()), options.samples.clone(), options.batch, &mut |samples| {
            on_event(ScoreEvent::Batch { layer: id, samples: (samples, total), layers: (done, ids.len()) })
        })?;
        for (scores, column) in scores.iter_mut().zip(columns) {
            let score = LayerScore::from_samples(column).ok_or_else(|| Error::Overflow { what: format!("the gaps of `{id}`") })?;
            scores.insert(id.clone(), score)?;
        }
        on_event(ScoreEvent::Layer { layer: id, layers: (done + 1, ids.len()), scores: &scores })?;
    }
    Ok(scores)
}

pub(crate) fn check_samples<M: Ablate>(model: &M, samples: &Range<usize>, batch: usize) -> Result<(), Error> {
    if samples.is_empty() || samples.end > model.num_samples() {
        return Err(Error::SampleRange { start: samples.start, end: samples.end, available: model.num_samples() });
    }
    if batch == 0 {
        return Err(Error::OutOfRange { key: "batch", expected: "at least 1".to_owned(), got: "0".to_owned() });
    }
    Ok(())
}

fn empty_scores<M: Ablate>(model: &M, options: &ScoreOptions) -> Result<Vec<Scores>, Error> {
    let criteria = model.criteria();
    if criteria.iter().collect::<BTreeSet<_>>().len() != criteria.len() || criteria.is_empty() {
        return Err(Error::OutOfRange {
            key: "criteria",
            expected: "at least one name, none of them twice".to_owned(),
            got: format!("{criteria:?}"),
        });
    }
    let bins: Vec<u32> = options.samples.clone().map(|index| model.sample_bin(index)).collect();
    let scores = criteria.iter().map(|criterion| {
        Scores::new(ScoresParts {
            table: model.table().clone(),
            criterion: criterion.clone(),
            seed: options.seed,
            settings: options.settings.clone(),
            first_sample: options.samples.start,
            bins: bins.clone(),
            layers: BTreeMap::new(),
        })
    });
    scores.collect()
}

/// The earlier scores in the order of `fresh`, if they belong to the same run.
fn check_resume(fresh: Vec<Scores>, resume: Vec<Scores>) -> Result<Vec<Scores>, Error> {
    let differs = |key: &str, expected: String, got: String| Error::ResumeMismatch { key: key.to_owned(), expected, got };
    let names = |scores: &[Scores]| {
        let names: BTreeSet<&str> = scores.iter().map(Scores::criterion).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    };
    if fresh.len() != resume.len() || names(&fresh) != names(&resume) {
        return Err(differs("criteria", names(&fresh), names(&resume)));
    }
    let mut earlier: BTreeMap<String, Scores> = resume.into_iter().map(|scores| (scores.criterion().to_owned(), scores)).collect();
    let mut result = Vec::with_capacity(fresh.len());
    for now in fresh {
        // The names were compared above, so the fallback is never taken.
        let then = earlier.remove(now.criterion()).unwrap_or_else(|| now.clone());
        now.table().check_same(then.table())?;
        if now.samples() != then.samples() {
            return Err(differs("samples", format!("{:?}", now.samples()), format!("{:?}", then.samples())));
        }
        if now.bins() != then.bins() {
            return Err(differs("bins", format!("{:?}", now.bins()), format!("{:?}", then.bins())));
        }
        if now.seed() != then.seed() {
            return Err(differs("seed", format!("{:?}", now.seed()), format!("{:?}", then.seed())));
        }
        let keys: BTreeSet<&String> = now.settings().keys().chain(then.settings().keys()).collect();
        for key in keys {
            let (expected, got) = (now.settings().get(key), then.settings().get(key));
            if expected != got {
                let text = |value: Option<&Value>| value.map_or("absent".to_owned(), Value::to_string);
                return Err(differs(&format!("settings.{key}"), text(expected), text(got)));
            }
        }
        result.push(then);
    }
    Ok(result)
}

/// The gaps of one removal set over a range of samples, one column per criterion.
pub(crate) fn evaluate_all<M: Ablate>(
    model: &mut M,
    removed: &RemovalSet,
    samples: Range<usize>,
    batch: usize,
    on_batch: &mut dyn FnMut(usize) -> Result<(), Error>,
) -> Result<Vec<Vec<f64>>, AblateError<M::Error>> {
    let mut columns = vec![Vec::with_capacity(samples.len()); model.criteria().len()];
    let mut start = samples.start;
    while start < samples.end {
        let end = samples.end.min(start.saturating_add(batch));
        let gaps = model.evaluate(removed, start..end).map_err(|source| AblateError::Model { removed: describe(removed), source })?;
        check_gaps(&gaps, model.criteria(), removed, start..end)?;
        for row in 0..gaps.samples() {
            for (column, gap) in columns.iter_mut().zip(gaps.row(row)) {
                column.push(*gap);
            }
        }
        on_batch(end - samples.start)?;
        start = end;
    }
    Ok(columns)
}

fn check_gaps(gaps: &Gaps, criteria: &[String], removed: &RemovalSet, samples: Range<usize>) -> Result<(), Error> {
    for (what, expected, got) in [("rows", samples.len(), gaps.samples()), ("columns", criteria.len(), gaps.criteria())] {
        if expected != got {
            return Err(Error::Length { what: format!("{what} of gaps with {} removed", describe(removed)), expected, got });
        }
    }
    for (row, sample) in samples.enumerate() {
        for (criterion, gap) in criteria.iter().zip(gaps.row(row)) {
            if !gap.is_finite() {
                return Err(Error::NotFinite {
                    what: format!("`{criterion}` of sample {sample} with {} removed", describe(removed)),
                    got: gap.to_string(),
                });
            }
        }
    }
    Ok(())
}

fn describe(removed: &RemovalSet) -> String {
    match removed.iter().next() {
        Some(id) if removed.len() == 1 => format!("`{id}`"),
        _ => format!("{} layers", removed.len()),
    }
}
