//! The small files of a model directory (settings, tokenizers), as a checkpoint that this program wrote carries them in its metadata.
//! Others find no use for them and pass them over; with them an unusual model is opened again as it was.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::{Contradiction, Document};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// The metadata key.
pub(super) const KEY: &str = "laptop_diff.files";

/// Which files: their folder, their names.
const KNOWN: [(&str, &[&str]); 7] = [
    ("", &["model_index.json"]),
    ("scheduler", &["scheduler_config.json"]),
    ("vae", &["config.json"]),
    ("text_encoder", &["config.json"]),
    ("text_encoder_2", &["config.json"]),
    ("tokenizer", &TOKENIZER),
    ("tokenizer_2", &TOKENIZER),
];
const TOKENIZER: [&str; 6] =
    ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"];

/// Texts by their path in the model directory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PartFiles {
    files: BTreeMap<String, String>,
}

impl Document for PartFiles {
    const FORMAT: &'static str = "laptop-diff-model-files";
    const VERSION: u32 = 1;
    const HINT: &'static str = "write the checkpoint again";

    fn check(&self) -> std::result::Result<(), Contradiction> {
        let known = |path: &str| {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            KNOWN.iter().any(|(f, names)| *f == folder && names.contains(&name))
        };
        match self.files.keys().find(|path| !known(path)) {
            None => Ok(()),
            Some(other) => {
                Err(Contradiction { key: "files".into(), expected: "small files of a model directory".into(), got: other.clone() })
            }
        }
    }
}

impl PartFiles {
    /// Those that the metadata of the checkpoint `path` carry.
    ///
    /// # Errors
    /// As [`Document::parse`].
    pub fn of(metadata: &BTreeMap<String, String>, path: &Path) -> Result<Self> {
        match metadata.get(KEY) {
            Some(text) => Ok(Self::parse(text.as_bytes(), path)?),
            None => Ok(Self::default()),
        }
    }

    /// Those of a model directory; CLIP's published vocabulary is left out, since every reader has it.
    ///
    /// # Errors
    /// [`Error::Io`] for what cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for (folder, names) in KNOWN {
            let at = dir.join(folder);
            if folder.starts_with("tokenizer") && Tokenizer::is_published(&at) {
                continue;
            }
            for name in names.iter().filter(|name| at.join(name).is_file()) {
                let path = at.join(name);
                let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
                files.insert(if folder.is_empty() { (*name).to_string() } else { format!("{folder}/{name}") }, text);
            }
        }
        Ok(Self { files })
    }

    /// One file.
    pub fn get(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// Writes those of one folder to `dir`; false where there are none.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written.
    pub fn write_folder(&self, folder: &str, dir: &Path) -> Result<bool> {
        let mut any = false;
        for (path, text) in &self.files {
            if let Some(name) = path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')) {
                std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
                artifact::write_bytes(&dir.join(name), text.as_bytes())?;
                any = true;
            }
        }
        Ok(any)
    }

    /// As it stands in the metadata.
    ///
    /// # Errors
    /// As [`Document::to_text`].
    pub fn to_metadata(&self, path: &Path) -> Result<String> {
        Ok(self.to_text(path)?)
    }
}
