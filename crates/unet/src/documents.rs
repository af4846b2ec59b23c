//! The JSON files around a U-Net's plans that are not prune-core's own: `layers.json` (first arrow of the flow), a resource file
//! (costs for the search) and `joint.json` (what plans really lose). Scores, plans and audits are prune-core's.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::Document;
use prune_core::audit::JointLoss;
use prune_core::search::Resource;
use prune_core::table::Cost;
use prune_core::{LayerId, LayerTable};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `layers.json`: the table of removable layers, with what a reader must know of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inspection {
    /// Family, such as `SDXL`.
    pub family: String,
    /// What the U-Net predicts, `epsilon` or `v_prediction`, where the model has a schedule.
    pub prediction_type: Option<String>,
    /// Timesteps of the training schedule, likewise.
    pub num_train_timesteps: Option<i64>,
    /// Height and width of the latents that multiply-accumulates are counted for.
    pub latent: [i64; 2],
    /// Height and width in pixels of an image from such latents, where the model has an autoencoder.
    pub image: Option<[i64; 2]>,
    /// SHA-256 of the U-Net's (first) weight file.
    pub unet_sha256: String,
    /// The layers.
    pub table: LayerTable,
}

impl Inspection {
    /// The file's name in a run folder.
    pub const FILE: &'static str = "layers.json";
}

impl Document for Inspection {
    const FORMAT: &'static str = "laptop-diff/layers";
    const VERSION: u32 = 2;
    const HINT: &'static str = "let `inspect --out` write it again";

    /// Version 1 has another name of one key.
    fn upgrade(version: u32, mut keys: Map<String, Value>) -> Option<Map<String, Value>> {
        let image = keys.remove("picture").filter(|_| version == 1)?;
        keys.insert("image".into(), image);
        Some(keys)
    }
}

/// An integer cost for every layer of one model, measured or computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceFile {
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
    /// What goes with each shared cost on top.
    pub shared_costs: BTreeMap<LayerId, u64>,
}

impl Document for ResourceFile {
    const FORMAT: &'static str = "laptop-diff/resource";
    const VERSION: u32 = 2;
    const HINT: &'static str = "let `profile-layers` write it again";

    /// Version 1 called the shared costs shells.
    fn upgrade(version: u32, mut keys: Map<String, Value>) -> Option<Map<String, Value>> {
        let shared = keys.remove("shells").filter(|_| version == 1)?;
        keys.insert("shared_costs".into(), shared);
        Some(keys)
    }
}

impl ResourceFile {
    /// Reads a file and checks that it belongs to the model of `table`.
    ///
    /// # Errors
    /// Those of [`Document::read`]; [`artifact::Error::Format`] when it was made for another model.
    pub fn read_for(path: &Path, table: &LayerTable) -> artifact::Result<Self> {
        let file = Self::read(path)?;
        if file.fingerprint != table.fingerprint() {
            let problem = format!("made for a model with fingerprint {}, the scores are for {}", file.fingerprint, table.fingerprint());
            return Err(artifact::Error::Format { path: path.into(), problem, hint: "measure the model that was scored".into() });
        }
        Ok(file)
    }

    /// The cost as the search takes it.
    pub fn resource(&self) -> Resource {
        Resource { name: self.name.clone(), layers: self.layers.clone(), shared_costs: self.shared_costs.clone() }
    }
}

/// What the whole model costs, by the name of the cost: limits are told as amounts or as shares of it.
#[derive(Debug, Clone)]
pub struct Totals(BTreeMap<String, u64>);

impl Totals {
    /// Of the table's own costs and further ones.
    pub fn new(table: &LayerTable, resources: &[ResourceFile]) -> Self {
        let own = [Cost::Params, Cost::Macs].map(|cost| (cost.name().to_string(), table.total(cost)));
        Self(own.into_iter().chain(resources.iter().map(|file| (file.name.clone(), file.total))).collect())
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The name and amount of `NAME=N`, or of `NAME=P%` of the total, rounded up; `None` for other text.
    pub fn amount(&self, text: &str) -> Option<(String, u64)> {
        let (name, value) = text.split_once('=')?;
        let total = *self.0.get(name)?;
        let amount = match value.strip_suffix('%') {
            None => value.parse().ok()?,
            Some(percent) => {
                let percent: f64 = percent.parse().ok().filter(|p| (0.0..=100.0).contains(p))?;
                (percent / 100.0 * total as f64).ceil() as u64
            }
        };
        Some((name.to_string(), amount))
    }
}

/// `joint.json`: the true joint losses of plans, on samples that scoring did not use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JointFile {
    /// Fingerprint of the model.
    pub fingerprint: String,
    /// SHA-256 of the calibration set.
    pub calibration_sha256: String,
    /// Points used.
    pub samples: usize,
    /// The plans, in the order in which they were named.
    pub plans: Vec<JointRow>,
}

impl JointFile {
    /// The file's name in a run folder.
    pub const FILE: &'static str = "joint.json";
}

impl Document for JointFile {
    const FORMAT: &'static str = "laptop-diff/joint";
    const VERSION: u32 = 2;
    const HINT: &'static str = "let `measure-plans` write it again";

    /// Version 1 called a plan's losses gaps.
    fn upgrade(version: u32, mut keys: Map<String, Value>) -> Option<Map<String, Value>> {
        let plans = keys.get_mut("plans").filter(|_| version == 1)?.as_array_mut()?;
        for plan in plans.iter_mut().filter_map(Value::as_object_mut) {
            let losses = plan.remove("gaps")?;
            plan.insert("losses".into(), losses);
        }
        Some(keys)
    }
}

/// The joint losses of one plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JointRow {
    /// Name of the plan.
    pub plan: String,
    /// SHA-256 of the plan's file.
    pub plan_sha256: String,
    /// Share of the parameters that goes.
    pub params_ratio: f64,
    /// The criterion that the plan minimises.
    pub criterion: Option<String>,
    /// What its scores predict.
    pub predicted: Option<f64>,
    /// Measured joint value by criterion.
    pub losses: BTreeMap<String, JointLoss>,
}

/// A plan's name: its file's, without `.json`.
pub fn plan_name(path: &Path) -> String {
    // Not the file's stem: a name such as `output_loss-0.5` would lose its last digit.
    let name = path.file_name().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    name.strip_suffix(".json").map(str::to_string).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_named_by_its_file() {
        assert_eq!(plan_name(Path::new("runs/plans/output_loss-0.5.json")), "output_loss-0.5");
        assert_eq!(plan_name(Path::new("distill/normalized-0.5")), "normalized-0.5");
    }

    #[test]
    fn files_of_the_first_version_are_read() {
        let resource = r#"{"format": "laptop-diff/resource", "version": 1, "name": "latency_ns", "fingerprint": "f", "method": "by hand",
            "total": 9, "layers": {"a": 4}, "shells": {"t": 2}}"#;
        let read = ResourceFile::parse(resource.as_bytes(), Path::new("r.json")).unwrap();
        assert_eq!((read.layers[&LayerId::from("a")], read.shared_costs[&LayerId::from("t")]), (4, 2));
        let joint = r#"{"format": "laptop-diff/joint", "version": 1, "fingerprint": "f", "calibration_sha256": "c", "samples": 3, "plans":
            [{"plan": "p", "plan_sha256": "h", "params_ratio": 0.5, "criterion": null, "predicted": null,
              "gaps": {"output_loss": {"mean": 0.25, "standard_error": 0.125}}}]}"#;
        let read = JointFile::parse(joint.as_bytes(), Path::new("j.json")).unwrap();
        assert_eq!(read.plans[0].losses["output_loss"].mean, 0.25);
    }
}
