//! Third step of reading an image back: which outline covers the same area as the region that was found.
//!
//! Each shape is fitted by moving and stretching its outline until the overlap (intersection over union, on
//! anti-aliased coverage) is best; the shape with the best overlap wins, if that is good enough.

use crate::canvas::SIDE;
use crate::words::Shape;

/// No shape is named below this overlap. Shapes drawn by the renderer reach 0.9 and more; a disc in a square's
/// place has 0.79.
const MIN_OVERLAP: f32 = 0.67;
/// Shapes whose overlap at the bounding box is this much worse than the best are not fitted further.
const HOPELESS: f32 = 0.2;
/// No shape is named if its sides differ by more than this factor.
const MAX_ASPECT: f32 = 1.4;

/// A bounding box in canvas units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fit {
    pub center: [f32; 2],
    pub extent: [f32; 2],
}

impl Fit {
    /// The mean of width and height.
    pub fn size(&self) -> f32 {
        (self.extent[0] + self.extent[1]) / 2.0
    }
}

/// The share of each point that one object covers, in a window around it.
pub(crate) struct Coverage {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    shares: Vec<f32>,
    total: f32,
    /// The bounding box of the points.
    bounds: Fit,
}

impl Coverage {
    /// The window reaches two points beyond the region, where `share` gives the rest of the anti-aliased edge.
    pub fn new(points: &[(usize, usize)], share: impl Fn(usize, usize) -> f32) -> Coverage {
        let range = |values: &dyn Fn(&(usize, usize)) -> usize| {
            let low = points.iter().map(values).min().unwrap_or(0);
            let high = points.iter().map(values).max().unwrap_or(0) + 1;
            (low, high)
        };
        let (x0, x1) = range(&|p| p.0);
        let (y0, y1) = range(&|p| p.1);
        let (left, right) = (x0.saturating_sub(2), (x1 + 2).min(SIDE));
        let (top, bottom) = (y0.saturating_sub(2), (y1 + 2).min(SIDE));
        let mut shares = Vec::with_capacity((right - left) * (bottom - top));
        for y in top..bottom {
            for x in left..right {
                let value = share(x, y);
                // A little noise of the background is not coverage.
                shares.push(if value < 0.15 { 0.0 } else { value });
            }
        }
        let total = shares.iter().sum();
        let bounds = Fit { center: [(x0 + x1) as f32 / 2.0, (y0 + y1) as f32 / 2.0], extent: [(x1 - x0) as f32, (y1 - y0) as f32] };
        Coverage { left, top, width: right - left, height: bottom - top, shares, total, bounds }
    }

    /// Intersection over union with a shape in a bounding box, both as anti-aliased coverage.
    fn overlap(&self, shape: Shape, fit: &Fit) -> f32 {
        /// Test points per canvas point and direction.
        const SUB: usize = 2;
        let own = |pixel: usize, sub: usize, axis: usize| {
            (pixel as f32 + (sub as f32 + 0.5) / SUB as f32 - fit.center[axis]) * 2.0 / fit.extent[axis]
        };
        let (mut both, mut drawn) = (0.0, 0.0);
        for y in 0..self.height {
            for x in 0..self.width {
                let mut hits = 0;
                for sub_y in 0..SUB {
                    let v = own(self.top + y, sub_y, 1);
                    for sub_x in 0..SUB {
                        hits += usize::from(shape.contains(own(self.left + x, sub_x, 0), v));
                    }
                }
                let share = hits as f32 / (SUB * SUB) as f32;
                drawn += share;
                both += share.min(self.shares[y * self.width + x]);
            }
        }
        both / (self.total + drawn - both).max(1.0)
    }
}

/// The shape that fits best, with its place; no shape and the bounding box if none fits.
pub(crate) fn fit_shape(coverage: &Coverage) -> (Option<Shape>, Fit) {
    let mut best = (None, coverage.bounds);
    let mut best_overlap = MIN_OVERLAP;
    let starts: Vec<f32> = Shape::ALL.iter().map(|&shape| coverage.overlap(shape, &coverage.bounds)).collect();
    let limit = starts.iter().copied().fold(0.0, f32::max) - HOPELESS;
    for (&shape, _) in Shape::ALL.iter().zip(&starts).filter(|(_, start)| **start >= limit) {
        let (fit, overlap) = improve(coverage, shape);
        let [w, h] = fit.extent;
        if overlap > best_overlap && w.max(h) <= MAX_ASPECT * w.min(h) {
            best_overlap = overlap;
            best = (Some(shape), fit);
        }
    }
    best
}

/// Moves and stretches the outline, one number at a time, as long as the overlap grows.
fn improve(coverage: &Coverage, shape: Shape) -> (Fit, f32) {
    let mut best = coverage.bounds;
    let mut best_overlap = coverage.overlap(shape, &best);
    for step in [1.0, 0.5] {
        // Objects differ from their bounding box by a few steps at most.
        for _ in 0..4 {
            let before = best_overlap;
            for axis in 0..2 {
                for (shift, stretch) in [(step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step)] {
                    let mut next = best;
                    next.center[axis] += shift;
                    next.extent[axis] += stretch;
                    let overlap = coverage.overlap(shape, &next);
                    if next.extent[axis] >= 2.0 && overlap > best_overlap {
                        (best, best_overlap) = (next, overlap);
                    }
                }
            }
            if best_overlap == before {
                break;
            }
        }
    }
    (best, best_overlap)
}
