//! Images with captions from folders and WebDataset tars, as img2dataset writes both (`0001.jpg` beside `0001.txt`), and from Parquet
//! tables. **Sources** -> calibration set, latent cache, training.

mod captions;
mod folder;
mod metadata;
mod names;
mod seen;
mod table;
mod tar;

use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};
use seen::Seen;
use table::Table;

pub use table::Columns;

/// An image file and its caption.
#[derive(Debug)]
pub struct ImageFile {
    /// Path in the folder or the tar, with `/` between folders; number of the row in a table.
    pub name: String,
    /// The same as a path of the whole system, however the source was spelled: what the image is known by.
    pub place: String,
    /// The caption, in one line.
    pub caption: String,
    content: Content,
}

impl ImageFile {
    /// The bytes of the image file, read where they were not yet.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn bytes(&self) -> std::io::Result<Cow<'_, [u8]>> {
        match &self.content {
            Content::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            Content::At(range) => range.read().map(Cow::Owned),
        }
    }

    /// How many they are, without reading them.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn size(&self) -> std::io::Result<u64> {
        match &self.content {
            Content::Bytes(bytes) => Ok(bytes.len() as u64),
            Content::At(ByteRange { part: Some((_, len)), .. }) => Ok(*len),
            Content::At(range) => range.file.metadata().map(|m| m.len()),
        }
    }

    /// When the file that holds them was written, where the file system knows.
    pub fn modified(&self) -> Option<SystemTime> {
        match &self.content {
            Content::Bytes(_) => None,
            Content::At(range) => range.file.metadata().and_then(|m| m.modified()).ok(),
        }
    }
}

/// The bytes of an image, or where they are.
#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    At(ByteRange),
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

/// A source, or a tar or table in a folder.
#[derive(Debug, Clone)]
struct Shard {
    /// To be opened.
    path: PathBuf,
    /// As [`ImageFile::name`]; nothing for a source.
    name: String,
    /// Without links.
    place: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    Tar,
    Table,
}

/// Folders, WebDataset tars and Parquet tables of images with captions, one after the other. Folders may hold tars and tables.
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
    sources: Vec<(Shard, Kind)>,
    columns: Columns,
}

impl ImageText {
    /// The sources at `paths`. No image is looked for yet, but all must be there. What is named twice, or lies in a folder that is
    /// named as well, is read once.
    ///
    /// # Errors
    /// [`Error::Format`] for a path that is not there or is something else, [`Error::Input`] for no path at all.
    pub fn open(paths: impl IntoIterator<Item = impl Into<PathBuf>>) -> Result<Self> {
        let sources = paths.into_iter().map(|path| source(path.into())).collect::<Result<Vec<_>>>()?;
        if sources.is_empty() {
            return Err(Error::Input { name: "images".into(), expected: "at least one folder, tar or table".into(), got: "none".into() });
        }
        let mut once: Vec<(Shard, Kind)> = Vec::new();
        for (n, (shard, kind)) in sources.iter().enumerate() {
            let within = |(m, (other, of)): (usize, &(Shard, Kind))| {
                let same = shard.place == other.place;
                (same && m < n) || (!same && *of == Kind::Folder && shard.place.starts_with(&other.place))
            };
            match sources.iter().enumerate().find(|other| within(*other)) {
                Some((_, (other, _))) => tracing::warn!("{} is read with {}, once", shard.path.display(), other.path.display()),
                None => once.push((shard.clone(), *kind)),
            }
        }
        Ok(Self { sources: once, columns: Columns::default() })
    }

    /// Names the columns of tables, and the key in JSON files, that the usual names do not find.
    pub fn with_columns(self, columns: Columns) -> Self {
        Self { columns, ..self }
    }

    /// The folders, tars and tables, as they were named.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|(shard, _)| shard.path.as_path())
    }

    /// The same as paths of the whole system, without links.
    pub fn places(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|(shard, _)| shard.place.as_path())
    }

    /// Visits the images of all sources until `each` breaks off: those of a folder in the order of their paths, subfolders included,
    /// those of a tar or a table in their own order. `each` is told which source it is.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Column`] for a source that cannot be read, [`Error::NoImages`] for one that has none; what
    /// `each` fails with.
    pub fn visit<E: From<Error>>(&self, each: &mut dyn FnMut(&Path, Found) -> Visit<E>) -> Visit<E> {
        for (source, kind) in &self.sources {
            let (mut seen, mut any) = (Seen::default(), false);
            let mut each = |found: Found| {
                any = true;
                each(&source.path, found)
            };
            let flow = match kind {
                Kind::Folder => folder::visit(source, &self.columns, &mut seen, &mut each)?,
                Kind::Tar => tar::visit(source, &self.columns, &mut seen, &mut each)?,
                Kind::Table => Table::open(&source.path, &self.columns)?.visit(source, &mut each)?,
            };
            if flow.is_break() {
                return Ok(flow);
            }
            if !any {
                let seen = if *kind == Kind::Folder { seen.to_string() } else { "it is empty".into() };
                return Err(Error::NoImages { path: source.path.clone(), seen }.into());
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// As [`ImageText::visit`], for reading them in any order. What a compressed tar or a table holds itself has no place of its own.
    ///
    /// # Errors
    /// As [`ImageText::visit`], and [`Error::Format`] for an image without a place.
    pub fn locate<E: From<Error>>(&self, each: &mut dyn FnMut(&Path, Found<Located>) -> Visit<E>) -> Visit<E> {
        self.visit(&mut |source, found| match found {
            Err(rejected) => each(source, Err(rejected)),
            Ok(ImageFile { name, caption, content: Content::At(bytes), .. }) => each(source, Ok(Located { name, caption, bytes })),
            Ok(_) => {
                let problem = "images are not read from a Parquet table or a compressed tar while training";
                Err(format(source, problem, "make a cache of it with `cache`, or unpack it").into())
            }
        })
    }
}

fn source(path: PathBuf) -> Result<(Shard, Kind)> {
    let place = path.canonicalize().map_err(|e| unreadable(&path, &e))?;
    let kind = if place.is_dir() {
        Kind::Folder
    } else if names::ending(&path) == "parquet" || has_magic(&path, b"PAR1") {
        Kind::Table
    } else {
        tar::check(&path)?;
        Kind::Tar
    };
    Ok((Shard { path, name: String::new(), place }, kind))
}

fn has_magic(path: &Path, magic: &[u8; 4]) -> bool {
    let mut head = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok() && head == *magic
}

fn format(path: &Path, problem: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Format { path: path.into(), problem: problem.into(), hint: hint.into() }
}

fn unreadable(path: &Path, e: &dyn std::fmt::Display) -> Error {
    format(path, e.to_string(), "name a folder of images with captions, a tar of them, or a .parquet table")
}
