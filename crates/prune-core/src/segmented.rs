//! Models that can halt a pass and go on from there: what comes before the first removed layer is then computed once for
//! many removal sets. [`Segmented`] is what such a model offers, [`PrefixCached`] makes it an [`Ablate`] with the same losses.
//!
//! The sets of one call form a tree by what they remove in each segment. It is walked depth first, smaller branches first:
//! a set of n is then in a smaller branch at most log2 n times, so that no more than log2 n states wait at any time.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::ablate::{Ablate, LOSS, LossDeltas};
use crate::error::Error;
use crate::layer::RemovalSet;
use crate::table::LayerTable;

/// A part of the network that runs in one go; a pass can halt before and after it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Segment {
    /// Positions in the table of the layers inside; empty for a part of which nothing can be removed.
    pub layers: Range<usize>,
    /// Its share of the work of a pass, in any unit, such as multiply-accumulates.
    pub work: u64,
}

impl Segment {
    /// A segment around these layers, by position in the table, with its share of the work.
    pub fn new(layers: Range<usize>, work: u64) -> Self {
        Self { layers, work }
    }
}

/// A model whose pass is a row of segments, and whose state between two of them can be kept: skip connections included.
///
/// The finer the segments, the more passes share. A segment is told only of the removed layers inside, so layers that act
/// on each other other than by what they compute belong into one: the branches of a transformer whose projections go with
/// the last branch, say.
pub trait Segmented {
    /// The model's own error.
    type Error: std::error::Error + Send + Sync + 'static;

    /// A pass over some samples, halted between two segments. It is read again and again, so nothing may change it.
    type State;

    /// As [`Ablate::table`].
    fn table(&self) -> &LayerTable;

    /// As [`Ablate::criteria`].
    fn criteria(&self) -> Vec<String> {
        vec![LOSS.to_owned()]
    }

    /// As [`Ablate::num_samples`].
    fn num_samples(&self) -> usize;

    /// As [`Ablate::sample_bin`].
    fn sample_bin(&self, _index: usize) -> u32 {
        0
    }

    /// The segments in the order of the pass; together they hold every layer of the table once, in its order.
    fn segments(&self) -> &[Segment];

    /// A pass over these samples, halted before the first segment.
    ///
    /// # Errors
    /// Whatever the model meets, here and below.
    fn start(&mut self, samples: Range<usize>) -> Result<Self::State, Self::Error>;

    /// Runs one segment without the layers in `removed`, all of which lie inside it. Ids that the table does not have are
    /// handed to the first segment, to be refused.
    ///
    /// # Errors
    /// As [`Segmented::start`].
    fn step(&mut self, state: &Self::State, segment: usize, removed: &RemovalSet) -> Result<Self::State, Self::Error>;

    /// Compares two passes over these samples that have run all segments: the original's, and one with layers removed.
    ///
    /// # Errors
    /// As [`Segmented::start`].
    fn loss_deltas(&mut self, original: &Self::State, ablated: &Self::State, samples: Range<usize>) -> Result<LossDeltas, Self::Error>;

    /// Bytes that stay in use while this state is kept; what other states hold as well may be counted once or twice.
    fn state_bytes(&self, state: &Self::State) -> u64;
}

impl<M: Segmented + ?Sized> Segmented for &mut M {
    type Error = M::Error;
    type State = M::State;

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

    fn segments(&self) -> &[Segment] {
        (**self).segments()
    }

    fn start(&mut self, samples: Range<usize>) -> Result<Self::State, Self::Error> {
        (**self).start(samples)
    }

    fn step(&mut self, state: &Self::State, segment: usize, removed: &RemovalSet) -> Result<Self::State, Self::Error> {
        (**self).step(state, segment, removed)
    }

    fn loss_deltas(&mut self, original: &Self::State, ablated: &Self::State, samples: Range<usize>) -> Result<LossDeltas, Self::Error> {
        (**self).loss_deltas(original, ablated, samples)
    }

    fn state_bytes(&self, state: &Self::State) -> u64 {
        (**self).state_bytes(state)
    }
}

/// An [`Ablate`] over a segmented model: the same losses to the bit, with less work.
#[derive(Debug)]
pub struct PrefixCached<M: Segmented> {
    model: M,
    memory: u64,
    sets_at_once: usize,
    /// Whole passes of the original by first and last sample, and their bytes.
    originals: BTreeMap<(usize, usize), (M::State, u64)>,
    /// Work done, times samples.
    work: u128,
}

impl<M: Segmented> PrefixCached<M> {
    /// `memory` bounds in bytes what is kept beside the pass that runs: states at which passes part, and, up to half of
    /// it, what the original answers to each batch. Where it does not suffice, segments run again. `sets_at_once`: see
    /// [`Ablate::sets_at_once`]; some tens share nearly all there is to share.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for `sets_at_once` of 0, or segments that do not hold every layer once, in order, or do no work.
    pub fn new(model: M, memory: u64, sets_at_once: usize) -> Result<Self, Error> {
        if sets_at_once == 0 {
            return Err(Error::OutOfRange { key: "sets_at_once", expected: "at least 1".to_owned(), got: "0".to_owned() });
        }
        let mut next = 0;
        for segment in model.segments() {
            if segment.layers.start != next || segment.layers.end < next {
                return Err(bad_segments(format!("from layer {next} on"), format!("{:?}", segment.layers)));
            }
            next = segment.layers.end;
        }
        if next != model.table().len() {
            return Err(bad_segments(format!("up to layer {}", model.table().len()), format!("the end at {next}")));
        }
        if model.segments().iter().all(|segment| segment.work == 0) {
            return Err(bad_segments("with some work".to_owned(), "none".to_owned()));
        }
        Ok(Self { model, memory, sets_at_once, originals: BTreeMap::new(), work: 0 })
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The model back; what was kept is dropped.
    pub fn into_inner(self) -> M {
        self.model
    }

    /// The work done so far, counted in passes of one sample through the whole model.
    pub fn forwards(&self) -> f64 {
        let whole: u128 = self.model.segments().iter().map(|segment| u128::from(segment.work)).sum();
        self.work as f64 / whole as f64
    }

    /// What of a set lies in each segment.
    fn path(&self, removed: &RemovalSet) -> Vec<RemovalSet> {
        let segments = self.model.segments();
        let mut path = vec![RemovalSet::empty(); segments.len()];
        for id in removed {
            let segment = self.model.table().position(id.as_str()).map_or(0, |at| segments.partition_point(|s| s.layers.end <= at));
            path[segment].insert(id.clone());
        }
        path
    }
}

fn bad_segments(expected: String, got: String) -> Error {
    Error::OutOfRange { key: "segments", expected: format!("segments {expected}"), got }
}

impl<M: Segmented> Ablate for PrefixCached<M> {
    type Error = M::Error;

    fn table(&self) -> &LayerTable {
        self.model.table()
    }

    fn criteria(&self) -> Vec<String> {
        self.model.criteria()
    }

    fn num_samples(&self) -> usize {
        self.model.num_samples()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        self.model.sample_bin(index)
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<LossDeltas, M::Error> {
        self.evaluate_many(std::slice::from_ref(removed), samples).map(|mut losses| losses.swap_remove(0))
    }

    fn evaluate_many(&mut self, removed: &[RemovalSet], samples: Range<usize>) -> Result<Vec<LossDeltas>, M::Error> {
        // The last path is the original's.
        let paths: Vec<Vec<RemovalSet>> = removed.iter().chain([&RemovalSet::empty()]).map(|set| self.path(set)).collect();
        let key = (samples.start, samples.end);
        let known = self.originals.remove(&key);
        let mut walk = Walk {
            free: self.memory.saturating_sub(self.originals.values().map(|(_, bytes)| bytes).sum()),
            model: &mut self.model,
            work: &mut self.work,
            samples,
            paths: &paths,
        };
        let (original, bytes) = match known {
            Some(known) => known,
            None => {
                let original = walk.replay(removed.len(), walk.depth(), None)?;
                let bytes = walk.model.state_bytes(&original);
                (original, bytes)
            }
        };
        walk.free = walk.free.saturating_sub(bytes);
        let mut losses: Vec<(usize, LossDeltas)> = Vec::with_capacity(removed.len());
        let (whole, cut): (Vec<usize>, Vec<usize>) = (0..removed.len()).partition(|set| removed[*set].is_empty());
        let mut leaf = |model: &mut M, samples: Range<usize>, sets: &[usize], state: &M::State| {
            let found = model.loss_deltas(&original, state, samples)?;
            losses.extend(sets.iter().map(|set| (*set, found.clone())));
            Ok(())
        };
        if !whole.is_empty() {
            leaf(walk.model, walk.samples.clone(), &whole, &original)?;
        }
        if !cut.is_empty() {
            let state = walk.model.start(walk.samples.clone())?;
            walk.descend(cut, 0, state, None, &mut leaf)?;
        }
        losses.sort_unstable_by_key(|(set, _)| *set);
        let losses = losses.into_iter().map(|(_, losses)| losses).collect();
        let kept: u64 = self.originals.values().map(|(_, bytes)| bytes).sum();
        if kept.saturating_add(bytes) <= self.memory / 2 {
            self.originals.insert(key, (original, bytes));
        }
        Ok(losses)
    }

    fn sets_at_once(&self) -> usize {
        self.sets_at_once
    }
}

/// One call: the sets' paths through the network, and what may be kept on the way.
struct Walk<'a, M: Segmented> {
    model: &'a mut M,
    work: &'a mut u128,
    samples: Range<usize>,
    /// What each set removes, by segment: `[sets, segments]`.
    paths: &'a [Vec<RemovalSet>],
    /// Bytes that may still be kept.
    free: u64,
}

/// A state that waits on the way to the sets being walked, and the number of segments behind it.
type Held<'a, S> = Option<(usize, &'a S)>;

impl<M: Segmented> Walk<'_, M> {
    /// Number of segments.
    fn depth(&self) -> usize {
        self.model.segments().len()
    }

    fn step(&mut self, state: &M::State, segment: usize, set: usize) -> Result<M::State, M::Error> {
        *self.work += u128::from(self.model.segments()[segment].work) * self.samples.len() as u128;
        self.model.step(state, segment, &self.paths[set][segment])
    }

    /// The state of a set before segment `to`, from the state on its way that waits, or from the start.
    fn replay(&mut self, set: usize, to: usize, held: Held<'_, M::State>) -> Result<M::State, M::Error> {
        let (from, mut state) = match held {
            Some((depth, state)) => (depth + 1, self.step(state, depth, set)?),
            None => (0, self.model.start(self.samples.clone())?),
        };
        for segment in from..to {
            state = self.step(&state, segment, set)?;
        }
        Ok(state)
    }

    /// Walks `sets`, which agree in the `depth` segments behind `state`, and hands each last state to `leaf`.
    fn descend<F>(
        &mut self,
        sets: Vec<usize>,
        depth: usize,
        state: M::State,
        held: Held<'_, M::State>,
        leaf: &mut F,
    ) -> Result<(), M::Error>
    where
        F: FnMut(&mut M, Range<usize>, &[usize], &M::State) -> Result<(), M::Error>,
    {
        let (mut sets, mut state) = (sets, state);
        for depth in depth..self.depth() {
            let mut groups = self.groups(&sets, depth);
            // The largest group goes last: nothing waits for it.
            if let Some(largest) = groups.pop() {
                sets = largest;
            }
            if !groups.is_empty() {
                state = self.branch(groups, depth, state, sets[0], held, leaf)?;
            }
            state = self.step(&state, depth, sets[0])?;
        }
        leaf(self.model, self.samples.clone(), &sets, &state)
    }

    /// The sets by what they remove in one segment, smaller groups first.
    fn groups(&self, sets: &[usize], segment: usize) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<&RemovalSet, Vec<usize>> = BTreeMap::new();
        for set in sets {
            groups.entry(&self.paths[*set][segment]).or_default().push(*set);
        }
        let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
        groups.sort_by_key(Vec::len);
        groups
    }

    /// Walks groups that part at `state`; gives that state back, kept or made again, for the sets that go on with `main`.
    fn branch<F>(
        &mut self,
        groups: Vec<Vec<usize>>,
        depth: usize,
        state: M::State,
        main: usize,
        held: Held<'_, M::State>,
        leaf: &mut F,
    ) -> Result<M::State, M::Error>
    where
        F: FnMut(&mut M, Range<usize>, &[usize], &M::State) -> Result<(), M::Error>,
    {
        let bytes = self.model.state_bytes(&state);
        if bytes <= self.free {
            self.free -= bytes;
            for group in groups {
                let next = self.step(&state, depth, group[0])?;
                self.descend(group, depth + 1, next, Some((depth, &state)), leaf)?;
            }
            self.free += bytes;
            return Ok(state);
        }
        let mut state = Some(state);
        for group in groups {
            let from = match state.take() {
                Some(state) => state,
                None => self.replay(group[0], depth, held)?,
            };
            let next = self.step(&from, depth, group[0])?;
            drop(from);
            self.descend(group, depth + 1, next, held, leaf)?;
        }
        self.replay(main, depth, held)
    }
}
