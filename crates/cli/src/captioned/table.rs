//! Pictures with captions from Parquet tables, as img2dataset, datasets, pandas and polars write them: a column of captions, and one
//! of picture files or of paths to them. A few rows are in memory at a time, however large the file.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;

use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use super::{Found, Pair, one_line, unreadable};
use crate::common::BadFile;

/// Which columns of a Parquet table hold what.
#[derive(Debug, Default, clap::Args)]
pub struct Columns {
    /// For Parquet tables: the column with the picture files, or with their paths from the table's folder [default: the first of image,
    /// jpg, jpeg, png, webp, path, image_path, file_path, file_name, filename that is there].
    #[arg(long)]
    image_column: Option<String>,
    /// For Parquet tables: the column with the captions [default: the first of caption, text, TEXT, prompt that is there].
    #[arg(long)]
    caption_column: Option<String>,
}

const IMAGES: [&str; 10] = ["image", "jpg", "jpeg", "png", "webp", "path", "image_path", "file_path", "file_name", "filename"];
const CAPTIONS: [&str; 4] = ["caption", "text", "TEXT", "prompt"];
/// Rows read at once.
const ROWS: usize = 8;

/// Visits the rows in their order. A row's name is its number, from 0, so that a picture with two captions counts as two samples.
pub(super) fn visit(
    path: &Path,
    columns: &Columns,
    each: &mut dyn FnMut(Found) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<ControlFlow<()>> {
    let damaged = |e: &dyn std::fmt::Display| {
        BadFile::new(path, format!("no intact Parquet table ({e})"), "fetch or write it again, compressed with snappy or zstd if at all")
    };
    let file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let table = SerializedFileReader::new(file).map_err(|e| damaged(&e))?;
    let found = Table::find(table.metadata().file_metadata().schema_descr(), columns, path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut row = 0usize;
    for group in 0..table.num_row_groups() {
        let group = table.get_row_group(group).map_err(|e| damaged(&e))?;
        let open = |leaf: &Leaf| leaf.open(&*group).map_err(|e| damaged(&e));
        let mut captions = open(&found.caption)?;
        let (mut files, mut paths) = (found.file.as_ref().map(open).transpose()?, found.path.as_ref().map(open).transpose()?);
        let mut left = usize::try_from(group.metadata().num_rows()).unwrap_or_default();
        while left > 0 {
            let n = left.min(ROWS);
            let take = |column: &mut Option<Values>| match column {
                Some(values) => values.take(n).map_err(|e| damaged(&e)),
                None => Ok(vec![None; n]),
            };
            let (files, paths) = (take(&mut files)?, take(&mut paths)?);
            let captions = captions.take(n).map_err(|e| damaged(&e))?;
            for ((file, at), caption) in files.into_iter().zip(paths).zip(captions) {
                let name = format!("{row:09}");
                row += 1;
                let caption = caption.map(|c| String::from_utf8_lossy(c.data()).into_owned());
                let bytes = match (file, at) {
                    (Some(file), _) if !file.is_empty() => Ok(file.data().to_vec()),
                    (_, Some(at)) if !at.is_empty() => {
                        let at = folder.join(&*String::from_utf8_lossy(at.data()));
                        std::fs::read(&at).map_err(|e| format!("{}: {e}", at.display()))
                    }
                    _ => Err(format!("no picture in column `{}`", found.image)),
                };
                let sample = match (bytes, one_line(caption)) {
                    (Ok(bytes), Some(caption)) => Ok(Pair { name, caption, bytes }),
                    (Ok(_), None) => Err((name, "no caption".into())),
                    (Err(reason), _) => Err((name, reason)),
                };
                if each(sample)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            left -= n;
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The columns of one table.
struct Table {
    caption: Leaf,
    /// Name of the column with the pictures, in whichever form.
    image: String,
    file: Option<Leaf>,
    path: Option<Leaf>,
}

impl Table {
    fn find(schema: &SchemaDescriptor, columns: &Columns, path: &Path) -> anyhow::Result<Self> {
        let all = schema.columns();
        let names: Vec<String> = schema.root_schema().get_fields().iter().map(|f| f.name().to_string()).collect();
        let pick = |what: &str, flag: &str, asked: &Option<String>, usual: &[&str]| -> anyhow::Result<String> {
            let known = match asked {
                Some(name) => names.iter().find(|n| *n == name),
                None => usual.iter().find_map(|usual| names.iter().find(|n| n == usual)),
            };
            let expected = asked.as_ref().map_or_else(|| usual.join(", "), Clone::clone);
            Ok(known.cloned().ok_or_else(|| {
                let problem = format!("no column of {what} (looked for {expected}); the table has {}", names.join(", "));
                BadFile::new(path, problem, format!("name it with {flag}"))
            })?)
        };
        let image = pick("pictures", "--image-column", &columns.image_column, &IMAGES)?;
        let caption = pick("captions", "--caption-column", &columns.caption_column, &CAPTIONS)?;
        let leaf = |name: &str| {
            let usable = |c: &ColumnDescriptor| c.physical_type() == Type::BYTE_ARRAY && c.max_rep_level() == 0;
            let at = all.iter().position(|c| c.path().string() == name && usable(c))?;
            Some(Leaf { column: at, levels: all[at].max_def_level() })
        };
        let wrong = |column: &str, expected: &str, flag: &str| {
            BadFile::new(path, format!("column `{column}`: expected {expected} in each row"), format!("name another with {flag}"))
        };
        let caption = leaf(&caption).ok_or_else(|| wrong(&caption, "one text", "--caption-column"))?;
        // datasets writes two columns in one, and fills either.
        let (mut file, mut at) = (leaf(&format!("{image}.bytes")), leaf(&format!("{image}.path")));
        if let Some(one) = leaf(&image) {
            if is_text(&all[one.column]) { at = Some(one) } else { file = Some(one) }
        }
        if file.is_none() && at.is_none() {
            return Err(wrong(&image, "one picture file or path", "--image-column").into());
        }
        Ok(Self { caption, image, file, path: at })
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
    fn open(&self, group: &dyn RowGroupReader) -> Result<Values, String> {
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
    fn take(&mut self, n: usize) -> Result<Vec<Option<ByteArray>>, String> {
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
