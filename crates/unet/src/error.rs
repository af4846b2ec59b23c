//! The one error type of this crate: what was asked of which file or key, what was found, what to do next.

use std::path::PathBuf;

/// Why a configuration, a weight file, a plan or a forward pass was refused.
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
    /// The file is there, but its content is not what its name promises.
    #[error("{path}: {problem}; {hint}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do next.
        hint: String,
    },
    /// A setting that is missing, contradictory or not implemented.
    #[error("{path}: setting `{key}`: expected {expected}, got {got}")]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The setting.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// The weights do not fit the architecture; the report lists every key.
    #[error("{path}: weights do not match the architecture: {report}")]
    Weights {
        /// The weight file or files.
        path: String,
        /// Missing, unexpected and mis-shaped keys.
        report: crate::weights::LoadReport,
    },
    /// An input tensor of a forward pass is missing or has another shape.
    #[error("input `{name}`: expected {expected}, got {got}")]
    Input {
        /// The tensor's name.
        name: String,
        /// What would be accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A layer id that the model does not have or that cannot be removed.
    #[error("layer `{id}` cannot be removed: {reason}")]
    Layer {
        /// The layer.
        id: String,
        /// Why not.
        reason: String,
    },
    /// A criterion that layers cannot be scored by, here.
    #[error("criterion `{id}`: {reason}")]
    Criterion {
        /// Its name.
        id: String,
        /// Why not.
        reason: String,
    },
    /// A name that stands for two things.
    #[error("{name}: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// What a pass met with some layers removed.
    #[error("with {removed} removed")]
    Removed {
        /// The layers.
        removed: String,
        /// What it met.
        source: Box<Error>,
    },
    /// No file that another program loads can hold this network.
    #[error("{program} cannot load this network: {reason}")]
    Portable {
        /// The other program.
        program: &'static str,
        /// Why not.
        reason: String,
    },
    /// A computation gave NaN or an infinity.
    #[error("{what} is not finite (NaN or infinite); {hint}")]
    NotFinite {
        /// Which value.
        what: String,
        /// What to do next.
        hint: String,
    },
    /// A layer table, score or plan that does not hold together.
    #[error(transparent)]
    Core(#[from] prune_core::Error),
    /// A file of this project was refused.
    #[error(transparent)]
    Artifact(artifact::Error),
    /// A message from libtorch.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl From<prune_core::score::AblateError<Error>> for Error {
    fn from(error: prune_core::score::AblateError<Error>) -> Self {
        match error {
            prune_core::score::AblateError::Core(e) => Self::Core(e),
            prune_core::score::AblateError::Model { removed, source } => {
                Self::Removed { removed: removed.to_string(), source: Box::new(source) }
            }
        }
    }
}

/// Shorthand used through the crate.
pub type Result<T> = std::result::Result<T, Error>;

impl From<artifact::Error> for Error {
    fn from(error: artifact::Error) -> Self {
        match error {
            artifact::Error::Io { path, source } | artifact::Error::Write { path, source } => Error::Io { path, source },
            artifact::Error::Format { path, problem, hint } => Error::Format { path, problem, hint },
            artifact::Error::Setting { path, key, expected, got } => Error::Config { path, key, expected, got },
            other => Error::Artifact(other),
        }
    }
}

impl Error {
    /// An [`Error::Io`] for `path`, for use in `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
