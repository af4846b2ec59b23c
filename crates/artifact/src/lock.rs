//! A folder that one process writes at a time: a lock that names its owner and ends with it.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A lock that the operating system keeps for as long as this value, or its process, lives. The file is removed with it.
#[derive(Debug)]
pub struct Lock {
    // Held for its lock.
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock `path`, a file that is made where it is missing. One of a process that has ended is taken over. On file systems
    /// without locks it is granted.
    ///
    /// # Errors
    /// [`Error::Locked`] with the owner, [`Error::Write`] where the file cannot be made.
    pub fn take(path: &Path) -> Result<Self> {
        let write = |source| Error::Write { path: path.into(), source };
        loop {
            let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(write)?;
            match file.try_lock() {
                Ok(()) if !is_at(&file, path) => continue,
                Err(TryLockError::WouldBlock) => {
                    let mut owner = String::new();
                    let known = file.read_to_string(&mut owner).is_ok() && !owner.trim().is_empty();
                    let owner = if known { owner.trim().into() } else { "another process".into() };
                    return Err(Error::Locked { path: path.into(), owner });
                }
                Ok(()) | Err(TryLockError::Error(_)) => {
                    let host = gethostname::gethostname();
                    file.set_len(0).map_err(write)?;
                    writeln!(file, "process {} on {}", std::process::id(), host.display()).map_err(write)?;
                    return Ok(Self { _file: file, path: path.into() });
                }
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Where it stays behind, the next process takes it over.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether the file is still the one at `path`: its last owner removes it.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let number = |m: std::fs::Metadata| (m.dev(), m.ino());
    matches!((file.metadata().map(number), path.metadata().map(number)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_owner_at_a_time_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.lock");
        // Of a process that ended without a word.
        std::fs::write(&path, "process 1 on nowhere, which is longer than another owner's name").unwrap();
        let lock = Lock::take(&path).unwrap();
        let said = Lock::take(&path).unwrap_err().to_string();
        assert!(said.contains(&format!("process {} on ", std::process::id())) && !said.contains("nowhere"), "{said}");
        drop(lock);
        assert!(!path.exists());
        Lock::take(&path).unwrap();
    }
}
