//! What has been measured and what it cost: the only way from the search to the model.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::ablate::Ablate;
use crate::error::{AblateError, Error};
use crate::layer::RemovalSet;
use crate::refine::{RefineEvent, RefineRecord, SetLoss};
use crate::score::evaluate_all;
use crate::stats;

pub(super) struct Ledger<'a, M, E> {
    model: &'a mut M,
    /// Column of the criterion.
    criterion: usize,
    samples: Range<usize>,
    batch: usize,
    most: u64,
    /// The losses of each set over the first samples.
    losses: BTreeMap<RemovalSet, Vec<f64>>,
    /// LossDeltas of an interrupted run.
    earlier: BTreeMap<RemovalSet, Vec<f64>>,
    pub(super) record: RefineRecord,
    on_event: &'a mut dyn FnMut(RefineEvent<'_>) -> Result<(), E>,
}

impl<'a, M: Ablate, E> Ledger<'a, M, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    pub(super) fn new(
        model: &'a mut M,
        criterion: usize,
        batch: usize,
        mut record: RefineRecord,
        on_event: &'a mut dyn FnMut(RefineEvent<'_>) -> Result<(), E>,
    ) -> Self {
        let earlier = std::mem::take(&mut record.measured).into_iter().map(|set| (set.removed, set.losses)).collect();
        let (samples, most) = (record.samples.clone(), record.max_forwards);
        Self { model, criterion, samples, batch, most, losses: BTreeMap::new(), earlier, record, on_event }
    }

    /// Number of samples that the search may use.
    pub(super) fn len(&self) -> usize {
        self.samples.len()
    }

    /// Keeps this many evaluations for later.
    pub(super) fn reserve(&mut self, forwards: u64) {
        self.most = self.most.saturating_sub(forwards);
    }

    /// Whether so many further evaluations are allowed.
    fn affords(&self, forwards: u64) -> bool {
        self.record.forwards.saturating_add(forwards) <= self.most
    }

    /// Measures sets on the first samples; false, and nothing measured, where that would be more than is allowed.
    pub(super) fn measure(&mut self, sets: &[RemovalSet], upto: usize) -> Result<bool, E> {
        let mut open: Vec<(usize, Vec<usize>, &RemovalSet)> = Vec::new();
        for set in sets {
            let done = self.losses.get(set).map_or(0, Vec::len);
            if done < upto && !open.iter().any(|(.., other)| *other == set) {
                let positions = set.iter().filter_map(|id| self.model.table().position(id.as_str()));
                let mut positions: Vec<usize> = positions.collect();
                positions.sort_unstable();
                open.push((done, positions, set));
            }
        }
        let cost: u64 = open.iter().map(|(done, ..)| (upto - done) as u64).sum();
        if !self.affords(cost) {
            return Ok(false);
        }
        // Sets that want the same samples, and among these sets that agree in their first layers, meet in one call.
        open.sort();
        for alike in open.chunk_by(|a, b| a.0 == b.0) {
            let sets: Vec<RemovalSet> = alike.iter().map(|(.., set)| (*set).clone()).collect();
            self.extend(sets, alike[0].0, upto)?;
        }
        Ok(true)
    }

    fn extend(&mut self, sets: Vec<RemovalSet>, from: usize, upto: usize) -> Result<(), E> {
        let (known, open): (Vec<_>, Vec<_>) =
            sets.into_iter().partition(|set| self.earlier.get(set).is_some_and(|losses| losses.len() >= upto));
        for set in known {
            let losses = self.earlier[&set][from..upto].to_vec();
            self.add(set, losses);
        }
        self.write_down();
        for chunk in open.chunks(self.model.sets_at_once().max(1)) {
            let columns = self.evaluate(chunk, self.samples.start + from..self.samples.start + upto)?;
            for (set, losses) in chunk.iter().zip(columns) {
                self.add(set.clone(), losses);
            }
            self.write_down();
            (self.on_event)(RefineEvent::Measured { record: &self.record })?;
        }
        Ok(())
    }

    fn write_down(&mut self) {
        let sets = self.losses.iter().map(|(removed, losses)| SetLoss { removed: removed.clone(), losses: losses.clone() });
        self.record.measured = sets.collect();
    }

    fn add(&mut self, set: RemovalSet, losses: Vec<f64>) {
        self.record.forwards += losses.len() as u64;
        self.losses.entry(set).or_default().extend(losses);
    }

    /// The losses of sets under the criterion, whatever is allowed.
    fn evaluate(&mut self, sets: &[RemovalSet], samples: Range<usize>) -> Result<Vec<Vec<f64>>, E> {
        let before = self.record.forwards;
        let on_event = &mut *self.on_event;
        let (many, most) = (sets.len() as u64, self.record.max_forwards);
        let measured = evaluate_all(self.model, sets, samples, self.batch, &mut |done| {
            on_event(RefineEvent::Batch { forwards: (before + many * done as u64, most) })
        })?;
        Ok(measured.into_iter().map(|mut columns| columns.swap_remove(self.criterion)).collect())
    }

    /// Measures sets on samples that the search does not use.
    pub(super) fn held_out(&mut self, sets: &[RemovalSet]) -> Result<Vec<Vec<f64>>, E> {
        let columns = self.evaluate(sets, self.record.held_out.clone())?;
        self.record.forwards += columns.iter().map(|column| column.len() as u64).sum::<u64>();
        Ok(columns)
    }

    /// The losses of a set so far.
    pub(super) fn losses(&self, set: &RemovalSet) -> &[f64] {
        self.losses.get(set).map_or(&[], Vec::as_slice)
    }

    /// Mean loss over the first samples; infinite for a set that has fewer.
    pub(super) fn loss(&self, set: &RemovalSet, upto: usize) -> f64 {
        self.losses(set).get(..upto).and_then(stats::mean).unwrap_or(f64::INFINITY)
    }

    /// The sets that were measured on all samples, by loss.
    pub(super) fn ranking(&self) -> Vec<RemovalSet> {
        let whole = self.losses.iter().filter(|(_, losses)| losses.len() == self.len());
        let mut sets: Vec<(f64, &RemovalSet)> = whole.map(|(set, _)| (self.loss(set, self.len()), set)).collect();
        sets.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(b.1)));
        sets.into_iter().map(|(_, set)| set.clone()).collect()
    }
}
