//! First step of reading an image back: the image on a canvas of 64 x 64 points, and the colour behind it.
//!
//! The checker does all its work on this canvas, so that images of any size are judged by the same measures.

use crate::layout::CANVAS;
use crate::rgb_image::RgbImage;
use crate::words::Background;

/// Points per side of the canvas.
pub(crate) const SIDE: usize = CANVAS as usize;
/// Width of the frame that objects never reach; the background is read there.
const FRAME: usize = 2;
/// A background that is further than this from its colour is none of the three.
const BACKGROUND_TOLERANCE: f32 = 70.0;

/// The image as `SIDE x SIDE` colours of 0..=255, rows from the top.
pub(crate) struct Canvas {
    points: Vec<[f32; 3]>,
    /// The median colour of the frame.
    pub behind: [f32; 3],
}

impl Canvas {
    /// Scales the image by the mean over the area that each point covers.
    pub fn read(image: &RgbImage) -> Canvas {
        let rows = spans(image.height());
        let columns = spans(image.width());
        let mut points = Vec::with_capacity(SIDE * SIDE);
        for row in &rows {
            for column in &columns {
                let mut sum = [0.0f32; 3];
                let mut weight = 0.0;
                for &(y, share_y) in row {
                    for &(x, share_x) in column {
                        let share = share_y * share_x;
                        let at = (y * image.width() + x) * 3;
                        for (total, &byte) in sum.iter_mut().zip(&image.data()[at..at + 3]) {
                            *total += share * f32::from(byte);
                        }
                        weight += share;
                    }
                }
                points.push(sum.map(|total| total / weight));
            }
        }
        let behind = frame_median(&points);
        Canvas { points, behind }
    }

    /// The colour at column `x`, row `y`.
    pub fn at(&self, x: usize, y: usize) -> [f32; 3] {
        self.points[y * SIDE + x]
    }

    /// How far the colour at a point is from the background.
    pub fn contrast(&self, x: usize, y: usize) -> f32 {
        distance(self.at(x, y), self.behind)
    }

    /// The background's name, unless its colour is none of the three.
    pub fn background(&self) -> Option<Background> {
        let nearest = self.nearest_background();
        (distance(floats(nearest.rgb()), self.behind) <= BACKGROUND_TOLERANCE).then_some(nearest)
    }

    /// The name of the nearest background colour, however far.
    pub fn nearest_background(&self) -> Background {
        nearest(Background::ALL, Background::rgb, self.behind).0
    }
}

/// For each canvas point the pixels it covers along one side, with the covered share of each.
fn spans(length: usize) -> Vec<Vec<(usize, f32)>> {
    let scale = length as f32 / SIDE as f32;
    (0..SIDE)
        .map(|i| {
            let (low, high) = (i as f32 * scale, (i + 1) as f32 * scale);
            let last = (high.ceil() as usize).min(length);
            (low as usize..last).map(|p| (p, high.min((p + 1) as f32) - low.max(p as f32))).filter(|(_, share)| *share > 1e-4).collect()
        })
        .collect()
}

fn frame_median(points: &[[f32; 3]]) -> [f32; 3] {
    let inner = FRAME..SIDE - FRAME;
    let frame: Vec<[f32; 3]> = points
        .iter()
        .enumerate()
        .filter(|(i, _)| !(inner.contains(&(i / SIDE)) && inner.contains(&(i % SIDE))))
        .map(|(_, point)| *point)
        .collect();
    [0, 1, 2].map(|channel| median(frame.iter().map(|p| p[channel]).collect()))
}

/// The middle value; 0 for none.
pub(crate) fn median(mut values: Vec<f32>) -> f32 {
    values.sort_by(f32::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Euclidean distance of two colours.
pub(crate) fn distance(a: [f32; 3], b: [f32; 3]) -> f32 {
    (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f32>().sqrt()
}

pub(crate) fn floats(rgb: [u8; 3]) -> [f32; 3] {
    rgb.map(f32::from)
}

/// The value whose colour is nearest, with its distance.
pub(crate) fn nearest<T: Copy>(all: &[T], rgb: fn(T) -> [u8; 3], color: [f32; 3]) -> (T, f32) {
    let mut best = (all[0], f32::INFINITY);
    for &value in all {
        let away = distance(floats(rgb(value)), color);
        if away < best.1 {
            best = (value, away);
        }
    }
    best
}
