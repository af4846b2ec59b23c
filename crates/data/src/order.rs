//! In which order samples are taken: another one in every epoch, and the same one for the same seed.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// A seeded order over a finite set, another one in every epoch, addressable at any position.
#[derive(Debug)]
pub struct Shuffle {
    len: u64,
    seed: u64,
    epoch: Option<u64>,
    order: Vec<u64>,
}

impl Shuffle {
    /// An order over `len` items.
    pub fn new(len: u64, seed: u64) -> Self {
        Self { len, seed, epoch: None, order: (0..len).collect() }
    }

    /// The item at position `n` of the endless sequence of epochs.
    pub fn at(&mut self, n: u64) -> u64 {
        let epoch = n / self.len;
        if self.epoch != Some(epoch) {
            self.order = (0..self.len).collect();
            self.order.shuffle(&mut ChaCha8Rng::seed_from_u64(mix(self.seed, epoch)));
            self.epoch = Some(epoch);
        }
        self.order[(n % self.len) as usize]
    }

    /// The items of step `step` at batch size `batch`.
    pub fn batch(&mut self, step: u64, batch: u64) -> Vec<i64> {
        (step * batch..(step + 1) * batch).map(|n| self.at(n) as i64).collect()
    }
}

/// A well-mixed seed from two numbers (the finalizer of SplitMix64 over their combination).
pub fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(b).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_visits_every_item_once_in_another_order() {
        let mut s = Shuffle::new(17, 3);
        let first: Vec<u64> = (0..17).map(|n| s.at(n)).collect();
        let second: Vec<u64> = (17..34).map(|n| s.at(n)).collect();
        for epoch in [&first, &second] {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..17).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
        assert_eq!(Shuffle::new(17, 3).at(20), second[3], "a position is found without walking there");
    }
}
