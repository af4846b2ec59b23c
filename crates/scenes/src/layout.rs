//! From a specification to a scene: every unsaid attribute gets a value and every object a place.
//!
//! The world is kept simple on purpose, so that a small model can learn it: objects keep 3 units from the border
//! and 6 from each other, and places vary by a few units only. Lengths are canvas units, 64 to the canvas.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::ScenesError;
use crate::sample::{generator, pick};
use crate::spec::{Item, SceneSpec};
use crate::words::{Background, Color, Number, Position, Relation, Shape, Size, Texture};

/// Width and height of the canvas in canvas units.
pub(crate) const CANVAS: f32 = 64.0;
/// The middle of the canvas.
const MIDDLE: f32 = CANVAS / 2.0;
/// Where two neighbours stand, from the left or the top.
const NEAR: f32 = 16.75;
const FAR: f32 = CANVAS - NEAR;
/// The extents of objects in relations and pairs, of which no size is stated.
const MEDIUM: (f32, f32) = (20.0, 22.0);

/// An object with everything that the renderer needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedObject {
    /// The outline.
    pub shape: Shape,
    /// The colour.
    pub color: Color,
    /// The texture; one flat colour if `None`.
    pub texture: Option<Texture>,
    /// The middle of the bounding box, `[x, y]` in canvas units from the top left.
    pub center: [f32; 2],
    /// The side of the bounding box in canvas units.
    pub extent: f32,
}

/// A scene, ready to be drawn: what the caption states and what the image shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scene {
    /// What the caption states.
    pub spec: SceneSpec,
    /// The colour behind the objects.
    pub background: Background,
    /// The objects, in the order of the caption.
    pub objects: Vec<PlacedObject>,
}

impl Scene {
    /// A scene of the given specification; `seed` and `index` decide all that the caption leaves open.
    ///
    /// # Errors
    /// [`ScenesError::Contradiction`] as in [`SceneSpec::validate`].
    pub fn from_spec(spec: SceneSpec, seed: u64, index: u64) -> Result<Scene, ScenesError> {
        spec.validate()?;
        Ok(Scene::place(spec, &mut generator(seed, index)))
    }

    /// Places the objects of a valid specification.
    pub(crate) fn place(spec: SceneSpec, rng: &mut ChaCha8Rng) -> Scene {
        let background = spec
            .background()
            // White twice: an unsaid background is white as often as not.
            .unwrap_or_else(|| {
                use Background::{Black, Gray, White};
                pick(rng, &[White, White, Gray, Black])
            });
        let objects = match &spec {
            SceneSpec::Single { size, texture, item, position, .. } => {
                let size = match (size, texture) {
                    (Some(size), _) => *size,
                    (None, Some(_)) => Size::Large,
                    (None, None) => pick(rng, Size::ALL),
                };
                vec![PlacedObject {
                    shape: item.shape,
                    color: item.color,
                    texture: *texture,
                    extent: between(rng, size.extents()),
                    center: single_center(rng, size, *position),
                }]
            }
            SceneSpec::Relation { first, relation, second, .. } => two_objects(rng, *first, *second, *relation),
            SceneSpec::Pair { first, second, .. } => two_objects(rng, *first, *second, Relation::LeftOf),
            SceneSpec::Count { number, item, .. } => count_objects(rng, *number, *item),
        };
        Scene { spec, background, objects }
    }
}

fn single_center(rng: &mut ChaCha8Rng, size: Size, position: Option<Position>) -> [f32; 2] {
    // Large objects fill a corner nearly to the middle lines, so they have less room to move.
    let (inset, play) = match size {
        Size::Small => (16.0, 2.0),
        Size::Large => (20.0, 1.0),
    };
    let (low, high) = (inset, CANVAS - inset);
    let (center, play) = match position {
        Some(Position::TopLeft) => ([low, low], play),
        Some(Position::TopRight) => ([high, low], play),
        Some(Position::BottomLeft) => ([low, high], play),
        Some(Position::BottomRight) => ([high, high], play),
        Some(Position::Center) | None => ([MIDDLE, MIDDLE], 3.0),
    };
    jitter(rng, center, play)
}

fn two_objects(rng: &mut ChaCha8Rng, first: Item, second: Item, relation: Relation) -> Vec<PlacedObject> {
    let shift = between(rng, (-4.0, 4.0));
    let line = MIDDLE + shift;
    let (a, b) = match relation {
        Relation::LeftOf => ([NEAR, line], [FAR, line]),
        Relation::RightOf => ([FAR, line], [NEAR, line]),
        Relation::Above => ([line, NEAR], [line, FAR]),
        Relation::Below => ([line, FAR], [line, NEAR]),
    };
    [(first, a), (second, b)]
        .into_iter()
        .map(|(item, center)| {
            let extent = between(rng, MEDIUM);
            plain(item, extent, jitter(rng, center, 1.0))
        })
        .collect()
}

fn count_objects(rng: &mut ChaCha8Rng, number: Number, item: Item) -> Vec<PlacedObject> {
    let places: &[[f32; 2]] = match number {
        Number::Two => &[[NEAR, MIDDLE], [FAR, MIDDLE]],
        Number::Three => &[[MIDDLE, NEAR], [NEAR, FAR], [FAR, FAR]],
        Number::Four => &[[NEAR, NEAR], [FAR, NEAR], [NEAR, FAR], [FAR, FAR]],
    };
    let extent = between(rng, Size::Small.extents());
    let shift = jitter(rng, [0.0, 0.0], 1.5);
    places.iter().map(|[x, y]| plain(item, extent, jitter(rng, [x + shift[0], y + shift[1]], 1.5))).collect()
}

fn plain(item: Item, extent: f32, center: [f32; 2]) -> PlacedObject {
    PlacedObject { shape: item.shape, color: item.color, texture: None, center, extent }
}

fn between(rng: &mut ChaCha8Rng, (low, high): (f32, f32)) -> f32 {
    rng.random_range(low..=high)
}

fn jitter(rng: &mut ChaCha8Rng, [x, y]: [f32; 2], play: f32) -> [f32; 2] {
    [x + between(rng, (-play, play)), y + between(rng, (-play, play))]
}
