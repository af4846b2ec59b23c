//! The one error type of this crate.

use std::path::{Path, PathBuf};

use crate::image_text::Rejected;

/// Why images, captions, or a file made from them were refused.
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
    /// An argument or setting that is missing, out of range, or contradicts another.
    #[error("input `{name}`: expected {expected}, got {got}")]
    Input {
        /// The argument's name.
        name: String,
        /// What would be accepted.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A Parquet table without a column that fits.
    #[error("{path}: {problem}; name another with `{setting}`")]
    Column {
        /// The table.
        path: PathBuf,
        /// What is wrong with its columns.
        problem: String,
        /// The setting that names the column.
        setting: &'static str,
    },
    /// A source without a single image.
    #[error(
        "{path}: no image with a caption: {seen}; name a folder of images with captions, 0001.jpg beside 0001.txt, a tar of them, or a .parquet table"
    )]
    NoImages {
        /// The source.
        path: PathBuf,
        /// What it has instead, in words.
        seen: String,
    },
    /// Images of which none can be used.
    #[error("{path}: no image with a caption: {count} are left out, {name} is the first ({reason})")]
    AllBad {
        /// The source.
        path: PathBuf,
        /// How many there are.
        count: usize,
        /// The first of them.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More images are damaged or have no caption than a run may leave out.
    #[error(
        "{path}: {count} images cannot be used or have no caption, {name} is the last ({reason}); repair them, or allow more with max_bad"
    )]
    TooManyBad {
        /// The source.
        path: PathBuf,
        /// How many they are so far.
        count: usize,
        /// The last of them.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A cache in the folder that another one should be written to.
    #[error("{path} has a cache of another model or of other sizes; choose another folder")]
    OtherCache {
        /// The folder.
        path: PathBuf,
    },
    /// An error of a file of this program.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// An error of the renderer.
    #[error(transparent)]
    Scenes(#[from] scenes::ScenesError),
    /// An error of the U-Net crate.
    #[error(transparent)]
    Unet(#[from] unet::Error),
    /// An error of the diffusion crate.
    #[error(transparent)]
    Diffusion(#[from] diffusion::Error),
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

    /// Refuses a source that has nothing but `bad` images.
    pub(crate) fn all_bad(source: &Path, bad: &[Rejected]) -> Error {
        let Rejected { name, reason } = bad.first().cloned().unwrap_or(Rejected { name: "none".into(), reason: "none".into() });
        Error::AllBad { path: source.into(), count: bad.len(), name, reason }
    }

    /// Refuses more `bad` images than `most`.
    pub(crate) fn check_bad(source: &Path, bad: &[Rejected], most: usize) -> Result<()> {
        match bad.last() {
            Some(Rejected { name, reason }) if bad.len() > most => {
                Err(Error::TooManyBad { path: source.into(), count: bad.len(), name: name.clone(), reason: reason.clone() })
            }
            _ => Ok(()),
        }
    }
}
