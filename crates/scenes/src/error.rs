//! The one error type of this crate; it serves every stage from the caption to the image.

use thiserror::Error;

/// What can go wrong with a caption, a specification or an image.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScenesError {
    /// A word that the grammar does not have.
    #[error("unknown word `{word}` (word {position} of the prompt); use only the words of the scene grammar: {vocabulary}")]
    UnknownWord {
        /// The word as it was written.
        word: String,
        /// Its place in the prompt, counted from 1.
        position: usize,
        /// All words that the grammar has, separated by spaces.
        vocabulary: String,
    },
    /// A known word at a place where the grammar has no use for it, or a prompt that ends too early.
    #[error("word {position} of the prompt: expected {expected}, got {got}; see `a large red circle in the top left`")]
    Grammar {
        /// The place in the prompt, counted from 1.
        position: usize,
        /// What the grammar allows there.
        expected: String,
        /// The word found there, or the end of the prompt.
        got: String,
    },
    /// A specification whose parts do not go together.
    #[error("a scene that cannot be drawn: expected {expected}, got {got}; change the specification")]
    Contradiction {
        /// The rule of the world.
        expected: &'static str,
        /// The part that breaks it.
        got: String,
    },
    /// An image whose sides and bytes do not match, or a size that is too small to draw.
    #[error("image: expected {expected}, got {got}; pass another size or buffer")]
    Image {
        /// What is needed.
        expected: String,
        /// What was passed.
        got: String,
    },
    /// More held-out prompts were asked for than there are.
    #[error("{wanted} held-out prompts: the grammar has only {known}")]
    TooFewPrompts {
        /// So many were asked for.
        wanted: usize,
        /// So many there are.
        known: usize,
    },
}
