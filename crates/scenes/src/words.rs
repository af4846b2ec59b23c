//! The words of the world: each attribute is an enum whose variants carry their caption word and their looks.
//!
//! First link of the flow's data side: captions are made of these words, images of these colours and sizes.
//! Lengths are in canvas units: the canvas is 64 units wide whatever the size in pixels.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Defines an attribute: an enum with one caption word per variant.
macro_rules! attribute {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident => $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word, or the words, of the caption.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

attribute! {
    /// The outline of an object. All shapes fill their bounding box in both directions.
    Shape {
        /// A disc.
        Circle => "circle",
        /// A square with level sides.
        Square => "square",
        /// A triangle that points up, as high as it is wide.
        Triangle => "triangle",
        /// A plus sign.
        Cross => "cross",
        /// A disc with a round hole of half its diameter.
        Ring => "ring",
    }
}

attribute! {
    /// The colour of an object.
    Color {
        /// Crimson red.
        Red => "red",
        /// Medium green.
        Green => "green",
        /// Strong blue.
        Blue => "blue",
        /// Bright yellow.
        Yellow => "yellow",
        /// Reddish purple, nearly magenta.
        Purple => "purple",
        /// Bright cyan.
        Cyan => "cyan",
        /// Orange, half-way between red and yellow.
        Orange => "orange",
    }
}

attribute! {
    /// The size class of an object.
    Size {
        /// 17 to 19 units wide.
        Small => "small",
        /// 28.5 to 31.5 units wide.
        Large => "large",
    }
}

attribute! {
    /// The texture of an object; an object without one has a single colour.
    Texture {
        /// Five level bands, of the object's colour and the second colour in turn.
        Striped => "striped",
        /// Five by five fields, of the object's colour and the second colour in turn.
        Checkered => "checkered",
    }
}

attribute! {
    /// Where a single object stands.
    Position {
        /// The quadrant at the top left.
        TopLeft => "top left",
        /// The quadrant at the top right.
        TopRight => "top right",
        /// The quadrant at the bottom left.
        BottomLeft => "bottom left",
        /// The quadrant at the bottom right.
        BottomRight => "bottom right",
        /// The middle of the image.
        Center => "center",
    }
}

attribute! {
    /// How the first of two objects stands to the second.
    Relation {
        /// The first stands to the left.
        LeftOf => "left of",
        /// The first stands to the right.
        RightOf => "right of",
        /// The first stands higher.
        Above => "above",
        /// The first stands lower.
        Below => "below",
    }
}

attribute! {
    /// How many equal objects there are.
    Number {
        /// Two side by side.
        Two => "two",
        /// Three, one above two.
        Three => "three",
        /// Four, two above two.
        Four => "four",
    }
}

attribute! {
    /// The flat colour behind the objects.
    Background {
        /// Nearly white.
        White => "white",
        /// Nearly black.
        Black => "black",
        /// Medium gray.
        Gray => "gray",
    }
}

impl Shape {
    /// The caption word for several of them.
    pub fn plural(self) -> &'static str {
        match self {
            Shape::Circle => "circles",
            Shape::Square => "squares",
            Shape::Triangle => "triangles",
            Shape::Cross => "crosses",
            Shape::Ring => "rings",
        }
    }

    /// Whether the point lies in the shape; `u` to the right and `v` downwards, the bounding box is -1..1 in both.
    pub(crate) fn contains(self, u: f32, v: f32) -> bool {
        let inside_box = u.abs() <= 1.0 && v.abs() <= 1.0;
        match self {
            Shape::Circle => u * u + v * v <= 1.0,
            Shape::Square => inside_box,
            Shape::Triangle => inside_box && u.abs() <= (v + 1.0) / 2.0,
            Shape::Cross => inside_box && (u.abs() <= CROSS_ARM || v.abs() <= CROSS_ARM),
            Shape::Ring => (RING_HOLE * RING_HOLE..=1.0).contains(&(u * u + v * v)),
        }
    }
}

/// Half the width of the cross's arms, as a part of half its extent.
const CROSS_ARM: f32 = 0.36;
/// The radius of the ring's hole, as a part of its radius.
const RING_HOLE: f32 = 0.5;

impl Color {
    /// The drawn colour, 8 bits for each of red, green and blue. Any two differ by more than 100 in Euclidean distance.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Color::Red => [205, 25, 45],
            Color::Green => [30, 160, 60],
            Color::Blue => [35, 70, 230],
            Color::Yellow => [250, 230, 60],
            Color::Purple => [170, 40, 190],
            Color::Cyan => [50, 210, 225],
            Color::Orange => [245, 130, 20],
        }
    }
}

impl Size {
    /// The smallest and largest extent (side of the bounding box) that is drawn, in canvas units.
    pub(crate) fn extents(self) -> (f32, f32) {
        match self {
            Size::Small => (17.0, 19.0),
            Size::Large => (28.5, 31.5),
        }
    }
}

impl Number {
    /// The number as a figure.
    pub fn count(self) -> usize {
        match self {
            Number::Two => 2,
            Number::Three => 3,
            Number::Four => 4,
        }
    }
}

impl Background {
    /// The drawn colour, 8 bits for each of red, green and blue.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Background::White => [245, 245, 245],
            Background::Black => [15, 15, 15],
            Background::Gray => [130, 130, 130],
        }
    }

    /// The second colour of textures on this background: black, or white where black would vanish.
    pub fn texture_rgb(self) -> [u8; 3] {
        match self {
            Background::White | Background::Gray => Background::Black.rgb(),
            Background::Black => Background::White.rgb(),
        }
    }
}

/// Every word that a caption can have, in alphabetical order.
pub fn vocabulary() -> Vec<&'static str> {
    let mut words: BTreeSet<&'static str> = ["a", "an", "and", "background", "in", "on", "the"].into();
    words.extend(Shape::ALL.iter().flat_map(|s| [s.word(), s.plural()]));
    words.extend(Color::ALL.iter().map(|c| c.word()));
    words.extend(Size::ALL.iter().map(|s| s.word()));
    words.extend(Texture::ALL.iter().map(|t| t.word()));
    words.extend(Number::ALL.iter().map(|n| n.word()));
    words.extend(Background::ALL.iter().map(|b| b.word()));
    words.extend(Position::ALL.iter().flat_map(|p| p.word().split(' ')));
    words.extend(Relation::ALL.iter().flat_map(|r| r.word().split(' ')));
    words.into_iter().collect()
}
