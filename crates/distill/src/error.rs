//! The one error type of this crate.

use std::path::PathBuf;

/// Why a training run was refused or stopped.
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
    /// A setting outside its range, or two settings that contradict each other.
    #[error("training setting `{key}`: expected {expected}, got {got}")]
    Config {
        /// The setting.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A checkpoint that belongs to another run.
    #[error(
        "{path}: this checkpoint belongs to another run: {key} was {found}, now it is {expected}; use another folder, or delete this one to start over"
    )]
    ForeignCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// Which part of the run's identity differs.
        key: String,
        /// The value of the present run.
        expected: String,
        /// The value in the checkpoint.
        found: String,
    },
    /// Too many steps in a row had a NaN or infinite loss or gradient.
    #[error("{skipped} steps with a non-finite loss or gradient (the last one is step {step}); lower the learning rate, or compute in f32")]
    NotFinite {
        /// The step at which the run gave up.
        step: u64,
        /// Steps skipped so far.
        skipped: u64,
    },
    /// A feature that a loss wants and a network does not have.
    #[error("feature `{tap}` is missing in the {network}; choose taps that both networks have")]
    Tap {
        /// The tap's name.
        tap: String,
        /// "teacher" or "student".
        network: String,
    },
    /// The caller asked to stop; a checkpoint holds the work so far.
    #[error("{stage} stopped at step {step}; run the same command to go on")]
    Stopped {
        /// What was stopped.
        stage: String,
        /// Its steps done.
        step: u64,
    },
    /// The ranks could not work together.
    #[error(transparent)]
    Distributed(#[from] torch_ext::Error),
    /// An error of the U-Net crate.
    #[error(transparent)]
    Unet(#[from] unet::Error),
    /// An error of the diffusion crate.
    #[error(transparent)]
    Diffusion(#[from] diffusion::Error),
    /// A file as this project writes them was refused or could not be written.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// An error of the data crate.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// A message from libtorch.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// Shorthand used through the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`] for `path`, for use in `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
