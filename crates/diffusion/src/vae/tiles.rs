//! Decoding in parts, so that large images and batches fit small memories: one image at a time, or in overlapping tiles.
//!
//! Same tiles and blending as diffusers' `enable_slicing` and `enable_tiling`. Tiles are a little off the whole image,
//! because the middle of the decoder sees one tile only.
//! Shapes: `B` batch, `C` image channels, `L` latent channels, `h` `w` latent height and width, `f` the downscale factor.

use tch::Tensor;

use super::AutoencoderKl;
use crate::error::Result;

/// How much is decoded at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DecodeParts {
    /// One image at a time: the same numbers up to rounding.
    pub sliced: bool,
    /// Tiles of the training size (`sample_size`), a quarter of which overlaps; images of that size or smaller stay whole.
    pub tiled: bool,
}

/// Share of a tile that overlaps with the next, in quarters.
const OVERLAP_QUARTERS: i64 = 1;

impl AutoencoderKl {
    /// As [`AutoencoderKl::decode`], in parts.
    ///
    /// # Errors
    /// As [`AutoencoderKl::decode`].
    pub fn decode_in_parts(&self, z: &Tensor, parts: DecodeParts) -> Result<Tensor> {
        let one = |z: &Tensor| if parts.tiled { self.decode_tiled(z) } else { self.decode(z) };
        match z.size().first() {
            Some(&b) if parts.sliced && b > 1 => {
                let rows: Vec<Tensor> = (0..b).map(|i| one(&z.f_narrow(0, i, 1)?)).collect::<Result<_>>()?;
                Ok(Tensor::f_cat(&rows, 0)?)
            }
            _ => one(z),
        }
    }

    // z [B, L, h, w] -> [B, C, f h, f w]
    fn decode_tiled(&self, z: &Tensor) -> Result<Tensor> {
        let side = self.config().sample_size;
        let tile = side / self.config().downscale();
        // Whole latents between the tiles' beginnings, whole pixels from each tile.
        let (stride, blend) = (tile * (4 - OVERLAP_QUARTERS) / 4, side * OVERLAP_QUARTERS / 4);
        let (h, w) = match z.size()[..] {
            [_, _, h, w] if stride > 0 && (h > tile || w > tile) => (h, w),
            // Small enough, or of a shape that `decode` refuses.
            _ => return self.decode(z),
        };
        let begins = |length: i64| (0..length).step_by(stride as usize);
        // Only one row of tiles is kept beside the finished rows.
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for y in begins(h) {
            let strip = z.f_narrow(2, y, tile.min(h - y))?;
            let mut row: Vec<Tensor> = Vec::new();
            for (column, x) in begins(w).enumerate() {
                let mut decoded = self.decode(&strip.f_narrow(3, x, tile.min(w - x))?)?;
                if let Some(upper) = above.get(column) {
                    decoded = blended(upper, &decoded, 2, blend)?;
                }
                if let Some(left) = row.last() {
                    decoded = blended(left, &decoded, 3, blend)?;
                }
                row.push(decoded);
            }
            let keep = side - blend;
            let cut = |t: &Tensor| -> Result<Tensor> {
                let (th, tw) = (t.size()[2], t.size()[3]);
                Ok(t.f_narrow(2, 0, keep.min(th))?.f_narrow(3, 0, keep.min(tw))?)
            };
            rows.push(Tensor::f_cat(&row.iter().map(cut).collect::<Result<Vec<_>>>()?, 3)?);
            above = row;
        }
        Ok(Tensor::f_cat(&rows, 2)?)
    }
}

// `b` with its beginning along `dim` faded in from the end of `a`, over `extent` pixels.
fn blended(a: &Tensor, b: &Tensor, dim: i64, extent: i64) -> Result<Tensor> {
    let (la, lb) = (a.size()[dim as usize], b.size()[dim as usize]);
    let n = extent.min(la).min(lb);
    if n == 0 {
        return Ok(b.shallow_clone());
    }
    let mut shape = [1i64; 4];
    shape[dim as usize] = n;
    let ramp = Tensor::f_arange(n, (b.kind(), b.device()))?.f_view(shape)? / n as f64;
    let (end, begin) = (a.f_narrow(dim, la - n, n)?, b.f_narrow(dim, 0, n)?);
    let mixed = end.f_add(&begin.f_sub(&end)?.f_mul(&ramp)?)?;
    Ok(Tensor::f_cat(&[mixed, b.f_narrow(dim, n, lb - n)?], dim)?)
}
