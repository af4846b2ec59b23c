//! What can go wrong, as data. Every variant says which key is meant, what was expected and what was found; the messages
//! end with what to do next where that is not obvious.

use std::path::PathBuf;

use crate::layer::{Cost, LayerId};

/// Any failure of this crate other than the model's own (see [`AblateError`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A table without layers.
    #[error("model `{model}` has no removable layer")]
    EmptyTable {
        /// Name of the model.
        model: String,
    },
    /// A name that must not be empty is empty.
    #[error("`{key}` is empty; give it a value")]
    EmptyName {
        /// Which field.
        key: String,
    },
    /// Two layers, two shared costs or two rows of scores have one id.
    #[error("id `{id}` appears twice in `{key}`")]
    DuplicateId {
        /// Which list.
        key: String,
        /// The id.
        id: LayerId,
    },
    /// A layer that costs nothing at all, or a shared cost without members.
    #[error("`{id}` removes nothing: {problem}")]
    NothingToRemove {
        /// The layer or shared cost.
        id: LayerId,
        /// Which cost is zero or which list is empty.
        problem: &'static str,
    },
    /// A layer is a member of two shared costs; shared costs must be disjoint.
    #[error("layer `{member}` is a member of two shared_costs, `{first}` and `{second}`; shared_costs must be disjoint")]
    SharedMember {
        /// The layer.
        member: LayerId,
        /// The first shared cost that names it.
        first: LayerId,
        /// The second one.
        second: LayerId,
    },
    /// A sum does not fit its type.
    #[error("the sum of {what} is too large to be represented")]
    Overflow {
        /// What was summed.
        what: String,
    },
    /// The layers cost more than the whole model is said to.
    #[error("the removable layers hold {got} {cost}, more than the whole model's {expected}")]
    TotalTooSmall {
        /// Which cost.
        cost: Cost,
        /// The stated total.
        expected: u64,
        /// The sum over layers and shared costs.
        got: u64,
    },
    /// An id that the table does not have.
    #[error("unknown layer `{id}`{}", hint(.nearest))]
    UnknownLayer {
        /// The id asked for.
        id: LayerId,
        /// The most similar id of the table, where one is similar.
        nearest: Option<LayerId>,
    },
    /// A plan that does not meet the limits or constraints under which it is to be refined.
    #[error("plan `{method}` cannot be refined: {problem}; start from a plan for the same limits and constraints")]
    UnfitStart {
        /// The plan's method.
        method: String,
        /// What it does not meet.
        problem: String,
    },
    /// A score, loss or statistic is NaN or infinite.
    #[error("{what} is {got}, not a finite number")]
    NotFinite {
        /// Which number.
        what: String,
        /// The value as text.
        got: String,
    },
    /// A list has the wrong length.
    #[error("{what}: expected {expected} values, got {got}")]
    Length {
        /// Which list.
        what: String,
        /// Expected length.
        expected: usize,
        /// Found length.
        got: usize,
    },
    /// A range of samples that the model does not have, or an empty one.
    #[error("samples {start}..{end} asked for, but the model has {available}; give a non-empty range inside")]
    SampleRange {
        /// First sample.
        start: usize,
        /// One past the last sample.
        end: usize,
        /// Number of samples of the model.
        available: usize,
    },
    /// A setting is outside its range.
    #[error("`{key}` is {got}; expected {expected}")]
    OutOfRange {
        /// Name of the setting.
        key: &'static str,
        /// What is allowed.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A criterion that nobody measured.
    #[error("criterion `{got}` was not measured; there are: {expected}")]
    UnknownCriterion {
        /// The criteria that exist, separated by commas.
        expected: String,
        /// The one asked for.
        got: String,
    },
    /// Some layers have no score yet.
    #[error("criterion `{criterion}` has scores for {got} of {expected} layers, none for `{first_missing}`; finish scoring")]
    IncompleteScores {
        /// The criterion.
        criterion: String,
        /// Number of layers of the table.
        expected: usize,
        /// Number of layers with a score.
        got: usize,
        /// The first layer without.
        first_missing: LayerId,
    },
    /// The range of the scores is too wide to add them exactly.
    #[error("score {small} of `{small_layer}` vanishes beside {large} of `{large_layer}`; pin layers by constraints, not by huge scores")]
    ScoreSpread {
        /// The layer whose score would vanish.
        small_layer: LayerId,
        /// Its score.
        small: f64,
        /// The layer with the largest score.
        large_layer: LayerId,
        /// Its score.
        large: f64,
    },
    /// One layer is both pinned and forced out.
    #[error("layer `{id}` is asked to be both kept and removed")]
    Contradiction {
        /// The layer.
        id: LayerId,
    },
    /// No set of layers meets the budget.
    #[error(
        "the budget asks for {needed} {cost} to go, but at most {available} can (ratio {largest_ratio:.4}); ask for less or pin fewer layers"
    )]
    Infeasible {
        /// What the budget counts.
        cost: Cost,
        /// What must go.
        needed: u64,
        /// The most that can go under the constraints.
        available: u64,
        /// `available` over the cost of the whole model.
        largest_ratio: f64,
    },
    /// No set of layers meets all limits.
    #[error("no set of layers meets the limits ({limits}): {reason}; loosen one, or pin fewer layers")]
    LimitsInfeasible {
        /// The limits.
        limits: String,
        /// What stands against them.
        reason: String,
    },
    /// The search ended at its number of nodes before it found a set that meets the limits, which there may be.
    #[error("no set that meets the limits was found in {nodes} nodes; allow more nodes, or loosen a limit")]
    NoneFound {
        /// Nodes looked at.
        nodes: u64,
    },
    /// A limit on a resource that the problem does not have.
    #[error("there is no resource `{got}`; there are: {expected}")]
    UnknownResource {
        /// The resources that exist, separated by commas.
        expected: String,
        /// The one asked for.
        got: String,
    },
    /// A front over one resource was asked for a budget over another.
    #[error("this front counts {expected}, the budget counts {got}; build a front for {got}")]
    OtherCost {
        /// The front's resource.
        expected: String,
        /// The budget's cost.
        got: Cost,
    },
    /// A file was made for another model.
    #[error("made for model `{got_model}` ({got}), not for `{expected_model}` ({expected}); make it again for this model")]
    OtherModel {
        /// Fingerprint of the model at hand.
        expected: String,
        /// Its name.
        expected_model: String,
        /// Fingerprint in the file.
        got: String,
        /// Model name in the file.
        got_model: String,
    },
    /// The same weights, but another list of layers: made at another granularity.
    #[error("the layers differ from this model's at {key}: expected {expected}, got {got}; was another granularity used?")]
    OtherLayers {
        /// Where the tables differ first.
        key: String,
        /// What this model's table says.
        expected: String,
        /// What the other one says.
        got: String,
    },
    /// A plan removes less than the budget it is said to meet.
    #[error("plan `{method}` removes {removed} {cost}, but the budget asks for {needed}")]
    BudgetMissed {
        /// The plan's method.
        method: String,
        /// What the budget counts.
        cost: Cost,
        /// What the budget asks for.
        needed: u64,
        /// What the plan removes.
        removed: u64,
    },
    /// Earlier results do not belong to the run that wants to go on with them.
    #[error("cannot go on from earlier results: `{key}` was {got}, is now {expected}; start afresh or restore the setting")]
    ResumeMismatch {
        /// Which setting differs.
        key: String,
        /// The value of this run.
        expected: String,
        /// The value of the earlier results.
        got: String,
    },
    /// A layer without samples in a bin that was given a weight.
    #[error("`{id}` has no samples in bin {bin}, so the bin cannot be weighted; measure more samples")]
    EmptyBin {
        /// The layer.
        id: LayerId,
        /// The bin.
        bin: u32,
    },
    /// Shards that were not made by one run.
    #[error("the shards are not of one run: `{key}` is {first} in the first, {other} in another")]
    ShardsDiffer {
        /// What differs.
        key: String,
        /// The value in the first shard.
        first: String,
        /// The value in another one.
        other: String,
    },
    /// Two shards hold the same sample of a layer.
    #[error("two shards hold sample {sample} of `{id}`; give each shard once")]
    ShardsOverlap {
        /// The layer.
        id: LayerId,
        /// The sample.
        sample: usize,
    },
    /// No shard holds some samples of a layer.
    #[error("no shard holds the samples {start}..{end} of `{id}`; finish and give all shards")]
    ShardMissing {
        /// The layer.
        id: LayerId,
        /// The first sample that is missing.
        start: usize,
        /// One past the last of them.
        end: usize,
    },
    /// Two statements of one file contradict each other.
    #[error("`{key}` is {got}, but follows from the rest as {expected}; the file was edited or damaged")]
    Inconsistent {
        /// Which field.
        key: String,
        /// The recomputed value.
        expected: String,
        /// The value found.
        got: String,
    },
    /// The text is not JSON or lacks a field.
    #[error("not a valid `{format}` document: {problem}")]
    Parse {
        /// The format that was to be read.
        format: String,
        /// The parser's message with line and column.
        problem: String,
    },
    /// The file is of another format.
    #[error("`format` is `{got}`; expected `{expected}`")]
    WrongFormat {
        /// The format that was to be read.
        expected: String,
        /// The format found.
        got: String,
    },
    /// The file is of another version of its format.
    #[error("`version` of `{format}` is {got}; this program reads version {expected}")]
    WrongVersion {
        /// The format.
        format: String,
        /// The version that can be read.
        expected: u32,
        /// The version found.
        got: u64,
    },
    /// A value could not be written as JSON.
    #[error("cannot be written as json: {problem}")]
    Serialize {
        /// The serializer's message.
        problem: String,
    },
    /// The file system said no.
    #[error("cannot {action} {}: {problem}", path.display())]
    Io {
        /// What was tried: `read`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's message.
        #[source]
        problem: std::io::Error,
    },
    /// Any of the above, found in a file.
    #[error("{}: {problem}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: Box<Error>,
    },
    /// The progress callback asked to stop; what was done so far has been handed to it.
    #[error("stopped on request")]
    Stopped,
}

fn hint(nearest: &Option<LayerId>) -> String {
    match nearest {
        Some(id) => format!("; did you mean `{id}`?"),
        None => String::new(),
    }
}

impl Error {
    /// The same error with the file it was found in.
    pub fn in_file(self, path: &std::path::Path) -> Self {
        Error::InFile { path: path.to_path_buf(), problem: Box::new(self) }
    }
}

/// Failure of a run that drives a model: the model's own error, or one of this crate.
#[derive(Debug, thiserror::Error)]
pub enum AblateError<E: std::error::Error + 'static> {
    /// The model could not be evaluated.
    #[error("the model failed with {removed} removed")]
    Model {
        /// What was removed: a layer id, or a count.
        removed: String,
        /// The model's error.
        #[source]
        source: E,
    },
    /// Anything else.
    #[error(transparent)]
    Core(#[from] Error),
}
