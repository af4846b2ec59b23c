//! What a cache says about itself: `cache.json`.

use std::collections::BTreeMap;

use artifact::Document;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Name of the manifest in the folder.
pub const CACHE_MANIFEST: &str = "cache.json";
/// `format` of the manifest and of every shard.
pub const CACHE_FORMAT: &str = "laptop-diff/cache";
/// Version of the shards that are written; those of version 1 are read.
pub const SHARD_VERSION: u32 = 2;

/// The manifest. It is written twice: before the first image, and when all shards are there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub complete: bool,
    pub settings: Settings,
    /// Images in all shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<u64>,
    /// File names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<String>,
}

/// What decides about the content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// As [`crate::encoder_identity`].
    pub model: BTreeMap<String, String>,
    pub size: i64,
    pub step: i64,
    pub shard: usize,
    pub batch: usize,
}

impl Document for Manifest {
    const FORMAT: &'static str = CACHE_FORMAT;
    const VERSION: u32 = 2;
    const HINT: &'static str = "name a folder that `cache` wrote, or let `cache` write another one";

    // Version 1 said `pictures`.
    fn upgrade(_: u32, keys: Map<String, Value>) -> Option<Map<String, Value>> {
        Some(keys.into_iter().map(|(key, value)| (if key == "pictures" { "images".into() } else { key }, value)).collect())
    }
}
