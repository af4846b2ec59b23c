//! Settings of a run in TOML, read with errors that name file, line and key.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::nearest::nearest;

/// Reads the TOML file `path` into `T`, whose unknown keys should be errors (`#[serde(deny_unknown_fields)]`). `renamed` lists keys that
/// had another name before: (old, new).
///
/// # Errors
/// [`Error::Toml`] for a file that cannot be read, is no TOML, or holds an unknown key or a wrong type; [`Error::Renamed`] for an old key.
pub fn read_toml<T: DeserializeOwned>(path: &Path, renamed: &[(&str, &str)]) -> Result<T> {
    let unread = |e: std::io::Error| Error::Toml { path: path.into(), line: None, problem: e.to_string(), meant: None };
    let text = std::fs::read_to_string(path).map_err(unread)?;
    toml::from_str(&text).map_err(|e| {
        let line = e.span().map(|span| 1 + text[..span.start].matches('\n').count());
        let unknown = unknown_name(e.message());
        let now = unknown.as_ref().and_then(|(key, _)| renamed.iter().find(|(old, _)| old == key));
        if let (Some((key, now)), Some(line)) = (now, line) {
            return Error::Renamed { path: path.into(), line, key: key.to_string(), now: now.to_string() };
        }
        let meant = unknown.and_then(|(key, known)| nearest(key, known)).map(str::to_string);
        Error::Toml { path: path.into(), line, problem: e.to_string().trim().replace('\n', " "), meant }
    })
}

/// The wrong name and the expected ones in serde's words "unknown field `x`, expected one of `a`, `b`".
fn unknown_name(message: &str) -> Option<(&str, Vec<&str>)> {
    let mut names = message.strip_prefix("unknown ")?.split('`').skip(1).step_by(2);
    Some((names.next()?, names.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        steps: u64,
        #[serde(default)]
        schedule: Option<Schedule>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Schedule {
        Constant,
        Cosine,
    }

    fn read(text: &str) -> Result<Settings> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_toml(file.path(), &[("iterations", "steps")])
    }

    #[test]
    fn settings_are_read_and_a_slip_is_told_with_its_line_and_what_was_meant() {
        let read_well = read("steps = 3\nschedule = \"cosine\"\n").unwrap();
        assert!(read_well.steps == 3 && matches!(read_well.schedule, Some(Schedule::Cosine)));
        assert!(matches!(read("steps = 3\nschedule = \"constant\"").unwrap().schedule, Some(Schedule::Constant)));

        let error = read("# a\nstep = 3\n").unwrap_err();
        assert!(matches!(&error, Error::Toml { line: Some(2), meant: Some(name), .. } if name == "steps"), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("line 2") && text.contains("unknown field `step`") && text.ends_with("; did you mean `steps`?"), "{text}");
        assert!(!text.contains('\n'), "{text}");

        let error = read("steps = 3\nschedule = \"cosin\"").unwrap_err();
        assert!(matches!(&error, Error::Toml { line: Some(2), meant: Some(name), .. } if name == "cosine"), "{error:?}");
        assert!(matches!(read("steps = \"x\"").unwrap_err(), Error::Toml { line: Some(1), meant: None, .. }));
        assert!(matches!(read("learning_rate = 1").unwrap_err(), Error::Toml { meant: None, .. }));
    }

    #[test]
    fn an_old_key_is_told_with_its_new_name() {
        let error = read("\niterations = 3\n").unwrap_err();
        assert!(error.to_string().ends_with(": line 2: `iterations` is called `steps` now"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_toml::<Settings>(Path::new("no/such.toml"), &[]).unwrap_err();
        assert!(error.to_string().starts_with("no/such.toml: No such file"), "{error}");
    }
}
