//! Warnings that are said once, however often a command opens the same file.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Warns about the file `path`, unless the same was said of it before.
pub(crate) fn warn_once(path: &Path, message: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let full = format!("{}: {message}", path.display());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.contains(&full) {
        tracing::warn!("{full}");
        said.insert(full);
    }
}
