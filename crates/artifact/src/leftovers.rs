//! What a killed process left behind: temporary files that nobody writes any more.

use std::fs::File;
use std::path::{Path, PathBuf};

/// Removes the temporary files of this program's writes in `folder` that no process is writing; returns what it removed. A folder
/// that is not there has none, and what cannot be removed stays.
pub fn remove_leftovers(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_temporary)).map(|entry| entry.path());
    ours.filter(|path| path.is_file() && is_abandoned(path) && std::fs::remove_file(path).is_ok()).collect()
}

/// Removes the folders in `parent` whose names begin with `prefix` and that no process is filling.
pub(crate) fn remove_folders(parent: &Path, prefix: &str) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix))).map(|entry| entry.path());
    for path in ours.filter(|path| path.is_dir() && is_abandoned(path)) {
        // What cannot be removed stays.
        let _ = std::fs::remove_dir_all(path);
    }
}

/// `.name.tmp12-3`, as [`crate::write_whole`] calls them.
fn is_temporary(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let parts = name.strip_prefix('.').and_then(|name| name.rsplit_once(".tmp"));
    let numbers = parts.filter(|(name, _)| !name.is_empty()).and_then(|(_, numbers)| numbers.split_once('-'));
    numbers.is_some_and(|(process, write)| number(process) && number(write))
}

/// Whoever writes holds a lock, from just after the file's first moment.
fn is_abandoned(path: &Path) -> bool {
    const FIRST_MOMENT: std::time::Duration = std::time::Duration::from_secs(2);
    let Ok(file) = File::open(path) else { return false };
    let young = || path.metadata().ok().and_then(|m| m.modified().ok()?.elapsed().ok()).is_none_or(|age| age < FIRST_MOMENT);
    let empty = path.read_dir().map_or_else(|_| file.metadata().is_ok_and(|m| m.len() == 0), |mut inside| inside.next().is_none());
    file.try_lock().is_ok() && !(empty && young())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_process_writes_any_more_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let names = [".a.json.tmp7-0", ".b.tmp.tmp99-12", ".live.bin.tmp8-1", "a.tmp7-0", ".a.tmp7", ".tmp", ".tmp1-2", ".tmpAb3dEf"];
        for name in names {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let live = File::open(dir.path().join(".live.bin.tmp8-1")).unwrap();
        live.lock().unwrap();
        let mut removed = remove_leftovers(dir.path());
        removed.sort();
        assert_eq!(removed, [".a.json.tmp7-0", ".b.tmp.tmp99-12"].map(|name| dir.path().join(name)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), names.len() - 2);
        assert!(remove_leftovers(&dir.path().join("nowhere")).is_empty());
    }
}
