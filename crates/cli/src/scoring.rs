//! What the commands that measure layers share: the calibration points, what score files record of them, progress, and errors with advice.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::TypedValueParser;
use data::CalibrationSet;
use prune_core::audit::{DrawnSet, MeasureOptions, MeasuredSet};
use prune_core::score::AblateError;
use prune_core::search::SearchOptions;
use prune_core::{Constraints, Problem, Scores};
use serde_json::{Value, json};
use tch::{Device, Kind};
use unet::scoring::{CRITERIA, Criterion, OUTPUT_LOSS, POINTS, PartialSets, ScoringEvent, TASK_LOSS_DELTA, measure_saved};
use unet::{Compute, ModelSource, ResourceFile, UNet};

use crate::common::{BadInput, Interrupted, prepare_file, stop_flag, stopped};
use crate::device::{DeviceArgs, DeviceDtype};
use crate::model::ModelArg;
use crate::one_of::one_of;
use crate::progress::Bars;
use crate::sampling::positive;

/// What every command that measures sets of layers is given.
#[derive(Debug, clap::Args)]
pub struct MeasureArgs {
    /// The model: a directory in diffusers' layout, its unet/ folder or a single file.
    #[arg(long)]
    pub model: ModelArg,
    /// Calibration set (written by `calibrate`).
    #[arg(long)]
    pub calibration: PathBuf,
    /// Points per U-Net call.
    #[arg(long, default_value_t = 16, value_parser = positive)]
    pub batch: usize,
    #[command(flatten)]
    pub place: DeviceArgs,
    /// The file to write; an interrupted run goes on from what lies beside it.
    #[arg(long)]
    pub out: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

impl MeasureArgs {
    /// The model, once the output is known to be writable.
    pub fn open(&self) -> anyhow::Result<ModelSource> {
        prepare_file(&self.out)?;
        self.model.open()
    }

    /// The network on its device.
    pub fn unet(&self, model: &ModelSource) -> anyhow::Result<UNet> {
        let DeviceDtype { device, kind } = self.place.open_to_compare()?;
        Ok(UNet::open(model.unet(), device, kind)?)
    }
}

/// What a search on joint losses is given beside.
#[derive(Debug, clap::Args)]
pub struct SearchArgs {
    /// Scores of the layers (written by `score`); they tell which plans and changes are worth a look.
    #[arg(long)]
    pub scores: PathBuf,
    /// Points of the calibration set that are held out, its last ones [default: half of them].
    #[arg(long)]
    held_out: Option<usize>,
    /// What is to become small.
    #[arg(long, value_parser = criterion(), default_value = OUTPUT_LOSS)]
    pub criterion: &'static Criterion,
    /// Points on which many sets are compared first; then twice as many, and so on.
    #[arg(long, default_value_t = 16)]
    pub first_samples: usize,
    /// Evaluations allowed: points times sets. Shared beginnings make each cheaper than a forward pass.
    #[arg(long, default_value_t = 20_000)]
    pub max_forwards: u64,
    /// Seconds after which the best so far is given.
    #[arg(long, value_name = "SECONDS")]
    time_limit: Option<u64>,
    /// Further costs of the layers (written by `profile-layers`); may be repeated.
    #[arg(long = "resource", value_name = "FILE")]
    resources: Vec<PathBuf>,
    /// Seed of the evolution.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

fn criterion() -> impl TypedValueParser<Value = &'static Criterion> {
    let measured = CRITERIA.iter().filter(|criterion| [OUTPUT_LOSS, TASK_LOSS_DELTA].contains(&criterion.id));
    one_of(measured.map(|criterion| (criterion, criterion.id, criterion.meaning)), &[])
}

impl SearchArgs {
    /// What is chosen from.
    pub fn problem<'a>(&self, scores: &'a Scores, constraints: &Constraints) -> anyhow::Result<Problem<'a>> {
        let problem = Problem::new(scores, constraints)?;
        self.resources
            .iter()
            .try_fold(problem, |problem, path| Ok(problem.with_resource(&ResourceFile::read_for(path, scores.table())?.resource())?))
    }

    /// The points that the search uses, and those that are held out.
    pub fn halves(&self, points: usize) -> anyhow::Result<(Range<usize>, Range<usize>)> {
        let held_out = self.held_out.unwrap_or(points / 2);
        if held_out == 0 || held_out >= points {
            let expected = format!("expected 1 to {}, fewer than the calibration set's points", points - 1);
            return Err(BadInput(format!("--held-out {held_out}: {expected}")).into());
        }
        Ok((0..points - held_out, points - held_out..points))
    }

    /// How long it may take.
    pub fn limits(&self) -> SearchOptions<'static> {
        self.time_limit.into_iter().map(Duration::from_secs).fold(SearchOptions::new(), SearchOptions::time_limit)
    }
}

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
        AblateError::Core(prune_core::Error::Stopped) => interrupted(),
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
        Some(prune_core::Error::Stopped) => interrupted(),
        _ => error,
    }
}

fn interrupted() -> anyhow::Error {
    Interrupted("stopped; run the same command to go on".into()).into()
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
