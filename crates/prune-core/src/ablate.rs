//! What a model must offer to be scored: the one trait between this crate and any network.

use std::ops::Range;

use crate::error::Error;
use crate::layer::RemovalSet;
use crate::table::LayerTable;

/// A model whose layers can be taken out, measured on a fixed list of calibration samples.
///
/// One evaluation may serve several criteria at once, since most of them share the forward pass. A *gap* is what one
/// sample says about one removal: for the output loss of arXiv 2404.11098 it is
/// `mean over elements of (eps(removed) - eps_ori)^2`. A gap is 0 for the empty removal set, and smaller is better.
pub trait Ablate {
    /// The model's own error.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The removable layers.
    fn table(&self) -> &LayerTable;

    /// Names of the criteria, in the order of the columns of [`Gaps`]; at least one, without repetition.
    fn criteria(&self) -> &[String];

    /// Number of calibration samples.
    fn num_samples(&self) -> usize;

    /// The group a sample belongs to, such as its time-step bin; scores are also averaged per bin. A model without
    /// such groups answers 0.
    fn sample_bin(&self, index: usize) -> u32;

    /// The gaps of some samples with the given layers removed: one row per sample of the range, one column per
    /// criterion. Calls for one removal set come with ascending ranges, so a model may cache what they share.
    ///
    /// # Errors
    /// Whatever the model meets; the run stops and reports it with the removal set.
    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<Gaps, Self::Error>;

    /// The gaps of several removal sets over the same samples, in the order of the sets. A model whose passes can share
    /// what comes before the first difference does so here; [`crate::Resuming`] does it for every [`crate::Resume`].
    ///
    /// # Errors
    /// As [`Ablate::evaluate`].
    fn evaluate_many(&mut self, removed: &[RemovalSet], samples: Range<usize>) -> Result<Vec<Gaps>, Self::Error> {
        removed.iter().map(|set| self.evaluate(set, samples.clone())).collect()
    }

    /// How many removal sets are best handed to [`Ablate::evaluate_many`] at once; results are saved after so many. 1 for a
    /// model that shares nothing between passes.
    fn sets_at_once(&self) -> usize {
        1
    }
}

impl<M: Ablate + ?Sized> Ablate for &mut M {
    type Error = M::Error;

    fn table(&self) -> &LayerTable {
        (**self).table()
    }

    fn criteria(&self) -> &[String] {
        (**self).criteria()
    }

    fn num_samples(&self) -> usize {
        (**self).num_samples()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        (**self).sample_bin(index)
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<Gaps, Self::Error> {
        (**self).evaluate(removed, samples)
    }

    fn evaluate_many(&mut self, removed: &[RemovalSet], samples: Range<usize>) -> Result<Vec<Gaps>, Self::Error> {
        (**self).evaluate_many(removed, samples)
    }

    fn sets_at_once(&self) -> usize {
        (**self).sets_at_once()
    }
}

/// Gaps of some samples, row-major: `[samples, criteria]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gaps {
    criteria: usize,
    values: Vec<f64>,
}

impl Gaps {
    /// Wraps row-major values, one row of `criteria` numbers per sample.
    ///
    /// # Errors
    /// [`Error::Length`] where the values are no whole number of rows.
    pub fn new(criteria: usize, values: Vec<f64>) -> Result<Self, Error> {
        if criteria == 0 || !values.len().is_multiple_of(criteria) {
            return Err(Error::Length {
                what: format!("the last row of gaps over {criteria} criteria"),
                expected: criteria,
                got: values.len().checked_rem(criteria).unwrap_or(values.len()),
            });
        }
        Ok(Self { criteria, values })
    }

    /// Number of rows.
    pub fn samples(&self) -> usize {
        self.values.len() / self.criteria
    }

    /// Number of columns.
    pub fn criteria(&self) -> usize {
        self.criteria
    }

    /// One sample's gaps, in the order of the criteria.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, sample: usize) -> &[f64] {
        &self.values[sample * self.criteria..(sample + 1) * self.criteria]
    }

    /// Combines two lists of gaps, as far as both go, number by number.
    pub(crate) fn zip_with(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| combine(*a, *b)).collect();
        Self { criteria: self.criteria, values }
    }
}
