//! Errors of the crate as exceptions of the package, with the same words.

use prune_core::Error;
use prune_core::score::AblateError;
use pyo3::PyErr;

/// The classes of `prune_core.errors`.
mod class {
    #![allow(missing_docs)]
    use pyo3::import_exception;

    import_exception!(prune_core.errors, InvalidInputError);
    import_exception!(prune_core.errors, UnknownLayerError);
    import_exception!(prune_core.errors, InfeasibleError);
    import_exception!(prune_core.errors, OtherModelError);
    import_exception!(prune_core.errors, ResumeError);
    import_exception!(prune_core.errors, FormatError);
    import_exception!(prune_core.errors, FileError);
}

/// The exception for an error.
pub fn raise(error: Error) -> PyErr {
    let text = error.to_string();
    let mut kind = &error;
    while let Error::InFile { problem, .. } = kind {
        kind = problem;
    }
    match kind {
        Error::UnknownLayer { .. } => class::UnknownLayerError::new_err(text),
        Error::Infeasible { .. } | Error::LimitsInfeasible { .. } | Error::NoneFound { .. } => class::InfeasibleError::new_err(text),
        Error::OtherModel { .. } | Error::OtherLayers { .. } => class::OtherModelError::new_err(text),
        Error::ResumeMismatch { .. } => class::ResumeError::new_err(text),
        Error::Parse { .. } | Error::WrongFormat { .. } | Error::WrongVersion { .. } | Error::Inconsistent { .. } => {
            class::FormatError::new_err(text)
        }
        Error::Io { .. } => class::FileError::new_err(text),
        _ => class::InvalidInputError::new_err(text),
    }
}

/// Bad input that only the binding sees.
pub fn invalid(text: impl Into<String>) -> PyErr {
    class::InvalidInputError::new_err(text.into())
}

/// What ends a run: an exception of the caller's functions, or an error of the crate.
pub struct Ended(PyErr);

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Ended(raise(error))
    }
}

impl From<AblateError<PyErr>> for Ended {
    fn from(error: AblateError<PyErr>) -> Self {
        match error {
            // The traceback says more than the layer would.
            AblateError::Model { source, .. } => Ended(source),
            AblateError::Core(error) => error.into(),
        }
    }
}

impl From<PyErr> for Ended {
    fn from(error: PyErr) -> Self {
        Ended(error)
    }
}

impl From<Ended> for PyErr {
    fn from(ended: Ended) -> Self {
        ended.0
    }
}
