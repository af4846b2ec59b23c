//! Small files of a model directory: JSON is read with errors that name the file, and everything is written whole.

use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The JSON object in `text`, which was read from `path`.
pub(crate) fn parse_json(text: &str, path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|e| Error::Format {
        path: path.into(),
        problem: format!("not a JSON object ({e})"),
        hint: "is the file truncated or a Git LFS pointer? fetch it again".into(),
    })
}

/// The JSON object in the file `path`.
pub(crate) fn read_json(path: &Path) -> Result<Map<String, Value>> {
    parse_json(&std::fs::read_to_string(path).map_err(Error::io(path))?, path)
}

/// Writes `bytes` to `path`, whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(Error::io(path))?;
    file.write_all(bytes).map_err(Error::io(path))?;
    file.as_file().sync_all().map_err(Error::io(path))?;
    // A temporary file is private to its owner; a result is as readable as any other file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).map_err(Error::io(path))?;
    }
    file.persist(path).map_err(|e| Error::Io { path: path.into(), source: e.error })?;
    Ok(())
}

/// Writes a JSON file, indented, with a line end.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value is JSON");
    text.push('\n');
    write_whole(path, text.as_bytes())
}
