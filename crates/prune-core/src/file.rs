//! Files as this crate writes them, for programs that keep others beside them.
//!
//! A file appears whole or not at all, the same data gives the same bytes, and reading never panics whatever the bytes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::ser::Formatter;

use crate::error::Error;

/// Writes a value as [`to_json`] puts it, whole as by [`write_whole`].
///
/// # Errors
/// [`Error::Serialize`], [`Error::Io`] with the path asked for.
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), Error> {
    write_bytes(path, to_json(value)?.as_bytes())
}

/// Writes bytes, whole as by [`write_whole`].
///
/// # Errors
/// [`Error::Io`] with the path asked for.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_whole(path, |file| file.write_all(bytes)).map_err(|problem| Error::Io { action: "write", path: path.to_path_buf(), problem })
}

/// Writes a file so that it appears whole: into a temporary file of the same folder, synced to disk, then renamed. An
/// older file stays as it was until the rename, and after a failure nothing half-written is left.
///
/// # Errors
/// Those of `write`, and of the file system.
pub fn write_whole<E: From<io::Error>>(path: &Path, write: impl FnOnce(&mut File) -> Result<(), E>) -> Result<(), E> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    // Two threads may write the same file at once; the later rename wins, and each moves a whole file.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    temporary.push(format!(".tmp{}-{}", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed)));
    let temporary = path.with_file_name(temporary);
    let mut written = write_synced(&temporary, write);
    if written.is_ok() {
        written = fs::rename(&temporary, path).map_err(E::from);
    }
    if written.is_err() {
        // The first error is the one to report; the temporary file may not even exist.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_folder(path);
    Ok(())
}

fn write_synced<E: From<io::Error>>(path: &Path, write: impl FnOnce(&mut File) -> Result<(), E>) -> Result<(), E> {
    let mut file = File::create(path)?;
    // Tells a write that goes on from one whose process was killed.
    let _ = file.try_lock();
    write(&mut file)?;
    Ok(file.sync_all()?)
}

/// Makes the rename itself durable. Some file systems refuse to sync a folder; the file is whole all the same.
fn sync_folder(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Ok(folder) = File::open(folder.unwrap_or(Path::new("."))) {
        let _ = folder.sync_all();
    }
}

/// A value as JSON text that ends with a newline: objects over several lines, lists of scalars on one.
///
/// # Errors
/// [`Error::Serialize`] for a value that JSON cannot hold, such as a map with keys that are no strings.
pub fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Layout { depth: 0, filled: false });
    value.serialize(&mut serializer).map_err(|problem| Error::Serialize { problem: problem.to_string() })?;
    bytes.push(b'\n');
    String::from_utf8(bytes).map_err(|problem| Error::Serialize { problem: problem.to_string() })
}

/// Objects over several lines, lists of scalars on one line.
struct Layout {
    depth: usize,
    filled: bool,
}

impl Layout {
    fn new_line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(b"  "))
    }
}

impl Formatter for Layout {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.new_line(writer)?;
        }
        writer.write_all(b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(b",")?;
        }
        self.new_line(writer)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }
}

#[derive(serde::Deserialize)]
struct Header {
    format: String,
    version: u64,
}

/// A format, the version that is written, and what it was before, which is read as well.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
    /// Names and versions that are read as well.
    pub(crate) older: &'static [(&'static str, u32)],
}

/// Parses a document of one format. The header is looked at first, so that a file of another kind gets an error about its
/// kind and not about a missing field.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8], format: Format) -> Result<T, Error> {
    let wrong = |problem: serde_json::Error| Error::Parse { format: format.name.to_owned(), problem: problem.to_string() };
    let header: Header = serde_json::from_slice(text).map_err(wrong)?;
    // The newest first: it is what an unknown version of a known name is held against.
    let known = [(format.name, format.version)].into_iter().chain(format.older.iter().copied());
    let mut versions = known.filter(|(name, _)| *name == header.format).map(|(_, version)| version).peekable();
    let Some(expected) = versions.peek().copied() else {
        return Err(Error::WrongFormat { expected: format.name.to_owned(), got: header.format });
    };
    if !versions.any(|version| u64::from(version) == header.version) {
        return Err(Error::WrongVersion { format: header.format, expected, got: header.version });
    }
    serde_json::from_slice(text).map_err(wrong)
}

/// Reads a file and hands its bytes to a parser; every error names the file.
pub(crate) fn read<T>(path: &Path, parser: impl FnOnce(&[u8]) -> Result<T, Error>) -> Result<T, Error> {
    let bytes = fs::read(path).map_err(|problem| Error::Io { action: "read", path: path.to_path_buf(), problem })?;
    parser(&bytes).map_err(|error| error.in_file(path))
}
