//! Whether scores add up: random removal sets, and the best plans of many budgets with their rivals; their predicted loss (sum of
//! single scores) against the measured joint loss. This checks the assumption behind every plan; the same measurement gives the true joint loss of a plan.
//!
//! For squared norms additivity needs the cross terms between layers to vanish, which nothing guarantees, so the audit
//! reports per stratum (size of the set) how far the sum can be trusted, for every criterion against its own joint
//! value. arXiv 2404.11098 reports good additivity; sets, strata and statistics are this crate's protocol.

mod near_optimal;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ablate::Ablate;
use crate::baselines::random_layers;
use crate::budget::Budget;
use crate::error::{AblateError, Error};
use crate::file::{self, Format};
use crate::layer::RemovalSet;
use crate::random::SplitMix64;
use crate::score::{Scores, check_samples, evaluate_all};
use crate::stats;
use crate::table::LayerTable;

pub use crate::stats::LinearFit;
pub use near_optimal::{AtRatio, TELLS, near_optimal_sets, plan_ratios};

const FORMAT: Format = Format { name: "prune-core/audit", version: 3, older: &[("prune-core/audit", 2), ("laptop-diff/audit", 1)] };

/// What sets were drawn for: one stratum of the audit.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum SetSize {
    /// This many random layers.
    Layers(usize),
    /// Minimal random sets that remove at least this share of the model's parameters.
    ParamsRatio(f64),
    /// The plan that removes at least this share of the parameters for the least sum of scores, and the next best sets; see
    /// [`near_optimal_sets`].
    NearOptimal(f64),
}

impl SetSize {
    /// Name of the stratum, such as `layers=3`, `params_ratio=0.3` or `near_optimal=0.3`.
    pub fn stratum(&self) -> String {
        match self {
            SetSize::Layers(count) => format!("layers={count}"),
            SetSize::ParamsRatio(ratio) => format!("params_ratio={ratio}"),
            SetSize::NearOptimal(ratio) => format!("near_optimal={ratio}"),
        }
    }

    /// The size that a stratum's name stands for; `None` for another name, such as a plan's.
    pub fn of_stratum(stratum: &str) -> Option<Self> {
        match stratum.split_once('=')? {
            ("layers", count) => Some(SetSize::Layers(count.parse().ok()?)),
            ("params_ratio", ratio) => Some(SetSize::ParamsRatio(ratio.parse().ok()?)),
            ("near_optimal", ratio) => Some(SetSize::NearOptimal(ratio.parse().ok()?)),
            _ => None,
        }
    }
}

/// A removal set to be measured, and what it is called or which stratum it was drawn for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrawnSet {
    /// Stratum, or the name of a plan.
    pub stratum: String,
    /// The layers removed together.
    pub removed: RemovalSet,
}

/// Draws distinct random removal sets, `per_size` for each size, or fewer where (nearly) no more exist. The sets of one
/// size do not depend on the other sizes asked for.
///
/// # Errors
/// [`Error::OutOfRange`] for a size of 0 or above the number of layers, a ratio outside 0..=1, or near-optimal sets;
/// [`Error::Infeasible`] for a ratio that cannot be reached.
pub fn draw_removal_sets(table: &LayerTable, sizes: &[SetSize], per_size: usize, seed: u64) -> Result<Vec<DrawnSet>, Error> {
    let mut drawn = Vec::new();
    for size in sizes {
        let stratum = size.stratum();
        // The name makes the stream, so that a stratum does not depend on its neighbours.
        let stream = stratum.bytes().fold(0u64, |hash, byte| hash.wrapping_mul(257).wrapping_add(u64::from(byte)));
        let mut rng = SplitMix64::new(seed, stream);
        let mut seen = BTreeSet::new();
        let mut misses = 0;
        while seen.len() < per_size && misses < 100 {
            let layers = match size {
                SetSize::Layers(count) => random_subset(table, *count, &mut rng)?,
                SetSize::ParamsRatio(ratio) => {
                    let budget = Budget::params_ratio(*ratio);
                    random_layers(table, &budget, &mut rng)?
                }
                SetSize::NearOptimal(_) => {
                    let expected = "a size of random sets; `near_optimal_sets` makes the others".to_owned();
                    return Err(Error::OutOfRange { key: "sizes", expected, got: stratum });
                }
            };
            let removed: RemovalSet = layers.into_iter().map(|layer| table.layers()[layer].id.clone()).collect();
            if seen.insert(removed.clone()) {
                misses = 0;
                let stratum = stratum.clone();
                drawn.push(DrawnSet { stratum, removed });
            } else {
                misses += 1;
            }
        }
    }
    Ok(drawn)
}

fn random_subset(table: &LayerTable, count: usize, rng: &mut SplitMix64) -> Result<Vec<usize>, Error> {
    if count == 0 || count > table.len() {
        return Err(Error::OutOfRange { key: "layers per set", expected: format!("1 to {}", table.len()), got: count.to_string() });
    }
    let mut order: Vec<usize> = (0..table.len()).collect();
    rng.shuffle(&mut order);
    order.truncate(count);
    Ok(order)
}

/// Measured joint loss of one set under one criterion.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JointLoss {
    /// Mean over the samples.
    pub mean: f64,
    /// Its standard error; absent for a single sample.
    pub standard_error: Option<f64>,
}

impl JointLoss {
    /// # Errors
    /// [`Error::Overflow`] where the mean is not finite.
    pub(crate) fn of(losses: &[f64]) -> Result<Self, Error> {
        let mean = stats::mean(losses).ok_or_else(|| Error::Overflow { what: "the joint losses of a set".to_owned() })?;
        Ok(Self { mean, standard_error: stats::standard_error(losses) })
    }
}

/// A removal set with its measured joint losses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredSet {
    /// Stratum, or the name of a plan.
    pub stratum: String,
    /// The layers removed together.
    pub removed: RemovalSet,
    /// Joint loss by criterion; `gaps` in older files.
    #[serde(alias = "gaps")]
    pub losses: BTreeMap<String, JointLoss>,
}

impl MeasuredSet {
    /// The joint loss under a criterion, or [`Error::UnknownCriterion`].
    pub(crate) fn loss(&self, criterion: &str) -> Result<&JointLoss, Error> {
        let known = || if self.losses.is_empty() { "none".into() } else { self.losses.keys().cloned().collect::<Vec<_>>().join(", ") };
        self.losses.get(criterion).ok_or_else(|| Error::UnknownCriterion { expected: known(), got: criterion.to_owned() })
    }
}

/// Settings of [`measure_sets`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MeasureOptions {
    /// The samples to use: for an audit, others than those behind the scores.
    pub samples: Range<usize>,
    /// Samples per call of [`Ablate::evaluate`], at least 1.
    pub batch: usize,
}

impl MeasureOptions {
    /// These samples, 16 per call.
    pub fn new(samples: Range<usize>) -> Self {
        Self { samples, batch: 16 }
    }

    /// Samples per call of the model.
    pub fn batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }
}

/// What [`measure_sets_with`] tells its callback.
#[derive(Debug)]
#[non_exhaustive]
pub enum MeasureEvent<'a> {
    /// One call of the model has come back.
    Batch {
        /// Samples of this set done, and in all.
        samples: (usize, usize),
        /// Sets done before this one, and in all.
        sets: (usize, usize),
    },
    /// A set is complete. Save here: everything so far is complete.
    Set {
        /// Sets done, and in all.
        sets: (usize, usize),
        /// All results so far, in the order of the sets.
        measured: &'a [MeasuredSet],
    },
}

/// Measures the joint losses of removal sets, in order.
///
/// # Errors
/// As [`crate::Scorer::run`].
pub fn measure_sets<M: Ablate>(
    model: &mut M,
    sets: &[DrawnSet],
    options: &MeasureOptions,
) -> Result<Vec<MeasuredSet>, AblateError<M::Error>> {
    measure_sets_with(model, sets, options, Vec::new(), |_| Ok(()))
}

/// [`measure_sets`] with a callback, which sees every batch and every finished set and may end the run with an error of its
/// own. `resume` takes what an interrupted run handed to the callback; that it was measured on the same model and samples is
/// for the caller to check ([`AuditFile`] records both).
///
/// # Errors
/// As [`measure_sets`]; [`Error::ResumeMismatch`] where `resume` is no beginning of `sets`; whatever the callback returns.
pub fn measure_sets_with<M: Ablate, E>(
    model: &mut M,
    sets: &[DrawnSet],
    options: &MeasureOptions,
    resume: Vec<MeasuredSet>,
    mut on_event: impl FnMut(MeasureEvent<'_>) -> Result<(), E>,
) -> Result<Vec<MeasuredSet>, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    check_samples(model, &options.samples, options.batch)?;
    for id in sets.iter().flat_map(|set| &set.removed) {
        model.table().require(id)?;
    }
    let criteria = model.criteria();
    check_measured(&criteria, sets, &resume)?;
    let mut measured = resume;
    let total = options.samples.len();
    let at_once = model.sets_at_once().max(1);
    while measured.len() < sets.len() {
        let done = measured.len();
        let chunk = &sets[done..sets.len().min(done.saturating_add(at_once))];
        let removed: Vec<RemovalSet> = chunk.iter().map(|set| set.removed.clone()).collect();
        let answers = evaluate_all(model, &removed, options.samples.clone(), options.batch, &mut |samples| {
            on_event(MeasureEvent::Batch { samples: (samples, total), sets: (done, sets.len()) })
        })?;
        for (set, columns) in chunk.iter().zip(answers) {
            measured.push(measured_set(set, &criteria, &columns)?);
            on_event(MeasureEvent::Set { sets: (measured.len(), sets.len()), measured: &measured })?;
        }
    }
    Ok(measured)
}

fn measured_set(set: &DrawnSet, criteria: &[String], columns: &[Vec<f64>]) -> Result<MeasuredSet, Error> {
    let mut losses = BTreeMap::new();
    for (criterion, column) in criteria.iter().zip(columns) {
        losses.insert(criterion.clone(), JointLoss::of(column)?);
    }
    Ok(MeasuredSet { stratum: set.stratum.clone(), removed: set.removed.clone(), losses })
}

fn check_measured(criteria: &[String], sets: &[DrawnSet], resume: &[MeasuredSet]) -> Result<(), Error> {
    let differs = |key: String, expected: String, got: String| Error::ResumeMismatch { key, expected, got };
    if resume.len() > sets.len() {
        return Err(differs("sets".to_owned(), sets.len().to_string(), resume.len().to_string()));
    }
    let sorted: BTreeSet<&String> = criteria.iter().collect();
    for (number, (set, earlier)) in sets.iter().zip(resume).enumerate() {
        if set.removed != earlier.removed || set.stratum != earlier.stratum {
            let text = |stratum: &str, removed: &RemovalSet| format!("{stratum} with {} layers", removed.len());
            let (now, then) = (text(&set.stratum, &set.removed), text(&earlier.stratum, &earlier.removed));
            return Err(differs(format!("sets.{number}"), now, then));
        }
        if !sorted.iter().copied().eq(earlier.losses.keys()) {
            let (now, then) = (format!("{sorted:?}"), format!("{:?}", earlier.losses.keys()));
            return Err(differs("criteria".to_owned(), now, then));
        }
    }
    Ok(())
}

/// How well predictions agree with measurements. A value is absent where it is undefined: too few sets or no spread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditStats {
    /// Number of removal sets.
    pub sets: usize,
    /// Pearson's correlation of predicted and measured.
    pub pearson: Option<f64>,
    /// Spearman's rank correlation, ties averaged: does the prediction rank sets rightly?
    pub spearman: Option<f64>,
    /// Least-squares slope of measured over predicted through the origin; 1 for perfect additivity.
    pub slope: Option<f64>,
    /// Least-squares line of measured over predicted with intercept.
    pub line: Option<LinearFit>,
}

impl AuditStats {
    fn new(predicted: &[f64], measured: &[f64]) -> Self {
        Self {
            sets: predicted.len(),
            pearson: stats::pearson(predicted, measured),
            spearman: stats::spearman(predicted, measured),
            slope: stats::slope_through_origin(predicted, measured),
            line: stats::fit_line(predicted, measured),
        }
    }
}

/// How much of the joint loss goes with one part of the layers, as a multiple of their single scores' sum: the coefficient of
/// that sum in a least-squares fit of the measured losses by the parts' sums, without intercept. 1 for perfect additivity; above
/// it, these layers lose more together with others than alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartSlope {
    /// The coefficient.
    pub slope: f64,
    /// Its standard error, if the sets' errors were equal and independent.
    pub standard_error: f64,
    /// Share of the predicted losses of all sets that these layers make up.
    pub share: f64,
}

/// The audit of one criterion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// The criterion whose scores predict.
    pub criterion: String,
    /// The criterion that was measured jointly; usually the same.
    pub against: String,
    /// Over all random sets.
    pub overall: AuditStats,
    /// By stratum.
    pub strata: BTreeMap<String, AuditStats>,
    /// By kind of layer: where the sum is wrong. Empty where there are too few sets to tell the kinds apart.
    #[serde(default)]
    pub kinds: BTreeMap<String, PartSlope>,
    /// By quarter of the forward pass, `1 of 4` (first) to `4 of 4`; empty as for the kinds.
    #[serde(default)]
    pub depths: BTreeMap<String, PartSlope>,
    /// Predicted loss of each set: the sum of its layers' scores.
    pub predicted: Vec<f64>,
    /// Measured joint loss of each set.
    pub measured: Vec<f64>,
}

/// Compares the sums of single scores with joint losses measured under the criterion `against`, which is the scores' own
/// unless the question is how well, say, magnitude predicts the output loss.
///
/// # Errors
/// [`Error::UnknownCriterion`] where `against` was not measured; [`Error::UnknownLayer`];
/// [`Error::IncompleteScores`]; [`Error::Overflow`].
pub fn audit(scores: &Scores, against: &str, sets: &[MeasuredSet]) -> Result<Audit, Error> {
    let mut predicted = Vec::with_capacity(sets.len());
    let mut measured = Vec::with_capacity(sets.len());
    for set in sets {
        let loss = set.loss(against)?;
        let sum = scores.predicted(&set.removed)?;
        if !sum.is_finite() {
            return Err(Error::Overflow { what: format!("the scores of `{}`", scores.criterion()) });
        }
        predicted.push(sum);
        measured.push(loss.mean);
    }
    Ok(Audit {
        criterion: scores.criterion().to_owned(),
        against: against.to_owned(),
        overall: overall(sets, &predicted, &measured),
        strata: strata(sets, &predicted, &measured),
        kinds: part_slopes(scores, sets, &measured, |layer| scores.table().layers()[layer].kind.clone())?,
        depths: part_slopes(scores, sets, &measured, |layer| format!("{} of {QUARTERS}", layer * QUARTERS / scores.table().len() + 1))?,
        predicted,
        measured,
    })
}

const QUARTERS: usize = 4;

/// `part` names the part to which the layer at a position belongs.
fn part_slopes(
    scores: &Scores,
    sets: &[MeasuredSet],
    measured: &[f64],
    part: impl Fn(usize) -> String,
) -> Result<BTreeMap<String, PartSlope>, Error> {
    let values = scores.values()?;
    let names: Vec<String> = (0..values.len()).map(part).collect();
    // A part that is in no set has nothing to be fitted by.
    let mut sums: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (number, set) in sets.iter().enumerate() {
        for layer in scores.table().positions(&set.removed)? {
            sums.entry(&names[layer]).or_insert_with(|| vec![0.0; sets.len()])[number] += values[layer];
        }
    }
    sums.retain(|_, column| column.iter().any(|sum| *sum != 0.0));
    let columns: Vec<Vec<f64>> = sums.values().cloned().collect();
    let total = stats::sum(columns.iter().flatten().copied());
    let share = |column: &[f64]| if total == 0.0 { 0.0 } else { stats::sum(column.iter().copied()) / total };
    let fit = stats::least_squares(&columns, measured).unwrap_or_default();
    let slope = |((name, column), (slope, standard_error)): ((&&str, &Vec<f64>), (f64, f64))| {
        ((*name).to_owned(), PartSlope { slope, standard_error, share: share(column) })
    };
    Ok(sums.iter().zip(fit).map(slope).collect())
}

/// Near-optimal sets say something else than random ones and stay apart.
fn overall(sets: &[MeasuredSet], predicted: &[f64], measured: &[f64]) -> AuditStats {
    let random = |set: &MeasuredSet| !matches!(SetSize::of_stratum(&set.stratum), Some(SetSize::NearOptimal(_)));
    let pairs = sets.iter().zip(predicted.iter().zip(measured)).filter(|(set, _)| random(set));
    let (x, y): (Vec<f64>, Vec<f64>) = pairs.map(|(_, (x, y))| (*x, *y)).unzip();
    AuditStats::new(&x, &y)
}

fn strata(sets: &[MeasuredSet], predicted: &[f64], measured: &[f64]) -> BTreeMap<String, AuditStats> {
    let mut groups: BTreeMap<&str, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for (set, (x, y)) in sets.iter().zip(predicted.iter().zip(measured)) {
        let (xs, ys) = groups.entry(&set.stratum).or_default();
        xs.push(*x);
        ys.push(*y);
    }
    groups.into_iter().map(|(name, (x, y))| (name.to_owned(), AuditStats::new(&x, &y))).collect()
}

/// The file of an audit: raw measurements and, for each criterion, what they say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditFile {
    format: String,
    version: u32,
    /// Name of the model.
    pub model: String,
    /// Fingerprint of the model.
    pub fingerprint: String,
    /// Seed of the removal sets.
    pub seed: u64,
    /// The held-out samples the joint losses were measured on.
    pub samples: Range<usize>,
    /// One entry per criterion.
    pub audits: Vec<Audit>,
    /// The raw measurements; entries of `predicted` and `measured` are in this order.
    pub sets: Vec<MeasuredSet>,
}

impl AuditFile {
    /// Puts an audit together.
    pub fn new(table: &LayerTable, seed: u64, samples: Range<usize>, audits: Vec<Audit>, sets: Vec<MeasuredSet>) -> Self {
        Self {
            format: FORMAT.name.to_owned(),
            version: FORMAT.version,
            model: table.model().to_owned(),
            fingerprint: table.fingerprint().to_owned(),
            seed,
            samples,
            audits,
            sets,
        }
    }

    /// Checks that the audit belongs to this model, that its ids exist and that its lists fit together.
    ///
    /// # Errors
    /// [`Error::OtherModel`], [`Error::UnknownLayer`], [`Error::Length`], [`Error::NotFinite`].
    pub fn check(&self, table: &LayerTable) -> Result<(), Error> {
        table.check_fingerprint(&self.model, &self.fingerprint)?;
        for id in self.sets.iter().flat_map(|set| &set.removed) {
            table.require(id)?;
        }
        for audit in &self.audits {
            for (name, values) in [("predicted", &audit.predicted), ("measured", &audit.measured)] {
                if values.len() != self.sets.len() {
                    return Err(Error::Length {
                        what: format!("{name} of `{}`", audit.criterion),
                        expected: self.sets.len(),
                        got: values.len(),
                    });
                }
                if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
                    return Err(Error::NotFinite { what: format!("{name} of `{}`", audit.criterion), got: bad.to_string() });
                }
            }
        }
        Ok(())
    }

    /// The file as text.
    ///
    /// # Errors
    /// [`Error::Serialize`].
    pub fn to_json(&self) -> Result<String, Error> {
        file::to_json(self)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Serialize`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        file::write_json(path, self)
    }

    /// Reads the text of an audit and checks it against its model.
    ///
    /// # Errors
    /// [`Error::Parse`], [`Error::WrongFormat`], [`Error::WrongVersion`], and those of [`AuditFile::check`].
    pub fn from_json(text: &[u8], table: &LayerTable) -> Result<Self, Error> {
        let mut audit: Self = file::parse(text, FORMAT)?;
        (audit.format, audit.version) = (FORMAT.name.to_owned(), FORMAT.version);
        audit.check(table)?;
        Ok(audit)
    }

    /// Reads an audit and checks it against its model.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::InFile`] around those of [`AuditFile::from_json`].
    pub fn read(path: &Path, table: &LayerTable) -> Result<Self, Error> {
        file::read(path, |text| Self::from_json(text, table))
    }
}
