//! Scoring in several processes: each measures some of the samples, or some of the layers, into a file of its own; the files
//! merge to what one process would have written.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::error::Error;
use crate::layer::LayerId;
use crate::score::{LayerScore, Scores, ScoresParts};
use crate::table::LayerTable;

/// One of several equal parts of a scoring run. As text it counts from 1: `1/4` to `4/4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// Part `index`, from 0, of `count`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where there is no such part.
    pub fn new(index: usize, count: usize) -> Result<Self, Error> {
        if index < count {
            return Ok(Self { index, count });
        }
        let got = format!("part {index} of {count}, counted from 0");
        Err(Error::OutOfRange { key: "shard", expected: "a part below the number of parts".to_owned(), got })
    }

    /// This part of the samples; parts meet between batches, so that a model sees the batches of an undivided run. Empty
    /// where there are fewer batches than parts.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a batch of 0.
    pub fn samples(&self, all: Range<usize>, batch: usize) -> Result<Range<usize>, Error> {
        if batch == 0 {
            return Err(Error::OutOfRange { key: "batch", expected: "at least 1".to_owned(), got: "0".to_owned() });
        }
        let batches = all.len().div_ceil(batch);
        // In 128 bits no product overflows.
        let cut = |part: usize| (batches as u128 * part as u128 / self.count as u128) as usize;
        let at = |part: usize| all.end.min(all.start + cut(part) * batch);
        Ok(at(self.index)..at(self.index + 1))
    }

    /// This part of the layers, every n-th: a segmented model has more work with early layers than with late ones.
    pub fn layers(&self, table: &LayerTable) -> Vec<LayerId> {
        table.layers().iter().skip(self.index).step_by(self.count).map(|layer| layer.id.clone()).collect()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index + 1, self.count)
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::OutOfRange { key: "shard", expected: "`1/4`, `2/4` and so on".to_owned(), got: text.to_owned() };
        let (index, count) = text.split_once('/').ok_or_else(bad)?;
        let index: usize = index.parse().map_err(|_| bad())?;
        let count = count.parse().map_err(|_| bad())?;
        Self::new(index.checked_sub(1).ok_or_else(bad)?, count).map_err(|_| bad())
    }
}

/// Puts the scores of all shards together: the same, to the byte of the file, as scores measured in one process. Their order
/// does not matter. Every layer must have every sample exactly once.
///
/// # Errors
/// [`Error::ShardsDiffer`] where shards are not of one run, [`Error::OtherModel`] and [`Error::OtherLayers`] where they are not
/// of one model; [`Error::ShardsOverlap`] and [`Error::ShardMissing`]; [`Error::OutOfRange`] for no shards.
pub fn merge_scores(shards: &[Scores]) -> Result<Scores, Error> {
    let Some(first) = shards.first() else {
        return Err(Error::OutOfRange { key: "shards", expected: "at least 1".to_owned(), got: "0".to_owned() });
    };
    shards.iter().try_for_each(|shard| check_same_run(first, shard))?;
    let bins = merged_bins(shards)?;
    let all = match (bins.first_key_value(), bins.last_key_value()) {
        (Some((start, _)), Some((last, _))) => *start..last + 1,
        _ => first.samples(),
    };
    let mut layers = BTreeMap::new();
    for layer in first.table().layers() {
        layers.insert(layer.id.clone(), merged_layer(shards, &layer.id, &all)?);
    }
    Scores::new(ScoresParts {
        table: first.table().clone(),
        criterion: first.criterion().to_owned(),
        seed: first.seed(),
        settings: first.settings().clone(),
        first_sample: all.start,
        bins: bins.into_values().collect(),
        layers,
    })
}

fn check_same_run(first: &Scores, other: &Scores) -> Result<(), Error> {
    first.table().check_same(other.table())?;
    let fields = [
        ("criterion", first.criterion().to_owned(), other.criterion().to_owned()),
        ("seed", format!("{:?}", first.seed()), format!("{:?}", other.seed())),
        ("settings", format!("{:?}", first.settings()), format!("{:?}", other.settings())),
    ];
    match fields.into_iter().find(|(_, first, other)| first != other) {
        Some((key, first, other)) => Err(Error::ShardsDiffer { key: key.to_owned(), first, other }),
        None => Ok(()),
    }
}

/// The bin of each sample that some shard has.
fn merged_bins(shards: &[Scores]) -> Result<BTreeMap<usize, u32>, Error> {
    let mut bins = BTreeMap::new();
    for (sample, bin) in shards.iter().flat_map(|shard| shard.samples().zip(shard.bins())) {
        let first = *bins.entry(sample).or_insert(*bin);
        if first != *bin {
            let key = format!("the bin of sample {sample}");
            return Err(Error::ShardsDiffer { key, first: first.to_string(), other: bin.to_string() });
        }
    }
    Ok(bins)
}

/// One layer's samples from all shards, end to end.
fn merged_layer(shards: &[Scores], id: &LayerId, all: &Range<usize>) -> Result<LayerScore, Error> {
    let mut parts: Vec<(usize, &LayerScore)> =
        shards.iter().filter_map(|shard| Some((shard.samples().start, shard.layer(id.as_str())?))).collect();
    if let [(_, only)] = parts[..]
        && all.is_empty()
    {
        return Ok(only.clone());
    }
    parts.sort_by_key(|(start, _)| *start);
    let missing = |samples: Range<usize>| Error::ShardMissing { id: id.clone(), start: samples.start, end: samples.end };
    let mut losses: Vec<f64> = Vec::with_capacity(all.len());
    for (start, score) in parts {
        let next = all.start + losses.len();
        if start < next || score.samples().is_empty() {
            return Err(Error::ShardsOverlap { id: id.clone(), sample: start });
        }
        if start > next {
            return Err(missing(next..start));
        }
        losses.extend(score.samples());
    }
    if losses.is_empty() || losses.len() < all.len() {
        return Err(missing(all.start + losses.len()..all.end));
    }
    LayerScore::from_samples(losses).ok_or_else(|| Error::Overflow { what: format!("the losses of `{id}`") })
}
