//! Fourth step of reading an image back: bands or fields in two colours within an object.
//!
//! The share of the second colour at each point is correlated with ideal bands (level and upright) and ideal
//! fields of many widths and phases; the better of the two names the texture, if it is good enough.

use crate::canvas::{Canvas, floats};
use crate::detect::Seen;
use crate::words::Texture;

/// No texture is named below this correlation.
const MIN_CORRELATION: f32 = 0.55;
/// An object with less of either colour is of one colour.
const MIN_SHARE: f32 = 0.12;
/// The widths of bands and fields that are tried, in canvas units; drawn are 5.7 to 6.3.
const WIDTHS: [f32; 9] = [4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0];
/// Phases per width.
const PHASES: usize = 8;

/// The texture of an object, if it has one.
pub(crate) fn texture_of(canvas: &Canvas, seen: &Seen) -> Option<Texture> {
    let first = floats(seen.color?.rgb());
    let second = floats(canvas.nearest_background().texture_rgb());
    let axis = [0, 1, 2].map(|i| second[i] - first[i]);
    let length: f32 = axis.iter().map(|a| a * a).sum();
    let values: Vec<f32> = seen
        .interior
        .iter()
        .map(|&(x, y)| {
            let point = canvas.at(x, y);
            let along: f32 = (0..3).map(|i| (point[i] - first[i]) * axis[i]).sum();
            (along / length).clamp(0.0, 1.0)
        })
        .collect();
    let mean = values.iter().sum::<f32>() / values.len().max(1) as f32;
    if !(MIN_SHARE..=1.0 - MIN_SHARE).contains(&mean) {
        return None;
    }

    let (mut bands, mut fields) = (0.0f32, 0.0f32);
    for width in WIDTHS {
        // For each phase, the sign of the band in which each column or row lies.
        let signs: Vec<Vec<f32>> = (0..PHASES)
            .map(|phase| {
                let start = 2.0 * width * phase as f32 / PHASES as f32;
                (0..crate::canvas::SIDE)
                    .map(|i| {
                        let band = ((i as f32 + 0.5 + start) / width).floor() as i32;
                        if band % 2 == 0 { 1.0 } else { -1.0 }
                    })
                    .collect()
            })
            .collect();
        let fit = |pattern: &dyn Fn(usize, usize) -> f32| correlation(&values, mean, seen.interior.iter().map(|&(x, y)| pattern(x, y)));
        for by_row in &signs {
            bands = bands.max(fit(&|_, y| by_row[y])).max(fit(&|x, _| by_row[x]));
            for by_column in &signs {
                fields = fields.max(fit(&|x, y| by_row[y] * by_column[x]));
            }
        }
    }
    let (texture, best) = if bands >= fields { (Texture::Striped, bands) } else { (Texture::Checkered, fields) };
    (best >= MIN_CORRELATION).then_some(texture)
}

/// Pearson correlation of the values with a pattern of the same length; 0 if one of them is constant.
fn correlation(values: &[f32], mean: f32, pattern: impl Iterator<Item = f32>) -> f32 {
    let (mut sum, mut squares, mut cross, mut spread) = (0.0, 0.0, 0.0, 0.0);
    for (value, sign) in values.iter().zip(pattern) {
        let value = value - mean;
        sum += sign;
        squares += sign * sign;
        cross += value * sign;
        spread += value * value;
    }
    let variance = squares - sum * sum / values.len() as f32;
    if variance <= 1e-3 || spread <= 1e-6 {
        return 0.0;
    }
    cross / (variance * spread).sqrt()
}
