//! The one error type of this crate: which file, which key of the results, what was expected and found.

use std::path::PathBuf;

/// Why a run folder, its results or their page was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file that is missing, damaged, or does not fit the others of its run.
    #[error("{path}: {problem}; {hint}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do next.
        hint: String,
    },
    /// A value of the results that contradicts another, such as a plan that removes an unknown layer.
    #[error("results: `{key}`: expected {expected}, got {got}")]
    Results {
        /// Where in the results.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// A name that the caller gave and the run does not have, or another choice that cannot be met.
    #[error("{name} {got}: expected {expected}")]
    Input {
        /// What was asked for.
        name: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A value of the results that is NaN or infinite.
    #[error("results: `{key}` is not finite (NaN or infinite); look for a diverged training run or an empty set of samples")]
    NotFinite {
        /// Where in the results.
        key: String,
    },
    /// A page template did not render; a mistake of this crate, never of the results.
    #[error("report template: {0}")]
    Template(#[from] minijinja::Error),
    /// One of this project's versioned files.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// Scores, a plan or an audit.
    #[error(transparent)]
    Core(#[from] prune_core::Error),
    /// A file of tensors.
    #[error(transparent)]
    Unet(#[from] unet::Error),
}

/// Shorthand used through the crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] for `path`, for use in `map_err`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    /// An [`Error::File`].
    pub(crate) fn file(path: impl Into<PathBuf>, problem: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::File { path: path.into(), problem: problem.into(), hint: hint.into() }
    }

    /// An [`Error::Input`].
    pub(crate) fn input(name: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Input { name, expected: expected.into(), got: got.into() }
    }

    /// An [`Error::Results`].
    pub(crate) fn contradiction(key: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Results { key: key.into(), expected: expected.into(), got: got.into() }
    }
}
