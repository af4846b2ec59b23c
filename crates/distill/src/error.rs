//! The one error type of this crate.

use std::path::{Path, PathBuf};

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
        "{path}: this checkpoint belongs to another run: {key} was {found}, now it is {expected}; put it back, use another folder of checkpoints, or delete this one to start over"
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
    /// The newest checkpoint cannot be gone on from.
    #[error("{path}: a damaged checkpoint ({problem}); {}", after_damage(whole.as_deref()))]
    DamagedCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The newest older one that is whole.
        whole: Option<PathBuf>,
    },
    /// Too many steps had a NaN or infinite loss or gradient.
    #[error("{skipped} of {step} steps had a loss or gradient that is NaN or infinite; {}", after_divergence(checkpoint.as_deref()))]
    NotFinite {
        /// The step at which the run gave up.
        step: u64,
        /// Steps skipped so far.
        skipped: u64,
        /// The newest checkpoint; all are finite.
        checkpoint: Option<PathBuf>,
    },
    /// An update, or more than one, made the weights NaN or infinite.
    #[error("the weights are NaN or infinite after step {step}; {}", after_divergence(checkpoint.as_deref()))]
    WeightsNotFinite {
        /// The step at which it was seen.
        step: u64,
        /// The newest checkpoint; all are finite.
        checkpoint: Option<PathBuf>,
    },
    /// A trained parameter that the file to write cannot hold.
    #[error(
        "parameter `{parameter}` is NaN or infinite in {kind}, the number type of the file to write; lower the learning rate, clip \
         gradients, or start from a model whose files hold a wider type"
    )]
    NotStorable {
        /// The parameter.
        parameter: String,
        /// The file's number type.
        kind: &'static str,
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

fn after_damage(whole: Option<&Path>) -> String {
    whole.map_or("no older one is whole: delete it to start over".into(), |path| format!("delete it to go on from {}", path.display()))
}

fn after_divergence(checkpoint: Option<&Path>) -> String {
    let kept = checkpoint.map_or(String::new(), |path| format!("{} holds the last finite ones. ", path.display()));
    let change = "lower `lr`, clip gradients (`clip_norm` above 0) or compute in f32, and start in another folder of checkpoints";
    if kept.is_empty() { change.into() } else { format!("{kept}To go on, {change}") }
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
