//! Where training samples come from, and in which order.

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};
use unet::weights::seeded;

use crate::error::Result;

/// One picture with its caption.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Interleaved RGB, `size * size * 3` bytes.
    pub rgb: Vec<u8>,
    /// What the picture shows.
    pub caption: String,
}

/// An addressable stream of captioned square pictures; the same index always gives the same pair.
pub trait PairSource: Sync {
    /// Width and height of every picture in pixels.
    fn size(&self) -> usize;
    /// The pair of this index. Any index is valid.
    fn pair(&self, index: u64) -> Pair;
    /// `n` pairs that a scorer should tell apart, group number `index` of an endless stream: where the source knows how,
    /// they differ in little. By default they are `n` pairs in a row.
    fn neighbors(&self, index: u64, n: u64) -> Vec<Pair> {
        (index * n..(index + 1) * n).map(|i| self.pair(i)).collect()
    }
}

/// Pictures and captions of the given indices, in parallel.
///
/// # Errors
/// [`crate::Error::Torch`] when memory runs out.
///
/// # Shapes
/// `[B, 3, size, size]`, f32 in -1..1.
pub fn picture_batch(source: &dyn PairSource, indices: &[u64], device: Device) -> Result<(Tensor, Vec<String>)> {
    to_batch(indices.par_iter().map(|&i| source.pair(i)).collect(), source.size(), device)
}

/// The pairs of the given groups of `n` [`PairSource::neighbors`], group by group; as [`picture_batch`].
pub(crate) fn neighbor_batch(source: &dyn PairSource, groups: &[u64], n: u64, device: Device) -> Result<(Tensor, Vec<String>)> {
    to_batch(groups.par_iter().flat_map_iter(|&g| source.neighbors(g, n)).collect(), source.size(), device)
}

fn to_batch(pairs: Vec<Pair>, size: usize, device: Device) -> Result<(Tensor, Vec<String>)> {
    let bytes: Vec<u8> = pairs.iter().flat_map(|p| p.rgb.iter().copied()).collect();
    let x = to_tensor(&bytes, pairs.len() as i64, (size as i64, size as i64), device)?;
    Ok((x, pairs.into_iter().map(|p| p.caption).collect()))
}

/// Interleaved bytes of `batch` pictures of `height` x `width` as a tensor `[B, 3, H, W]`, f32 in -1..1.
pub(crate) fn to_tensor(bytes: &[u8], batch: i64, (height, width): (i64, i64), device: Device) -> Result<Tensor> {
    let x = Tensor::f_from_slice(bytes)?.f_view([batch, height, width, 3])?;
    // [B, H, W, 3] -> [B, 3, H, W]
    Ok(x.permute([0, 3, 1, 2]).to_device(device).to_kind(Kind::Float).contiguous() / 127.5 - 1.0)
}

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

/// The random numbers of one training step: timesteps, noise, and which captions are dropped. Drawn on the CPU, so that every
/// device trains on the same numbers.
#[derive(Debug)]
pub struct StepNoise {
    /// `[B]`, i64, uniform over the schedule, stratified within the batch.
    pub timesteps: Tensor,
    /// Shaped like the latents.
    pub noise: Tensor,
    /// `[B]`, f32: 1 keeps the caption, 0 drops it.
    pub keep: Tensor,
}

impl StepNoise {
    /// The numbers of step `step`. One timestep is drawn from each of `B` equal slices of the schedule: every step sees all noise levels.
    pub fn draw(seed: u64, step: u64, latent_shape: &[i64], num_timesteps: i64, drop: f64, device: Device) -> Self {
        let b = latent_shape[0];
        let mut rng = ChaCha8Rng::seed_from_u64(mix(seed, step));
        let mut slices: Vec<i64> = (0..b).collect();
        slices.shuffle(&mut rng);
        let t: Vec<i64> = slices
            .iter()
            .map(|&s| {
                let u: f64 = rng.random();
                (((s as f64 + u) / b as f64 * num_timesteps as f64) as i64).min(num_timesteps - 1)
            })
            .collect();
        let keep: Vec<f32> = (0..b).map(|_| if rng.random::<f64>() < drop { 0.0 } else { 1.0 }).collect();
        let noise_seed = (mix(seed, step ^ 0x6e_6f69_7365) >> 1) as i64;
        let noise = seeded(noise_seed, || Tensor::randn(latent_shape, (Kind::Float, Device::Cpu)));
        Self {
            timesteps: Tensor::from_slice(&t).to_device(device),
            noise: noise.to_device(device),
            keep: Tensor::from_slice(&keep).to_device(device),
        }
    }
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

    #[test]
    fn timesteps_cover_the_schedule() {
        let n = StepNoise::draw(1, 2, &[10, 4, 2, 2], 1000, 0.5, Device::Cpu);
        let mut t = Vec::<i64>::try_from(&n.timesteps).unwrap();
        t.sort_unstable();
        for (i, t) in t.iter().enumerate() {
            assert_eq!(*t / 100, i as i64);
        }
    }
}
