//! JSON files that say what they are.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::write::{to_json, write_bytes};

/// What two parts of a document do not agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contradiction {
    /// The key.
    pub key: String,
    /// What would be accepted.
    pub expected: String,
    /// What stands there.
    pub got: String,
}

/// A JSON file whose first two keys are `format` and `version`; the type holds the rest.
pub trait Document: Serialize + DeserializeOwned + PartialEq {
    /// The format's name.
    const FORMAT: &'static str;
    /// Names that the format had in older versions, which are read as well.
    const FORMER_FORMATS: &'static [&'static str] = &[];
    /// The version that this build writes.
    const VERSION: u32;
    /// What to do where the file is missing, damaged or of another version.
    const HINT: &'static str;

    /// Brings the keys of an older `version` to those of [`Document::VERSION`]; `None` for one that is not read any more.
    fn upgrade(version: u32, keys: Map<String, Value>) -> Option<Map<String, Value>> {
        let _ = (version, keys);
        None
    }

    /// Checks what the types cannot: that names refer to something and lists have the same length.
    ///
    /// # Errors
    /// The first contradiction.
    fn check(&self) -> std::result::Result<(), Contradiction> {
        Ok(())
    }

    /// Reads and checks the file `path`.
    ///
    /// # Errors
    /// [`Error::Format`] when it cannot be read or is no such JSON; [`Error::Key`] for another format or version, or where it
    /// contradicts itself.
    fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| format(path, e.to_string(), Self::HINT))?;
        Self::parse(&bytes, path)
    }

    /// As [`Document::read`], from the file's bytes; `path` only names the source in errors.
    ///
    /// # Errors
    /// As [`Document::read`].
    fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let mut keys: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|e| format(path, format!("not valid JSON ({e})"), Self::HINT))?;
        let (kind, version) = (keys.remove("format"), keys.remove("version"));
        let wrong = |key: &str, expected: String, got: &Option<Value>, hint: &str| Error::Key {
            path: path.into(),
            key: key.into(),
            expected,
            got: got.as_ref().map_or("nothing".into(), ToString::to_string),
            hint: hint.into(),
        };
        let known = |name: &str| name == Self::FORMAT || Self::FORMER_FORMATS.contains(&name);
        if !kind.as_ref().and_then(Value::as_str).is_some_and(known) {
            return Err(wrong("format", format!("\"{}\"", Self::FORMAT), &kind, "is this the right file?"));
        }
        let number = version.as_ref().and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let keys = match number {
            Some(number) if number == Self::VERSION => Some(keys),
            Some(number) if number < Self::VERSION => Self::upgrade(number, keys),
            _ => None,
        };
        let keys = keys.ok_or_else(|| wrong("version", Self::VERSION.to_string(), &version, Self::HINT))?;
        let value: Self = serde_json::from_value(Value::Object(keys)).map_err(|e| format(path, e.to_string(), Self::HINT))?;
        value.check().map_err(|c| contradiction(path, c))?;
        Ok(value)
    }

    /// The file's text; `path` only names it in errors.
    ///
    /// # Errors
    /// [`Error::Key`] when the value contradicts itself, [`Error::NotFinite`] when it holds a NaN or an infinity.
    fn to_text(&self, path: &Path) -> Result<String> {
        self.check().map_err(|c| contradiction(path, c))?;
        let text = to_json(path, &Stamped { format: Self::FORMAT, version: Self::VERSION, body: self })?;
        // serde_json writes a NaN as `null`: it fails to read back, or reads back as an absent value.
        match serde_json::from_str::<Owned<Self>>(&text) {
            Ok(back) if back.body == *self => Ok(text),
            _ => Err(Error::NotFinite { path: path.into(), hint: "look for a diverged training run or an empty set of samples".into() }),
        }
    }

    /// Checks and writes `path` whole, fields in their declared order.
    ///
    /// # Errors
    /// As [`Document::to_text`]; [`Error::Write`] when the file cannot be written.
    fn write(&self, path: &Path) -> Result<()> {
        write_bytes(path, self.to_text(path)?.as_bytes())
    }
}

#[derive(Serialize)]
struct Stamped<'a, T> {
    format: &'static str,
    version: u32,
    #[serde(flatten)]
    body: &'a T,
}

/// What was written, read back through the same keys.
struct Owned<T> {
    body: T,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Owned<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut keys = Map::deserialize(deserializer)?;
        keys.remove("format");
        keys.remove("version");
        Ok(Self { body: serde_json::from_value(Value::Object(keys)).map_err(serde::de::Error::custom)? })
    }
}

fn format(path: &Path, problem: String, hint: &str) -> Error {
    Error::Format { path: path.into(), problem, hint: hint.into() }
}

fn contradiction(path: &Path, c: Contradiction) -> Error {
    let hint = "was it edited by hand? run the stage that writes it again".into();
    Error::Key { path: path.into(), key: c.key, expected: c.expected, got: c.got, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Times {
        seconds: Vec<f64>,
        note: Option<f64>,
    }

    impl Document for Times {
        const FORMAT: &'static str = "laptop-diff/times";
        const FORMER_FORMATS: &'static [&'static str] = &["laptop-diff/clock"];
        const VERSION: u32 = 2;
        const HINT: &'static str = "measure again";

        fn upgrade(version: u32, mut keys: Map<String, Value>) -> Option<Map<String, Value>> {
            let old = keys.remove("times").filter(|_| version == 1)?;
            keys.insert("seconds".into(), old);
            Some(keys)
        }

        fn check(&self) -> std::result::Result<(), Contradiction> {
            let problem = || Contradiction { key: "seconds".into(), expected: "one".into(), got: "none".into() };
            if self.seconds.is_empty() { Err(problem()) } else { Ok(()) }
        }
    }

    fn error(text: &str) -> String {
        Times::parse(text.as_bytes(), Path::new("t.json")).unwrap_err().to_string()
    }

    #[test]
    fn a_document_comes_back_and_says_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        let times = Times { seconds: vec![0.1, 2.0], note: None };
        times.write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\n  \"format\": \"laptop-diff/times\",\n  \"version\": 2,\n  \"seconds\": [0.1, 2.0],\n  \"note\": null\n}\n");
        assert_eq!(Times::read(&path).unwrap(), times);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file stayed behind");
    }

    #[test]
    fn an_older_version_is_read_and_a_newer_one_is_not() {
        let old = r#"{"format": "laptop-diff/times", "version": 1, "times": [1.5], "note": null}"#;
        assert_eq!(Times::parse(old.as_bytes(), Path::new("t.json")).unwrap().seconds, [1.5]);
        let renamed = old.replace("laptop-diff/times", "laptop-diff/clock");
        assert_eq!(Times::parse(renamed.as_bytes(), Path::new("t.json")).unwrap().seconds, [1.5]);
        let new = old.replace("\"version\": 1", "\"version\": 3");
        assert_eq!(error(&new), "t.json: `version`: expected 2, got 3; measure again");
    }

    #[test]
    fn each_fault_is_told_with_the_file() {
        assert!(error("{").starts_with("t.json: not valid JSON ("));
        assert_eq!(error(r#"{"format": "x"}"#), "t.json: `format`: expected \"laptop-diff/times\", got \"x\"; is this the right file?");
        let head = r#"{"format": "laptop-diff/times", "version": 2, "#;
        assert!(error(&format!("{head}\"seconds\": [1.0], \"nope\": 1}}")).contains("unknown field `nope`"));
        let empty = error(&format!("{head}\"seconds\": []}}"));
        assert!(empty.starts_with("t.json: `seconds`: expected one, got none;"), "{empty}");
        let missing = Times::read(Path::new("no/t.json")).unwrap_err().to_string();
        assert!(missing.starts_with("no/t.json: ") && missing.ends_with("; measure again"), "{missing}");
    }

    #[test]
    fn what_json_cannot_hold_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        for times in [Times { seconds: vec![f64::NAN], note: None }, Times { seconds: vec![1.0], note: Some(f64::INFINITY) }] {
            let path = dir.path().join("t.json");
            assert!(matches!(times.write(&path), Err(Error::NotFinite { .. })));
            assert!(!path.exists());
        }
    }
}
