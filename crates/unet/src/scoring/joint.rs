//! What sets of layers lose together, measured and kept as it goes. Removal sets -> **joint losses** -> audits, plans, report.

use std::path::{Path, PathBuf};

use prune_core::audit::{DrawnSet, MeasureEvent, MeasureOptions, MeasuredSet, measure_sets_with};
use prune_core::score::AblateError;
use prune_core::{Ablate, Plan};

use super::run::ScoringEvent;
use crate::documents::{JointRow, plan_name};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::source::ModelSource;

/// Measured sets of an unfinished run, in a hidden file beside the result.
#[derive(Debug)]
pub struct PartialSets {
    path: PathBuf,
}

impl PartialSets {
    /// The file for `what` of a run that `identity` tells apart from others.
    pub fn beside(out: &Path, what: &str, identity: &str) -> Self {
        let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let short: String = artifact::sha256(identity).chars().take(12).collect();
        Self { path: out.with_file_name(format!(".{name}.{what}.{short}.partial")) }
    }

    /// What an earlier run measured of these sets. A file that cannot be read counts as none: it is only a saving.
    fn read(&self, drawn: &[DrawnSet], criteria: &[String]) -> Vec<MeasuredSet> {
        let text = std::fs::read(&self.path).unwrap_or_default();
        let earlier: Vec<MeasuredSet> = serde_json::from_slice(&text).unwrap_or_default();
        let fits = |(drawn, earlier): (&DrawnSet, &MeasuredSet)| {
            drawn.removed == earlier.removed && drawn.stratum == earlier.stratum && criteria.iter().all(|c| earlier.losses.contains_key(c))
        };
        let known = drawn.iter().zip(&earlier).take_while(|pair| fits(*pair)).count();
        earlier.into_iter().take(known).collect()
    }

    /// Removes the file, if it is there.
    pub fn remove(&self) {
        // Left behind it would do no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Measures sets; saved after each, so that a stopped run goes on. `what` names the work for the callback.
///
/// # Errors
/// Those of [`measure_sets_with`], and what the callback returns.
pub fn measure_saved<M: Ablate, E>(
    model: &mut M,
    what: &str,
    sets: &[DrawnSet],
    options: &MeasureOptions,
    partial: &PartialSets,
    on_event: &mut dyn FnMut(ScoringEvent<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<Vec<MeasuredSet>, E>
where
    E: From<prune_core::Error> + From<AblateError<M::Error>>,
{
    let earlier = partial.read(sets, &model.criteria());
    measure_sets_with(model, sets, options, earlier, |event| match event {
        MeasureEvent::Batch { .. } => on_event(ScoringEvent::Batch),
        MeasureEvent::Set { sets, measured } => {
            prune_core::file::write_json(&partial.path, measured)?;
            on_event(ScoringEvent::Progress { what, done: sets.0 as u64, all: sets.1 as u64 })
        }
        _ => Ok(()),
    })
}

/// Plans whose true joint losses are to be measured, by name.
#[derive(Debug)]
pub struct NamedPlans(Vec<(String, String, Plan)>);

impl NamedPlans {
    /// Reads plans of a model; each is named by its file.
    ///
    /// # Errors
    /// [`Error::Name`] for two files of one name; as [`ModelSource::plan`].
    pub fn open(model: &ModelSource, paths: &[PathBuf]) -> Result<Self> {
        let mut plans: Vec<(String, String, Plan)> = Vec::new();
        for path in paths {
            let name = plan_name(path);
            if plans.iter().any(|(other, ..)| *other == name) {
                return Err(Error::Name { name: format!("{name}.json"), reason: "two plans have this name; rename one".into() });
            }
            plans.push((name, artifact::file_sha256(path)?, model.plan(path)?));
        }
        Ok(Self(plans))
    }

    /// What each removes, branch by branch whatever its granularity.
    ///
    /// # Errors
    /// [`Error::Layer`] for a plan of another architecture.
    pub fn sets(&self, layout: &Layout) -> Result<Vec<DrawnSet>> {
        let set =
            |(name, _, plan): &(String, String, Plan)| Ok(DrawnSet { stratum: name.clone(), removed: layout.expand(&plan.removal_set())? });
        self.0.iter().map(set).collect()
    }

    /// The rows of `joint.json`, from the measured sets in the same order.
    pub fn rows(&self, measured: Vec<MeasuredSet>) -> Vec<JointRow> {
        let row = |((name, sha256, plan), set): (&(String, String, Plan), MeasuredSet)| JointRow {
            plan: name.clone(),
            plan_sha256: sha256.clone(),
            params_ratio: plan.params_ratio,
            criterion: plan.criterion.clone(),
            predicted: plan.predicted,
            losses: set.losses,
        };
        self.0.iter().zip(measured).map(row).collect()
    }
}
