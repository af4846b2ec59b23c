//! The one error type of this crate: what was asked of which file, setting or input, what was found, what to do next.

use std::path::PathBuf;

/// Why a model directory, a tokenizer, a prompt or an image was refused.
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
    /// An argument or input tensor is missing or has another form.
    #[error("input `{name}`: expected {expected}, got {got}")]
    Input {
        /// The argument's name.
        name: String,
        /// What would be accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A computation gave NaN or an infinity.
    #[error("{what} is not finite (NaN or infinite); {hint}")]
    NotFinite {
        /// Which value.
        what: String,
        /// What to do next.
        hint: String,
    },
    /// A model could not be had from the hub.
    #[error("hub model `{model}`: {problem}; {hint}")]
    Hub {
        /// The model as it was named.
        model: String,
        /// What went wrong.
        problem: String,
        /// What to do next.
        hint: String,
    },
    /// The U-Net or a weight file was refused.
    #[error(transparent)]
    Unet(#[from] unet::Error),
    /// A file of this project was refused.
    #[error(transparent)]
    Artifact(artifact::Error),
    /// A message from libtorch.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
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
