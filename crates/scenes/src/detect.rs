//! Second step of reading an image back: what stands out from the background, piece by piece.
//!
//! A connected region that differs from the background is an object, whatever its form; colour and shape are then
//! read from it and may come out as "none". Nothing here knows the caption.

use crate::canvas::{Canvas, SIDE, distance, floats, median};
use crate::outline::{Coverage, Fit, fit_shape};
use crate::words::{Color, Shape};

/// A point belongs to an object if it is further than this from the background. Half the distance of the two
/// nearest colours that meet, and eight times the noise that a decoder leaves.
const CONTRAST: f32 = 55.0;
/// Regions of fewer points are specks, not objects; the smallest object drawn has 140.
const SPECK: usize = 40;
/// A point that is further than this from the mixtures of a colour does not have that colour.
const COLOR_TOLERANCE: f32 = 60.0;
/// The share of the colour in a mixture from which on a point counts as having it.
const FULL: f32 = 0.65;
/// At least this share of an object's points must have its colour; a texture's second colour takes half of them.
const OWN_SHARE: f32 = 0.25;
/// At least this share of an object's points must be explained by its colour.
const PURITY: f32 = 0.7;

/// An object as the image shows it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The best-fitting outline, if any fits.
    pub shape: Option<Shape>,
    /// The palette colour, if the object has one.
    pub color: Option<Color>,
    /// Where the outline lies, in canvas units.
    pub fit: Fit,
    /// The points inside, edges left out.
    pub interior: Vec<(usize, usize)>,
}

/// All objects, the one with the most points first.
pub(crate) fn detect(canvas: &Canvas) -> Vec<Seen> {
    let labels = label(canvas);
    let regions = labels.iter().copied().max().unwrap_or(0);
    let mut objects: Vec<(usize, Seen)> = (1..=regions)
        .filter_map(|region| {
            let points: Vec<(usize, usize)> = (0..SIDE * SIDE).filter(|&i| labels[i] == region).map(|i| (i % SIDE, i / SIDE)).collect();
            (points.len() >= SPECK).then(|| (points.len(), look(canvas, &labels, region, &points)))
        })
        .collect();
    objects.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    objects.into_iter().map(|(_, seen)| seen).collect()
}

/// Numbers the connected regions (four neighbours) from 1; 0 is background.
fn label(canvas: &Canvas) -> Vec<usize> {
    const OPEN: usize = usize::MAX;
    let mut labels: Vec<usize> = (0..SIDE * SIDE).map(|i| if canvas.contrast(i % SIDE, i / SIDE) > CONTRAST { OPEN } else { 0 }).collect();
    let mut region = 0;
    let mut stack = Vec::new();
    for start in 0..labels.len() {
        if labels[start] != OPEN {
            continue;
        }
        region += 1;
        labels[start] = region;
        stack.push(start);
        while let Some(i) = stack.pop() {
            let (x, y) = (i % SIDE, i / SIDE);
            let neighbours =
                [(x > 0).then(|| i - 1), (x + 1 < SIDE).then(|| i + 1), (y > 0).then(|| i - SIDE), (y + 1 < SIDE).then(|| i + SIDE)];
            for j in neighbours.into_iter().flatten() {
                if labels[j] == OPEN {
                    labels[j] = region;
                    stack.push(j);
                }
            }
        }
    }
    labels
}

/// Reads colour and shape of one region.
fn look(canvas: &Canvas, labels: &[usize], region: usize, points: &[(usize, usize)]) -> Seen {
    let inside = |x: usize, y: usize| labels[y * SIDE + x] == region;
    let interior: Vec<(usize, usize)> = points
        .iter()
        .copied()
        .filter(|&(x, y)| {
            (1..SIDE - 1).contains(&x)
                && (1..SIDE - 1).contains(&y)
                && inside(x - 1, y)
                && inside(x + 1, y)
                && inside(x, y - 1)
                && inside(x, y + 1)
        })
        .collect();
    let second = floats(canvas.nearest_background().texture_rgb());
    let color = color_of(canvas, &interior, second);

    // An edge point's contrast, relative to the object's, is the share of the point that the object covers.
    let mut full = median(points.iter().map(|&(x, y)| canvas.contrast(x, y)).collect());
    if let Some(color) = color {
        let own = distance(floats(color.rgb()), canvas.behind);
        full = own.min(distance(second, canvas.behind)).min(full);
    }
    let coverage = Coverage::new(points, |x, y| {
        let other = labels[y * SIDE + x] != 0 && !inside(x, y);
        if other { 0.0 } else { (canvas.contrast(x, y) / full).min(1.0) }
    });
    let (shape, fit) = fit_shape(&coverage);
    Seen { shape, color, fit, interior }
}

/// The palette colour of most points, if it and its mixtures make up nearly all of the object.
///
/// Edges mix an object's colour with the background, textures mix it with the second colour, so a point is
/// explained by a colour if it lies near the line from there to one of the two.
fn color_of(canvas: &Canvas, interior: &[(usize, usize)], second: [f32; 3]) -> Option<Color> {
    let partners = [canvas.behind, second];
    let mut votes = vec![0usize; Color::ALL.len()];
    let mut explained = vec![0usize; Color::ALL.len()];
    for &(x, y) in interior {
        let point = canvas.at(x, y);
        let mut nearest = (0, COLOR_TOLERANCE);
        for (i, color) in Color::ALL.iter().enumerate() {
            let full = floats(color.rgb());
            let [a, b] = partners.map(|partner| unmix(point, full, partner));
            explained[i] += usize::from(a.away.min(b.away) <= COLOR_TOLERANCE);
            for mix in [a, b] {
                if mix.share >= FULL && mix.away < nearest.1 {
                    nearest = (i, mix.away);
                }
            }
        }
        if nearest.1 < COLOR_TOLERANCE {
            votes[nearest.0] += 1;
        }
    }
    let (best, &count) = votes.iter().enumerate().max_by_key(|(_, count)| **count)?;
    let parts = |count: usize, share: f32| count as f32 >= share * interior.len() as f32;
    (count > 0 && parts(count, OWN_SHARE) && parts(explained[best], PURITY)).then(|| Color::ALL[best])
}

/// A point seen as a mixture of two colours.
struct Mix {
    /// The first colour's share, 0 to 1.
    share: f32,
    /// How far the point is from that mixture.
    away: f32,
}

fn unmix(point: [f32; 3], first: [f32; 3], partner: [f32; 3]) -> Mix {
    let axis = [0, 1, 2].map(|i| first[i] - partner[i]);
    let along: f32 = (0..3).map(|i| (point[i] - partner[i]) * axis[i]).sum();
    let length: f32 = axis.iter().map(|a| a * a).sum();
    let share = (along / length.max(1.0)).clamp(0.0, 1.0);
    let mixture = [0, 1, 2].map(|i| partner[i] + share * axis[i]);
    let away = distance(point, mixture);
    Mix { share, away }
}
