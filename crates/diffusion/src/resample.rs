//! Pillow's resampling, to the bit: what nearly every published scorer of images resizes with (images -> evaluation).
//!
//! Scores depend on the resizing more than on most else (arXiv 2104.11222), and other resamplers, that of the `image` crate
//! among them, round elsewhere. Two passes, rows first; filters widen by the factor of reduction (antialiasing).

use image::RgbImage;

/// The filter, of Pillow's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// A triangle of radius 1.
    Bilinear,
    /// Keys' cubic with a = -1/2, of radius 2.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            // In the order of Pillow's operations.
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            Self::Bicubic => 0.0,
        }
    }
}

/// The weights of one output position: the first input position, and a weight for it and each one after.
struct Taps {
    first: usize,
    weights: Vec<f64>,
}

fn taps(input: usize, output: usize, filter: Filter) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let widen = scale.max(1.0);
    let support = filter.support() * widen;
    let row = |out: usize| {
        let center = (out as f64 + 0.5) * scale;
        let first = ((center - support + 0.5) as i64).max(0) as usize;
        let end = ((center + support + 0.5) as i64).clamp(0, input as i64) as usize;
        let mut weights: Vec<f64> = (first..end).map(|x| filter.at((x as f64 - center + 0.5) * (1.0 / widen))).collect();
        let sum: f64 = weights.iter().sum();
        if sum != 0.0 {
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        Taps { first, weights }
    };
    (0..output).map(row).collect()
}

/// Bits behind the point of Pillow's weights for bytes.
const BITS: u32 = 22;

/// Resizes as `Image.resize` does for images of bytes: weights of 22 bits, each pass rounded and clipped to bytes. A side that
/// keeps its length is not filtered.
///
/// Columns come first where the height loses more than twice what the width loses, as in Pillow 13; before 13 rows always came
/// first, which differs for images more than twice as tall as wide alone.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let (w, h) = (image.width() as usize, image.height() as usize);
    let (wide, high) = (width as usize, height as usize);
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let bytes = image.as_raw().clone();
    let bytes = if high < h && lost(h, high) > 2 * lost(w, wide) {
        rows(columns(bytes, w, h, high, filter), w, wide, filter)
    } else {
        columns(rows(bytes, w, wide, filter), wide, h, high, filter)
    };
    RgbImage::from_raw(width, height, bytes).expect("as many bytes as the sides say")
}

/// The weights as whole numbers, rounded half away from zero like C's cast after adding half.
fn fixed(taps: Vec<Taps>) -> impl Iterator<Item = (usize, Vec<i32>)> {
    taps.into_iter().map(|t| (t.first, t.weights.iter().map(|w| (w * f64::from(1u32 << BITS)).round() as i32).collect()))
}

const HALF: i32 = 1 << (BITS - 1);

fn clip(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Every row from `w` to `wide` pixels.
fn rows(bytes: Vec<u8>, w: usize, wide: usize, filter: Filter) -> Vec<u8> {
    if wide == w {
        return bytes;
    }
    let taps: Vec<_> = fixed(taps(w, wide, filter)).collect();
    let mut out = Vec::with_capacity(bytes.len() / w.max(1) * wide);
    for line in bytes.chunks_exact(w.max(1) * 3) {
        for (first, weights) in &taps {
            let mut sums = [HALF; 3];
            for (pixel, k) in line[first * 3..].chunks_exact(3).zip(weights) {
                for (sum, byte) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*byte) * k;
                }
            }
            out.extend(sums.map(clip));
        }
    }
    out
}

/// Every column of an image `w` pixels wide from `h` to `high` pixels.
fn columns(bytes: Vec<u8>, w: usize, h: usize, high: usize, filter: Filter) -> Vec<u8> {
    if high == h {
        return bytes;
    }
    let line = w * 3;
    let mut out = Vec::with_capacity(line * high);
    let mut sums = vec![0i32; line];
    for (first, weights) in fixed(taps(h, high, filter)) {
        sums.fill(HALF);
        for (row, k) in bytes[first * line..].chunks_exact(line.max(1)).zip(&weights) {
            for (sum, byte) in sums.iter_mut().zip(row) {
                *sum += i32::from(*byte) * k;
            }
        }
        out.extend(sums.iter().copied().map(clip));
    }
    out
}

/// Resizes one channel `[height, width]` of floating numbers as Pillow does in its mode `F`: nothing is rounded or clipped to bytes.
pub fn resize_plane(plane: &[f32], from: (usize, usize), to: (usize, usize), filter: Filter) -> Vec<f32> {
    let ((w, h), (wide, high)) = (from, to);
    let mut values = plane.to_vec();
    if wide != w {
        let taps = taps(w, wide, filter);
        let of = |line: &[f32], t: &Taps| line[t.first..].iter().zip(&t.weights).map(|(x, k)| f64::from(*x) * k).sum::<f64>() as f32;
        values = values.chunks_exact(w.max(1)).flat_map(|line| taps.iter().map(move |t| of(line, t))).collect();
    }
    if high != h {
        let mut out = Vec::with_capacity(wide * high);
        for t in taps(h, high, filter) {
            let column =
                |x: usize| t.weights.iter().enumerate().map(|(n, k)| f64::from(values[(t.first + n) * wide + x]) * k).sum::<f64>() as f32;
            out.extend((0..wide).map(column));
        }
        values = out;
    }
    values
}
