//! How a run was made: commands, seeds, versions and hashes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is needed to run it again; the same bytes every time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The commands, in order.
    pub commands: Vec<Command>,
    /// What each seed is for -> seed.
    pub seeds: BTreeMap<String, u64>,
    /// What was set, beyond the commands: settings file or record -> its content, as JSON.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// Program or library -> version.
    pub versions: BTreeMap<String, String>,
    /// File, relative to the run directory or the model -> SHA-256.
    pub hashes: BTreeMap<String, String>,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Stage, such as `score`.
    pub stage: String,
    /// The line to type.
    pub line: String,
}
