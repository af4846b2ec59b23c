//! From words back to the specification, so that any prompt of the grammar can be checked by evaluation.
//!
//! ```text
//! prompt := one | several, then optionally "on a" BACKGROUND "background"
//! one    := a [SIZE] [TEXTURE] COLOR SHAPE, then optionally "in the" POSITION
//!         | a COLOR SHAPE RELATION a COLOR SHAPE
//!         | a COLOR SHAPE "and" a COLOR SHAPE
//! several := NUMBER ["small"] COLOR SHAPES          a := "a" | "an"
//! ```

use crate::error::ScenesError;
use crate::spec::{Item, SceneSpec};
use crate::words::{Background, Color, Number, Position, Relation, Shape, Size, Texture, vocabulary};

impl SceneSpec {
    /// Reads a prompt; upper case and extra spaces are forgiven.
    ///
    /// # Errors
    /// [`ScenesError::UnknownWord`] names the first word that the grammar lacks, [`ScenesError::Grammar`] the place
    /// at which a prompt of known words goes wrong, [`ScenesError::Contradiction`] a scene that cannot be drawn.
    pub fn parse(prompt: &str) -> Result<SceneSpec, ScenesError> {
        let lower = prompt.to_lowercase();
        let words: Vec<&str> = lower.split_whitespace().collect();
        let known = vocabulary();
        if let Some(at) = words.iter().position(|w| known.binary_search(w).is_err()) {
            return Err(ScenesError::UnknownWord { word: words[at].to_owned(), position: at + 1, vocabulary: known.join(" ") });
        }
        let mut reader = Reader { words, at: 0 };
        let spec = reader.prompt()?;
        spec.validate()?;
        Ok(spec)
    }
}

/// The words of a prompt and the place that has been reached.
struct Reader<'a> {
    words: Vec<&'a str>,
    at: usize,
}

impl Reader<'_> {
    fn prompt(&mut self) -> Result<SceneSpec, ScenesError> {
        let mut spec = if let Some(number) = self.option(Number::ALL, |n| n.word()) {
            let size = self.option(Size::ALL, |s| s.word());
            let color = self.one_of("a colour", Color::ALL, |c| c.word())?;
            let shape = self.one_of("a shape in the plural", Shape::ALL, |s| s.plural())?;
            SceneSpec::Count { number, size, item: Item { color, shape }, background: None }
        } else {
            self.one()?
        };
        if self.take("on") {
            self.article()?;
            let found = self.one_of("a background colour", Background::ALL, |b| b.word())?;
            self.expect("background")?;
            match &mut spec {
                SceneSpec::Single { background, .. }
                | SceneSpec::Relation { background, .. }
                | SceneSpec::Pair { background, .. }
                | SceneSpec::Count { background, .. } => *background = Some(found),
            }
        }
        if self.at < self.words.len() {
            return Err(self.wrong("the end of the prompt or `on a ... background`"));
        }
        Ok(spec)
    }

    fn one(&mut self) -> Result<SceneSpec, ScenesError> {
        self.article()?;
        let size = self.option(Size::ALL, |s| s.word());
        let texture = self.option(Texture::ALL, |t| t.word());
        let item = self.item()?;
        let plain = size.is_none() && texture.is_none();
        let before = self.at;
        if let Some(relation) = self.option(Relation::ALL, |r| r.word()) {
            self.only_for_plain(plain, before)?;
            self.article()?;
            return Ok(SceneSpec::Relation { first: item, relation, second: self.item()?, background: None });
        }
        if self.take("and") {
            self.only_for_plain(plain, before)?;
            self.article()?;
            return Ok(SceneSpec::Pair { first: item, second: self.item()?, background: None });
        }
        let position = if self.take("in") {
            self.expect("the")?;
            Some(self.one_of("a position", Position::ALL, |p| p.word())?)
        } else {
            None
        };
        Ok(SceneSpec::Single { size, texture, item, position, background: None })
    }

    fn item(&mut self) -> Result<Item, ScenesError> {
        let color = self.one_of("a colour", Color::ALL, |c| c.word())?;
        let shape = self.one_of("a shape", Shape::ALL, |s| s.word())?;
        Ok(Item { color, shape })
    }

    fn article(&mut self) -> Result<(), ScenesError> {
        if self.take("a") || self.take("an") {
            return Ok(());
        }
        Err(self.wrong(if self.at == 0 { "`a`, `an` or a number" } else { "`a` or `an`" }))
    }

    /// Sizes and textures belong to a single object; a second object may only follow a plain first one.
    fn only_for_plain(&mut self, plain: bool, at: usize) -> Result<(), ScenesError> {
        if plain {
            return Ok(());
        }
        self.at = at;
        Err(self.wrong("no second object after a size or texture"))
    }

    fn expect(&mut self, word: &str) -> Result<(), ScenesError> {
        if self.take(word) {
            return Ok(());
        }
        Err(self.wrong(&format!("`{word}`")))
    }

    /// Takes the words of a phrase if they come next.
    fn take(&mut self, phrase: &str) -> bool {
        let mut end = self.at;
        for word in phrase.split(' ') {
            if self.words.get(end) != Some(&word) {
                return false;
            }
            end += 1;
        }
        self.at = end;
        true
    }

    fn option<T: Copy>(&mut self, all: &[T], word: fn(T) -> &'static str) -> Option<T> {
        all.iter().copied().find(|&value| self.take(word(value)))
    }

    fn one_of<T: Copy>(&mut self, what: &str, all: &[T], word: fn(T) -> &'static str) -> Result<T, ScenesError> {
        self.option(all, word).ok_or_else(|| {
            let choices: Vec<_> = all.iter().map(|&v| word(v)).collect();
            self.wrong(&format!("{what} ({})", choices.join(", ")))
        })
    }

    fn wrong(&self, expected: &str) -> ScenesError {
        ScenesError::Grammar {
            position: self.at + 1,
            expected: expected.to_owned(),
            got: match self.words.get(self.at) {
                Some(word) => format!("`{word}`"),
                None => "the end".to_owned(),
            },
        }
    }
}
