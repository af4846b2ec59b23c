//! One-shot scoring: every layer alone, its gaps kept per sample. Second arrow of the flow: model -> `scores.json`.
//!
//! arXiv 2404.11098 scores a layer by `c_i = E || eps(r_i) - eps_ori ||^2` with only layer i removed. [`score_all`]
//! measures that, and every other criterion the model offers, in one pass. Criteria measured elsewhere (magnitude,
//! Taylor, change of CLIP score) become the same [`Scores`] by [`Scores::new`], and are searched by the same knapsack.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ablate::{Ablate, Gaps};
use crate::error::{AblateError, Error};
use crate::file;
use crate::layer::{LayerId, RemovalSet};
use crate::stats;
use crate::table::{LayerTable, TableParts};

const FORMAT: &str = "laptop-diff/scores";
const VERSION: u32 = 1;

/// Score of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerScore {
    value: f64,
    samples: Vec<f64>,
}

impl LayerScore {
    /// A score that is one number.
    pub fn single(value: f64) -> Self {
        Self { value, samples: Vec::new() }
    }

    /// A score that is the mean over samples; `None` of no samples, or where the mean is not finite.
    pub fn from_samples(samples: Vec<f64>) -> Option<Self> {
        let value = stats::mean(&samples)?;
        Some(Self { value, samples })
    }

    /// The score; lower means that the layer matters less.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// The gaps behind it, one per sample; empty for a score that is one number.
    pub fn samples(&self) -> &[f64] {
        &self.samples
    }

    /// Standard error of the score; `None` for fewer than two samples.
    pub fn standard_error(&self) -> Option<f64> {
        stats::standard_error(&self.samples)
    }
}

/// The fields of [`Scores`] before validation.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoresParts {
    /// The model's layers.
    pub table: LayerTable,
    /// What was measured: `output_loss`, `task_loss_delta`, `magnitude`, `taylor`, ...
    pub criterion: String,
    /// Seed of whatever was drawn.
    pub seed: Option<u64>,
    /// How it was measured, for readers and for resuming; any JSON.
    pub settings: BTreeMap<String, Value>,
    /// Index of the first calibration sample.
    pub first_sample: usize,
    /// Bin of each sample; empty where layers have one value each.
    pub bins: Vec<u32>,
    /// The scores; layers may still be missing.
    pub layers: BTreeMap<LayerId, LayerScore>,
}

/// Scores of a model's layers under one criterion, possibly not complete yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    parts: ScoresParts,
}

impl Scores {
    /// Validates the parts.
    ///
    /// # Errors
    /// [`Error::EmptyName`] (criterion), [`Error::UnknownLayer`], [`Error::NotFinite`], [`Error::Length`] (a layer
    /// with another number of samples than there are bins), [`Error::Overflow`] (sample numbers).
    pub fn new(parts: ScoresParts) -> Result<Self, Error> {
        if parts.criterion.is_empty() {
            return Err(Error::EmptyName { key: "criterion".to_owned() });
        }
        if parts.first_sample.checked_add(parts.bins.len()).is_none() {
            return Err(Error::Overflow { what: "first_sample and the number of samples".to_owned() });
        }
        let mut scores = Self { parts };
        for (id, score) in std::mem::take(&mut scores.parts.layers) {
            scores.insert(id, score)?;
        }
        Ok(scores)
    }

    /// Scores with one value per layer and no error bars.
    ///
    /// # Errors
    /// As [`Scores::new`].
    pub fn from_values(
        table: &LayerTable,
        criterion: impl Into<String>,
        values: impl IntoIterator<Item = (LayerId, f64)>,
    ) -> Result<Self, Error> {
        let layers = values.into_iter().map(|(id, value)| (id, LayerScore::single(value)));
        Self::new(ScoresParts {
            table: table.clone(),
            criterion: criterion.into(),
            seed: None,
            settings: BTreeMap::new(),
            first_sample: 0,
            bins: Vec::new(),
            layers: layers.collect(),
        })
    }

    /// Adds or replaces the score of one layer.
    ///
    /// # Errors
    /// As [`Scores::new`].
    pub fn insert(&mut self, id: LayerId, score: LayerScore) -> Result<(), Error> {
        self.parts.table.require(&id)?;
        let criterion = &self.parts.criterion;
        if !score.samples.is_empty() && score.samples.len() != self.parts.bins.len() {
            return Err(Error::Length {
                what: format!("samples of `{criterion}` for `{id}`"),
                expected: self.parts.bins.len(),
                got: score.samples.len(),
            });
        }
        let mut values = score.samples.iter().chain(std::iter::once(&score.value));
        if let Some(bad) = values.find(|value| !value.is_finite()) {
            return Err(Error::NotFinite { what: format!("`{criterion}` of `{id}`"), got: bad.to_string() });
        }
        self.parts.layers.insert(id, score);
        Ok(())
    }

    /// The model's layers.
    pub fn table(&self) -> &LayerTable {
        &self.parts.table
    }

    /// What was measured.
    pub fn criterion(&self) -> &str {
        &self.parts.criterion
    }

    /// Seed of whatever was drawn.
    pub fn seed(&self) -> Option<u64> {
        self.parts.seed
    }

    /// How it was measured.
    pub fn settings(&self) -> &BTreeMap<String, Value> {
        &self.parts.settings
    }

    /// Replaces the record of how it was measured.
    pub fn with_settings(mut self, seed: Option<u64>, settings: BTreeMap<String, Value>) -> Self {
        self.parts.seed = seed;
        self.parts.settings = settings;
        self
    }

    /// The calibration samples behind the scores; empty where layers have one value each.
    pub fn samples(&self) -> Range<usize> {
        self.parts.first_sample..self.parts.first_sample + self.parts.bins.len()
    }

    /// Bin of each sample, in order of the samples.
    pub fn bins(&self) -> &[u32] {
        &self.parts.bins
    }

    /// The score of a layer, with its samples.
    pub fn layer(&self, id: &str) -> Option<&LayerScore> {
        self.parts.layers.get(id)
    }

    /// The score of a layer as a number.
    pub fn value(&self, id: &str) -> Option<f64> {
        self.layer(id).map(LayerScore::value)
    }

    /// Mean gap of a layer in each bin; empty where there are no samples.
    pub fn bin_means(&self, id: &str) -> BTreeMap<u32, f64> {
        let mut groups: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        if let Some(score) = self.layer(id) {
            for (bin, gap) in self.parts.bins.iter().zip(&score.samples) {
                groups.entry(*bin).or_default().push(*gap);
            }
        }
        let mean = |(bin, gaps): (u32, Vec<f64>)| stats::mean(&gaps).map(|mean| (bin, mean));
        groups.into_iter().filter_map(mean).collect()
    }

    /// Whether every layer has a score.
    pub fn is_complete(&self) -> bool {
        self.parts.layers.len() == self.parts.table.len()
    }

    /// The layers without score, in the order of the forward pass.
    pub fn missing(&self) -> Vec<&LayerId> {
        let ids = self.parts.table.layers().iter().map(|layer| &layer.id);
        ids.filter(|id| !self.parts.layers.contains_key(*id)).collect()
    }

    /// All values in the order of the table's layers.
    ///
    /// # Errors
    /// [`Error::IncompleteScores`].
    pub fn values(&self) -> Result<Vec<f64>, Error> {
        let values = self.parts.table.layers().iter().map(|layer| self.value(layer.id.as_str()).ok_or(&layer.id));
        values.collect::<Result<_, _>>().map_err(|first_missing| Error::IncompleteScores {
            criterion: self.criterion().to_owned(),
            expected: self.parts.table.len(),
            got: self.parts.layers.len(),
            first_missing: first_missing.clone(),
        })
    }

    /// Sum of the scores of a removal set: what the additivity assumption predicts for their joint removal.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`], [`Error::IncompleteScores`] where one of the set has no score.
    pub fn predicted(&self, set: &RemovalSet) -> Result<f64, Error> {
        let mut values = Vec::with_capacity(set.len());
        for id in set {
            self.parts.table.require(id)?;
            values.push(self.value(id.as_str()).ok_or_else(|| Error::IncompleteScores {
                criterion: self.criterion().to_owned(),
                expected: self.parts.table.len(),
                got: self.parts.layers.len(),
                first_missing: id.clone(),
            })?);
        }
        Ok(stats::sum(values))
    }

    /// The document `scores.json` as text.
    ///
    /// # Errors
    /// [`Error::Serialize`].
    pub fn to_json(&self) -> Result<String, Error> {
        file::to_json(&self.document())
    }

    /// Writes `scores.json`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Serialize`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        file::write_json_atomically(path, &self.document())
    }

    /// Reads and validates the text of `scores.json`.
    ///
    /// # Errors
    /// [`Error::Parse`], [`Error::WrongFormat`], [`Error::WrongVersion`], [`Error::DuplicateId`],
    /// [`Error::Inconsistent`] (a value that is not the mean of its samples), and those of [`LayerTable::new`] and
    /// [`Scores::new`].
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        let document: Document = file::parse(text, FORMAT, VERSION)?;
        let mut scores = Self::new(ScoresParts {
            table: LayerTable::new(document.table)?,
            criterion: document.criterion,
            seed: document.seed,
            settings: document.settings,
            first_sample: document.first_sample,
            bins: document.bins,
            layers: BTreeMap::new(),
        })?;
        for row in document.scores {
            let score = row.checked()?;
            if scores.parts.layers.contains_key(&row.id) {
                return Err(Error::DuplicateId { key: "scores".to_owned(), id: row.id });
            }
            scores.insert(row.id, score)?;
        }
        Ok(scores)
    }

    /// Reads and validates a `scores.json`.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::InFile`] around those of [`Scores::from_json`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        file::read(path, Self::from_json)
    }

    /// Reads a `scores.json` that must have been made for this model.
    ///
    /// # Errors
    /// As [`Scores::read`], and [`Error::OtherModel`].
    pub fn read_for(path: &Path, table: &LayerTable) -> Result<Self, Error> {
        file::read(path, |text| {
            let scores = Self::from_json(text)?;
            table.check_fingerprint(scores.table().model(), scores.table().fingerprint())?;
            Ok(scores)
        })
    }

    fn document(&self) -> Document {
        let rows = self.parts.table.layers().iter().filter_map(|layer| {
            let score = self.parts.layers.get(&layer.id)?;
            Some(Row { id: layer.id.clone(), value: score.value, standard_error: score.standard_error(), samples: score.samples.clone() })
        });
        Document {
            format: FORMAT.to_owned(),
            version: VERSION,
            criterion: self.parts.criterion.clone(),
            seed: self.parts.seed,
            settings: self.parts.settings.clone(),
            first_sample: self.parts.first_sample,
            bins: self.parts.bins.clone(),
            scores: rows.collect(),
            table: self.parts.table.parts().clone(),
        }
    }
}

/// `scores.json` as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u32,
    criterion: String,
    seed: Option<u64>,
    settings: BTreeMap<String, Value>,
    first_sample: usize,
    bins: Vec<u32>,
    scores: Vec<Row>,
    table: TableParts,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: LayerId,
    value: f64,
    standard_error: Option<f64>,
    samples: Vec<f64>,
}

impl Row {
    /// The score, if the stated mean is that of the stated samples. The standard error is for readers only.
    fn checked(&self) -> Result<LayerScore, Error> {
        if self.samples.is_empty() {
            return Ok(LayerScore::single(self.value));
        }
        let scale = self.samples.iter().fold(self.value.abs(), |a, b| a.max(b.abs()));
        match LayerScore::from_samples(self.samples.clone()) {
            Some(score) if (score.value - self.value).abs() <= 1e-9 * scale => Ok(score),
            other => Err(Error::Inconsistent {
                key: format!("scores.{}.value", self.id),
                expected: other.map_or("finite".to_owned(), |score| score.value.to_string()),
                got: self.value.to_string(),
            }),
        }
    }
}

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
/// [`Error::ResumeMismatch`] and [`Error::OtherModel`] for results of another run; [`Error::Length`] and
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
        now.table().check_fingerprint(then.table().model(), then.table().fingerprint())?;
        if now.table() != then.table() {
            return Err(differs("table", "this model's layers".to_owned(), "other layers".to_owned()));
        }
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
