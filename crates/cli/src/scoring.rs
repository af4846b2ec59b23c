//! What the commands that measure layers share: the calibration points, what score files record of them, progress, and errors with advice.

use std::collections::BTreeMap;
use std::path::Path;

use data::CalibrationSet;
use prune_core::audit::{DrawnSet, MeasureOptions, MeasuredSet};
use prune_core::score::AblateError;
use serde_json::{Value, json};
use tch::{Device, Kind};
use unet::Compute;
use unet::scoring::{OUTPUT_LOSS, POINTS, PartialSets, ScoringEvent, TASK_LOSS_DELTA, measure_saved};

use crate::common::{BadInput, Interrupted, stop_flag, stopped};
use crate::progress::Bars;

/// A calibration set, and how much of it is used.
pub struct Points {
    /// The set.
    pub set: CalibrationSet,
    /// Points used, from the first on.
    pub used: usize,
    /// SHA-256 of the file.
    pub sha256: String,
}

impl Points {
    /// Opens a set; all points, unless fewer are asked for.
    ///
    /// # Errors
    /// [`BadInput`] for none, or more than there are.
    pub fn open(path: &Path, asked: Option<usize>) -> anyhow::Result<Self> {
        let set = CalibrationSet::open(path)?;
        let used = asked.unwrap_or(set.len());
        if !(1..=set.len()).contains(&used) {
            return Err(BadInput(format!("--samples {used}: expected 1 to {}, the points of the calibration set", set.len())).into());
        }
        Ok(Self { used, sha256: artifact::file_sha256(path)?, set })
    }

    /// The criteria that a forward pass gives on these points.
    pub fn criteria(&self) -> &'static [&'static str] {
        if self.set.target.is_some() { &[OUTPUT_LOSS, TASK_LOSS_DELTA] } else { &[OUTPUT_LOSS] }
    }

    /// What score files record of them.
    pub fn settings(&self, device: Device, compute: Kind) -> BTreeMap<String, Value> {
        let settings = [
            ("calibration_sha256", json!(self.sha256)),
            ("calibration_source", json!(self.set.source.name())),
            ("compute", json!(Compute::of(compute).recorded(device))),
            (POINTS, json!(self.used)),
            ("timestep_bins", json!(self.set.num_bins)),
        ];
        settings.map(|(key, value)| (key.to_string(), value)).into()
    }

    /// What tells a run over these points from others.
    pub fn identity(&self) -> String {
        format!("{} {}", self.sha256, self.used)
    }
}

/// Runs something that tells its progress, with a bar for each part of it; a signal ends it.
///
/// # Errors
/// Those of `work`.
pub fn with_progress<T, E: From<prune_core::Error>>(
    work: impl FnOnce(&mut dyn FnMut(ScoringEvent<'_>) -> Result<(), E>) -> Result<T, E>,
) -> anyhow::Result<Result<T, E>> {
    let (stop, mut bars) = (stop_flag()?, Bars::default());
    Ok(work(&mut |event| {
        match event {
            ScoringEvent::Progress { what, done, all } => bars.show(what, done, all),
            ScoringEvent::Batch => {}
            ScoringEvent::Decided(_) => bars.clear(),
        }
        if stopped(&stop) { Err(prune_core::Error::Stopped.into()) } else { Ok(()) }
    }))
}

/// What sets of layers lose together; an interrupted run goes on from a file beside the result.
///
/// # Errors
/// Those of the model, and [`Interrupted`].
pub fn measure<M: prune_core::Ablate>(
    model: &mut M,
    what: &str,
    sets: &[DrawnSet],
    options: &MeasureOptions,
    partial: &PartialSets,
) -> anyhow::Result<Vec<MeasuredSet>> {
    with_progress(|on_event| measure_saved(model, what, sets, options, partial, on_event))?.map_err(explain)
}

/// The error of a run over a model, with the model's own error or this program's outcome as its cause.
pub fn explain<E: std::error::Error + Send + Sync + 'static>(error: AblateError<E>) -> anyhow::Error {
    match error {
        AblateError::Core(prune_core::Error::Stopped) => Interrupted("stopped; run the same command to go on".into()).into(),
        AblateError::Core(e) => e.into(),
        AblateError::Model { removed, source } => anyhow::Error::new(source).context(format!("with {removed} removed")),
    }
}

/// Says what to do about an earlier result that does not fit, and about a run that was stopped; other errors stay as they are.
pub fn advise(error: anyhow::Error, out: &Path) -> anyhow::Error {
    match error.chain().find_map(core_error) {
        Some(e @ prune_core::Error::ResumeMismatch { .. }) => {
            BadInput(format!("{e}, delete {} or choose another --out", out.display())).into()
        }
        Some(prune_core::Error::Stopped) => Interrupted("stopped; run the same command to go on".into()).into(),
        _ => error,
    }
}

/// The search's own error, also inside those that pass its words on as theirs and so do not name it as their cause.
fn core_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a prune_core::Error> {
    if let Some(AblateError::Core(e)) = cause.downcast_ref::<AblateError<unet::Error>>() {
        return Some(e);
    }
    if let Some(unet::Error::Core(e)) = cause.downcast_ref::<unet::Error>() {
        return Some(e);
    }
    cause.downcast_ref()
}
