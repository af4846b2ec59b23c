//! What a model must offer to be scored: the one trait between this crate and any network, and the shortest way to it.

use std::convert::Infallible;
use std::ops::Range;

use crate::error::Error;
use crate::layer::RemovalSet;
use crate::table::LayerTable;

/// A model whose layers can be taken out, measured on a fixed list of calibration samples.
///
/// One evaluation may serve several criteria at once, since most of them share the forward pass. A *loss delta* is what one
/// sample says about one removal: for the output loss of arXiv 2404.11098 it is
/// `mean over elements of (eps(removed) - eps_ori)^2`. It is 0 for the empty removal set, and smaller is better.
///
/// [`from_fn`] makes one of a closure.
pub trait Ablate {
    /// The model's own error.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The removable layers.
    fn table(&self) -> &LayerTable;

    /// Names of the criteria, in the order of the columns of [`LossDeltas`]; at least one, without repetition. `loss` unless
    /// said otherwise.
    fn criteria(&self) -> Vec<String> {
        vec![LOSS.to_owned()]
    }

    /// Number of calibration samples.
    fn num_samples(&self) -> usize;

    /// The group a sample belongs to, such as its time-step bin; scores are also averaged per bin. All in bin 0 unless said
    /// otherwise.
    fn sample_bin(&self, _index: usize) -> u32 {
        0
    }

    /// The loss deltas of some samples with the given layers removed: one row per sample of the range, one column per
    /// criterion. Calls for one removal set come with ascending ranges, so a model may cache what they share.
    ///
    /// # Errors
    /// Whatever the model meets; the run stops and reports it with the removal set.
    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<LossDeltas, Self::Error>;

    /// The loss deltas of several removal sets over the same samples, in the order of the sets. A model whose passes can share
    /// what comes before the first difference does so here; [`crate::score::PrefixCached`] does it for every
    /// [`crate::score::Segmented`].
    ///
    /// # Errors
    /// As [`Ablate::evaluate`].
    fn evaluate_many(&mut self, removed: &[RemovalSet], samples: Range<usize>) -> Result<Vec<LossDeltas>, Self::Error> {
        removed.iter().map(|set| self.evaluate(set, samples.clone())).collect()
    }

    /// How many removal sets are best handed to [`Ablate::evaluate_many`] at once; results are saved after so many. 1 for a
    /// model that shares nothing between passes.
    fn sets_at_once(&self) -> usize {
        1
    }
}

/// The criterion of a model that does not name its own.
pub(crate) const LOSS: &str = "loss";

impl<M: Ablate + ?Sized> Ablate for &mut M {
    type Error = M::Error;

    fn table(&self) -> &LayerTable {
        (**self).table()
    }

    fn criteria(&self) -> Vec<String> {
        (**self).criteria()
    }

    fn num_samples(&self) -> usize {
        (**self).num_samples()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        (**self).sample_bin(index)
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<LossDeltas, Self::Error> {
        (**self).evaluate(removed, samples)
    }

    fn evaluate_many(&mut self, removed: &[RemovalSet], samples: Range<usize>) -> Result<Vec<LossDeltas>, Self::Error> {
        (**self).evaluate_many(removed, samples)
    }

    fn sets_at_once(&self) -> usize {
        (**self).sets_at_once()
    }
}

/// A model from a function of the removed layers and the index of a sample, `0..samples`, that answers the sample's loss
/// delta: an `f64`, or a `Result<f64, E>` where the model may fail.
///
/// ```
/// use prune_core::{LayerTable, Scorer, from_fn};
///
/// let table = LayerTable::builder().layer("blocks.0", 30).layer("blocks.1", 20).build()?;
/// let mut model = from_fn(&table, 4, |removed, sample| removed.len() as f64 * (1.0 + sample as f64));
/// let scores = Scorer::new(&mut model).run()?;
/// assert_eq!(scores[0].value("blocks.1"), Some(2.5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn from_fn<F, A>(table: &LayerTable, samples: usize, loss: F) -> FromFn<F>
where
    F: FnMut(&RemovalSet, usize) -> A,
    A: Answer,
{
    FromFn { table: table.clone(), criterion: LOSS.to_owned(), samples, loss }
}

/// A model with one criterion, made by [`from_fn`].
#[derive(Debug, Clone)]
pub struct FromFn<F> {
    table: LayerTable,
    criterion: String,
    samples: usize,
    loss: F,
}

impl<F> FromFn<F> {
    /// The criterion's name; `loss` unless said otherwise.
    pub fn criterion(mut self, name: impl Into<String>) -> Self {
        self.criterion = name.into();
        self
    }
}

impl<F, A> Ablate for FromFn<F>
where
    F: FnMut(&RemovalSet, usize) -> A,
    A: Answer,
{
    type Error = A::Error;

    fn table(&self) -> &LayerTable {
        &self.table
    }

    fn criteria(&self) -> Vec<String> {
        vec![self.criterion.clone()]
    }

    fn num_samples(&self) -> usize {
        self.samples
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<LossDeltas, A::Error> {
        samples.map(|sample| (self.loss)(removed, sample).into_result()).collect::<Result<Vec<_>, _>>().map(LossDeltas::single)
    }
}

/// What the function of [`from_fn`] may answer: `f64` or `Result<f64, E>`.
pub trait Answer: sealed::Sealed {
    /// The failure; [`Infallible`] of a plain number.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The number, or why there is none.
    ///
    /// # Errors
    /// The model's own.
    fn into_result(self) -> Result<f64, Self::Error>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f64 {}
    impl<E> Sealed for Result<f64, E> {}
}

impl Answer for f64 {
    type Error = Infallible;

    fn into_result(self) -> Result<f64, Infallible> {
        Ok(self)
    }
}

impl<E: std::error::Error + Send + Sync + 'static> Answer for Result<f64, E> {
    type Error = E;

    fn into_result(self) -> Result<f64, E> {
        self
    }
}

/// Loss deltas of some samples, row-major: `[samples, criteria]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LossDeltas {
    criteria: usize,
    values: Vec<f64>,
}

impl LossDeltas {
    /// Wraps row-major values, one row of `criteria` numbers per sample.
    ///
    /// # Errors
    /// [`Error::Length`] where the values are no whole number of rows.
    pub fn new(criteria: usize, values: Vec<f64>) -> Result<Self, Error> {
        if criteria == 0 || !values.len().is_multiple_of(criteria) {
            return Err(Error::Length {
                what: format!("the last row of losses over {criteria} criteria"),
                expected: criteria,
                got: values.len().checked_rem(criteria).unwrap_or(values.len()),
            });
        }
        Ok(Self { criteria, values })
    }

    /// The values of a single criterion, one per sample.
    pub fn single(values: Vec<f64>) -> Self {
        Self { criteria: 1, values }
    }

    /// Number of rows.
    pub fn samples(&self) -> usize {
        self.values.len() / self.criteria
    }

    /// Number of columns.
    pub fn criteria(&self) -> usize {
        self.criteria
    }

    /// One sample's losses, in the order of the criteria.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, sample: usize) -> &[f64] {
        &self.values[sample * self.criteria..(sample + 1) * self.criteria]
    }

    /// Combines two lists of losses, as far as both go, number by number.
    pub(crate) fn zip_with(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| combine(*a, *b)).collect();
        Self { criteria: self.criteria, values }
    }
}
