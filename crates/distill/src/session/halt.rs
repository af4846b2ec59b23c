//! What ends the work of another crate on the caller's behalf: its own error, or the caller's.

use crate::error::Error;

/// Passed through the data crate's callbacks, which know nothing of this crate's error.
pub(crate) enum Halt<E> {
    /// The caller's callback failed.
    Caller(E),
    /// The work did.
    Data(data::Error),
}

impl<E> From<data::Error> for Halt<E> {
    fn from(error: data::Error) -> Self {
        Self::Data(error)
    }
}

impl<E: From<Error>> Halt<E> {
    /// As the caller's error.
    pub fn into_error(self) -> E {
        match self {
            Self::Caller(error) => error,
            Self::Data(error) => Error::from(error).into(),
        }
    }
}
