//! Images with captions that are made when they are asked for, by index: a rendered world, say. Source -> **pairs** -> latents.

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// One image with its caption.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Interleaved RGB, `size * size * 3` bytes.
    pub rgb: Vec<u8>,
    /// What the image shows.
    pub caption: String,
}

/// An addressable stream of captioned square images; the same index always gives the same pair.
pub trait PairSource: Sync {
    /// Width and height of every image in pixels.
    fn size(&self) -> usize;
    /// The pair of this index. Any index is valid.
    fn pair(&self, index: u64) -> Pair;
    /// `n` pairs that a scorer should tell apart, group number `index` of an endless stream: where the source knows how,
    /// they differ in little. By default they are `n` pairs in a row.
    fn neighbors(&self, index: u64, n: u64) -> Vec<Pair> {
        (index * n..(index + 1) * n).map(|i| self.pair(i)).collect()
    }
}

/// Images and captions of the given indices, in parallel.
///
/// # Errors
/// [`crate::Error::Torch`] when memory runs out.
///
/// # Shapes
/// `[B, 3, size, size]`, f32 in -1..1.
pub fn image_batch(source: &dyn PairSource, indices: &[u64], device: Device) -> Result<(Tensor, Vec<String>)> {
    to_batch(indices.par_iter().map(|&i| source.pair(i)).collect(), source.size(), device)
}

/// The pairs of the given groups of `n` [`PairSource::neighbors`], group by group; as [`image_batch`].
///
/// # Errors
/// As [`image_batch`].
pub fn neighbor_batch(source: &dyn PairSource, groups: &[u64], n: u64, device: Device) -> Result<(Tensor, Vec<String>)> {
    to_batch(groups.par_iter().flat_map_iter(|&g| source.neighbors(g, n)).collect(), source.size(), device)
}

fn to_batch(pairs: Vec<Pair>, size: usize, device: Device) -> Result<(Tensor, Vec<String>)> {
    let bytes: Vec<u8> = pairs.iter().flat_map(|p| p.rgb.iter().copied()).collect();
    let x = to_tensor(&bytes, pairs.len() as i64, (size as i64, size as i64), device)?;
    Ok((x, pairs.into_iter().map(|p| p.caption).collect()))
}

/// Interleaved bytes of `batch` images of `height` x `width` as a tensor `[B, 3, H, W]`, f32 in -1..1.
pub(crate) fn to_tensor(bytes: &[u8], batch: i64, (height, width): (i64, i64), device: Device) -> Result<Tensor> {
    let x = Tensor::f_from_slice(bytes)?.f_view([batch, height, width, 3])?;
    // [B, H, W, 3] -> [B, 3, H, W]
    Ok(x.permute([0, 3, 1, 2]).to_device(device).to_kind(Kind::Float).contiguous() / 127.5 - 1.0)
}
