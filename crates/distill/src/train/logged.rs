//! A trainer's run that leaves something behind: `log.jsonl`, curves for TensorBoard, and what is measured on the way.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use unet::weights::Tensors;

use super::events::EventWriter;
use super::log::{LogRow, shares};
use super::task::Task;
use super::trainer::{Control, Outcome, Progress, Trainer};
use crate::error::{Error, Result};

/// Something done every [`Validation::every`] steps, before the first and after the last: all ranks hand over the averaged weights, the
/// first one works.
pub trait Validation {
    /// Steps between two.
    fn every(&self) -> u64;
    /// Whether `step` was validated before this process began.
    fn is_done(&self, step: u64) -> bool;
    /// Validates the averaged weights of `step`.
    ///
    /// # Errors
    /// Whatever networks and files report.
    fn validate(&mut self, step: u64, weights: Tensors, events: &mut EventWriter) -> Result<()>;
}

/// Where a run is told of; of ranks that train together the first one tells.
#[derive(Debug)]
pub struct LoggedRun<'a> {
    /// The stage that it is of, for the program's own log and [`Error::Stopped`].
    pub stage: &'a str,
    /// Folder of `log.jsonl` and of `tensorboard/`.
    pub dir: &'a Path,
}

impl LoggedRun<'_> {
    /// Trains to the last step; `on_step` is called after every step. Returns the mean seconds of a step, where more than one was made.
    ///
    /// # Errors
    /// [`Error::Stopped`] when `on_step` says stop, which leaves a checkpoint; those of [`Trainer::run`], of `validation` and of
    /// `on_step`; [`Error::Artifact`] or [`Error::Io`] when the log cannot be written.
    pub fn run<E: From<Error>>(
        &self,
        trainer: &mut Trainer,
        task: &mut dyn Task,
        mut validation: Option<&mut dyn Validation>,
        on_step: &mut dyn FnMut(Progress) -> Result<Control, E>,
    ) -> Result<Option<f64>, E> {
        let steps = trainer.steps();
        let mut log = if trainer.is_first() { Some(Log::open(self, trainer)?) } else { None };
        let mut clock = StepClock::default();
        let outcome = loop {
            let step = trainer.step();
            if let Some(v) = &mut validation {
                validate(*v, trainer, log.as_mut())?;
            }
            if step >= steps {
                break trainer.end().map_err(E::from);
            }
            let until = validation.as_ref().map_or(steps, |v| (step / v.every() + 1) * v.every());
            clock.begin();
            let ended = trainer.run_to(until, task, &mut |progress| {
                clock.tick();
                if let (Some(log), Some(row)) = (&mut log, progress.row) {
                    log.add(row, progress.samples_per_second)?;
                }
                on_step(progress)
            });
            if !matches!(ended, Ok(Outcome::Finished)) {
                break ended;
            }
        };
        // Of a run that failed, too: its last rows say how.
        if let Some(log) = &log {
            log.write()?;
        }
        match outcome? {
            Outcome::Finished => Ok(clock.mean()),
            Outcome::Stopped => Err(Error::Stopped { stage: self.stage.into(), step: trainer.step() }.into()),
        }
    }
}

/// Hands the weights to a validation that is due. All ranks take part in averaging them, and wait for the first one's work. What was
/// trained is saved before: a validation that fails costs no step, and one that succeeded is not made again.
fn validate(validation: &mut dyn Validation, trainer: &mut Trainer, log: Option<&mut Log>) -> Result<()> {
    let step = trainer.step();
    if !step.is_multiple_of(validation.every()) && step != trainer.steps() {
        return Ok(());
    }
    trainer.save()?;
    let weights = trainer.averaged()?;
    let work = || match log {
        Some(log) if !validation.is_done(step) => validation.validate(step, weights, &mut log.events),
        _ => Ok(()),
    };
    trainer.on_first(work)
}

/// The log of the first rank.
struct Log {
    stage: String,
    path: PathBuf,
    rows: Vec<LogRow>,
    written: Instant,
    events: EventWriter,
}

/// The log is written at most this often, and at the end.
const PAUSE: Duration = Duration::from_secs(2);

impl Log {
    fn open(run: &LoggedRun, trainer: &Trainer) -> Result<Self> {
        let events = EventWriter::create(&run.dir.join("tensorboard"), trainer.step())?;
        let (stage, path) = (run.stage.to_string(), run.dir.join("log.jsonl"));
        Ok(Self { stage, path, rows: trainer.log().to_vec(), written: Instant::now(), events })
    }

    fn add(&mut self, row: &LogRow, rate: f64) -> Result<()> {
        let LogRow { step, loss, lr, grad_norm, terms, .. } = row;
        tracing::info!(stage = self.stage, step, loss, lr, norm = grad_norm, ?terms, "train");
        self.rows.push(row.clone());
        plot(&mut self.events, row, rate)?;
        if self.written.elapsed() < PAUSE {
            return Ok(());
        }
        self.written = Instant::now();
        self.write()
    }

    /// One JSON object a line, whole.
    fn write(&self) -> Result<()> {
        let mut text = String::new();
        for row in &self.rows {
            text.push_str(&serde_json::to_string(row).expect("a plain struct is JSON"));
            text.push('\n');
        }
        Ok(artifact::write_bytes(&self.path, text.as_bytes())?)
    }
}

/// A row as points of curves.
fn plot(events: &mut EventWriter, row: &LogRow, rate: f64) -> Result<()> {
    let mut values = vec![
        ("loss/total".to_string(), row.loss),
        ("optimizer/lr".to_string(), row.lr),
        ("optimizer/grad_norm".to_string(), row.grad_norm),
        ("optimizer/skipped".to_string(), row.skipped as f64),
        ("speed/images_per_second".to_string(), rate),
    ];
    values.extend(row.terms.iter().map(|(name, v)| (format!("loss/{name}"), *v)));
    values.extend(shares(&row.terms).into_iter().map(|(name, v)| (format!("share/{name}"), v)));
    let values: Vec<(&str, f64)> = values.iter().map(|(name, v)| (name.as_str(), *v)).collect();
    events.scalars(row.step, &values)
}

/// Times steps. The first one after a pause allocates what the others find, so it does not count.
#[derive(Default)]
struct StepClock {
    last: Option<Instant>,
    total: Duration,
    steps: u32,
}

impl StepClock {
    fn begin(&mut self) {
        self.last = None;
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.total += now - last;
            self.steps += 1;
        }
    }

    fn mean(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.total.as_secs_f64() / f64::from(self.steps))
    }
}
