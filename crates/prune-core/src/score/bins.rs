//! Scores that count some time steps more than others: pure functions over the losses of each bin, so that one scoring run
//! serves every weighting.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::layer::LayerId;
use crate::score::{LayerScore, Scores};

/// How much each bin of samples counts. Bins are numbered from the cleanest time step to the noisiest, so that sampling
/// begins in the last bin and ends in the first. The three shapes are straight lines from weight 0.5 to 1.5, before they are
/// scaled to a sum of 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BinWeights {
    /// Every bin counts the same, however many samples it has.
    Uniform,
    /// The noisy steps, with which sampling begins, count most.
    Early,
    /// The steps in the middle count most.
    Middle,
    /// The clean steps, with which sampling ends, count most.
    Late,
    /// A weight of 0 or more for every bin, in any unit.
    Custom(BTreeMap<u32, f64>),
}

/// `uniform`, `early`, `middle`, `late`, or a weight for each bin, such as `0=1,1=2`.
impl FromStr for BinWeights {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let pair = |pair: &str| {
            let (bin, weight) = pair.split_once('=')?;
            Some((bin.parse().ok()?, weight.parse().ok()?))
        };
        let custom = || text.split(',').map(pair).collect::<Option<BTreeMap<u32, f64>>>();
        Ok(match text {
            "uniform" => BinWeights::Uniform,
            "early" => BinWeights::Early,
            "middle" => BinWeights::Middle,
            "late" => BinWeights::Late,
            _ => BinWeights::Custom(custom().ok_or_else(|| bad("uniform, early, middle, late, or such as 0=1,1=2", text.to_owned()))?),
        })
    }
}

impl BinWeights {
    /// The weights of these bins, scaled to a sum of 1.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where there is no bin, or custom weights are not of these very bins, negative, not finite or all 0.
    pub fn resolve(&self, bins: &BTreeSet<u32>) -> Result<BTreeMap<u32, f64>, Error> {
        if bins.is_empty() {
            return Err(bad("samples in bins", "none".to_owned()));
        }
        let last = (bins.len() - 1).max(1) as f64;
        let shape = |weight: fn(f64) -> f64| {
            let place = |at: usize| if bins.len() == 1 { 0.5 } else { at as f64 / last };
            bins.iter().enumerate().map(|(at, bin)| (*bin, weight(place(at)))).collect::<BTreeMap<_, _>>()
        };
        let weights = match self {
            BinWeights::Uniform => shape(|_| 1.0),
            BinWeights::Early => shape(|place| 0.5 + place),
            BinWeights::Middle => shape(|place| 1.5 - (2.0 * place - 1.0).abs()),
            BinWeights::Late => shape(|place| 1.5 - place),
            BinWeights::Custom(weights) => weights.clone(),
        };
        if !weights.keys().eq(bins) {
            return Err(bad(&format!("a weight for each of the bins {bins:?}"), format!("{:?}", weights.keys())));
        }
        let total: f64 = weights.values().sum();
        let none_negative = weights.values().all(|weight| *weight >= 0.0);
        if !(none_negative && total > 0.0 && total.is_finite()) {
            return Err(bad("finite weights, none negative and not all 0", format!("{:?}", weights.values())));
        }
        Ok(weights.into_iter().map(|(bin, weight)| (bin, weight / total)).collect())
    }
}

fn bad(expected: &str, got: String) -> Error {
    Error::OutOfRange { key: "bin weights", expected: expected.to_owned(), got }
}

/// Scores with weighted bins: `sum over bins of weight times mean loss of the bin`. Each sample is scaled by what it counts, so
/// that the score stays the mean of its samples; the weights are recorded in the settings as `bin_weights`. The standard
/// error takes the bins as drawn at random, and is on the safe side where they were not.
///
/// # Errors
/// As [`BinWeights::resolve`]; [`Error::EmptyBin`] for a layer without samples in some bin.
pub fn weigh_bins(scores: &Scores, weights: &BinWeights) -> Result<Scores, Error> {
    let bins: BTreeSet<u32> = scores.bins().iter().copied().collect();
    let weights = weights.resolve(&bins)?;
    let record: serde_json::Map<String, Value> = weights.iter().map(|(bin, weight)| (bin.to_string(), (*weight).into())).collect();
    let mut settings = scores.settings().clone();
    settings.insert("bin_weights".to_owned(), record.into());
    let mut weighted = scores.clone().with_settings(scores.seed(), settings);
    for layer in scores.table().layers() {
        let Some(score) = scores.layer(layer.id.as_str()) else { continue };
        let samples = scaled(&layer.id, score.samples(), scores.bins(), &weights)?;
        let score = LayerScore::from_samples(samples).ok_or_else(|| Error::Overflow { what: format!("the losses of `{}`", layer.id) })?;
        weighted.insert(layer.id.clone(), score)?;
    }
    Ok(weighted)
}

fn scaled(id: &LayerId, samples: &[f64], bins: &[u32], weights: &BTreeMap<u32, f64>) -> Result<Vec<f64>, Error> {
    let mut counts: BTreeMap<u32, usize> = weights.keys().map(|bin| (*bin, 0)).collect();
    bins.iter().take(samples.len()).for_each(|bin| *counts.entry(*bin).or_default() += 1);
    if let Some((bin, _)) = counts.iter().find(|(_, count)| **count == 0) {
        return Err(Error::EmptyBin { id: id.clone(), bin: *bin });
    }
    let factor = |bin: &u32| samples.len() as f64 * weights[bin] / counts[bin] as f64;
    Ok(samples.iter().zip(bins).map(|(loss, bin)| loss * factor(bin)).collect())
}
