//! Rows of the training log, and the sums that they are made of: losses of a step's micro-batches, steps since the last row.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use tch::{Kind, Tensor};

use super::task::{Average, StepLoss};
use crate::error::Result;

/// One row of the training log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogRow {
    /// Steps done when the row was written.
    pub step: u64,
    /// Mean total loss of the steps since the last row that were not skipped; NaN, `null` in files, where all were.
    #[serde(deserialize_with = "nan_of_null")]
    pub loss: f64,
    /// Mean of each weighted term over the same steps.
    #[serde(deserialize_with = "nans_of_nulls")]
    pub terms: BTreeMap<String, f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean gradient norm, before clipping, over the same steps.
    #[serde(deserialize_with = "nan_of_null")]
    pub grad_norm: f64,
    /// Steps skipped so far because something was not finite.
    pub skipped: u64,
}

// JSON has no NaN: it is written as null.
fn nan_of_null<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

fn nans_of_nulls<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let values: BTreeMap<String, Option<f64>> = BTreeMap::deserialize(from)?;
    Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

/// The share of each term in the sum of all, for the log and the report.
pub fn shares(terms: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let sum: f64 = terms.values().sum();
    terms.iter().map(|(name, v)| (name.clone(), if sum > 0.0 || sum.is_nan() { v / sum } else { 0.0 })).collect()
}

/// Losses of one step's micro-batches.
pub(super) struct Losses {
    micro: Vec<Tensor>,
    names: Vec<String>,
    stop: bool,
}

/// Their mean over micro-batches and ranks.
pub(super) struct Mean {
    /// Total loss.
    pub value: f64,
    /// Its weighted terms.
    pub terms: Vec<(String, f64)>,
    /// Whether any rank wants to stop.
    pub stop: bool,
}

impl Losses {
    pub fn new(stop: bool) -> Self {
        Self { micro: Vec::new(), names: Vec::new(), stop }
    }

    // One tensor, so that a GPU is waited for once and not once per term.
    pub fn add(&mut self, loss: StepLoss) -> Result<()> {
        let scalars: Vec<Tensor> =
            [&loss.total].into_iter().chain(loss.terms.iter().map(|(_, t)| t)).map(|t| t.detach().to_kind(Kind::Double)).collect();
        self.micro.push(Tensor::f_stack(&scalars, 0)?);
        self.names = loss.terms.into_iter().map(|(name, _)| name).collect();
        Ok(())
    }

    pub fn mean(self, average: &mut Average) -> Result<Mean> {
        let means = Tensor::f_stack(&self.micro, 0)?.mean_dim([0i64].as_slice(), false, Kind::Double);
        let mut values = Vec::<f64>::try_from(&means)?;
        values.push(f64::from(u8::from(self.stop)));
        average(&mut values)?;
        let stop = values.pop().is_some_and(|v| v > 0.0);
        let value = values.remove(0);
        Ok(Mean { value, terms: self.names.into_iter().zip(values).collect(), stop })
    }
}

/// Sums since the last row of the log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Window {
    steps: u64,
    loss: f64,
    norm: f64,
    terms: BTreeMap<String, f64>,
}

impl Window {
    pub fn add(&mut self, loss: f64, norm: f64, terms: &[(String, f64)]) {
        self.steps += 1;
        self.loss += loss;
        self.norm += norm;
        for (name, value) in terms {
            *self.terms.entry(name.clone()).or_default() += value;
        }
    }

    /// A step that changed nothing: its terms are named all the same.
    pub fn skip(&mut self, terms: &[(String, f64)]) {
        for (name, _) in terms {
            self.terms.entry(name.clone()).or_default();
        }
    }

    pub fn take(&mut self, step: u64, lr: f64, skipped: u64) -> LogRow {
        let done = std::mem::take(self);
        // Of no step: NaN.
        let n = done.steps as f64;
        LogRow {
            step,
            loss: done.loss / n,
            terms: done.terms.into_iter().map(|(k, v)| (k, v / n)).collect(),
            lr,
            grad_norm: done.norm / n,
            skipped,
        }
    }
}
