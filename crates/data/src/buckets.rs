//! The order of batches over buckets of unequal images: every batch is of one bucket, because its images share one size.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::order::mix;

/// A seeded order of batches, another one in every epoch, addressable at any position.
///
/// In each epoch every bucket is shuffled and cut into batches; the last batch of a bucket is filled up from the beginning of
/// that bucket's order, so that no sample is left out. Then the batches of all buckets are shuffled together.
#[derive(Debug)]
pub struct BucketOrder {
    sizes: Vec<u64>,
    batch: u64,
    seed: u64,
    epoch: Option<u64>,
    orders: Vec<Vec<u64>>,
    // Bucket, and number of the batch in it.
    batches: Vec<(usize, u64)>,
}

impl BucketOrder {
    /// An order over buckets of `sizes` samples, in batches of `batch`.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no sample, or a batch has none.
    pub fn new(sizes: &[u64], batch: u64, seed: u64) -> Result<Self> {
        if batch == 0 || sizes.iter().all(|&n| n == 0) {
            let got = format!("{} samples in batches of {batch}", sizes.iter().sum::<u64>());
            return Err(Error::Input { name: "data".into(), expected: "at least one sample, and one in a batch".into(), got });
        }
        Ok(Self { sizes: sizes.to_vec(), batch, seed, epoch: None, orders: Vec::new(), batches: Vec::new() })
    }

    /// Batches in an epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.sizes.iter().map(|n| n.div_ceil(self.batch)).sum()
    }

    /// Bucket and samples of batch `n` of the endless sequence of epochs.
    pub fn at(&mut self, n: u64) -> (usize, Vec<u64>) {
        let per_epoch = self.batches_per_epoch();
        let epoch = n / per_epoch;
        if self.epoch != Some(epoch) {
            self.shuffle(epoch);
        }
        let (bucket, number) = self.batches[(n % per_epoch) as usize];
        let (order, first) = (&self.orders[bucket], number * self.batch);
        (bucket, (first..first + self.batch).map(|i| order[(i % order.len() as u64) as usize]).collect())
    }

    fn shuffle(&mut self, epoch: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(mix(self.seed, epoch));
        let shuffled = |&n: &u64| {
            let mut order: Vec<u64> = (0..n).collect();
            order.shuffle(&mut rng);
            order
        };
        self.orders = self.sizes.iter().map(shuffled).collect();
        let batches = |(bucket, n): (usize, &u64)| (0..n.div_ceil(self.batch)).map(move |i| (bucket, i));
        self.batches = self.sizes.iter().enumerate().flat_map(batches).collect();
        self.batches.shuffle(&mut rng);
        self.epoch = Some(epoch);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_epoch_has_every_sample_of_every_bucket_in_batches_of_one_bucket() {
        let sizes = [7, 0, 2, 12];
        let mut order = BucketOrder::new(&sizes, 3, 5).unwrap();
        // 3 + 0 + 1 + 4
        assert_eq!(order.batches_per_epoch(), 8);
        let epoch = |order: &mut BucketOrder, e: u64| (8 * e..8 * e + 8).map(|n| order.at(n)).collect::<Vec<_>>();
        let (first, second) = (epoch(&mut order, 0), epoch(&mut order, 1));
        for batches in [&first, &second] {
            let seen: BTreeSet<(usize, u64)> = batches.iter().flat_map(|(b, rows)| rows.iter().map(|&r| (*b, r))).collect();
            let all = sizes.iter().enumerate().flat_map(|(b, &n)| (0..n).map(move |r| (b, r))).collect();
            assert_eq!(seen, all);
            assert!(batches.iter().all(|(_, rows)| rows.len() == 3));
        }
        assert_ne!(first, second);
        assert!(first.windows(2).any(|w| w[0].0 > w[1].0), "buckets alternate");
        assert_eq!(BucketOrder::new(&sizes, 3, 5).unwrap().at(13), second[5], "a position is found without walking there");
    }

    #[test]
    fn a_last_batch_is_filled_from_the_beginning_of_its_bucket() {
        let mut order = BucketOrder::new(&[4], 3, 1).unwrap();
        let mut batches = [order.at(0).1, order.at(1).1];
        // The full batch has three different samples; the other one has the fourth and the first two again.
        batches.sort_by_key(|rows| rows.iter().filter(|r| order.orders[0][3] == **r).count());
        assert_eq!(batches[1], [order.orders[0][3], order.orders[0][0], order.orders[0][1]]);
        // A bucket smaller than a batch repeats.
        assert_eq!(BucketOrder::new(&[1], 3, 1).unwrap().at(9).1, [0, 0, 0]);
    }

    #[test]
    fn an_order_over_nothing_is_refused() {
        assert!(BucketOrder::new(&[0, 0], 3, 1).is_err() && BucketOrder::new(&[2], 0, 1).is_err());
    }
}
