//! A U-Net on a calibration set, as scores, audits and joint losses want to see it. Model and calibration set -> scores.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use data::CalibrationSet;
use prune_core::{Ablate, AblateError, Gaps, LayerTable, RemovalSet};
use unet::{Calibration, UNet, UNetAblate, UNetPasses};

use crate::common::{BadInput, Interrupted, stopped};

/// `c_i = E || eps(r_i) - eps_ori ||^2` with only layer i removed: the paper's criterion (arXiv 2404.11098).
pub const OUTPUT_LOSS: &str = "output_loss";
/// Change of the task loss, `E || eps(r_i) - target ||^2 - E || eps_ori - target ||^2`; may be negative.
pub const TASK_LOSS_DELTA: &str = "task_loss_delta";

/// Memory for inner states of the U-Net, from which passes with other layers removed go on.
const CACHE_BYTES: u64 = 2 << 30;

/// The samples of a calibration set, as the U-Net crate takes them.
///
/// # Errors
/// When the file's parts do not fit each other.
pub fn samples(set: &CalibrationSet) -> anyhow::Result<Calibration> {
    let bins = Vec::<i64>::try_from(&set.bins)?.into_iter().map(|b| b as u32).collect();
    // Without targets no criterion that needs them is let through.
    let target = set.target.as_ref().unwrap_or(&set.x_t).shallow_clone();
    Ok(Calibration::new(set.x_t.shallow_clone(), set.timesteps.shallow_clone(), set.cond.shallow_clone(), target, bins)?)
}

/// Some of the criteria that one forward pass with layers removed gives.
#[derive(Debug)]
pub struct ForwardGaps<'a> {
    inner: UNetAblate<'a>,
    criteria: Vec<String>,
    columns: Vec<usize>,
}

impl<'a> ForwardGaps<'a> {
    /// Measures `criteria`, of [`OUTPUT_LOSS`] and [`TASK_LOSS_DELTA`], on the samples of `set`.
    ///
    /// # Errors
    /// [`diffusion::Error::Input`] where targets are needed and the set has none; a set that does not fit the U-Net.
    pub fn new(unet: &'a UNet, set: &CalibrationSet, table: &LayerTable, criteria: &[&str]) -> anyhow::Result<Self> {
        if set.target.is_none() && criteria.contains(&TASK_LOSS_DELTA) {
            return Err(diffusion::Error::Input {
                name: "criterion".into(),
                expected: "one that needs no targets, since this calibration set was made from prompts alone".into(),
                got: TASK_LOSS_DELTA.into(),
            }
            .into());
        }
        let inner = UNetPasses::new(unet, table.clone(), samples(set)?)?.ablate(CACHE_BYTES)?;
        let column = |name: &&str| inner.criteria().iter().position(|c| c == name);
        let columns = criteria.iter().filter_map(column).collect();
        Ok(Self { inner, criteria: criteria.iter().map(|c| c.to_string()).collect(), columns })
    }

    /// The criteria that a set allows.
    pub fn possible(set: &CalibrationSet) -> &'static [&'static str] {
        if set.target.is_some() { &[OUTPUT_LOSS, TASK_LOSS_DELTA] } else { &[OUTPUT_LOSS] }
    }
}

impl Ablate for ForwardGaps<'_> {
    type Error = unet::Error;

    fn table(&self) -> &LayerTable {
        self.inner.table()
    }

    fn criteria(&self) -> &[String] {
        &self.criteria
    }

    fn num_samples(&self) -> usize {
        self.inner.num_samples()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        self.inner.sample_bin(index)
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> unet::Result<Gaps> {
        let gaps = self.inner.evaluate(removed, samples)?;
        self.selected(&gaps)
    }

    fn evaluate_many(&mut self, removed: &[RemovalSet], samples: Range<usize>) -> unet::Result<Vec<Gaps>> {
        let all = self.inner.evaluate_many(removed, samples)?;
        all.iter().map(|gaps| self.selected(gaps)).collect()
    }

    fn sets_at_once(&self) -> usize {
        self.inner.sets_at_once()
    }
}

impl ForwardGaps<'_> {
    /// Whole forward passes of one sample that the work so far amounts to.
    pub fn forwards(&self) -> f64 {
        self.inner.forwards()
    }

    /// The wanted columns.
    fn selected(&self, all: &Gaps) -> unet::Result<Gaps> {
        let values = (0..all.samples()).flat_map(|row| self.columns.iter().map(|c| all.row(row)[*c]).collect::<Vec<_>>()).collect();
        Ok(Gaps::new(self.columns.len(), values)?)
    }
}

/// Ends a run from inside a progress callback when a signal has come.
///
/// # Errors
/// [`prune_core::Error::Stopped`] then.
pub fn check_stop(stop: &AtomicBool) -> Result<(), prune_core::Error> {
    if stopped(stop) { Err(prune_core::Error::Stopped) } else { Ok(()) }
}

/// The error of a run over a model, with the model's own error or this program's outcome as its cause.
pub fn explain<E: std::error::Error + Send + Sync + 'static>(error: AblateError<E>) -> anyhow::Error {
    match error {
        AblateError::Core(prune_core::Error::Stopped) => Interrupted("stopped; run the same command to go on".into()).into(),
        AblateError::Core(e) => e.into(),
        AblateError::Model { removed, source } => anyhow::Error::new(source).context(format!("with {removed} removed")),
    }
}

/// Says what to do about an earlier result that does not fit; other errors stay as they are.
pub fn advise(error: anyhow::Error, out: &Path) -> anyhow::Error {
    match error.downcast_ref::<prune_core::Error>() {
        Some(e @ prune_core::Error::ResumeMismatch { .. }) => {
            BadInput(format!("{e}, delete {} or choose another --out", out.display())).into()
        }
        _ => error,
    }
}
