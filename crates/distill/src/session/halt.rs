//! What ends the work of another crate on the caller's behalf: its own error, or the caller's.

use crate::error::Error;

/// Passed through callbacks of other crates, which know nothing of this crate's error.
pub(crate) enum Halt<E> {
    /// The caller's callback failed.
    Caller(E),
    /// The work did.
    Work(Error),
}

impl<E> From<data::Error> for Halt<E> {
    fn from(error: data::Error) -> Self {
        Self::Work(error.into())
    }
}

impl<E> From<torch_ext::Error> for Halt<E> {
    fn from(error: torch_ext::Error) -> Self {
        Self::Work(error.into())
    }
}

impl<E: From<Error>> Halt<E> {
    /// As the caller's error.
    pub fn into_error(self) -> E {
        match self {
            Self::Caller(error) => error,
            Self::Work(error) => error.into(),
        }
    }
}
