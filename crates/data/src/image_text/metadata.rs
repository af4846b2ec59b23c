//! Tables of captions that stand beside images: `metadata.csv`, `metadata.jsonl` and `metadata.parquet`, as Hugging Face's `datasets`
//! defines them for image folders. Table -> **captions by path**.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::captions::{expected, in_json};
use super::names::ending;
use super::table::{self, Columns};
use super::{format, unreadable};
use crate::error::Result;
use crate::text;

const HINT: &str = "give each image one entry with `file_name` and `text`";

/// The captions of one table by the paths of their images, which are given from the table's folder.
pub(super) fn read(path: &Path, columns: &Columns) -> Result<BTreeMap<PathBuf, String>> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let rows = if ending(path) == "parquet" {
        table::captions(path, columns)?
    } else {
        let text = text::decode(std::fs::read(path).map_err(|e| unreadable(path, &e))?).map_err(|e| format(path, e, HINT))?;
        let rows = if ending(path) == "csv" { from_csv(&text, columns) } else { from_lines(&text, columns) };
        rows.map_err(|problem| format(path, problem, HINT))?
    };
    let (mut found, mut twice) = (BTreeMap::new(), 0);
    for (name, caption) in rows {
        match found.entry(place(folder, &name)) {
            std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(caption)),
            std::collections::btree_map::Entry::Occupied(_) => twice += 1,
        }
    }
    if twice > 0 {
        tracing::warn!("{}: {twice} entries name an image once more; its first caption counts", path.display());
    }
    Ok(found)
}

/// `name` from `folder`, without detours; tables from Windows have backslashes.
fn place(folder: &Path, name: &str) -> PathBuf {
    let mut out = folder.to_path_buf();
    for part in Path::new(&name.replace('\\', "/")).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(out.pop()),
            part => out.push(part),
        }
    }
    out
}

/// An image's path and its caption.
type Rows = std::result::Result<Vec<(String, String)>, String>;

fn from_lines(text: &str, columns: &Columns) -> Rows {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let row = |(n, line): (usize, &str)| {
        let row: Map<String, Value> = serde_json::from_str(line).map_err(|e| format!("line {}: no JSON object ({e})", n + 1))?;
        let row = Value::Object(row);
        let name = name_key(row.as_object().into_iter().flat_map(Map::keys).map(String::as_str), columns);
        let name = name.and_then(|key| row[key].as_str()).ok_or_else(|| format!("line {}: no `file_name`", n + 1))?;
        // An entry without a caption leaves its image without one.
        let caption = in_json(&row, columns).or_else(|| only_other(&row, columns)).unwrap_or_default();
        Ok((name.to_string(), caption))
    };
    lines.map(row).collect()
}

/// The only text beside the path, whatever its key.
fn only_other(row: &Value, columns: &Columns) -> Option<String> {
    let texts: Vec<(&String, &str)> = row.as_object()?.iter().filter_map(|(key, value)| Some((key, value.as_str()?))).collect();
    let [(a, first), (_, second)] = texts.as_slice() else { return None };
    let caption = if is_name(a, columns) { second } else { first };
    columns.caption.is_none().then(|| caption.to_string())
}

fn from_csv(text: &str, columns: &Columns) -> Rows {
    let head = text.lines().next().unwrap_or_default();
    let delimiter = [b',', b';', b'\t'].into_iter().max_by_key(|d| (head.bytes().filter(|b| b == d).count(), u8::MAX - d));
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter.unwrap_or(b',')).from_reader(text.as_bytes());
    let head: Vec<String> = reader.headers().map_err(|e| e.to_string())?.iter().map(|name| name.trim().to_string()).collect();
    let names = || head.iter().map(String::as_str);
    let missing = |what: &str| format!("no column {what} (the table has {})", head.join(", "));
    let name = name_key(names(), columns).ok_or_else(|| missing("`file_name`"))?;
    let others: Vec<&str> = names().filter(|column| *column != name).collect();
    let caption = match (table::caption_column(&names().collect::<Vec<_>>(), columns), others.as_slice()) {
        (Some(known), _) => known,
        (None, [only]) if columns.caption.is_none() => *only,
        _ => return Err(missing(&format!("of captions: {}", expected(columns)))),
    };
    let at = |column: &str| names().position(|name| name == column).expect("one of the columns");
    let (name, caption) = (at(name), at(caption));
    let row = |row: csv::Result<csv::StringRecord>| {
        let row = row.map_err(|e| e.to_string())?;
        Ok((row.get(name).unwrap_or_default().to_string(), row.get(caption).unwrap_or_default().to_string()))
    };
    reader.records().map(row).collect()
}

fn is_name(key: &str, columns: &Columns) -> bool {
    columns.image.as_ref().map_or_else(|| matches!(key, "file_name" | "filename") || key.ends_with("_file_name"), |name| name == key)
}

/// The key of the paths: `file_name`, or what ends so.
fn name_key<'a>(keys: impl Iterator<Item = &'a str> + Clone, columns: &Columns) -> Option<&'a str> {
    keys.clone().find(|key| *key == "file_name" && columns.image.is_none()).or_else(|| keys.clone().find(|key| is_name(key, columns)))
}
