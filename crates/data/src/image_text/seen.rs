//! What a source has that is no image: told where it has no image at all.

use std::collections::BTreeMap;
use std::path::Path;

use super::names::ending;

/// Counts of what was met.
#[derive(Debug, Default)]
pub(super) struct Seen {
    counts: BTreeMap<String, usize>,
}

impl Seen {
    fn add(&mut self, what: &str) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    pub fn file(&mut self, path: &Path) {
        match ending(path) {
            ending if ending.is_empty() => self.add("file without ending"),
            ending => self.add(&format!(".{ending} file")),
        }
    }

    pub fn hidden(&mut self) {
        self.add("hidden file or folder");
    }

    pub fn dead_link(&mut self) {
        self.add("link that leads nowhere");
    }

    pub fn empty_tar(&mut self) {
        self.add("tar without images");
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.counts.is_empty() {
            return write!(f, "it is empty");
        }
        let plural = |what: &str| match what.split_once(' ') {
            Some((first, rest)) if first == "tar" || first == "link" || first == "file" => format!("{first}s {rest}"),
            Some((first, "file")) => format!("{first} files"),
            _ => "hidden files or folders".to_string(),
        };
        let told = self.counts.iter().map(|(what, n)| if *n == 1 { format!("1 {what}") } else { format!("{n} {}", plural(what)) });
        write!(f, "it has {}", told.collect::<Vec<_>>().join(", "))
    }
}
