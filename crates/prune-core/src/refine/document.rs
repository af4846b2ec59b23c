//! `refine.json`: what a refinement measured, step by step, and what came of it. An unfinished one can be resumed.

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::audit::JointLoss;
use crate::error::Error;
use crate::file::{self, Format};
use crate::layer::RemovalSet;
use crate::ledger::{Record, SetLoss, same_run};
use crate::refine::{RefineMethod, RefineOptions};
use crate::table::LayerTable;

const FORMAT: Format =
    Format { name: "prune-core/refinement", version: 3, older: &[("prune-core/refinement", 2), ("laptop-diff/refinement", 1)] };

/// The course of a refinement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RefineRecord {
    format: String,
    version: u32,
    /// Name of the model.
    pub model: String,
    /// Fingerprint of the model.
    pub fingerprint: String,
    /// The criterion that was to become small.
    pub criterion: String,
    /// How it was searched.
    pub method: RefineMethod,
    /// The samples of the search.
    pub samples: Range<usize>,
    /// The samples that the search did not see.
    pub held_out: Range<usize>,
    /// Samples on which many sets were compared first.
    pub first_samples: usize,
    /// Evaluations allowed.
    pub max_forwards: u64,
    /// Seed of the evolution.
    pub seed: u64,
    /// The set of the plan that was refined.
    pub start: RemovalSet,
    /// Evaluations done: samples times sets.
    pub forwards: u64,
    /// The better sets in the order in which they were found.
    pub steps: Vec<RefineStep>,
    /// What came of it; absent from an unfinished run.
    pub outcome: Option<RefineOutcome>,
    /// All measurements of the search.
    pub measured: Vec<SetLoss>,
}

/// A set that was better than all before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefineStep {
    /// Evaluations done when it was found.
    pub forwards: u64,
    /// Its mean loss on all samples of the search.
    pub loss: f64,
    /// The set.
    pub removed: RemovalSet,
}

/// The result of a refinement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefineOutcome {
    /// The chosen set; the start where nothing better stood on the samples that decide.
    pub removed: RemovalSet,
    /// Joint loss of the start on the samples of the search.
    pub start_search: JointLoss,
    /// Joint loss of the chosen set on the samples of the search.
    pub search: JointLoss,
    /// What decided; absent from older files, in which all held-out samples decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Joint loss of the start on the held-out samples that decided nothing.
    pub start_held_out: JointLoss,
    /// Joint loss of the chosen set on the held-out samples that decided nothing: no choice has made it look smaller than it is.
    pub held_out: JointLoss,
    /// The chosen set's loss less the start's, sample by sample on these: what both have in common does not count into its
    /// standard error. Absent from older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out_change: Option<JointLoss>,
}

/// The comparison that chose the result of a refinement: the start and the best sets of the search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// The held-out samples that decided; the others are those of the report.
    pub samples: Range<usize>,
    /// Joint loss of the start on them.
    pub start: JointLoss,
    /// Joint loss of the chosen set on them; never above the start's, and optimistic, being the least of a few.
    pub chosen: JointLoss,
}

impl Record for RefineRecord {
    fn enter(&mut self, forwards: u64, measured: Vec<SetLoss>) {
        (self.forwards, self.measured) = (forwards, measured);
    }

    fn note(&mut self, loss: f64, set: &RemovalSet) {
        self.steps.push(RefineStep { forwards: self.forwards, loss, removed: set.clone() });
    }
}

impl RefineRecord {
    pub(super) fn new(table: &LayerTable, options: &RefineOptions<'_>, start: RemovalSet) -> Self {
        Self {
            format: FORMAT.name.to_owned(),
            version: FORMAT.version,
            model: table.model().to_owned(),
            fingerprint: table.fingerprint().to_owned(),
            criterion: options.criterion.clone(),
            method: options.method,
            samples: options.samples.clone(),
            held_out: options.held_out.clone(),
            first_samples: options.first_samples,
            max_forwards: options.max_forwards,
            seed: options.seed,
            start,
            forwards: 0,
            steps: Vec::new(),
            outcome: None,
            measured: Vec::new(),
        }
    }

    /// The measurements, if they belong to the run that `now` opens. More evaluations may be allowed than before.
    pub(super) fn checked_for(self, now: &Self, table: &LayerTable) -> Result<Vec<SetLoss>, Error> {
        self.check(table)?;
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        let fields = [
            ("criterion", text(&now.criterion), text(&self.criterion)),
            ("method", text(&now.method), text(&self.method)),
            ("samples", text(&now.samples), text(&self.samples)),
            ("held_out", text(&now.held_out), text(&self.held_out)),
            ("first_samples", text(&now.first_samples), text(&self.first_samples)),
            ("seed", text(&now.seed), text(&self.seed)),
            ("start", text(&now.start), text(&self.start)),
        ];
        same_run(&fields, self.measured)
    }

    /// Checks that the record belongs to this model, that its ids exist and its numbers are finite.
    ///
    /// # Errors
    /// [`Error::OtherModel`], [`Error::UnknownLayer`], [`Error::NotFinite`], [`Error::Length`] (more losses than samples).
    pub fn check(&self, table: &LayerTable) -> Result<(), Error> {
        table.check_fingerprint(&self.model, &self.fingerprint)?;
        let sets = self.measured.iter().map(|set| &set.removed).chain(self.steps.iter().map(|step| &step.removed));
        for id in sets.chain([&self.start]).chain(self.outcome.iter().map(|outcome| &outcome.removed)).flatten() {
            table.require(id)?;
        }
        SetLoss::check(&self.measured, self.samples.len())
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

    /// Reads the text of a refinement and checks it against its model.
    ///
    /// # Errors
    /// [`Error::Parse`], [`Error::WrongFormat`], [`Error::WrongVersion`], and those of [`RefineRecord::check`].
    pub fn from_json(text: &[u8], table: &LayerTable) -> Result<Self, Error> {
        let mut record: Self = file::parse(text, FORMAT)?;
        (record.format, record.version) = (FORMAT.name.to_owned(), FORMAT.version);
        record.check(table)?;
        Ok(record)
    }

    /// Reads a refinement and checks it against its model.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::InFile`] around those of [`RefineRecord::from_json`].
    pub fn read(path: &Path, table: &LayerTable) -> Result<Self, Error> {
        file::read(path, |text| Self::from_json(text, table))
    }
}
