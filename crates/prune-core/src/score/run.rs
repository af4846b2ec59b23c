//! The scoring run: drives a model through single removals, saves as it goes, resumes where it stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::Value;

use crate::ablate::{Ablate, LossDeltas};
use crate::error::{AblateError, Error};
use crate::layer::{LayerId, RemovalSet};
use crate::score::{LayerScore, Scores, ScoresParts};

/// Settings of a scoring run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
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

impl ScoreOptions {
    /// These samples, 16 per call, and nothing recorded.
    pub fn new(samples: Range<usize>) -> Self {
        Self { samples, batch: 16, seed: None, settings: BTreeMap::new() }
    }

    /// Samples per call of the model.
    pub fn batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    /// Records the seed that the calibration was drawn with.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Records settings.
    pub fn settings(mut self, settings: BTreeMap<String, Value>) -> Self {
        self.settings.extend(settings);
        self
    }

    /// Records a setting.
    pub fn setting(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.settings.insert(key.into(), value.into());
        self
    }
}

/// What a scoring run tells its callback.
#[derive(Debug)]
#[non_exhaustive]
pub enum ScoreEvent<'a> {
    /// One call of the model has come back.
    Batch {
        /// The layer being scored; the first one where the model takes several at once.
        layer: &'a LayerId,
        /// Samples of this layer done, and in all.
        samples: (usize, usize),
        /// Layers done before this one, and in all.
        layers: (usize, usize),
    },
    /// A layer is complete, and so are those before it. Save here: everything so far is complete.
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
/// All layers, all samples, 16 of them per call, unless said otherwise.
#[derive(Debug)]
#[must_use = "nothing is measured before `run`"]
pub struct Scorer<M> {
    pub(super) model: M,
    pub(super) options: ScoreOptions,
    layers: Option<Vec<LayerId>>,
    pub(super) resume: Vec<Scores>,
}

impl<M: Ablate> Scorer<M> {
    /// A run over a model, or over `&mut` one.
    pub fn new(model: M) -> Self {
        let options = ScoreOptions::new(0..model.num_samples());
        Self { model, options, layers: None, resume: Vec::new() }
    }

    /// The calibration samples to use.
    pub fn samples(mut self, samples: Range<usize>) -> Self {
        self.options.samples = samples;
        self
    }

    /// Samples per call of [`Ablate::evaluate`], at least 1.
    pub fn batch(mut self, batch: usize) -> Self {
        self.options.batch = batch;
        self
    }

    /// Seed that the calibration was drawn with; recorded, and compared when resuming.
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = Some(seed);
        self
    }

    /// Anything else that fixes the result; recorded, and compared when resuming.
    pub fn setting(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.options.settings.insert(key.into(), value.into());
        self
    }

    /// All settings at once.
    pub fn options(mut self, options: ScoreOptions) -> Self {
        self.options = options;
        self
    }

    /// Only these layers: those of one shard, or those left after others have gone. The rest stays without score.
    pub fn layers(mut self, layers: impl IntoIterator<Item = impl Into<LayerId>>) -> Self {
        self.layers = Some(layers.into_iter().map(Into::into).collect());
        self
    }

    /// The scores that an interrupted run handed to its callback; empty for a run from the start. Samples that a layer has
    /// under every criterion are not measured again, and the result is the same as without interruption.
    pub fn resume(mut self, scores: Vec<Scores>) -> Self {
        self.resume = scores;
        self
    }

    /// Scores the layers.
    ///
    /// # Errors
    /// [`AblateError::Model`] with the layer; [`Error::SampleRange`]; [`Error::OutOfRange`] for a batch of 0;
    /// [`Error::UnknownLayer`]; [`Error::ResumeMismatch`], [`Error::OtherModel`] and [`Error::OtherLayers`] for results of
    /// another run; [`Error::Length`] and [`Error::NotFinite`] for bad answers of the model.
    pub fn run(self) -> Result<Vec<Scores>, AblateError<M::Error>> {
        self.run_with(|_| Ok(()))
    }

    /// [`Scorer::run`] with a callback, which sees every batch and every finished layer and may end the run with an error of
    /// its own.
    ///
    /// # Errors
    /// As [`Scorer::run`]; whatever the callback returns.
    pub fn run_with<E>(mut self, mut on_event: impl FnMut(ScoreEvent<'_>) -> Result<(), E>) -> Result<Vec<Scores>, E>
    where
        E: From<Error> + From<AblateError<M::Error>>,
    {
        let all = || self.model.table().layers().iter().map(|layer| layer.id.clone()).collect();
        let layers = self.layers.take().unwrap_or_else(all);
        score_layers(&mut self.model, &layers, &self.options, self.resume, &mut on_event)
    }
}

pub(crate) fn score_layers<M: Ablate, E>(
    model: &mut M,
    layers: &[LayerId],
    options: &ScoreOptions,
    resume: Vec<Scores>,
    on_event: &mut dyn FnMut(ScoreEvent<'_>) -> Result<(), E>,
) -> Result<Vec<Scores>, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    let mut scores = open_scores(model, options, resume)?;
    let ids = model.table().in_order(&layers.iter().cloned().collect())?;
    let total = options.samples.len();
    let unfinished: Vec<(usize, &LayerId, usize)> =
        ids.iter().enumerate().map(|(at, id)| (at, id, samples_done(&scores, id))).filter(|(.., done)| *done < total).collect();
    // Layers of one call must want the same samples.
    for alike in unfinished.chunk_by(|a, b| a.2 == b.2) {
        for chunk in alike.chunks(model.sets_at_once().max(1)) {
            let (first, id, start) = chunk[0];
            let chunk_ids: Vec<&LayerId> = chunk.iter().map(|(_, id, _)| *id).collect();
            extend_scores(model, &mut scores, &chunk_ids, start..total, options, &mut |samples| {
                on_event(ScoreEvent::Batch { layer: id, samples: (samples, total), layers: (first, ids.len()) })
            })?;
            for (at, id, _) in chunk {
                on_event(ScoreEvent::Layer { layer: id, layers: (at + 1, ids.len()), scores: &scores })?;
            }
        }
    }
    Ok(scores)
}

/// The scores to begin with: empty ones, or those of an interrupted run after a check.
pub(super) fn open_scores<M: Ablate>(model: &M, options: &ScoreOptions, resume: Vec<Scores>) -> Result<Vec<Scores>, Error> {
    check_samples(model, &options.samples, options.batch)?;
    let scores = empty_scores(model, options)?;
    if resume.is_empty() { Ok(scores) } else { check_resume(scores, resume) }
}

/// Number of samples that a layer has under every criterion.
pub(super) fn samples_done(scores: &[Scores], id: &LayerId) -> usize {
    let done = scores.iter().map(|scores| scores.layer(id.as_str()).map_or(0, |score| score.samples().len()));
    done.min().unwrap_or(0)
}

/// Measures further samples, counted from the first of the run, of layers that have all those before.
pub(super) fn extend_scores<M: Ablate, E>(
    model: &mut M,
    scores: &mut [Scores],
    ids: &[&LayerId],
    samples: Range<usize>,
    options: &ScoreOptions,
    on_batch: &mut dyn FnMut(usize) -> Result<(), E>,
) -> Result<(), E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    let first = options.samples.start;
    let sets: Vec<RemovalSet> = ids.iter().map(|id| RemovalSet::single((*id).clone())).collect();
    let measured =
        evaluate_all(model, &sets, first + samples.start..first + samples.end, options.batch, &mut |done| on_batch(samples.start + done))?;
    for (id, columns) in ids.iter().zip(measured) {
        for (scores, column) in scores.iter_mut().zip(columns) {
            let earlier = scores.layer(id.as_str()).map_or(&[][..], |score| &score.samples()[..samples.start]);
            let losses = earlier.iter().copied().chain(column).collect();
            let score = LayerScore::from_samples(losses).ok_or_else(|| Error::Overflow { what: format!("the losses of `{id}`") })?;
            scores.insert((*id).clone(), score)?;
        }
    }
    Ok(())
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

/// The losses of removal sets over a range of samples: `[sets, criteria, samples]`.
pub(crate) fn evaluate_all<M: Ablate, E>(
    model: &mut M,
    sets: &[RemovalSet],
    samples: Range<usize>,
    batch: usize,
    on_batch: &mut dyn FnMut(usize) -> Result<(), E>,
) -> Result<Vec<Vec<Vec<f64>>>, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    let criteria = model.criteria();
    let mut measured = vec![vec![Vec::with_capacity(samples.len()); criteria.len()]; sets.len()];
    let mut start = samples.start;
    while start < samples.end {
        let end = samples.end.min(start.saturating_add(batch));
        let answers = match sets {
            [only] => model.evaluate(only, start..end).map(|losses| vec![losses]),
            _ => model.evaluate_many(sets, start..end),
        };
        let answers = answers.map_err(|source| AblateError::Model { removed: describe_all(sets), source })?;
        if answers.len() != sets.len() {
            return Err(
                Error::Length { what: "answers to several removal sets".to_owned(), expected: sets.len(), got: answers.len() }.into()
            );
        }
        for ((losses, removed), columns) in answers.iter().zip(sets).zip(&mut measured) {
            check_losses(losses, &criteria, removed, start..end)?;
            for row in 0..losses.samples() {
                columns.iter_mut().zip(losses.row(row)).for_each(|(column, loss)| column.push(*loss));
            }
        }
        on_batch(end - samples.start)?;
        start = end;
    }
    Ok(measured)
}

fn check_losses(losses: &LossDeltas, criteria: &[String], removed: &RemovalSet, samples: Range<usize>) -> Result<(), Error> {
    for (what, expected, got) in [("rows", samples.len(), losses.samples()), ("columns", criteria.len(), losses.criteria())] {
        if expected != got {
            return Err(Error::Length { what: format!("{what} of losses with {} removed", describe(removed)), expected, got });
        }
    }
    for (row, sample) in samples.enumerate() {
        for (criterion, loss) in criteria.iter().zip(losses.row(row)) {
            if !loss.is_finite() {
                return Err(Error::NotFinite {
                    what: format!("`{criterion}` of sample {sample} with {} removed", describe(removed)),
                    got: loss.to_string(),
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

fn describe_all(sets: &[RemovalSet]) -> String {
    match sets {
        [only] => describe(only),
        _ => format!("one of {} sets of layers", sets.len()),
    }
}
