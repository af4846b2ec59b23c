//! Costs of layers that were measured or computed elsewhere, as a file: `measure` -> **resource file** -> `plan --resource`.

use std::collections::BTreeMap;
use std::path::Path;

use prune_core::{LayerId, LayerTable, Resource};
use serde::{Deserialize, Serialize};

use crate::common::{BadFile, read_versioned};

/// An integer cost for every layer of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceFile {
    pub format: String,
    pub version: u32,
    /// Name in limits, such as `latency_ns`.
    pub name: String,
    /// Fingerprint of the model.
    pub fingerprint: String,
    /// How it was measured, for readers.
    pub method: String,
    /// Cost of the whole model.
    pub total: u64,
    /// What goes with each layer; 0 for layers that are not listed.
    pub layers: BTreeMap<LayerId, u64>,
    /// What goes with each shell on top.
    pub shells: BTreeMap<LayerId, u64>,
}

impl ResourceFile {
    pub const FORMAT: &'static str = "laptop-diff/resource";
    pub const VERSION: u32 = 1;

    /// Reads a file and checks that it belongs to the model of `table`.
    ///
    /// # Errors
    /// [`BadFile`] when it is missing, damaged, or made for another model.
    pub fn read_for(path: &Path, table: &LayerTable) -> anyhow::Result<Self> {
        let file: Self = read_versioned(path, Self::FORMAT, Self::VERSION, "let `measure` write it again")?;
        if file.fingerprint != table.fingerprint() {
            let problem = format!("made for a model with fingerprint {}, the scores are for {}", file.fingerprint, table.fingerprint());
            return Err(BadFile::new(path, problem, "measure the model that was scored").into());
        }
        Ok(file)
    }

    /// The cost as the search takes it.
    pub fn resource(&self) -> Resource {
        Resource { name: self.name.clone(), layers: self.layers.clone(), shared_costs: self.shells.clone() }
    }
}
