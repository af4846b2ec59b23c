//! The training loop, for distillation and for training from nothing alike: loss -> gradient -> clip -> AdamW -> moving average.
//!
//! Nothing random is carried from step to step: a task derives its data, noise and timesteps from (seed, step). So a
//! checkpoint is weights, moments, average and the step number, and a resumed run has the bits of an uninterrupted one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use unet::weights::Tensors;

use crate::adamw::AdamW;
use crate::checkpoint::{self, State};
use crate::config::TrainerConfig;
use crate::error::{Error, Result};
use crate::params::FlatParams;

/// A non-finite loss or gradient skips its step; more than this many stop the run.
const MAX_SKIPPED: u64 = 50;

/// What one step's forward pass gives: the loss to differentiate, and the terms it is made of, already weighted.
#[derive(Debug)]
pub struct StepLoss {
    /// Scalar, f32. Detached where the task has run the backward pass itself.
    pub total: Tensor,
    /// Name and weighted value (scalar tensors) of each term; they add up to `total`.
    pub terms: Vec<(String, Tensor)>,
}

/// Averages numbers over micro-batches and ranks, in place.
pub type Average<'a> = dyn FnMut(&mut [f64]) -> Result<()> + 'a;

/// Something that can be trained.
pub trait Task {
    /// The loss of micro-batch number `micro` with the parameters `params` (differentiable leaves, f32). Must depend on nothing
    /// else that changes. Without accumulation, on one rank, `micro` is the step.
    ///
    /// # Errors
    /// Whatever the networks and the data report.
    fn loss(&mut self, params: &Tensors, micro: u64) -> Result<StepLoss>;

    /// Called once after the micro-batches of a step. What the task carries from step to step must be the same on all ranks:
    /// `average` makes it so, from one sum per micro-batch to the mean over all.
    ///
    /// # Errors
    /// Whatever `average` reports.
    fn end_step(&mut self, average: &mut Average) -> Result<()> {
        let _ = average;
        Ok(())
    }

    /// What the task itself carries from step to step (running norms); saved with every checkpoint.
    fn state(&self) -> Tensors {
        Tensors::new()
    }

    /// Takes up a saved state.
    fn restore(&mut self, state: &Tensors) {
        let _ = state;
    }
}

/// One row of the training log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogRow {
    /// Steps done when the row was written.
    pub step: u64,
    /// Mean total loss since the last row.
    pub loss: f64,
    /// Mean of each weighted term since the last row.
    pub terms: BTreeMap<String, f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean gradient norm, before clipping, since the last row.
    pub grad_norm: f64,
    /// Steps skipped so far because something was not finite.
    pub skipped: u64,
}

/// What the caller's hook wants after a row of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Write a checkpoint and return.
    Stop,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps done.
    Finished,
    /// The hook asked to stop; a checkpoint was written, if the run has a folder.
    Stopped,
}

/// Progress after each step, for bars.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in the run.
    pub steps: u64,
    /// The newest loss.
    pub loss: f64,
    /// Samples per second since the run (or its resumption) began.
    pub samples_per_second: f64,
}

/// A run: configuration, parameters, optimizer, log.
#[derive(Debug)]
pub struct Trainer {
    config: TrainerConfig,
    identity: BTreeMap<String, String>,
    params: FlatParams,
    adam: AdamW,
    ema: Option<Tensor>,
    step: u64,
    skipped: u64,
    log: Vec<LogRow>,
    dir: Option<PathBuf>,
    task_state: Tensors,
}

impl Trainer {
    /// A run from `initial`. `identity` (teacher, plan, data, ... by hash) is kept in every checkpoint, and a checkpoint of
    /// another identity or configuration is refused. With `dir`, the newest checkpoint there is taken up.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::ForeignCheckpoint`], or a checkpoint that cannot be read.
    pub fn new(
        config: TrainerConfig,
        initial: &Tensors,
        device: Device,
        mut identity: BTreeMap<String, String>,
        dir: Option<&Path>,
    ) -> Result<Self> {
        config.check()?;
        identity.insert("config".into(), serde_json::to_string(&config).expect("a plain struct is JSON"));
        let params = FlatParams::new(initial, device)?;
        let adam = AdamW::new(params.flat());
        let ema = (config.ema_decay > 0.0).then(|| params.flat().copy());
        let mut run = Self {
            config,
            identity,
            params,
            adam,
            ema,
            step: 0,
            skipped: 0,
            log: Vec::new(),
            dir: dir.map(Path::to_path_buf),
            task_state: Tensors::new(),
        };
        if let Some(dir) = dir
            && let Some(state) = checkpoint::newest(dir, &run.identity)?
        {
            run.restore(&state)?;
        }
        Ok(run)
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        tch::no_grad(|| -> Result<()> {
            self.params.flat().shallow_clone().f_copy_(&state.flat)?;
            self.adam.m.f_copy_(&state.m)?;
            self.adam.v.f_copy_(&state.v)?;
            if let (Some(ema), Some(saved)) = (&mut self.ema, &state.ema) {
                ema.f_copy_(saved)?;
            }
            Ok(())
        })?;
        self.adam.updates = state.updates;
        self.step = state.step;
        self.skipped = state.skipped;
        self.log = state.log.clone();
        self.task_state = state.task.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect();
        Ok(())
    }

    /// Steps done so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The log so far.
    pub fn log(&self) -> &[LogRow] {
        &self.log
    }

    /// The raw weights.
    pub fn tensors(&self) -> Tensors {
        self.params.shaped(self.params.flat())
    }

    /// The averaged weights; the raw ones when averaging is off.
    pub fn averaged(&self) -> Tensors {
        self.params.shaped(self.ema.as_ref().unwrap_or(self.params.flat()))
    }

    /// Runs to the last step, or until the hook says stop. `progress` is called after every step, `on_row` after every log row.
    ///
    /// # Errors
    /// [`Error::NotFinite`] after too many skipped steps, whatever the task reports, or a checkpoint that cannot be written.
    pub fn run(
        &mut self,
        task: &mut dyn Task,
        progress: &mut dyn FnMut(Progress) -> Control,
        on_row: &mut dyn FnMut(&LogRow),
    ) -> Result<Outcome> {
        let (started, first) = (Instant::now(), self.step);
        let mut window = Window::default();
        task.restore(&self.task_state);
        while self.step < self.config.steps {
            let lr = self.config.lr_at(self.step);
            let loss = task.loss(self.params.views(), self.step)?;
            if loss.total.requires_grad() {
                loss.total.f_backward()?;
            }
            let grads = self.params.take_grads()?;

            let value = loss.total.double_value(&[]);
            let norm = grads.norm().double_value(&[]);
            if value.is_finite() && norm.is_finite() {
                self.update(grads, norm, lr);
                window.add(value, norm, &loss.terms);
            } else {
                self.skipped += 1;
                tracing::warn!(step = self.step, value, norm, "loss or gradient is not finite; step skipped");
            }
            task.end_step(&mut |_| Ok(()))?;
            self.step += 1;

            if self.step.is_multiple_of(self.config.log_every) || self.step == self.config.steps {
                let row = window.take(self.step, lr, self.skipped);
                on_row(&row);
                self.log.push(row);
            }
            if self.skipped > MAX_SKIPPED {
                self.save(task)?;
                return Err(Error::NotFinite { step: self.step, skipped: self.skipped });
            }
            let rate = (self.step - first) as f64 * self.config.batch as f64 / started.elapsed().as_secs_f64().max(1e-9);
            let control = progress(Progress { step: self.step, steps: self.config.steps, loss: value, samples_per_second: rate });
            let at_row = self.step.is_multiple_of(self.config.log_every);
            // A stop waits for the end of a log window, so that the resumed run's log has the same rows.
            if control == Control::Stop && at_row && self.step < self.config.steps {
                self.save(task)?;
                return Ok(Outcome::Stopped);
            }
            if self.step.is_multiple_of(self.config.checkpoint_every) && at_row || self.step == self.config.steps {
                self.save(task)?;
            }
        }
        Ok(Outcome::Finished)
    }

    fn update(&mut self, grads: Tensor, norm: f64, lr: f64) {
        let clip = self.config.clip_norm;
        let mut grads = grads;
        if clip > 0.0 && norm > clip {
            let _ = tch::no_grad(|| grads.g_mul_scalar_(clip / norm));
        }
        self.adam.step(self.params.flat(), &grads, lr, &self.config);
        if let Some(ema) = &mut self.ema {
            let n = self.adam.updates as f64;
            let decay = self.config.ema_decay.min((1.0 + n) / (10.0 + n));
            let _ = tch::no_grad(|| ema.lerp_(self.params.flat(), 1.0 - decay));
        }
    }

    fn save(&self, task: &dyn Task) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        checkpoint::write(
            dir,
            &self.identity,
            &State {
                flat: self.params.flat().shallow_clone(),
                m: self.adam.m.shallow_clone(),
                v: self.adam.v.shallow_clone(),
                ema: self.ema.as_ref().map(Tensor::shallow_clone),
                updates: self.adam.updates,
                step: self.step,
                skipped: self.skipped,
                log: self.log.clone(),
                task: task.state(),
            },
        )
    }
}

/// Sums since the last row of the log.
#[derive(Debug, Default)]
struct Window {
    steps: u64,
    loss: f64,
    norm: f64,
    terms: BTreeMap<String, f64>,
}

impl Window {
    fn add(&mut self, loss: f64, norm: f64, terms: &[(String, Tensor)]) {
        self.steps += 1;
        self.loss += loss;
        self.norm += norm;
        for (name, value) in terms {
            *self.terms.entry(name.clone()).or_default() += value.to_kind(Kind::Double).double_value(&[]);
        }
    }

    fn take(&mut self, step: u64, lr: f64, skipped: u64) -> LogRow {
        let done = std::mem::take(self);
        let n = done.steps.max(1) as f64;
        LogRow {
            step,
            loss: done.loss / n,
            terms: done.terms.into_iter().map(|(k, v)| (k, v / n)).collect(),
            lr,
            grad_norm: done.norm / n,
            skipped,
        }
    }
}
