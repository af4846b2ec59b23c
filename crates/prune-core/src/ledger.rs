//! What has been measured of sets and what it cost: the only way from a search on joint losses to the model. It holds the
//! search to its evaluations and its time, and hands what it measures to a record that the search can go on from.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ablate::Ablate;
use crate::error::{AblateError, Error};
use crate::layer::RemovalSet;
use crate::score::evaluate_all;
use crate::search::{SearchOptions, Watch};
use crate::stats;

/// The losses of one set over the first samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLoss {
    /// The layers removed together.
    pub removed: RemovalSet,
    /// One loss for each of the first samples of the search; `gaps` in older files.
    #[serde(alias = "gaps")]
    pub losses: Vec<f64>,
}

impl SetLoss {
    /// Checks measurements over some samples.
    pub(crate) fn check(measured: &[Self], samples: usize) -> Result<(), Error> {
        for (number, set) in measured.iter().enumerate() {
            if set.losses.len() > samples {
                let what = format!("`measured.{number}.losses`");
                return Err(Error::Length { what, expected: samples, got: set.losses.len() });
            }
            if let Some(bad) = set.losses.iter().find(|loss| !loss.is_finite()) {
                return Err(Error::NotFinite { what: format!("a loss of `measured.{number}`"), got: bad.to_string() });
            }
        }
        Ok(())
    }
}

/// The record of a search, kept up to date.
pub(crate) trait Record {
    /// Evaluations so far, and all that they measured.
    fn enter(&mut self, forwards: u64, measured: Vec<SetLoss>);

    /// A set that is better than all before.
    fn note(&mut self, _loss: f64, _set: &RemovalSet) {}
}

/// What a search on joint losses tells its callback.
#[derive(Debug)]
#[non_exhaustive]
pub enum JointSearchEvent<'a, R> {
    /// One call of the model has come back.
    Batch {
        /// Evaluations done, and allowed.
        forwards: (u64, u64),
    },
    /// Some sets have been measured. Save here: everything so far is complete.
    Measured {
        /// All so far; written to a file that the run can be resumed from.
        record: &'a R,
    },
}

/// The measurements of an interrupted run, if its settings are those of the run that goes on: name, expected and found.
pub(crate) fn same_run(settings: &[(&str, String, String)], measured: Vec<SetLoss>) -> Result<Vec<SetLoss>, Error> {
    match settings.iter().find(|(_, expected, got)| expected != got) {
        Some((key, expected, got)) => Err(Error::ResumeMismatch { key: (*key).to_owned(), expected: expected.clone(), got: got.clone() }),
        None => Ok(measured),
    }
}

/// What a search may use.
pub(crate) struct Means {
    /// Column of the criterion.
    pub(crate) criterion: usize,
    /// The samples of the search.
    pub(crate) samples: Range<usize>,
    /// Samples per call of the model.
    pub(crate) batch: usize,
    /// Evaluations allowed.
    pub(crate) max_forwards: u64,
}

/// Who is told of batches and measurements.
type Callback<'a, R, E> = &'a mut dyn FnMut(JointSearchEvent<'_, R>) -> Result<(), E>;

pub(crate) struct Ledger<'a, M, R, E> {
    model: &'a mut M,
    means: Means,
    /// Evaluations that are kept for the end.
    reserved: u64,
    /// Evaluations up to which the present part of the search may go.
    upto: u64,
    /// The losses of each set over the first samples.
    losses: BTreeMap<RemovalSet, Vec<f64>>,
    /// Those of an interrupted run.
    earlier: BTreeMap<RemovalSet, Vec<f64>>,
    forwards: u64,
    pub(crate) record: R,
    watch: Watch<'a>,
    /// Time that evaluations took, and how many these were.
    pace: (Duration, u64),
    on_event: Callback<'a, R, E>,
}

impl<'a, M: Ablate, R: Record, E> Ledger<'a, M, R, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    /// `earlier` is what an interrupted run measured.
    pub(crate) fn new(
        model: &'a mut M,
        means: Means,
        search: &SearchOptions<'a>,
        record: R,
        earlier: Vec<SetLoss>,
        on_event: Callback<'a, R, E>,
    ) -> Self {
        let earlier = earlier.into_iter().map(|set| (set.removed, set.losses)).collect();
        Self {
            model,
            reserved: 0,
            upto: means.max_forwards,
            means,
            losses: BTreeMap::new(),
            earlier,
            forwards: 0,
            record,
            watch: search.watch(),
            pace: (Duration::ZERO, 0),
            on_event,
        }
    }

    /// Number of samples that the search may use.
    pub(crate) fn len(&self) -> usize {
        self.means.samples.len()
    }

    /// Keeps this many evaluations for the end.
    pub(crate) fn reserve(&mut self, forwards: u64) {
        self.reserved = forwards;
        self.upto = self.means.max_forwards.saturating_sub(forwards);
    }

    /// Lets the search go on for a share of the evaluations that are left, `1 / parts` of them.
    pub(crate) fn allow_share(&mut self, parts: u64) {
        let left = self.means.max_forwards.saturating_sub(self.reserved).saturating_sub(self.forwards);
        self.upto = self.forwards + left / parts.max(1);
    }

    /// Evaluations that the present part of the search may still do.
    pub(crate) fn left(&self) -> u64 {
        self.upto.saturating_sub(self.forwards)
    }

    /// Whether so many further evaluations are allowed, and fit into the time with those that are reserved.
    fn affords(&mut self, forwards: u64) -> bool {
        if forwards > self.left() || self.watch.halted(self.forwards as f64 / self.means.max_forwards.max(1) as f64, self.forwards) {
            return false;
        }
        let (time, done) = self.pace;
        let needed = |left: Duration| time.as_secs_f64() / done.max(1) as f64 * (forwards + self.reserved) as f64 <= left.as_secs_f64();
        self.watch.left().is_none_or(needed)
    }

    /// Measures sets on the first samples; false where that would be more than is allowed, or the time is over. Some may then
    /// have been measured.
    pub(crate) fn measure(&mut self, sets: &[RemovalSet], upto: usize) -> Result<bool, E> {
        let mut open: Vec<(usize, Vec<usize>, &RemovalSet)> = Vec::new();
        let mut listed = std::collections::BTreeSet::new();
        for set in sets {
            let done = self.losses.get(set).map_or(0, Vec::len);
            if done < upto && listed.insert(set) {
                let positions = set.iter().filter_map(|id| self.model.table().position(id.as_str()));
                let mut positions: Vec<usize> = positions.collect();
                positions.sort_unstable();
                open.push((done, positions, set));
            }
        }
        let cost: u64 = open.iter().map(|(done, ..)| (upto - done) as u64).sum();
        if cost > 0 && !self.affords(cost) {
            return Ok(false);
        }
        // Sets that want the same samples, and among these sets that agree in their first layers, meet in one call.
        open.sort();
        for alike in open.chunk_by(|a, b| a.0 == b.0) {
            let sets: Vec<RemovalSet> = alike.iter().map(|(.., set)| (*set).clone()).collect();
            if !self.extend(sets, alike[0].0, upto)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn extend(&mut self, sets: Vec<RemovalSet>, from: usize, upto: usize) -> Result<bool, E> {
        let (known, open): (Vec<_>, Vec<_>) =
            sets.into_iter().partition(|set| self.earlier.get(set).is_some_and(|losses| losses.len() >= upto));
        for set in known {
            let losses = self.earlier[&set][from..upto].to_vec();
            self.add(set, losses);
        }
        self.write_down();
        let first = self.means.samples.start;
        for chunk in open.chunks(self.model.sets_at_once().max(1)) {
            if !self.affords(((upto - from) * chunk.len()) as u64) {
                return Ok(false);
            }
            let columns = self.evaluate(chunk, first + from..first + upto)?;
            for (set, losses) in chunk.iter().zip(columns) {
                self.add(set.clone(), losses);
            }
            self.write_down();
            (self.on_event)(JointSearchEvent::Measured { record: &self.record })?;
        }
        Ok(true)
    }

    fn write_down(&mut self) {
        let sets = self.losses.iter().map(|(removed, losses)| SetLoss { removed: removed.clone(), losses: losses.clone() });
        self.record.enter(self.forwards, sets.collect());
    }

    fn add(&mut self, set: RemovalSet, losses: Vec<f64>) {
        self.forwards += losses.len() as u64;
        self.losses.entry(set).or_default().extend(losses);
    }

    /// The losses of sets under the criterion, whatever is allowed.
    fn evaluate(&mut self, sets: &[RemovalSet], samples: Range<usize>) -> Result<Vec<Vec<f64>>, E> {
        let (before, many, most) = (self.forwards, sets.len() as u64, self.means.max_forwards);
        let (start, count) = (Instant::now(), many * samples.len() as u64);
        let on_event = &mut *self.on_event;
        let measured = evaluate_all(self.model, sets, samples, self.means.batch, &mut |done| {
            on_event(JointSearchEvent::Batch { forwards: (before + many * done as u64, most) })
        })?;
        self.pace = (self.pace.0 + start.elapsed(), self.pace.1 + count);
        Ok(measured.into_iter().map(|mut columns| columns.swap_remove(self.means.criterion)).collect())
    }

    /// Measures sets on samples that the search does not use, with the evaluations that were reserved.
    pub(crate) fn held_out(&mut self, sets: &[RemovalSet], samples: Range<usize>) -> Result<Vec<Vec<f64>>, E> {
        let columns = self.evaluate(sets, samples)?;
        self.forwards += columns.iter().map(|column| column.len() as u64).sum::<u64>();
        self.write_down();
        Ok(columns)
    }

    /// The losses of a set so far.
    pub(crate) fn losses(&self, set: &RemovalSet) -> &[f64] {
        self.losses.get(set).map_or(&[], Vec::as_slice)
    }

    /// Mean loss over the first samples; infinite for a set that has fewer.
    pub(crate) fn loss(&self, set: &RemovalSet, upto: usize) -> f64 {
        self.losses(set).get(..upto).and_then(stats::mean).unwrap_or(f64::INFINITY)
    }

    /// The sets that were measured on so many samples or more, by their loss on these.
    pub(crate) fn ranking(&self, upto: usize) -> Vec<RemovalSet> {
        let whole = self.losses.iter().filter(|(_, losses)| losses.len() >= upto);
        let mut sets: Vec<(f64, &RemovalSet)> = whole.map(|(set, _)| (self.loss(set, upto), set)).collect();
        sets.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(b.1)));
        sets.into_iter().map(|(_, set)| set.clone()).collect()
    }
}
