//! Rows of the results about the model, its layers' scores, the additivity audits and the plans. Evaluation stage.

use serde::{Deserialize, Serialize};

/// What was compressed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Name for people, such as `tiny-sdxl`.
    pub name: String,
    /// Family, such as `SDXL`.
    pub family: String,
    /// What the U-Net predicts: `epsilon` or `v_prediction`.
    pub prediction_type: String,
    /// Parameters of the whole U-Net.
    pub params: u64,
    /// Multiply-accumulates of one U-Net forward at `latent`, batch 1.
    pub macs: u64,
    /// Height and width of the latents that MACs and latency refer to.
    pub latent: [u32; 2],
    /// Height and width of the pictures.
    pub picture: [u32; 2],
    /// SHA-256 of the U-Net's weight file.
    pub unet_sha256: String,
}

/// One removable layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerRow {
    /// Checkpoint key prefix, the layer's one name.
    pub id: String,
    /// `resnet`, `attn1`, `attn2`, `ff`, `block` or `transformer2d`.
    pub kind: String,
    /// Parameters that go when only this layer goes.
    pub params: u64,
    /// Multiply-accumulates that go when only this layer goes.
    pub macs: u64,
}

/// One criterion's scores of all layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CriterionScores {
    /// Machine name, such as `output-loss`.
    pub criterion: String,
    /// Name for people.
    pub label: String,
    /// One sentence on what is measured, and from where.
    pub description: String,
    /// Samples behind each mean; 0 when the criterion needs none, such as magnitude.
    pub samples: usize,
    /// One row per layer, in the order of the layers.
    pub scores: Vec<ScoreRow>,
    /// Means by timestep bin, where the criterion has them.
    pub bins: Option<BinTable>,
}

/// One layer's score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreRow {
    /// The layer.
    pub layer: String,
    /// Mean over the samples.
    pub mean: f64,
    /// Standard error of the mean; none for a criterion without samples.
    pub se: Option<f64>,
}

/// Mean scores by timestep bin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BinTable {
    /// First and last timestep of each bin.
    pub bins: Vec<[u32; 2]>,
    /// One row per layer, in the order of the layers; none where a bin has no sample.
    pub means: Vec<Vec<Option<f64>>>,
    /// Standard errors of `means`, in the same places; none where a bin has fewer than two samples. Empty in older files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ses: Vec<Vec<Option<f64>>>,
}

impl BinTable {
    /// The standard error of one mean.
    pub fn se(&self, layer: usize, bin: usize) -> Option<f64> {
        self.ses.get(layer).and_then(|row| row.get(bin).copied().flatten())
    }
}

/// The exact Pareto front of one criterion: for every budget the least sum of scores that any set of layers has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrontCurve {
    /// The criterion.
    pub criterion: String,
    /// Parameters that go, and the sum of scores; both ascending. A long front is thinned out.
    pub points: Vec<(u64, f64)>,
}

/// How well the sum of single scores predicts the joint value, for one criterion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// The criterion; predicted and measured are both in its unit.
    pub criterion: String,
    /// What the joint value is and on which samples, in one sentence.
    pub description: String,
    /// The statistics over all sets and for each size of set.
    pub stats: Vec<AuditStats>,
    /// How the layers of each kind, and of each quarter of the forward pass, add up; empty where that was not measured.
    #[serde(default)]
    pub parts: Vec<PartSlope>,
    /// Every set that was drawn.
    pub points: Vec<AuditPoint>,
}

/// How the layers of one part add up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartSlope {
    /// Kind of layer, or quarter of the forward pass.
    pub part: String,
    /// Share of the predicted values that they make up.
    pub share: f64,
    /// Coefficient of their scores' sum in a fit of the joint values.
    pub slope: f64,
    /// Its standard error.
    pub se: f64,
}

/// How the random sets of one group were drawn.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetGroup {
    /// This many layers.
    Layers(usize),
    /// Layers with at least this share of the parameters.
    Ratio(f64),
}

impl std::fmt::Display for SetGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SetGroup::Layers(1) => f.write_str("1 layer"),
            SetGroup::Layers(n) => write!(f, "{n} layers"),
            SetGroup::Ratio(r) => write!(f, "ratio {r}"),
        }
    }
}

/// Agreement of predicted and measured values in one group of sets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditStats {
    /// The group; none for all sets together.
    pub group: Option<SetGroup>,
    /// Number of sets.
    pub n: usize,
    /// Pearson's correlation; none when one side is constant.
    pub pearson: Option<f64>,
    /// Spearman's rank correlation; none when one side is constant.
    pub spearman: Option<f64>,
    /// Slope of measured on predicted, through the origin; 1 is exact additivity.
    pub slope: Option<f64>,
}

/// One removal set of an audit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditPoint {
    /// The group that the set belongs to.
    pub group: SetGroup,
    /// Number of layers in it.
    pub layers: usize,
    /// Sum of the single scores.
    pub predicted: f64,
    /// The joint value.
    pub measured: f64,
    /// Standard error of the joint value.
    pub measured_se: Option<f64>,
}

/// A mean with its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Mean over the samples.
    pub mean: f64,
    /// Standard error of the mean.
    pub se: f64,
    /// Number of samples.
    pub samples: usize,
}

/// One plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanRow {
    /// Unique machine name, such as `output-loss-0.5`.
    pub name: String,
    /// Name for people, such as `output loss, exact`.
    pub label: String,
    /// The criterion that the plan minimises; none for hand-crafted plans.
    pub criterion: Option<String>,
    /// How it was found: `exact`, `greedy`, `random`, `hand-crafted`, `refined`.
    pub method: String,
    /// Share of the U-Net's parameters that had to go.
    pub ratio: f64,
    /// Seed of a random plan.
    pub seed: Option<u64>,
    /// Layers that go.
    pub removed: Vec<String>,
    /// Parameters that go; more than the sum over layers where a whole transformer falls away with its norm and projections.
    pub removed_params: u64,
    /// Multiply-accumulates that go.
    pub removed_macs: u64,
    /// Sum of the plan's own criterion's scores.
    pub predicted: Option<f64>,
    /// Sum of the layers' single output losses: what additivity predicts for `measured`.
    pub predicted_output_loss: Option<f64>,
    /// The true joint output loss.
    pub measured: Option<Measured>,
}
