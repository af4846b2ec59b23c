//! What the images of an evaluation should show: texts, files of prompts as benchmarks ship them, or held-out captions of the scene
//! grammar. **Prompts** -> images -> evaluation.

use std::path::PathBuf;

use data::{Prompt, read_prompts};

use crate::error::Result;

/// Prompts, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// Where they come from, as a short description.
    pub source: String,
    /// In the order of the images.
    pub list: Vec<Prompt>,
}

impl Prompts {
    /// The given texts; `source` says where they come from.
    pub fn of_texts(source: &str, texts: &[String]) -> Self {
        let list = texts.iter().map(|text| Prompt { text: text.clone(), category: None }).collect();
        Self { source: source.into(), list }
    }

    /// The prompts of some files, one after the other; see [`read_prompts`].
    ///
    /// # Errors
    /// As [`read_prompts`].
    pub fn of_files(paths: &[PathBuf]) -> Result<Self> {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let names: Vec<String> = paths.iter().map(name).collect();
        let files = if names.len() == 1 { "the file" } else { "the files" };
        let list = paths.iter().map(|path| read_prompts(path)).collect::<data::Result<Vec<_>>>()?.concat();
        Ok(Self { source: format!("{files} {}", names.join(", ")), list })
    }

    /// `n` captions of the scene grammar that no training scene has.
    ///
    /// # Errors
    /// [`crate::Error::Scenes`] when the grammar has fewer.
    pub fn of_scenes(seed: u64, n: usize) -> Result<Self> {
        let list = scenes::held_out(seed, n)?.iter().map(|spec| Prompt { text: spec.caption(), category: None }).collect();
        Ok(Self { source: format!("held-out captions of rendered scenes, seed {seed}"), list })
    }
}
