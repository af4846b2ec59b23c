//! Files of prompts: text, a table with categories, or JSON as the HPSv2 benchmark ships it. File -> **prompts** -> images.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// What an image should show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text.
    pub text: String,
    /// The group that tables state it under.
    pub category: Option<String>,
}

/// Reads one file: `.tsv` with a header line that names `Prompt` and perhaps `Category` (as PartiPrompts), `.json` with a list of
/// texts whose category is the file's name (as HPSv2's `anime.json`), an object of such lists, or a list of objects with `prompt`
/// and perhaps `category`; anything else is text with one prompt a line.
///
/// # Errors
/// [`Error::Format`] when it cannot be read, has another form, or no prompt.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>> {
    let bad = |problem: String, hint: &str| Error::Format { path: path.into(), problem, hint: hint.into() };
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string(), "give a UTF-8 file of prompts"))?;
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let prompts = match ending.as_str() {
        "tsv" => table(&text).map_err(|e| bad(e, "give a table with tabs whose first line names `Prompt` and perhaps `Category`"))?,
        "json" => {
            let hint = "give a list of texts, an object of such lists, or a list of objects with `prompt` and perhaps `category`";
            let json: Value = serde_json::from_str(&text).map_err(|e| bad(format!("not valid JSON ({e})"), hint))?;
            let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned());
            from_json(&json, stem).ok_or_else(|| bad("JSON of another form".into(), hint))?
        }
        _ => text.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| Prompt { text: l.into(), category: None }).collect(),
    };
    if prompts.is_empty() {
        return Err(bad("no prompt in it".into(), "give at least one prompt"));
    }
    Ok(prompts)
}

fn table(text: &str) -> std::result::Result<Vec<Prompt>, String> {
    let mut lines = text.lines().map(|l| l.trim_end_matches('\r')).enumerate().filter(|(_, l)| !l.trim().is_empty());
    let head: Vec<&str> = lines.next().ok_or("an empty table")?.1.split('\t').collect();
    let column = |name: &str| head.iter().position(|h| h.trim().eq_ignore_ascii_case(name));
    let at = column("prompt").ok_or_else(|| format!("no column `Prompt` among {}", head.join(", ")))?;
    let category = column("category");
    let row = |(n, line): (usize, &str)| {
        let cells: Vec<&str> = line.split('\t').map(str::trim).collect();
        let text = cells.get(at).filter(|t| !t.is_empty()).ok_or_else(|| format!("line {}: no prompt", n + 1))?;
        let category = category.and_then(|c| cells.get(c)).filter(|c| !c.is_empty()).map(ToString::to_string);
        Ok(Prompt { text: text.to_string(), category })
    };
    lines.map(row).collect()
}

fn from_json(json: &Value, category: Option<String>) -> Option<Vec<Prompt>> {
    match json {
        Value::Object(groups) => {
            let lists = groups.iter().map(|(name, list)| from_json(list, Some(name.clone()))).collect::<Option<Vec<_>>>()?;
            Some(lists.concat())
        }
        Value::Array(list) => {
            let one = |item: &Value| match item {
                Value::String(text) => Some(Prompt { text: text.clone(), category: category.clone() }),
                Value::Object(fields) => Some(Prompt {
                    text: fields.get("prompt")?.as_str()?.into(),
                    category: fields.get("category").and_then(Value::as_str).map(String::from).or(category.clone()),
                }),
                _ => None,
            };
            list.iter().map(one).collect()
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
    fn other_forms_are_named() {
        for (name, text, told) in [
            ("a.tsv", "text\tkind\nx\ty\n", "no column `Prompt`"),
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
