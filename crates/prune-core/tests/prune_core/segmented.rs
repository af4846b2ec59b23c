//! Passes that resume: the losses of the plain model to the bit, with less work and within the memory allowed.

use crate::support;
use std::cell::Cell;
use std::convert::Infallible;
use std::ops::Range;
use std::rc::Rc;

use crate::support::network::{Network, Plain};
use prune_core::audit::{DrawnSet, MeasureOptions, SetSize, draw_removal_sets, measure_sets};
use prune_core::score::{LossDeltas, PrefixCached, ScoreOptions, Segment, Segmented};
use prune_core::{Ablate, Error, LayerTable, RemovalSet, Scorer};

const BLOCKS: usize = 24;
const SAMPLES: usize = 8;

fn network() -> Network {
    Network::new(BLOCKS, SAMPLES, 5)
}

fn options() -> ScoreOptions {
    ScoreOptions::new(0..SAMPLES).batch(3).seed(1)
}

fn sets(table: &LayerTable) -> Vec<DrawnSet> {
    let mut sets = draw_removal_sets(table, &[SetSize::Layers(1), SetSize::Layers(2), SetSize::ParamsRatio(0.4)], 12, 3).unwrap();
    sets.push(DrawnSet { stratum: "none".to_owned(), removed: RemovalSet::empty() });
    sets.push(sets[20].clone());
    sets
}

#[test]
fn scores_are_the_same_to_the_bit_for_half_the_work() {
    let mut plain = Plain(network());
    let expected = Scorer::new(&mut plain).options(options()).run().unwrap();
    let layers = plain.table().len();
    assert_eq!(plain.0.steps, layers * BLOCKS * SAMPLES);
    for at_once in [1, 4, 100] {
        let mut resuming = PrefixCached::new(network(), 1000, at_once).unwrap();
        let scores = Scorer::new(&mut resuming).options(options()).run().unwrap();
        assert_eq!(scores, expected);
        if at_once == 100 {
            // Each layer from its own block on, the way to the last layer, and the original.
            let own = |block: usize, segment: &Segment| segment.layers.len() * (BLOCKS - block);
            let single: usize = resuming.model().segments().iter().enumerate().map(|(block, segment)| own(block, segment)).sum();
            assert_eq!(resuming.model().steps, (single + BLOCKS - 1 + BLOCKS) * SAMPLES);
            assert!((resuming.model().steps as f64) < 0.62 * plain.0.steps as f64);
        }
    }
}

#[test]
fn forwards_are_counted_by_the_work_of_the_segments() {
    let mut resuming = PrefixCached::new(network(), 1000, 4).unwrap();
    let last = resuming.table().layers().last().unwrap().id.clone();
    let sets = [RemovalSet::single(last.clone()), RemovalSet::empty()];
    resuming.evaluate_many(&sets, 2..5).unwrap();
    // The original, and one whole pass that no other set shares.
    assert!((resuming.forwards() - 6.0).abs() < 1e-12);
    resuming.evaluate_many(&sets, 2..5).unwrap();
    assert!((resuming.forwards() - 9.0).abs() < 1e-12);
}

#[test]
fn any_sets_and_any_memory_give_the_same_gaps() {
    let mut plain = Plain(network());
    let sets = sets(plain.table());
    let options = MeasureOptions::new(1..SAMPLES).batch(4);
    let expected = measure_sets(&mut plain, &sets, &options).unwrap();
    assert_eq!(expected[36].losses["output_loss"].mean, 0.0);
    let mut steps = Vec::new();
    for memory in [0, 2, 4, 1000] {
        let mut resuming = PrefixCached::new(network(), memory, 16).unwrap();
        assert_eq!(measure_sets(&mut resuming, &sets, &options).unwrap(), expected);
        steps.push(resuming.model().steps);
    }
    // Less memory, more work; but no more than the plain loop with an original per call.
    assert!(steps.is_sorted_by(|a, b| a >= b) && steps[3] < steps[0], "{steps:?}");
    assert!(steps[3] < plain.0.steps, "{steps:?}");
}

/// How many states are alive, and the most there were.
type Alive = Rc<Cell<(usize, usize)>>;

/// Counts the states that are alive.
struct Counted {
    inner: Network,
    alive: Alive,
}

struct CountedState<S>(S, Alive);

impl<S> CountedState<S> {
    fn new(state: S, counter: &Alive) -> Self {
        let (alive, most) = counter.get();
        counter.set((alive + 1, most.max(alive + 1)));
        Self(state, counter.clone())
    }
}

impl<S> Drop for CountedState<S> {
    fn drop(&mut self) {
        let (alive, most) = self.1.get();
        self.1.set((alive - 1, most));
    }
}

impl Segmented for Counted {
    type Error = Infallible;
    type State = CountedState<support::network::State>;

    fn table(&self) -> &LayerTable {
        self.inner.table()
    }

    fn criteria(&self) -> Vec<String> {
        self.inner.criteria()
    }

    fn num_samples(&self) -> usize {
        self.inner.num_samples()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        self.inner.sample_bin(index)
    }

    fn segments(&self) -> &[Segment] {
        self.inner.segments()
    }

    fn start(&mut self, samples: Range<usize>) -> Result<Self::State, Self::Error> {
        Ok(CountedState::new(self.inner.start(samples)?, &self.alive))
    }

    fn step(&mut self, state: &Self::State, segment: usize, removed: &RemovalSet) -> Result<Self::State, Self::Error> {
        Ok(CountedState::new(self.inner.step(&state.0, segment, removed)?, &self.alive))
    }

    fn loss_deltas(&mut self, original: &Self::State, ablated: &Self::State, samples: Range<usize>) -> Result<LossDeltas, Self::Error> {
        self.inner.loss_deltas(&original.0, &ablated.0, samples)
    }

    fn state_bytes(&self, _: &Self::State) -> u64 {
        1
    }
}

#[test]
fn no_more_states_are_alive_than_memory_allows() {
    let table = network().table().clone();
    let sets: Vec<RemovalSet> = sets(&table).into_iter().map(|set| set.removed).collect();
    for (memory, expected) in [(0, 3), (2, 5), (4, 7), (1000, 9)] {
        let alive = Alive::default();
        let mut resuming = PrefixCached::new(Counted { inner: network(), alive: alive.clone() }, memory, sets.len()).unwrap();
        resuming.evaluate_many(&sets, 0..SAMPLES).unwrap();
        // Kept states, beside the original, a state and the next one. Of 38 sets, at most 5 states wait.
        assert!(alive.get().1 <= expected, "{:?} with {memory}", alive.get());
    }
}

#[test]
fn segments_must_hold_every_layer_once() {
    struct Other(Network, Vec<Segment>);
    impl Segmented for Other {
        type Error = Infallible;
        type State = support::network::State;

        fn table(&self) -> &LayerTable {
            self.0.table()
        }

        fn criteria(&self) -> Vec<String> {
            self.0.criteria()
        }

        fn num_samples(&self) -> usize {
            self.0.num_samples()
        }

        fn sample_bin(&self, _: usize) -> u32 {
            0
        }

        fn segments(&self) -> &[Segment] {
            &self.1
        }

        fn start(&mut self, samples: Range<usize>) -> Result<Self::State, Self::Error> {
            self.0.start(samples)
        }

        fn step(&mut self, state: &Self::State, segment: usize, removed: &RemovalSet) -> Result<Self::State, Self::Error> {
            self.0.step(state, segment, removed)
        }

        fn loss_deltas(&mut self, a: &Self::State, b: &Self::State, samples: Range<usize>) -> Result<LossDeltas, Self::Error> {
            self.0.loss_deltas(a, b, samples)
        }

        fn state_bytes(&self, _: &Self::State) -> u64 {
            1
        }
    }
    let error = |edit: fn(&mut Vec<Segment>)| {
        let network = network();
        let mut segments = network.segments().to_vec();
        edit(&mut segments);
        PrefixCached::new(Other(network, segments), 0, 1).err()
    };
    assert!(error(|_| ()).is_none());
    assert!(matches!(error(|s| s.swap(0, 1)), Some(Error::OutOfRange { key: "segments", .. })));
    assert!(matches!(error(|s| s[3].layers.end += 1), Some(Error::OutOfRange { key: "segments", .. })));
    assert!(matches!(error(|s| s.truncate(3)), Some(Error::OutOfRange { key: "segments", .. })));
    assert!(matches!(error(|s| s.iter_mut().for_each(|s| s.work = 0)), Some(Error::OutOfRange { key: "segments", .. })));
    assert!(matches!(PrefixCached::new(network(), 0, 0).err(), Some(Error::OutOfRange { key: "sets_at_once", .. })));
}
