//! The one error type of this crate: which file, which key, what was found, what to do next.

use std::path::PathBuf;

/// Why a file was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file could not be written; an older one is as it was.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Another process writes the same.
    #[error("{path}: in use by {owner}; wait until it ends, or choose another folder")]
    Locked {
        /// The lock.
        path: PathBuf,
        /// Who has it.
        owner: String,
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
    /// A key of a file that is missing, of the wrong type, or contradicts another.
    #[error("{path}: `{key}`: expected {expected}, got {got}; {hint}")]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What stands there.
        got: String,
        /// What to do next.
        hint: String,
    },
    /// A setting of a foreign configuration that is missing, contradictory or not implemented.
    #[error("{path}: setting `{key}`: expected {expected}, got {got}")]
    Setting {
        /// The configuration file.
        path: PathBuf,
        /// The setting.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What stands there.
        got: String,
    },
    /// A TOML file of settings that cannot be read or says something that it should not.
    #[error("{path}: {problem}{}", meant.as_ref().map_or(String::new(), |name| format!("; did you mean `{name}`?")))]
    Toml {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on, where there is one.
        line: Option<usize>,
        /// What is wrong, with the place.
        problem: String,
        /// The likeliest of the names there are, for one that is unknown.
        meant: Option<String>,
    },
    /// A key of a TOML file that has another name now.
    #[error("{path}: line {line}: `{key}` is called `{now}` now")]
    Renamed {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// The key as it stands there.
        key: String,
        /// The key's name.
        now: String,
    },
    /// A NaN or an infinity, which JSON cannot hold.
    #[error("a value of {path} is not finite (NaN or infinite); {hint}")]
    NotFinite {
        /// The file that was to be written.
        path: PathBuf,
        /// What to do next.
        hint: String,
    },
}

/// Shorthand used through the crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] for `path`, for use in `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
