//! How much a search may take: time, memory, nodes, a flag to cancel it, a callback to follow it. Every search takes these and,
//! whatever stops it, answers with the best set so far and what no set undercuts.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a search tells its callback from time to time.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// Time since the search began.
    pub elapsed: Duration,
    /// Share of the layers that are decided, in a search with one budget; nodes done over nodes allowed, with several limits;
    /// evaluations done over those allowed, in a search that measures.
    pub done: f64,
    /// Nodes of the search tree, states of the lists, or evaluations of the model, so far.
    pub work: u64,
}

/// The limits of a search, and who is told.
///
/// Without a time limit and a flag, work is bounded by counts alone, and the same call gives the same answer on every machine.
#[derive(Clone, Copy)]
pub struct SearchOptions<'a> {
    pub(super) time_limit: Option<Duration>,
    pub(super) node_limit: u64,
    pub(super) memory_limit: u64,
    pub(super) cancel: Option<&'a AtomicBool>,
    pub(super) on_progress: Option<&'a dyn Fn(Progress)>,
}

impl Default for SearchOptions<'_> {
    fn default() -> Self {
        Self { time_limit: None, node_limit: 1_000_000, memory_limit: 256 << 20, cancel: None, on_progress: None }
    }
}

/// So many nodes, and the rest as in [`SearchOptions::new`].
impl From<u64> for SearchOptions<'_> {
    fn from(nodes: u64) -> Self {
        Self::new().node_limit(nodes)
    }
}

impl<'a> SearchOptions<'a> {
    /// No time limit, a million nodes, 256 MiB.
    pub fn new() -> Self {
        Self::default()
    }

    /// Time after which the best answer so far is given. A search with one budget gets coarser as the time runs out, so that
    /// it ends near the limit with a small gap.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// Nodes of the search tree that a search with several limits may look at, at least 1.
    pub fn node_limit(mut self, nodes: u64) -> Self {
        self.node_limit = nodes;
        self
    }

    /// Bytes that the lists of a search with one budget may take, about.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = bytes;
        self
    }

    /// A flag that ends the search once it is set, from another thread or a signal handler.
    pub fn cancel(mut self, flag: &'a AtomicBool) -> Self {
        self.cancel = Some(flag);
        self
    }

    /// Calls this some times per second.
    pub fn on_progress(mut self, callback: &'a dyn Fn(Progress)) -> Self {
        self.on_progress = Some(callback);
        self
    }

    pub(crate) fn watch(&self) -> Watch<'a> {
        Watch { options: *self, start: Instant::now(), first: None, work: 0, next: CHECK, told: Duration::ZERO, stopped: false }
    }
}

impl fmt::Debug for SearchOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SearchOptions")
            .field("time_limit", &self.time_limit)
            .field("node_limit", &self.node_limit)
            .field("memory_limit", &self.memory_limit)
            .field("cancel", &self.cancel)
            .field("on_progress", &self.on_progress.is_some())
            .finish()
    }
}

/// Elementary steps between two looks at the clock: some hundred microseconds.
const CHECK: u64 = 1 << 15;
/// Time between two calls of the callback.
const TELL: Duration = Duration::from_millis(100);

/// A running search's view of its limits.
pub(crate) struct Watch<'a> {
    options: SearchOptions<'a>,
    start: Instant,
    /// When the first step was counted: what came before says nothing about the pace.
    first: Option<Instant>,
    work: u64,
    next: u64,
    told: Duration,
    stopped: bool,
}

impl Watch<'_> {
    /// Counts some elementary steps; false once the search is to end.
    pub(super) fn tick(&mut self, steps: u64, work: u64, done: impl FnOnce() -> f64) -> bool {
        self.work += steps;
        self.first.get_or_insert_with(Instant::now);
        if self.stopped || self.work < self.next {
            return !self.stopped;
        }
        self.next = self.work + CHECK;
        let flagged = self.options.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed));
        if self.options.time_limit.is_some() || self.options.on_progress.is_some() {
            let elapsed = self.start.elapsed();
            if let Some(callback) = self.options.on_progress.filter(|_| elapsed >= self.told + TELL) {
                self.told = elapsed;
                callback(Progress { elapsed, done: done(), work });
            }
            self.stopped = self.options.time_limit.is_some_and(|limit| elapsed >= limit);
        }
        self.stopped |= flagged;
        !self.stopped
    }

    /// Whether a search that measures is to end; looks at the clock at every call.
    pub(crate) fn halted(&mut self, done: f64, work: u64) -> bool {
        let elapsed = self.start.elapsed();
        if let Some(callback) = self.options.on_progress.filter(|_| elapsed >= self.told + TELL) {
            self.told = elapsed;
            callback(Progress { elapsed, done, work });
        }
        self.stopped |= self.options.time_limit.is_some_and(|limit| elapsed >= limit);
        self.stopped |= self.options.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed));
        self.stopped
    }

    /// The time that is left; `None` without a limit.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.options.time_limit.map(|limit| limit.saturating_sub(self.start.elapsed()))
    }

    /// Elementary steps so far.
    pub(super) fn work(&self) -> u64 {
        self.work
    }

    pub(super) fn memory(&self) -> u64 {
        self.options.memory_limit
    }

    pub(super) fn node_limit(&self) -> u64 {
        self.options.node_limit
    }

    /// Whether the search was told to end.
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Elementary steps that still fit into the time; `None` without a limit.
    pub(super) fn steps_left(&self) -> Option<u64> {
        /// Nanoseconds per step before any was timed.
        const GUESS: f64 = 20.0;
        let limit = self.options.time_limit?;
        let elapsed = self.start.elapsed();
        let working = self.first.map_or(Duration::ZERO, |first| first.elapsed());
        let pace = if self.work > CHECK { (working.as_nanos() as f64 / self.work as f64).max(1.0) } else { GUESS };
        Some((limit.saturating_sub(elapsed).as_nanos() as f64 / pace) as u64)
    }
}
