//! Files of prompts: text, a table with categories, or JSON as benchmarks ship them. File -> **prompts** -> images.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::text;

/// Names of columns and keys that prompts go by, in any case.
const NAMES: [&str; 6] = ["prompt", "prompts", "text", "caption", "captions", "texts"];
const TABLE: &str = "give a table whose first line names `Prompt` and perhaps `Category`; a list of one prompt a line is a .txt file";
const JSON: &str = "give a list of texts, an object of such lists, or objects with `prompt` and perhaps `category`";
const LINES: &str = "give one prompt a line, a .csv or .tsv table, .json or .jsonl";

/// What an image should show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text.
    pub text: String,
    /// The group that tables state it under.
    pub category: Option<String>,
}

/// Reads one file, in UTF-8 or UTF-16: `.tsv` and `.csv` with a header line that names `Prompt` and perhaps `Category` (as
/// PartiPrompts and DrawBench), `.json` with a list of texts whose category is the file's name (as HPSv2's `anime.json`), an object of
/// such lists, or a list of objects with `prompt` and perhaps `category`, `annotations` of COCO's captions among them, `.jsonl` with one
/// text or object a line; anything else is text with one prompt a line.
///
/// # Errors
/// [`Error::Format`] when it cannot be read, has another form, or no prompt.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>> {
    let bad = |problem: String, hint: &str| Error::Format { path: path.into(), problem, hint: hint.into() };
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    if matches!(
        ending.as_str(),
        "yaml" | "yml" | "toml" | "xml" | "html" | "xlsx" | "xls" | "ods" | "parquet" | "arrow" | "pkl" | "gz" | "zip"
    ) {
        return Err(bad(format!("a .{ending} file of prompts is not read"), LINES));
    }
    let bytes = std::fs::read(path).map_err(|e| bad(e.to_string(), "name a file of prompts"))?;
    let text = text::decode(bytes).map_err(|e| bad(e.into(), LINES))?;
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let prompts = match ending.as_str() {
        "tsv" => tabs(&text).map_err(|e| bad(e, TABLE))?,
        "csv" => commas(&text).map_err(|e| bad(e, TABLE))?,
        "json" => {
            let json: Value = serde_json::from_str(&text).map_err(|e| bad(format!("not valid JSON ({e})"), JSON))?;
            from_json(&json, stem).ok_or_else(|| bad("JSON of another form".into(), JSON))?
        }
        "jsonl" | "ndjson" => lines_of_json(&text).map_err(|e| bad(e, "give one text, or one object with `prompt`, a line"))?,
        _ => text.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| Prompt { text: l.into(), category: None }).collect(),
    };
    if prompts.is_empty() {
        return Err(bad("no prompt in it".into(), "give at least one prompt"));
    }
    Ok(prompts)
}

/// A table as PartiPrompts has it: tabs, and quotes that are part of the prompts.
fn tabs(text: &str) -> std::result::Result<Vec<Prompt>, String> {
    let mut lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let head: Vec<&str> = lines.next().ok_or("an empty table")?.1.split('\t').collect();
    let columns = Columns::find(&head)?;
    lines.map(|(n, line)| columns.prompt(n + 1, &line.split('\t').collect::<Vec<_>>())).collect()
}

/// A table as spreadsheets write it: commas, semicolons where a comma is a decimal point, and quotes around cells.
fn commas(text: &str) -> std::result::Result<Vec<Prompt>, String> {
    let head = text.lines().next().unwrap_or_default();
    let delimiter = if head.contains(';') && !head.contains(',') { b';' } else { b',' };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text.as_bytes());
    let head = reader.headers().map_err(|e| e.to_string())?.clone();
    let columns = Columns::find(&head.iter().collect::<Vec<_>>())?;
    let row = |row: csv::Result<csv::StringRecord>| {
        let row = row.map_err(|e| e.to_string())?;
        let line = row.position().map_or(0, csv::Position::line);
        columns.prompt(line as usize, &row.iter().collect::<Vec<_>>())
    };
    reader.records().map(row).collect()
}

/// Where a table has what.
struct Columns {
    prompt: usize,
    category: Option<usize>,
}

impl Columns {
    fn find(head: &[&str]) -> std::result::Result<Self, String> {
        let column = |name: &str| head.iter().position(|h| h.trim().eq_ignore_ascii_case(name));
        let prompt = NAMES.iter().find_map(|name| column(name));
        let prompt = prompt.ok_or_else(|| format!("no column `Prompt` among {}", head.join(", ")))?;
        Ok(Self { prompt, category: column("category") })
    }

    fn prompt(&self, line: usize, cells: &[&str]) -> std::result::Result<Prompt, String> {
        let cell = |at: usize| cells.get(at).map(|cell| cell.trim()).filter(|cell| !cell.is_empty());
        let text = cell(self.prompt).ok_or_else(|| format!("line {line}: no prompt"))?;
        Ok(Prompt { text: text.into(), category: self.category.and_then(cell).map(String::from) })
    }
}

fn lines_of_json(text: &str) -> std::result::Result<Vec<Prompt>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let row = |(n, line): (usize, &str)| {
        let value: Value = serde_json::from_str(line).map_err(|e| format!("line {}: not valid JSON ({e})", n + 1))?;
        one(&value, None).ok_or_else(|| format!("line {}: no `prompt`", n + 1))
    };
    lines.map(row).collect()
}

fn from_json(json: &Value, category: Option<String>) -> Option<Vec<Prompt>> {
    match json {
        Value::Object(fields) => {
            if let Some(captions) = fields.get("annotations") {
                return from_json(captions, None);
            }
            let named = |name: &str| NAMES.iter().all(|prompts| !name.eq_ignore_ascii_case(prompts)).then(|| name.to_string());
            let lists = fields.iter().map(|(name, list)| from_json(list, named(name))).collect::<Option<Vec<_>>>()?;
            Some(lists.concat())
        }
        Value::Array(list) => list.iter().map(|item| one(item, category.clone())).collect(),
        _ => None,
    }
}

/// A text, or an object that has one.
fn one(item: &Value, category: Option<String>) -> Option<Prompt> {
    match item {
        Value::String(text) => Some(Prompt { text: text.clone(), category }),
        Value::Object(fields) => {
            let text_of = |wanted: &str| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(wanted))?.1.as_str();
            let text = NAMES.iter().find_map(|name| text_of(name))?.into();
            Some(Prompt { text, category: text_of("category").map(String::from).or(category) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(name: &str, text: &str) -> Result<Vec<(String, String)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        Ok(read_prompts(&path)?.into_iter().map(|p| (p.text, p.category.unwrap_or_default())).collect())
    }

    #[test]
    fn every_form_gives_prompts_and_categories() {
        let of = |pairs: &[(&str, &str)]| pairs.iter().map(|(t, c)| (t.to_string(), c.to_string())).collect::<Vec<_>>();
        assert_eq!(read_as("a.txt", "a cat\n\n  a dog \n").unwrap(), of(&[("a cat", ""), ("a dog", "")]));
        let parti = "Prompt\tCategory\tChallenge\na cat\tAnimals\tBasic\r\na dog\t\tBasic\n";
        assert_eq!(read_as("a.tsv", parti).unwrap(), of(&[("a cat", "Animals"), ("a dog", "")]));
        assert_eq!(read_as("anime.json", r#"["a cat", "a dog"]"#).unwrap(), of(&[("a cat", "anime"), ("a dog", "anime")]));
        assert_eq!(read_as("a.json", r#"{"photo": ["a cat"], "art": ["a dog"]}"#).unwrap(), of(&[("a cat", "photo"), ("a dog", "art")]));
        assert_eq!(
            read_as("b.json", r#"[{"prompt": "a cat", "category": "x"}, {"prompt": "a dog"}]"#).unwrap(),
            of(&[("a cat", "x"), ("a dog", "b")])
        );
    }

    #[test]
    fn tables_and_lists_of_other_programs_are_read() {
        let of = |pairs: &[(&str, &str)]| pairs.iter().map(|(t, c)| (t.to_string(), c.to_string())).collect::<Vec<_>>();
        let expected = of(&[("A red car, parked.", "Colors"), ("He said \"no\"", "Text")]);
        let drawbench = "Prompts,Category\r\n\"A red car, parked.\",Colors\r\n\"He said \"\"no\"\"\",Text\r\n";
        assert_eq!(read_as("drawbench.CSV", drawbench).unwrap(), expected);
        assert_eq!(read_as("a.csv", &format!("\u{feff}{drawbench}")).unwrap(), expected);
        assert_eq!(
            read_as("a.csv", "id;Prompt;Category\n1;\"A red car, parked.\";Colors\n2;\"He said \"\"no\"\"\";Text").unwrap(),
            expected
        );
        assert_eq!(read_as("a.csv", "caption\n\"two\nlines\"\n").unwrap(), of(&[("two\nlines", "")]));
        let lines = "\u{feff}{\"prompt\": \"A red car, parked.\", \"category\": \"Colors\"}\n\n{\"Prompt\": \"He said \\\"no\\\"\", \"Category\": \"Text\"}";
        assert_eq!(read_as("a.jsonl", lines).unwrap(), expected);
        assert_eq!(read_as("a.jsonl", "\"a cat\"\n{\"text\": \"a dog\"}\n").unwrap(), of(&[("a cat", ""), ("a dog", "")]));
        let coco = r#"{"info": {}, "images": [{"id": 1}], "annotations": [{"id": 2, "image_id": 1, "caption": "a cat"}]}"#;
        assert_eq!(read_as("captions.json", coco).unwrap(), of(&[("a cat", "")]));
        assert_eq!(read_as("a.json", "\u{feff}{\"prompts\": [\"a cat\"]}").unwrap(), of(&[("a cat", "")]));
        assert_eq!(read_as("a.txt", "\u{feff}a cat\r\na dog\r\n").unwrap(), of(&[("a cat", ""), ("a dog", "")]));
        assert_eq!(read_as("a.tsv", "\u{feff}Prompts\tCategory\na \"cat\"\tx\n").unwrap(), of(&[("a \"cat\"", "x")]));
    }

    #[test]
    fn other_forms_are_named() {
        for (name, text, told) in [
            ("a.csv", "a cat\na dog\n", "no column `Prompt` among a cat"),
            ("a.csv", "id,prompt\n1,a cat\n2,\n", "line 3: no prompt"),
            ("a.jsonl", "{\"prompt\": \"a\"}\n{\"negative\": \"b\"}\n", "line 2: no `prompt`"),
            ("a.yaml", "- a cat\n", "a .yaml file of prompts is not read"),
            ("a.tsv", "words\tkind\nx\ty\n", "no column `Prompt`"),
            ("a.tsv", "Prompt\tCategory\n\tx\n", "line 2: no prompt"),
            ("a.json", "[1]", "another form"),
            ("a.json", "[", "not valid JSON"),
            ("a.txt", " \n", "no prompt in it"),
        ] {
            let err = read_as(name, text).unwrap_err().to_string();
            assert!(err.contains(name) && err.contains(told), "{err}");
        }
    }
}
