//! What sets of layers lose together, measured and kept as it goes. Removal sets -> **joint losses** -> audits, plans, report.

use std::path::{Path, PathBuf};

use prune_core::Ablate;
use prune_core::audit::{DrawnSet, MeasureEvent, MeasureOptions, MeasuredSet, measure_sets_with};
use prune_core::score::AblateError;

use super::run::ScoringEvent;

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
    on_event: &mut dyn FnMut(ScoringEvent<'_>) -> Result<(), E>,
) -> Result<Vec<MeasuredSet>, E>
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
    })
}
