//! A training run as its user sees it: a progress bar with the time left, log lines, curves for TensorBoard, a stop by signal.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use distill::{Control, EventWriter, LogRow, Outcome, Task, Trainer};
use unet::weights::Tensors;

use crate::common::{Interrupted, stop_flag, stopped};
use crate::progress;

/// What is trained, and who is told.
pub struct Training<'a> {
    /// Name for the bar and the log.
    pub name: &'a str,
    /// Optimizer steps in the run.
    pub steps: u64,
    /// Folder of `log.jsonl` and of `tensorboard/`.
    pub dir: &'a Path,
    /// Whether this process writes and shows anything.
    pub first: bool,
    /// Whether curves are written for TensorBoard.
    pub events: bool,
}

/// Something done every `every` steps, before the first and after the last: all processes hand over the averaged weights, the first one works.
pub trait Validation {
    /// Steps between two.
    fn every(&self) -> u64;
    /// Whether `step` was validated before this process began.
    fn is_done(&self, step: u64) -> bool;
    /// Validates the weights of `step`.
    fn validate(&mut self, step: u64, weights: Tensors, events: Option<&mut EventWriter>) -> anyhow::Result<()>;
}

/// The log is written at most this often, and at the end.
const LOG_PAUSE: Duration = Duration::from_secs(2);

impl Training<'_> {
    /// Trains to the last step; a signal leaves a checkpoint. Returns how fast it went, in words to stand behind "n steps".
    pub fn drive(&self, trainer: &mut Trainer, task: &mut dyn Task, mut validation: Option<&mut dyn Validation>) -> anyhow::Result<String> {
        let stop = stop_flag()?;
        let bar = if self.first { progress::bar(self.name, self.steps) } else { indicatif::ProgressBar::hidden() };
        bar.set_position(trainer.step());
        bar.reset_eta();
        let mut events = match self.events && self.first {
            true => Some(EventWriter::create(&self.dir.join("tensorboard"), trainer.step())?),
            false => None,
        };
        let mut rows: Vec<LogRow> = trainer.log().to_vec();
        let mut written = Instant::now();
        // The first step allocates what the others find, so it does not count.
        let (mut clock, mut taken) = (Instant::now(), (Duration::ZERO, 0u32));
        loop {
            let step = trainer.step();
            if let Some(v) = &mut validation
                && (step.is_multiple_of(v.every()) || step == self.steps)
            {
                let weights = trainer.averaged()?;
                if self.first && !v.is_done(step) {
                    v.validate(step, weights, events.as_mut())?;
                }
            }
            if step >= self.steps {
                break;
            }
            let until = validation.as_ref().map_or(self.steps, |v| (step / v.every() + 1) * v.every());
            let mut fresh = true;
            let outcome = trainer.run_to(until, task, &mut |p| -> anyhow::Result<Control> {
                if !std::mem::take(&mut fresh) {
                    taken = (taken.0 + clock.elapsed(), taken.1 + 1);
                }
                clock = Instant::now();
                bar.set_position(p.step);
                bar.set_message(format!("loss {:.4}, {:.1} images/s", p.loss, p.samples_per_second));
                if let Some(row) = p.row.filter(|_| self.first) {
                    let name = self.name;
                    tracing::info!(name, step = row.step, loss = row.loss, lr = row.lr, norm = row.grad_norm, terms = ?row.terms, "train");
                    rows.push(row.clone());
                    if let Some(events) = &mut events {
                        tell(events, row, p.samples_per_second)?;
                    }
                    if written.elapsed() >= LOG_PAUSE {
                        written = Instant::now();
                        write_log(&self.dir.join("log.jsonl"), &rows)?;
                    }
                }
                Ok(if stopped(&stop) { Control::Stop } else { Control::Continue })
            })?;
            if outcome == Outcome::Stopped {
                self.finish(&bar, &rows)?;
                let at = trainer.step();
                return Err(Interrupted(format!("{} stopped at step {at}; run the same command to go on", self.name)).into());
            }
        }
        self.finish(&bar, &rows)?;
        Ok(if taken.1 == 0 { String::new() } else { format!(" of {:.4} s", taken.0.as_secs_f64() / f64::from(taken.1)) })
    }

    fn finish(&self, bar: &indicatif::ProgressBar, rows: &[LogRow]) -> anyhow::Result<()> {
        bar.finish();
        if self.first { write_log(&self.dir.join("log.jsonl"), rows) } else { Ok(()) }
    }
}

/// A row as points of curves.
fn tell(events: &mut EventWriter, row: &LogRow, rate: f64) -> distill::Result<()> {
    let mut values = vec![
        ("loss/total".to_string(), row.loss),
        ("optimizer/lr".to_string(), row.lr),
        ("optimizer/grad_norm".to_string(), row.grad_norm),
        ("optimizer/skipped".to_string(), row.skipped as f64),
        ("speed/images_per_second".to_string(), rate),
    ];
    values.extend(row.terms.iter().map(|(name, v)| (format!("loss/{name}"), *v)));
    values.extend(distill::shares(&row.terms).into_iter().map(|(name, v)| (format!("share/{name}"), v)));
    let values: Vec<(&str, f64)> = values.iter().map(|(name, v)| (name.as_str(), *v)).collect();
    events.scalars(row.step, &values)
}

/// Writes the rows, one JSON object a line, whole.
fn write_log(path: &Path, rows: &[LogRow]) -> anyhow::Result<()> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row)?);
        text.push('\n');
    }
    prune_core::file::write_bytes(path, text.as_bytes()).with_context(|| format!("{} cannot be written", path.display()))
}
