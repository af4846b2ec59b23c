//! Images with captions from folders and WebDataset tars, as img2dataset writes both (`0001.jpg` beside `0001.txt`), and from Parquet
//! tables. **Sources** -> calibration set, latent cache, training.

mod table;

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

pub use table::Columns;

const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// An image file and its caption.
#[derive(Debug)]
pub struct ImageFile {
    /// Path in the folder or the tar, without its ending, with `/` between folders; number of the row in a table.
    pub name: String,
    /// The caption, in one line.
    pub caption: String,
    /// The image file.
    pub bytes: Vec<u8>,
}

/// Where an image file is, and its caption.
#[derive(Debug)]
pub struct Located {
    /// As [`ImageFile::name`].
    pub name: String,
    /// The caption, in one line.
    pub caption: String,
    /// The bytes of the image file.
    pub bytes: ByteRange,
}

/// A file of its own, or a part of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteRange {
    /// The image file or the tar.
    pub file: PathBuf,
    /// First byte and number of bytes in a tar.
    pub part: Option<(u64, u64)>,
}

impl ByteRange {
    /// The bytes.
    ///
    /// # Errors
    /// What the operating system says.
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

impl std::fmt::Display for ByteRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.part {
            None => write!(f, "{}", self.file.display()),
            Some((first, _)) => write!(f, "{} at byte {first}", self.file.display()),
        }
    }
}

/// An image that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// As [`ImageFile::name`].
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a source has at one place: an image with a caption, or one that cannot be used.
pub type Found<T = ImageFile> = std::result::Result<T, Rejected>;

/// What a visitor answers: go on, break off, or fail with an error of its own.
pub type Visit<E> = std::result::Result<ControlFlow<()>, E>;

/// Folders, WebDataset tars and Parquet tables of images with captions, one after the other.
///
/// ```no_run,standalone_crate
/// # fn main() -> data::Result<()> {
/// let source = data::ImageText::open(["photos", "more.tar"])?;
/// let mut captions = Vec::new();
/// source.visit(&mut |_, found| -> data::Result<_> {
///     captions.extend(found.map(|image| image.caption));
///     Ok(std::ops::ControlFlow::Continue(()))
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ImageText {
    paths: Vec<PathBuf>,
    columns: Columns,
}

impl ImageText {
    /// The sources at `paths`. Nothing is read yet, but all must be there.
    ///
    /// # Errors
    /// [`Error::Format`] for a path that is not there, [`Error::Input`] for no path at all.
    pub fn open(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Result<Self> {
        let paths: Vec<PathBuf> = paths.into_iter().map(Into::into).collect();
        if paths.is_empty() {
            return Err(Error::Input { name: "images".into(), expected: "at least one folder, tar or table".into(), got: "none".into() });
        }
        for path in &paths {
            path.metadata().map_err(|e| unreadable(path, &e))?;
        }
        Ok(Self { paths, columns: Columns::default() })
    }

    /// Names the columns of Parquet tables that the usual names do not find.
    pub fn with_columns(self, columns: Columns) -> Self {
        Self { columns, ..self }
    }

    /// The folders, tars and tables.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Visits the images of all sources until `each` breaks off: those of a folder in the order of their paths, subfolders included,
    /// those of a tar or a table in their own order. `each` is told which source it is.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Column`] for a source that cannot be read; what `each` fails with.
    pub fn visit<E: From<Error>>(&self, each: &mut dyn FnMut(&Path, Found) -> Visit<E>) -> Visit<E> {
        for source in &self.paths {
            let flow = if is_table(source) {
                table::visit(source, &self.columns, &mut |found| each(source, found))?
            } else {
                locate(source, &mut |found| each(source, found.and_then(read)))?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// As [`ImageText::visit`], without reading images. Those of tables have no place of their own.
    ///
    /// # Errors
    /// As [`ImageText::visit`], and [`Error::Format`] for a table.
    pub fn locate<E: From<Error>>(&self, each: &mut dyn FnMut(&Path, Found<Located>) -> Visit<E>) -> Visit<E> {
        for source in &self.paths {
            if is_table(source) {
                let problem = "images are not read from a Parquet table while training";
                return Err(format(source, problem, "make a cache of it with `cache`").into());
            }
            if locate(source, &mut |found| each(source, found))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn read(located: Located) -> Found {
    let Located { name, caption, bytes } = located;
    match bytes.read() {
        Ok(bytes) => Ok(ImageFile { name, caption, bytes }),
        Err(e) => Err(Rejected { name, reason: e.to_string() }),
    }
}

fn is_table(source: &Path) -> bool {
    source.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"))
}

fn format(path: &Path, problem: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Format { path: path.into(), problem: problem.into(), hint: hint.into() }
}

fn unreadable(path: &Path, e: &dyn std::fmt::Display) -> Error {
    format(path, e.to_string(), "name a folder of images with captions, a tar of them, or a .parquet table")
}

fn locate<E: From<Error>>(source: &Path, each: &mut dyn FnMut(Found<Located>) -> Visit<E>) -> Visit<E> {
    if source.is_dir() { locate_in_folder(source, each) } else { locate_in_tar(source, each) }
}

fn locate_in_folder<E: From<Error>>(root: &Path, each: &mut dyn FnMut(Found<Located>) -> Visit<E>) -> Visit<E> {
    for path in images_below(root)? {
        let inner = path.strip_prefix(root).unwrap_or(&path).with_extension("");
        let name = inner.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/");
        let captions = path.with_extension("txt");
        let found = match std::fs::read_to_string(&captions) {
            Ok(caption) => located(name, Some(ByteRange { file: path, part: None }), Some(caption)),
            Err(e) => Err(Rejected { name, reason: format!("no caption in {} ({e})", captions.display()) }),
        };
        if each(found)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

// In the order of their paths.
fn images_below(root: &Path) -> Result<Vec<PathBuf>> {
    let mut images: Vec<PathBuf> = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|e| unreadable(&folder, &e))? {
            let entry = entry.map_err(|e| unreadable(&folder, &e))?;
            let path = entry.path();
            // Not through links, which may lead in circles.
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                folders.push(path);
            } else if is_image(&path) {
                images.push(path);
            }
        }
    }
    images.sort();
    Ok(images)
}

fn locate_in_tar<E: From<Error>>(path: &Path, each: &mut dyn FnMut(Found<Located>) -> Visit<E>) -> Visit<E> {
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let mut archive = tar::Archive::new(BufReader::new(file));
    // The files of one sample stand side by side; what differs is the ending.
    let (mut name, mut bytes, mut caption) = (String::new(), None, None);
    for entry in archive.entries_with_seek().map_err(|e| unreadable(path, &e))? {
        let mut entry = entry.map_err(|e| unreadable(path, &e))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let inner = entry.path().map_err(|e| unreadable(path, &e))?.into_owned();
        let next = inner.with_extension("").to_string_lossy().trim_start_matches("./").to_string();
        if next != name {
            if bytes.is_some() && each(located(std::mem::take(&mut name), bytes.take(), caption.take()))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            (name, bytes, caption) = (next, None, None);
        }
        if is_image(&inner) {
            bytes = Some(ByteRange { file: path.to_path_buf(), part: Some((entry.raw_file_position(), entry.size())) });
        } else if inner.extension().is_some_and(|e| e == "txt") {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(|e| unreadable(path, &e))?;
            caption = Some(String::from_utf8_lossy(&content).into_owned());
        }
    }
    if bytes.is_some() {
        return each(located(name, bytes, caption));
    }
    Ok(ControlFlow::Continue(()))
}

fn is_image(path: &Path) -> bool {
    path.extension().is_some_and(|e| ENDINGS.contains(&e.to_string_lossy().to_lowercase().as_str()))
}

fn one_line(caption: Option<String>) -> Option<String> {
    let caption = caption.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    (!caption.is_empty()).then_some(caption)
}

fn located(name: String, bytes: Option<ByteRange>, caption: Option<String>) -> Found<Located> {
    match (bytes, one_line(caption)) {
        (Some(bytes), Some(caption)) => Ok(Located { name, caption, bytes }),
        _ => Err(Rejected { name, reason: "no caption".into() }),
    }
}
