//! A small seeded generator, so that random plans and audit sets are the same on every machine and in every release.

/// SplitMix64 (Steele, Lea, Flood 2014, doi 10.1145/2714064.2660195).
pub(crate) struct SplitMix64(u64);

impl SplitMix64 {
    /// A stream of its own for each pair of seed and stream number.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut mixer = Self(seed);
        let start = mixer.next_u64() ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut generator = Self(start);
        generator.next_u64();
        generator
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`, `n > 0`, without modulo bias.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let x = self.next_u64();
            if x < limit {
                return x % n;
            }
        }
    }

    /// Fisher-Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_splitmix64() {
        // First outputs of the reference implementation for the state 1234567.
        let mut rng = SplitMix64(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(first, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_streams_differ() {
        let shuffled = |stream| {
            let mut items: Vec<u32> = (0..50).collect();
            SplitMix64::new(7, stream).shuffle(&mut items);
            items
        };
        let mut a = shuffled(0);
        assert_ne!(a, shuffled(1));
        assert_eq!(a, shuffled(0));
        a.sort_unstable();
        assert_eq!(a, (0..50).collect::<Vec<u32>>());
    }
}
