//! One-shot scoring: every layer alone, its losses kept per sample. Second arrow of the flow: model -> `scores.json`.
//!
//! arXiv 2404.11098 scores a layer by `c_i = E || eps(r_i) - eps_ori ||^2` with only layer i removed. [`Scorer`]
//! measures that, and every other criterion the model offers, in one pass. Criteria measured elsewhere (magnitude,
//! Taylor, change of CLIP score) become the same [`Scores`] by [`Scores::new`], and are searched by the same knapsack.

mod document;
mod run;

mod adaptive;
mod bins;
mod confidence;
mod shard;

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use crate::error::Error;
use crate::layer::{LayerId, RemovalSet};
use crate::stats;
use crate::table::LayerTable;

pub use crate::ablate::{Ablate, Answer, FromFn, LossDeltas, from_fn};
pub use crate::error::AblateError;
pub use crate::segmented::{PrefixCached, Segment, Segmented};
pub use adaptive::{AdaptiveEvent, AdaptiveOptions, AdaptiveScores};
pub use bins::{BinWeights, weigh_bins};
pub use confidence::{Certificate, HeavyTails, Population, certify};
pub use run::{ScoreEvent, ScoreOptions, Scorer};
pub(crate) use run::{check_samples, evaluate_all, score_layers};
pub use shard::{Shard, merge_scores};

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

    /// The losses behind it, one for each of the run's first samples, or of all; empty for a score that is one number.
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
    /// with more samples than there are bins), [`Error::Overflow`] (sample numbers).
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
        values: impl IntoIterator<Item = (impl Into<LayerId>, f64)>,
    ) -> Result<Self, Error> {
        let layers = values.into_iter().map(|(id, value)| (id.into(), LayerScore::single(value)));
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
        if score.samples.len() > self.parts.bins.len() {
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

    /// Mean loss of a layer in each bin; empty where there are no samples.
    pub fn bin_means(&self, id: &str) -> BTreeMap<u32, f64> {
        let mean = |(bin, losses): (u32, Vec<f64>)| stats::mean(&losses).map(|mean| (bin, mean));
        self.by_bin(id).into_iter().filter_map(mean).collect()
    }

    /// The standard error of the mean of a layer in every bin with at least two samples.
    pub fn bin_standard_errors(&self, id: &str) -> BTreeMap<u32, f64> {
        let error = |(bin, losses): (u32, Vec<f64>)| stats::standard_error(&losses).map(|error| (bin, error));
        self.by_bin(id).into_iter().filter_map(error).collect()
    }

    fn by_bin(&self, id: &str) -> BTreeMap<u32, Vec<f64>> {
        let mut groups: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        if let Some(score) = self.layer(id) {
            for (bin, loss) in self.parts.bins.iter().zip(&score.samples) {
                groups.entry(*bin).or_default().push(*loss);
            }
        }
        groups
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
        let table = &self.parts.table;
        if !self.is_complete() {
            let missing = table.layers().iter().find(|layer| self.layer(layer.id.as_str()).is_none());
            return Err(Error::IncompleteScores {
                criterion: self.criterion().to_owned(),
                expected: table.len(),
                got: self.parts.layers.len(),
                first_missing: missing.unwrap_or(&table.layers()[0]).id.clone(),
            });
        }
        // Both are in the order of ids, and every scored layer is in the table.
        let mut values = vec![0.0; table.len()];
        for ((_, position), score) in table.by_id().zip(self.parts.layers.values()) {
            values[position] = score.value;
        }
        Ok(values)
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
}
