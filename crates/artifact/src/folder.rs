//! Whole folders: filled beside their place, then moved there.

use std::path::Path;

use crate::error::{Error, Result};
use crate::leftovers;

/// Fills a new folder and moves it to `out`, so that it appears whole or not at all. An empty folder there is replaced.
///
/// # Errors
/// [`Error::Write`] where the place is taken or cannot be written; those of `fill`.
pub fn write_folder<E: From<Error>>(out: &Path, fill: impl FnOnce(&Path) -> std::result::Result<(), E>) -> std::result::Result<(), E> {
    let write = |source| Error::Write { path: out.into(), source };
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(write)?;
    let prefix = format!(".{}.folder-", out.file_name().unwrap_or_default().display());
    leftovers::remove_folders(parent, &prefix);
    let staged = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).map_err(write)?;
    // Tells a folder that is being filled from one whose process was killed.
    let lock = std::fs::File::open(staged.path()).ok();
    let _ = lock.as_ref().map(std::fs::File::try_lock);
    fill(staged.path())?;
    // A temporary folder is private to its owner; a result is as readable as any other folder.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(staged.path(), std::fs::Permissions::from_mode(0o755)).map_err(write)?;
    }
    std::fs::rename(staged.path(), out).map_err(write)?;
    // Nothing is left to remove.
    let _ = staged.keep();
    Ok(())
}

/// Copies a file, or a folder with all that it holds but the entry `without` at its top.
///
/// # Errors
/// [`Error::Io`] for what cannot be read, [`Error::Write`] for what cannot be written.
pub fn copy_tree(from: &Path, to: &Path, without: Option<&str>) -> Result<()> {
    let write = |source| Error::Write { path: to.into(), source };
    if !from.is_dir() {
        std::fs::File::open(from).map_err(Error::io(from))?;
        return std::fs::copy(from, to).map(|_| ()).map_err(write);
    }
    std::fs::create_dir_all(to).map_err(write)?;
    for entry in std::fs::read_dir(from).map_err(Error::io(from))? {
        let entry = entry.map_err(Error::io(from))?;
        let name = entry.file_name();
        if without.is_none_or(|without| name != without) {
            copy_tree(&entry.path(), &to.join(name), None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (from, out) = (dir.path().join("from"), dir.path().join("out"));
        std::fs::create_dir_all(from.join("inner")).unwrap();
        std::fs::write(from.join("inner/a"), b"a").unwrap();
        std::fs::write(from.join("b"), b"b").unwrap();
        // Of a process that was killed, and another's.
        for name in [".out.folder-aB3dEf", ".other.folder-aB3dEf"] {
            std::fs::create_dir_all(dir.path().join(name).join("unet")).unwrap();
        }
        let failed: Result<()> = write_folder(&out, |staged| {
            copy_tree(&from, staged, None)?;
            copy_tree(&dir.path().join("nothing"), &staged.join("c"), None)
        });
        assert!(matches!(failed, Err(Error::Io { .. })) && !out.exists());
        write_folder(&out, |staged| copy_tree(&from, staged, Some("b"))).unwrap();
        assert_eq!(std::fs::read(out.join("inner/a")).unwrap(), b"a");
        assert!(!out.join("b").exists());
        assert!(dir.path().join(".other.folder-aB3dEf").is_dir());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "a temporary folder stayed behind");
        let taken: Result<()> = write_folder(&out, |staged| copy_tree(&from, staged, None));
        assert!(matches!(taken, Err(Error::Write { .. })));
    }
}
