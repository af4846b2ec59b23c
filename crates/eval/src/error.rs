//! The one error type of this crate: which file, key or input was refused, what was expected, what was found.

use std::path::PathBuf;

/// Why a measurement, a results file or a report was refused.
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
    /// An argument of a measurement has the wrong form.
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
    /// Images that were not made like those of the reference.
    #[error("{dir}: {what}: expected {expected}, as in the reference, got {got}; generate them alike")]
    OtherProtocol {
        /// The folder of images.
        dir: PathBuf,
        /// What differs.
        what: String,
        /// What the reference has.
        expected: String,
        /// What was found.
        got: String,
    },
    /// A file of this project was refused or could not be written.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// A metric from outside this crate failed.
    #[error("{source}")]
    Metric {
        /// Its own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The scene checker refused a prompt or an image.
    #[error(transparent)]
    Scenes(#[from] scenes::ScenesError),
    /// A file of prompts was refused.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// The CLIP model or its tokenizer refused its input.
    #[error(transparent)]
    Diffusion(#[from] diffusion::Error),
    /// The U-Net refused its input.
    #[error(transparent)]
    Unet(#[from] unet::Error),
    /// A message from libtorch.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// Shorthand used through the crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] for `path`, for use in `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    /// An [`Error::Input`].
    pub(crate) fn input(name: &str, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Input { name: name.into(), expected: expected.into(), got: got.into() }
    }
}
