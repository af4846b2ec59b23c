//! The scores of one criterion with their words and, where samples are points in time, their means by timestep.

use std::collections::BTreeMap;

use prune_core::table::Cost;
use prune_core::{Constraints, Front, Scores};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde_json::Value;
use unet::scoring::{CLIP_SCORE, Criterion, NUMBER_NOISE, OUTPUT_LOSS, below_noise};

use crate::error::Result;

/// One criterion's scores of all layers. In `results.json` they stand as means with their standard errors: the samples behind them
/// are in the score's own file.
#[derive(Debug, Clone, PartialEq)]
pub struct CriterionScores {
    /// Name for people.
    pub label: String,
    /// One or two sentences on what is measured, and from where.
    pub description: String,
    scores: Scores,
    values: Vec<f64>,
    standard_errors: Vec<Option<f64>>,
    bins: Option<BinTable>,
}

/// Mean scores by timestep bin.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BinTable {
    /// First and last timestep of each bin.
    pub bins: Vec<[u32; 2]>,
    /// One row per layer, in the order of the layers; none where a bin has no sample.
    pub means: Vec<Vec<Option<f64>>>,
    /// Standard errors of `means`, in the same places; none where a bin has fewer than two samples.
    pub standard_errors: Vec<Vec<Option<f64>>>,
}

/// The exact Pareto front of one criterion: for every budget the least sum of scores that any set of layers has.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FrontCurve {
    /// The criterion.
    pub criterion: String,
    /// Parameters that go, and the sum of scores; both ascending. A long front is thinned out.
    pub points: Vec<(u64, f64)>,
}

/// A criterion's name for readers; a caller's own has its id.
pub(super) fn label(criterion: &str) -> &str {
    Criterion::named(criterion).map_or(criterion, |known| known.label)
}

fn meaning(criterion: &str) -> &'static str {
    Criterion::named(criterion).map_or("A criterion of another program.", |known| known.meaning)
}

impl CriterionScores {
    /// Complete scores of a model whose schedule has `train_timesteps`.
    ///
    /// # Errors
    /// [`prune_core::Error::IncompleteScores`] when a layer has no score.
    pub fn new(scores: Scores, train_timesteps: Option<i64>) -> Result<Self> {
        let values = scores.values()?;
        let ids = || scores.table().layers().iter().map(|layer| layer.id.as_str());
        let standard_errors = ids().map(|id| scores.layer(id).and_then(|s| s.standard_error())).collect();
        let mut description = meaning(scores.criterion()).to_string();
        let setting = |key| scores.settings().get(key);
        if let (Some(compute), Some(noise)) = (setting("compute").and_then(Value::as_str), setting(NUMBER_NOISE).and_then(Value::as_f64))
            && scores.criterion() == OUTPUT_LOSS
        {
            let (small, all) = (below_noise(noise, &values), values.len());
            description += &format!(
                " Computed in {compute}, whose rounding alone changes the output by {noise:.1e}: {small} of {all} layers do not exceed it."
            );
        }
        let label = label(scores.criterion()).into();
        let bins = bins(&scores, train_timesteps);
        Ok(Self { label, description, scores, values, standard_errors, bins })
    }

    /// Machine name, such as `output_loss`.
    pub fn id(&self) -> &str {
        self.scores.criterion()
    }

    /// The scores with all their samples.
    pub fn scores(&self) -> &Scores {
        &self.scores
    }

    /// Each layer's score, in the order of the layers.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Their standard errors; none for a criterion without samples.
    pub fn standard_errors(&self) -> &[Option<f64>] {
        &self.standard_errors
    }

    /// Means by timestep bin, where the criterion has them.
    pub fn bins(&self) -> Option<&BinTable> {
        self.bins.as_ref()
    }
}

impl Serialize for CriterionScores {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Row<'a> {
            layer: &'a str,
            mean: f64,
            standard_error: Option<f64>,
        }
        let ids = self.scores.table().layers().iter().map(|layer| layer.id.as_str());
        let rows = ids.zip(&self.values).zip(&self.standard_errors);
        let rows: Vec<Row> =
            rows.map(|((layer, mean), standard_error)| Row { layer, mean: *mean, standard_error: *standard_error }).collect();
        let mut out = serializer.serialize_struct("CriterionScores", 6)?;
        out.serialize_field("criterion", self.id())?;
        out.serialize_field("label", &self.label)?;
        out.serialize_field("description", &self.description)?;
        out.serialize_field("samples", &self.scores.samples().len())?;
        out.serialize_field("scores", &rows)?;
        out.serialize_field("bins", &self.bins)?;
        out.end()
    }
}

/// Means by timestep bin; nothing where the samples are no points in time.
fn bins(scores: &Scores, train_timesteps: Option<i64>) -> Option<BinTable> {
    let count = scores.settings().get("timestep_bins").and_then(Value::as_u64).filter(|_| scores.criterion() != CLIP_SCORE)?;
    let last = u64::try_from(train_timesteps?).ok()?;
    if scores.bins().is_empty() || count == 0 {
        return None;
    }
    // Bin b holds the timesteps t with floor(t * count / last) = b.
    let bounds = (0..count).map(|b| [(b * last).div_ceil(count) as u32, ((b + 1) * last).div_ceil(count).saturating_sub(1) as u32]);
    let row = |values: BTreeMap<u32, f64>| (0..count as u32).map(|b| values.get(&b).copied()).collect();
    let ids = || scores.table().layers().iter().map(|layer| layer.id.as_str());
    Some(BinTable {
        bins: bounds.collect(),
        means: ids().map(|id| row(scores.bin_means(id))).collect(),
        standard_errors: ids().map(|id| row(scores.bin_standard_errors(id))).collect(),
    })
}

/// A drawing needs no more points than this.
const FRONT_POINTS: usize = 400;

impl FrontCurve {
    /// What the best plan of every budget of parameters is predicted to lose; nothing where the front has more states than fit.
    pub fn of(scores: &Scores) -> Option<Self> {
        let front = match Front::build(scores, Cost::Params, &Constraints::none()) {
            Ok(front) => front,
            Err(error) => {
                tracing::warn!("the report has no Pareto front: {error}");
                return None;
            }
        };
        let all = front.points();
        let every = all.len().div_ceil(FRONT_POINTS).max(1);
        let last = all.len().saturating_sub(1);
        let kept = all.iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last);
        Some(Self { criterion: scores.criterion().into(), points: kept.map(|(_, p)| (p.removed, p.score)).collect() })
    }
}
