//! Warnings that would come again with every part, batch or opening of a file, and are given once.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Logs `message` as a warning, unless this process has logged it before.
pub fn warn_once(message: String) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if !told.contains(&message) {
        tracing::warn!("{message}");
        told.insert(message);
    }
}
