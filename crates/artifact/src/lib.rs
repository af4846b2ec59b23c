//! Files as this project writes them: they appear whole, say their format and version, name what they were made from by hash,
//! and are read with errors that say what to do next. Stands under every arrow of the flow that is a file.
//!
//! - [`write_whole`], [`write_bytes`], [`write_json`], [`write_config`], [`write_folder`]: nothing half-written.
//! - [`Lock`]: a folder that one process writes at a time. [`remove_leftovers`]: what a killed write left behind.
//! - [`Document`]: a JSON file with `format` and `version` as its first two keys.
//! - [`Fields`]: typed settings of a foreign `config.json`. [`read_toml`]: settings of our own.
//! - [`file_sha256`], [`hex`]: what a file was made from. [`nearest`]: the likeliest of the names there are. [`short`]: a value for a message.
//! - [`warn_once`]: what is said of a file once.

mod document;
mod error;
mod fields;
mod folder;
mod hash;
mod leftovers;
mod lock;
mod nearest;
mod settings;
mod told;
mod write;

pub use document::{Contradiction, Document};
pub use error::{Error, Result};
pub use fields::{Fields, short};
pub use folder::{copy_tree, write_folder};
pub use hash::{file_sha256, hex, sha256};
pub use leftovers::remove_leftovers;
pub use lock::Lock;
pub use nearest::nearest;
pub use settings::read_toml;
pub use told::warn_once;
pub use write::{write_bytes, write_config, write_json, write_whole};
