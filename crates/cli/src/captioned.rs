//! Pictures with captions from folders and WebDataset tars, as img2dataset writes both (`0001.jpg` beside `0001.txt`), and from Parquet
//! tables. Pictures -> **pairs** -> calibration set, cache, training.

mod table;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::common::BadFile;

pub use table::Columns;

const PICTURES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// A picture file and its caption.
#[derive(Debug)]
pub struct Pair {
    /// Path in the folder or the tar, without its ending, with `/` between folders; number of the row in a table.
    pub name: String,
    /// The caption, in one line.
    pub caption: String,
    /// The picture file.
    pub bytes: Vec<u8>,
}

/// Where a picture file stands, and its caption.
#[derive(Debug)]
pub struct Located {
    /// As [`Pair::name`].
    pub name: String,
    /// The caption, in one line.
    pub caption: String,
    /// The file that holds the picture.
    pub place: Place,
}

/// A picture file of its own, or a part of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The picture file or the tar.
    pub file: PathBuf,
    /// First byte and number of bytes in a tar.
    pub part: Option<(u64, u64)>,
}

impl Place {
    /// The bytes of the picture file.
    pub fn read(&self) -> std::io::Result<Vec<u8>> {
        let Some((first, len)) = self.part else { return std::fs::read(&self.file) };
        let mut file = File::open(&self.file)?;
        file.seek(SeekFrom::Start(first))?;
        let mut bytes = Vec::new();
        if file.take(len).read_to_end(&mut bytes)? as u64 != len {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        }
        Ok(bytes)
    }
}

/// What is found: a pair, or the name of a picture without one and the reason.
pub type Found<T = Pair> = Result<T, (String, String)>;

/// Visits the pairs of a folder (in the order of their paths, subfolders included), of a tar or of a Parquet table (in their own
/// order), until `each` breaks off.
///
/// # Errors
/// [`BadFile`] when `source` cannot be read; what `each` fails with.
pub fn visit(
    source: &Path,
    columns: &Columns,
    each: &mut dyn FnMut(Found) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<ControlFlow<()>> {
    if is_table(source) {
        return table::visit(source, columns, each);
    }
    locate(source, &mut |found| {
        each(found.and_then(|Located { name, caption, place }| match place.read() {
            Ok(bytes) => Ok(Pair { name, caption, bytes }),
            Err(e) => Err((name, e.to_string())),
        }))
    })
}

/// As [`visit`], without reading pictures. Those of tables have no place of their own.
///
/// # Errors
/// As [`visit`], and [`BadFile`] for a table.
pub fn locate(source: &Path, each: &mut dyn FnMut(Found<Located>) -> anyhow::Result<ControlFlow<()>>) -> anyhow::Result<ControlFlow<()>> {
    match source.is_dir() {
        true => locate_in_folder(source, each),
        false if is_table(source) => {
            Err(BadFile::new(source, "pictures are not read from a Parquet table while training", "make a cache of it with `cache`").into())
        }
        false => locate_in_tar(source, each),
    }
}

fn is_table(source: &Path) -> bool {
    source.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"))
}

fn unreadable(path: &Path, e: &dyn std::fmt::Display) -> BadFile {
    BadFile::new(path, e.to_string(), "name a folder of pictures with captions, a tar of them, or a .parquet table")
}

fn locate_in_folder(
    root: &Path,
    each: &mut dyn FnMut(Found<Located>) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<ControlFlow<()>> {
    let mut pictures: Vec<PathBuf> = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|e| unreadable(&folder, &e))? {
            let entry = entry.map_err(|e| unreadable(&folder, &e))?;
            let path = entry.path();
            // Not through links, which may lead in circles.
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                folders.push(path);
            } else if is_picture(&path) {
                pictures.push(path);
            }
        }
    }
    pictures.sort();
    for path in pictures {
        let inner = path.strip_prefix(root).unwrap_or(&path).with_extension("");
        let name = inner.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/");
        let captions = path.with_extension("txt");
        let found = match std::fs::read_to_string(&captions) {
            Ok(caption) => located(name, Some(Place { file: path, part: None }), Some(caption)),
            Err(e) => Err((name, format!("no caption in {} ({e})", captions.display()))),
        };
        if each(found)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn locate_in_tar(path: &Path, each: &mut dyn FnMut(Found<Located>) -> anyhow::Result<ControlFlow<()>>) -> anyhow::Result<ControlFlow<()>> {
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let mut archive = tar::Archive::new(BufReader::new(file));
    // The files of one sample stand side by side; what differs is the ending.
    let (mut name, mut place, mut caption) = (String::new(), None, None);
    for entry in archive.entries_with_seek().map_err(|e| unreadable(path, &e))? {
        let mut entry = entry.map_err(|e| unreadable(path, &e))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let inner = entry.path().map_err(|e| unreadable(path, &e))?.into_owned();
        let next = inner.with_extension("").to_string_lossy().trim_start_matches("./").to_string();
        if next != name {
            if place.is_some() && each(located(std::mem::take(&mut name), place.take(), caption.take()))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            (name, place, caption) = (next, None, None);
        }
        if is_picture(&inner) {
            place = Some(Place { file: path.to_path_buf(), part: Some((entry.raw_file_position(), entry.size())) });
        } else if inner.extension().is_some_and(|e| e == "txt") {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(|e| unreadable(path, &e))?;
            caption = Some(String::from_utf8_lossy(&content).into_owned());
        }
    }
    if place.is_some() {
        return each(located(name, place, caption));
    }
    Ok(ControlFlow::Continue(()))
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|e| PICTURES.contains(&e.to_string_lossy().to_lowercase().as_str()))
}

fn one_line(caption: Option<String>) -> Option<String> {
    let caption = caption.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    (!caption.is_empty()).then_some(caption)
}

fn located(name: String, place: Option<Place>, caption: Option<String>) -> Found<Located> {
    match (place, one_line(caption)) {
        (Some(place), Some(caption)) => Ok(Located { name, caption, place }),
        _ => Err((name, "no caption".into())),
    }
}
