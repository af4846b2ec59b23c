//! Images with captions from Parquet tables, as img2dataset, datasets, pandas and polars write them: a column of captions, and one
//! of image files, of their base64, or of paths to them. A few rows are in memory at a time, however large the file.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use diffusion::images::{Content as Kept, identify};
use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use super::captions::one_line;
use super::{ByteRange, Content, Found, ImageFile, Rejected, Shard, Visit, format, unreadable};
use crate::error::{Error, Result};
use crate::place::text;

/// Which columns of a table hold what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// The column with the image files, or with their paths from the table's folder; by default the first of image, jpg, jpeg, png,
    /// webp, path, image_path, file_path, file_name, filename, img, image_bytes, image_base64 that is there.
    pub image: Option<String>,
    /// The column or the JSON key with the captions; by default the first of caption, text, TEXT, prompt, captions, texts, prompts
    /// that is there.
    pub caption: Option<String>,
}

const IMAGES: [&str; 13] = [
    "image",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "path",
    "image_path",
    "file_path",
    "file_name",
    "filename",
    "img",
    "image_bytes",
    "image_base64",
];
/// Names that captions go by.
pub(super) const CAPTIONS: [&str; 7] = ["caption", "text", "TEXT", "prompt", "captions", "texts", "prompts"];
/// How the settings are called.
const IMAGE_COLUMN: &str = "image_column";
const CAPTION_COLUMN: &str = "caption_column";
/// Rows read at once.
const ROWS: usize = 8;

/// A Parquet file whose columns are known.
pub(super) struct Table {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    columns: Leaves,
}

impl Table {
    /// Opens a table and finds its columns.
    pub fn open(path: &Path, columns: &Columns) -> Result<Self> {
        let file = File::open(path).map_err(|e| unreadable(path, &e))?;
        let reader = SerializedFileReader::new(file).map_err(|e| damaged(path, &e))?;
        let columns = Leaves::find(reader.metadata().file_metadata().schema_descr(), columns, path)?;
        Ok(Self { path: path.into(), reader, columns })
    }

    /// Visits the rows in their order. A row's name is its number, from 0, so that an image with two captions counts as two samples.
    pub fn visit<E: From<Error>>(&self, table: &Shard, each: &mut dyn FnMut(Found) -> Visit<E>) -> Visit<E> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut row = 0usize;
        self.rows(&mut |cells| {
            let number = format!("{row:09}");
            row += 1;
            let name = if table.name.is_empty() { number.clone() } else { format!("{}/{number}", table.name) };
            each(match sample(cells, &self.columns.image, folder) {
                Ok((content, caption)) => Ok(ImageFile { name, place: format!("{}/{number}", text(&table.place)), caption, content }),
                Err(reason) => Err(Rejected { name, reason }),
            })
        })
    }

    fn rows<E: From<Error>>(&self, each: &mut dyn FnMut(Cells) -> Visit<E>) -> Visit<E> {
        let damaged = |e: &dyn std::fmt::Display| damaged(&self.path, e);
        for group in 0..self.reader.num_row_groups() {
            let group = self.reader.get_row_group(group).map_err(|e| damaged(&e))?;
            let mut rows = self.columns.open(&*group).map_err(|e| damaged(&e))?;
            let mut left = usize::try_from(group.metadata().num_rows()).unwrap_or_default();
            while left > 0 {
                let n = left.min(ROWS);
                for cells in rows.take(n).map_err(|e| damaged(&e))? {
                    if each(cells)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                left -= n;
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Paths and captions of a table that stands beside its images.
pub(super) fn captions(path: &Path, columns: &Columns) -> Result<Vec<(String, String)>> {
    let named = Columns { image: columns.image.clone().or_else(|| Some("file_name".into())), caption: columns.caption.clone() };
    let mut out = Vec::new();
    let _all = Table::open(path, &named)?.rows(&mut |cells| -> Result<_> {
        let string = |cell: Option<ByteArray>| cell.map(|c| String::from_utf8_lossy(c.data()).into_owned()).unwrap_or_default();
        out.push((string(cells.path), string(cells.caption)));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(out)
}

/// The column of captions among `names`.
pub(super) fn caption_column<'a>(names: &[&'a str], columns: &Columns) -> Option<&'a str> {
    pick(names, &columns.caption, &CAPTIONS)
}

/// The column that is asked for, else the first usual one; capital letters count where two differ in nothing else.
fn pick<'a>(names: &[&'a str], asked: &Option<String>, usual: &[&str]) -> Option<&'a str> {
    let find = |wanted: &str| names.iter().find(|name| **name == wanted).copied();
    match asked {
        Some(name) => find(name),
        None => usual
            .iter()
            .find_map(|usual| find(usual))
            .or_else(|| usual.iter().find_map(|usual| names.iter().find(|name| name.eq_ignore_ascii_case(usual)).copied())),
    }
}

fn damaged(path: &Path, e: &dyn std::fmt::Display) -> Error {
    format(path, format!("no intact Parquet table ({e})"), "fetch or write it again, compressed with snappy or zstd if at all")
}

/// What one row has: the image file, a text for it, the caption.
struct Cells {
    file: Option<ByteArray>,
    path: Option<ByteArray>,
    caption: Option<ByteArray>,
}

fn sample(cells: Cells, column: &str, folder: &Path) -> std::result::Result<(Content, String), String> {
    let content = match (cells.file, cells.path) {
        (Some(file), _) if !file.is_empty() => Content::Bytes(file.data().to_vec()),
        (_, Some(text)) if !text.is_empty() => from_text(&String::from_utf8_lossy(text.data()), folder)?,
        _ => return Err(format!("no image in column `{column}`")),
    };
    let caption = cells.caption.and_then(|c| one_line(&String::from_utf8_lossy(c.data())));
    Ok((content, caption.ok_or("no caption")?))
}

/// An image by its base64 or its path.
fn from_text(text: &str, folder: &Path) -> std::result::Result<Content, String> {
    const LONGEST_NAME: usize = 80;
    let short = || text.chars().take(LONGEST_NAME).chain((text.chars().count() > LONGEST_NAME).then_some('…')).collect::<String>();
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(format!("{} is an address; fetch the images first, with img2dataset say", short()));
    }
    let data = text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")).map(|(_, data)| data);
    let lines_joined = || data.unwrap_or(text).split_ascii_whitespace().collect::<String>();
    let decoded = if data.is_some() || text.len() > LONGEST_NAME { BASE64_STANDARD.decode(lines_joined()).ok() } else { None };
    if let Some(bytes) = decoded.filter(|bytes| data.is_some() || !matches!(identify(bytes), Kept::Unknown)) {
        return Ok(Content::Bytes(bytes));
    }
    let file = folder.join(text);
    match file.metadata() {
        Ok(found) if found.is_file() => Ok(Content::At(ByteRange { file, part: None })),
        Ok(_) => Err(format!("{} is no file", short())),
        Err(_) if text.len() > LONGEST_NAME => Err(format!("{} is neither the path of an image nor its base64", short())),
        Err(e) => Err(format!("{}: {e}", file.display())),
    }
}

/// The columns of one table.
struct Leaves {
    caption: Leaf,
    /// Name of the column with the images, in whichever form.
    image: String,
    file: Option<Leaf>,
    path: Option<Leaf>,
}

impl Leaves {
    fn find(schema: &SchemaDescriptor, columns: &Columns, path: &Path) -> Result<Self> {
        let all = schema.columns();
        let names: Vec<&str> = schema.root_schema().get_fields().iter().map(|f| f.name()).collect();
        let error = |setting, problem| Error::Column { path: path.into(), problem, setting };
        let choose = |what: &str, setting, asked: &Option<String>, usual: &[&str]| {
            let expected = asked.clone().unwrap_or_else(|| usual.join(", "));
            let problem = || format!("no column of {what} (looked for {expected}); the table has {}", names.join(", "));
            pick(&names, asked, usual).map(String::from).ok_or_else(|| error(setting, problem()))
        };
        let image = choose("images", IMAGE_COLUMN, &columns.image, &IMAGES)?;
        let caption = choose("captions", CAPTION_COLUMN, &columns.caption, &CAPTIONS)?;
        let usable = |c: &ColumnDescriptor| c.physical_type() == Type::BYTE_ARRAY;
        let leaf = |column: usize| Leaf { column, levels: all[column].max_def_level(), repeated: all[column].max_rep_level() > 0 };
        let single = |name: &str| all.iter().position(|c| c.path().string() == name && usable(c) && c.max_rep_level() == 0).map(leaf);
        // Of a list of captions the first counts.
        let within = |name: &str| all.iter().position(|c| c.path().parts()[0] == name && usable(c) && c.max_rep_level() == 1).map(leaf);
        let wrong = |column: &str, expected, setting| error(setting, format!("column `{column}`: expected {expected} in each row"));
        let text = single(&caption).or_else(|| within(&caption));
        let caption = text.ok_or_else(|| wrong(&caption, "texts", CAPTION_COLUMN))?;
        // datasets writes two columns in one, and fills either.
        let (mut file, mut at) = (single(&format!("{image}.bytes")), single(&format!("{image}.path")));
        if let Some(one) = single(&image) {
            if is_text(&all[one.column]) { at = Some(one) } else { file = Some(one) }
        }
        if file.is_none() && at.is_none() {
            return Err(wrong(&image, "one image file or path", IMAGE_COLUMN));
        }
        Ok(Self { caption, image, file, path: at })
    }

    fn open(&self, group: &dyn RowGroupReader) -> std::result::Result<Rows, String> {
        let open = |leaf: &Leaf| leaf.open(group);
        let (file, path) = (self.file.as_ref().map(open).transpose()?, self.path.as_ref().map(open).transpose()?);
        Ok(Rows { file, path, caption: open(&self.caption)? })
    }
}

/// The columns of a group of rows, read side by side.
struct Rows {
    file: Option<Values>,
    path: Option<Values>,
    caption: Values,
}

impl Rows {
    /// The next `n` rows.
    fn take(&mut self, n: usize) -> std::result::Result<Vec<Cells>, String> {
        let take = |column: &mut Option<Values>| column.as_mut().map_or_else(|| Ok(vec![None; n]), |values| values.take(n));
        let (files, paths) = (take(&mut self.file)?, take(&mut self.path)?);
        let captions = self.caption.take(n)?;
        let cells = files.into_iter().zip(paths).zip(captions).map(|((file, path), caption)| Cells { file, path, caption });
        Ok(cells.collect())
    }
}

fn is_text(column: &ColumnDescriptor) -> bool {
    matches!(column.logical_type_ref(), Some(LogicalType::String)) || column.converted_type() == ConvertedType::UTF8
}

/// A column of text or bytes, or of lists of them.
struct Leaf {
    column: usize,
    // The definition level at which a value is there; 0 for columns that are never empty.
    levels: i16,
    repeated: bool,
}

impl Leaf {
    fn open(&self, group: &dyn RowGroupReader) -> std::result::Result<Values, String> {
        match group.get_column_reader(self.column).map_err(|e| e.to_string())? {
            ColumnReader::ByteArrayColumnReader(reader) => Ok(Values { reader, levels: self.levels, repeated: self.repeated }),
            _ => Err("a column changes its type".into()),
        }
    }
}

struct Values {
    reader: ColumnReaderImpl<ByteArrayType>,
    levels: i16,
    repeated: bool,
}

impl Values {
    /// The next `n` rows; of a list its first value.
    fn take(&mut self, n: usize) -> std::result::Result<Vec<Option<ByteArray>>, String> {
        let (mut levels, mut starts, mut values) = (Vec::with_capacity(n), Vec::new(), Vec::with_capacity(n));
        let read = self.reader.read_records(n, Some(&mut levels), Some(&mut starts), &mut values);
        let (rows, ..) = read.map_err(|e| e.to_string())?;
        if self.levels == 0 {
            levels = vec![0; rows];
        }
        if !self.repeated {
            starts = vec![0; levels.len()];
        }
        let present = levels.iter().filter(|level| **level == self.levels).count();
        if rows != n || levels.len() != starts.len() || present != values.len() {
            return Err("a column ends early".into());
        }
        let mut values = values.into_iter();
        let mut out: Vec<Option<ByteArray>> = Vec::with_capacity(n);
        for (level, start) in levels.into_iter().zip(starts) {
            let value = if level == self.levels { values.next() } else { None };
            match out.last_mut() {
                Some(first) if start > 0 => *first = first.take().or(value),
                _ => out.push(value),
            }
        }
        if out.len() == n { Ok(out) } else { Err("a column ends early".into()) }
    }
}
