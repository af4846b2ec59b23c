//! What a caption states: the specification of a scene, its rules and its caption.
//!
//! It is the prompt of training and evaluation in typed form; `parse` is the way back from the words.

use serde::{Deserialize, Serialize};

use crate::error::ScenesError;
use crate::words::{Background, Color, Number, Position, Relation, Shape, Size, Texture};

/// A shape with its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The colour of the object.
    pub color: Color,
    /// The outline of the object.
    pub shape: Shape,
}

/// What a caption states, in four families. `None` means unsaid: the renderer chooses, the checker does not look.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "family", rename_all = "snake_case", deny_unknown_fields)]
pub enum SceneSpec {
    /// One object, e.g. "a large red circle in the top left on a white background".
    Single {
        /// The size class; textured objects are never small.
        size: Option<Size>,
        /// The texture.
        texture: Option<Texture>,
        /// Colour and shape.
        item: Item,
        /// Where the object stands; near the middle if unsaid.
        position: Option<Position>,
        /// The colour behind it.
        background: Option<Background>,
    },
    /// Two different objects and how they stand, e.g. "a green ring above a purple cross".
    Relation {
        /// The object that is named first.
        first: Item,
        /// How the first stands to the second.
        relation: Relation,
        /// The object that is named second.
        second: Item,
        /// The colour behind them.
        background: Option<Background>,
    },
    /// Two different objects, e.g. "a red circle and a blue square"; drawn side by side, the first to the left.
    Pair {
        /// The object that is named first.
        first: Item,
        /// The object that is named second.
        second: Item,
        /// The colour behind them.
        background: Option<Background>,
    },
    /// Several equal objects, e.g. "three small yellow triangles on a black background".
    Count {
        /// How many.
        number: Number,
        /// The size class; several objects are always small, so only `Small` or unsaid.
        size: Option<Size>,
        /// Colour and shape of each.
        item: Item,
        /// The colour behind them.
        background: Option<Background>,
    },
}

impl SceneSpec {
    /// The background that the caption states, if it does.
    pub fn background(&self) -> Option<Background> {
        match self {
            SceneSpec::Single { background, .. }
            | SceneSpec::Relation { background, .. }
            | SceneSpec::Pair { background, .. }
            | SceneSpec::Count { background, .. } => *background,
        }
    }

    /// The name of the family, as in the serialized form: `single`, `relation`, `pair` or `count`.
    pub fn family(&self) -> &'static str {
        match self {
            SceneSpec::Single { .. } => "single",
            SceneSpec::Relation { .. } => "relation",
            SceneSpec::Pair { .. } => "pair",
            SceneSpec::Count { .. } => "count",
        }
    }

    /// Checks the rules of the world.
    ///
    /// # Errors
    /// [`ScenesError::Contradiction`] for a small textured object, large objects in a count, or two equal objects
    /// in a relation or a pair.
    pub fn validate(&self) -> Result<(), ScenesError> {
        let (expected, broken) = match self {
            SceneSpec::Single { size, texture, .. } => ("textured objects to be large", texture.is_some() && *size == Some(Size::Small)),
            SceneSpec::Relation { first, second, .. } | SceneSpec::Pair { first, second, .. } => {
                ("two objects that differ in colour or shape", first == second)
            }
            SceneSpec::Count { size, .. } => ("counted objects to be small", *size == Some(Size::Large)),
        };
        if broken {
            let got = format!("`{}`", self.caption());
            return Err(ScenesError::Contradiction { expected, got });
        }
        Ok(())
    }

    /// The caption: lower case, at most 16 words, all of them in [`crate::vocabulary`].
    pub fn caption(&self) -> String {
        let mut words: Vec<&str> = Vec::with_capacity(16);
        match self {
            SceneSpec::Single { size, texture, item, position, .. } => {
                let leading = size.map(Size::word).or(texture.map(Texture::word)).unwrap_or(item.color.word());
                words.push(article(leading));
                words.extend(size.map(Size::word));
                words.extend(texture.map(Texture::word));
                words.extend([item.color.word(), item.shape.word()]);
                if let Some(position) = position {
                    words.extend(["in", "the", position.word()]);
                }
            }
            SceneSpec::Relation { first, relation, second, .. } => {
                words.extend(first.words());
                words.push(relation.word());
                words.extend(second.words());
            }
            SceneSpec::Pair { first, second, .. } => {
                words.extend(first.words());
                words.push("and");
                words.extend(second.words());
            }
            SceneSpec::Count { number, size, item, .. } => {
                words.push(number.word());
                words.extend(size.map(Size::word));
                words.extend([item.color.word(), item.shape.plural()]);
            }
        }
        if let Some(background) = self.background() {
            words.extend(["on", "a", background.word(), "background"]);
        }
        words.join(" ")
    }
}

impl Item {
    /// The item with its article, as it stands in captions of two objects.
    fn words(self) -> [&'static str; 3] {
        [article(self.color.word()), self.color.word(), self.shape.word()]
    }
}

/// "an" before orange, "a" before every other word of the grammar.
fn article(next: &str) -> &'static str {
    if next.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}
