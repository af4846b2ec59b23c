//! Batches read ahead on background threads. Which batches, and what is in them, does not depend on the threads.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::buckets::BucketOrder;
use crate::error::Result;

/// Reads the given samples of a bucket. Must depend on nothing else.
pub(crate) type Read<T> = dyn Fn(usize, &[u64]) -> Result<T> + Send + Sync;

/// A batch to read, and where to send it.
struct Job<T> {
    bucket: usize,
    rows: Vec<u64>,
    answer: Sender<Result<T>>,
}

/// An order of batches and what reads them, ahead of time.
pub(crate) struct Prefetch<T> {
    order: BucketOrder,
    read: Arc<Read<T>>,
    stride: u64,
    // None: everything is read when it is asked for.
    jobs: Option<Sender<Job<T>>>,
    threads: Vec<JoinHandle<()>>,
    coming: BTreeMap<u64, Receiver<Result<T>>>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Reads with `workers` threads, for a run that asks for every `stride`-th batch.
    pub fn new(order: BucketOrder, read: Arc<Read<T>>, workers: usize, stride: u64) -> Self {
        let (jobs, queue) = channel::<Job<T>>();
        let queue = Arc::new(Mutex::new(queue));
        let work = |_| {
            let (queue, read) = (queue.clone(), read.clone());
            std::thread::spawn(move || {
                loop {
                    // Holds the queue while it waits; the others wait for it, then.
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    // Nobody waits for it any more when the run has gone elsewhere.
                    let _ = job.answer.send(read(job.bucket, &job.rows));
                }
            })
        };
        let threads: Vec<_> = (0..workers).map(work).collect();
        Self { order, read, stride: stride.max(1), jobs: (workers > 0).then_some(jobs), threads, coming: BTreeMap::new() }
    }

    /// Batch number `n`, and starts on those that follow it.
    pub fn get(&mut self, n: u64) -> Result<T> {
        if let Some(jobs) = &self.jobs {
            let ahead = 2 * self.threads.len() as u64;
            let next: Vec<u64> = (0..=ahead).map(|k| n + k * self.stride).collect();
            self.coming.retain(|k, _| next.contains(k));
            for k in next {
                if !self.coming.contains_key(&k) {
                    let ((bucket, rows), (answer, answered)) = (self.order.at(k), channel());
                    if jobs.send(Job { bucket, rows, answer }).is_ok() {
                        self.coming.insert(k, answered);
                    }
                }
            }
            if let Some(Ok(batch)) = self.coming.remove(&n).map(|answer| answer.recv()) {
                return batch;
            }
        }
        // Without threads, or after the end of the one that had it.
        let (bucket, rows) = self.order.at(n);
        (self.read)(bucket, &rows)
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.coming.clear();
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn numbers(workers: usize, stride: u64) -> Prefetch<Vec<u64>> {
        let order = BucketOrder::new(&[5, 9], 2, 3).unwrap();
        let read = |bucket: usize, rows: &[u64]| match (bucket, rows) {
            (1, [8, _]) => Err(Error::Input { name: "row".into(), expected: "another".into(), got: "8".into() }),
            _ => Ok(rows.iter().map(|r| 100 * bucket as u64 + r).collect()),
        };
        Prefetch::new(order, Arc::new(read), workers, stride)
    }

    #[test]
    fn threads_change_neither_order_nor_content() {
        for stride in [1, 3] {
            let mut alone = numbers(0, stride);
            // Forward over epochs, then a jump back, as after a resumption.
            let asked: Vec<u64> = (0..40).map(|k| 1 + k * stride).chain([7, 7 + stride, 2]).collect();
            let expected: Vec<String> = asked.iter().map(|&n| format!("{:?}", alone.get(n))).collect();
            assert!(expected.iter().any(|e| e.starts_with("Err")), "a failure stays with its batch");
            for workers in [1, 4] {
                let mut ahead = numbers(workers, stride);
                let got: Vec<String> = asked.iter().map(|&n| format!("{:?}", ahead.get(n))).collect();
                assert_eq!(got, expected, "{workers} workers, every {stride}");
            }
        }
    }
}
