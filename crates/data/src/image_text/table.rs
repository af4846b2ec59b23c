//! Images with captions from Parquet tables, as img2dataset, datasets, pandas and polars write them: a column of captions, and one
//! of image files or of paths to them. A few rows are in memory at a time, however large the file.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;

use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use super::{Found, ImageFile, Rejected, Visit, format, one_line, unreadable};
use crate::error::{Error, Result};

/// Which columns of a Parquet table hold what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// The column with the image files, or with their paths from the table's folder; by default the first of image, jpg, jpeg, png,
    /// webp, path, image_path, file_path, file_name, filename that is there.
    pub image: Option<String>,
    /// The column with the captions; by default the first of caption, text, TEXT, prompt that is there.
    pub caption: Option<String>,
}

const IMAGES: [&str; 10] = ["image", "jpg", "jpeg", "png", "webp", "path", "image_path", "file_path", "file_name", "filename"];
const CAPTIONS: [&str; 4] = ["caption", "text", "TEXT", "prompt"];
/// How the settings are called.
const IMAGE_COLUMN: &str = "image_column";
const CAPTION_COLUMN: &str = "caption_column";
/// Rows read at once.
const ROWS: usize = 8;

/// Visits the rows in their order. A row's name is its number, from 0, so that an image with two captions counts as two samples.
pub(super) fn visit<E: From<Error>>(path: &Path, columns: &Columns, each: &mut dyn FnMut(Found) -> Visit<E>) -> Visit<E> {
    let damaged = |e: &dyn std::fmt::Display| {
        format(path, format!("no intact Parquet table ({e})"), "fetch or write it again, compressed with snappy or zstd if at all")
    };
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let table = SerializedFileReader::new(file).map_err(|e| damaged(&e))?;
    let found = Table::find(table.metadata().file_metadata().schema_descr(), columns, path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut row = 0usize;
    for group in 0..table.num_row_groups() {
        let group = table.get_row_group(group).map_err(|e| damaged(&e))?;
        let mut rows = found.open(&*group).map_err(|e| damaged(&e))?;
        let mut left = usize::try_from(group.metadata().num_rows()).unwrap_or_default();
        while left > 0 {
            let n = left.min(ROWS);
            for cells in rows.take(n).map_err(|e| damaged(&e))? {
                let name = format!("{row:09}");
                row += 1;
                if each(sample(name, cells, &found.image, folder))?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            left -= n;
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// What one row has: the image file, a path to it, the caption.
struct Cells {
    file: Option<ByteArray>,
    path: Option<ByteArray>,
    caption: Option<ByteArray>,
}

fn sample(name: String, cells: Cells, column: &str, folder: &Path) -> Found {
    let caption = cells.caption.map(|c| String::from_utf8_lossy(c.data()).into_owned());
    let bytes = match (cells.file, cells.path) {
        (Some(file), _) if !file.is_empty() => Ok(file.data().to_vec()),
        (_, Some(path)) if !path.is_empty() => {
            let path = folder.join(&*String::from_utf8_lossy(path.data()));
            std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
        }
        _ => Err(format!("no image in column `{column}`")),
    };
    match (bytes, one_line(caption)) {
        (Ok(bytes), Some(caption)) => Ok(ImageFile { name, caption, bytes }),
        (Ok(_), None) => Err(Rejected { name, reason: "no caption".into() }),
        (Err(reason), _) => Err(Rejected { name, reason }),
    }
}

/// The columns of one table.
struct Table {
    caption: Leaf,
    /// Name of the column with the images, in whichever form.
    image: String,
    file: Option<Leaf>,
    path: Option<Leaf>,
}

impl Table {
    fn find(schema: &SchemaDescriptor, columns: &Columns, path: &Path) -> Result<Self> {
        let all = schema.columns();
        let names: Vec<&str> = schema.root_schema().get_fields().iter().map(|f| f.name()).collect();
        let error = |setting, problem| Error::Column { path: path.into(), problem, setting };
        let pick = |what: &str, setting, asked: &Option<String>, usual: &[&str]| {
            let known = match asked {
                Some(name) => names.iter().find(|n| *n == name),
                None => usual.iter().find_map(|usual| names.iter().find(|n| *n == usual)),
            };
            let expected = asked.as_ref().map_or_else(|| usual.join(", "), Clone::clone);
            let problem = || format!("no column of {what} (looked for {expected}); the table has {}", names.join(", "));
            known.map(ToString::to_string).ok_or_else(|| error(setting, problem()))
        };
        let image = pick("images", IMAGE_COLUMN, &columns.image, &IMAGES)?;
        let caption = pick("captions", CAPTION_COLUMN, &columns.caption, &CAPTIONS)?;
        let leaf = |name: &str| {
            let usable = |c: &ColumnDescriptor| c.physical_type() == Type::BYTE_ARRAY && c.max_rep_level() == 0;
            let at = all.iter().position(|c| c.path().string() == name && usable(c))?;
            Some(Leaf { column: at, levels: all[at].max_def_level() })
        };
        let wrong = |column: &str, expected, setting| error(setting, format!("column `{column}`: expected {expected} in each row"));
        let caption = leaf(&caption).ok_or_else(|| wrong(&caption, "one text", CAPTION_COLUMN))?;
        // datasets writes two columns in one, and fills either.
        let (mut file, mut at) = (leaf(&format!("{image}.bytes")), leaf(&format!("{image}.path")));
        if let Some(one) = leaf(&image) {
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

/// A column without lists, of text or bytes.
struct Leaf {
    column: usize,
    // The definition level at which a value is there; 0 for columns that are never empty.
    levels: i16,
}

impl Leaf {
    fn open(&self, group: &dyn RowGroupReader) -> std::result::Result<Values, String> {
        match group.get_column_reader(self.column).map_err(|e| e.to_string())? {
            ColumnReader::ByteArrayColumnReader(reader) => Ok(Values { reader, levels: self.levels }),
            _ => Err("a column changes its type".into()),
        }
    }
}

struct Values {
    reader: ColumnReaderImpl<ByteArrayType>,
    levels: i16,
}

impl Values {
    /// The next `n` rows.
    fn take(&mut self, n: usize) -> std::result::Result<Vec<Option<ByteArray>>, String> {
        let (mut levels, mut values) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let (rows, ..) = self.reader.read_records(n, Some(&mut levels), None, &mut values).map_err(|e| e.to_string())?;
        if self.levels == 0 {
            levels = vec![0; rows];
        }
        let present = levels.iter().filter(|level| **level == self.levels).count();
        if rows != n || levels.len() != n || present != values.len() {
            return Err("a column ends early".into());
        }
        let mut values = values.into_iter();
        Ok(levels.into_iter().map(|level| if level == self.levels { values.next() } else { None }).collect())
    }
}
