//! The training loop, for distillation and for training from nothing alike: loss -> gradient -> clip -> AdamW -> moving average.
//!
//! Nothing random is carried from step to step: a task derives its data, noise and timesteps from the number of the
//! micro-batch. So a checkpoint is weights, moments, average and the step number, and a resumed run has the bits of an
//! uninterrupted one.
//!
//! A step has `accumulate x ranks` micro-batches, numbered through the whole run. Which rank computes one changes nothing but
//! the order of a sum, so that a run may go on with fewer ranks and more accumulation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use tch::{Device, Kind, Tensor};
use torch_ext::{AdamW, AdamWConfig, GradientBuckets, ProcessGroup};
use unet::weights::Tensors;

use super::checkpoint::{self, State};
use super::config::TrainerConfig;
use super::finite::{is_finite, lost};
use super::log::{LogRow, Losses, Mean, Window};
use super::params::FlatParams;
use super::task::{Average, Task};
use super::zero::Shards;
use crate::error::{Error, Result};

/// What a caller wants after a step.
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
    /// The caller asked to stop; a checkpoint was written, if the run has a folder.
    Stopped,
}

/// Progress after each step.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Steps done.
    pub step: u64,
    /// Steps in the run.
    pub steps: u64,
    /// The newest loss.
    pub loss: f64,
    /// Samples per second since the run (or its resumption) began.
    pub samples_per_second: f64,
    /// The row of the log, where this step wrote one.
    pub row: Option<&'a LogRow>,
}

/// A run: configuration, parameters, optimizer, log.
#[derive(Debug)]
pub struct Trainer {
    config: TrainerConfig,
    identity: BTreeMap<String, String>,
    params: FlatParams,
    buckets: GradientBuckets,
    shards: Shards,
    // Of this rank's part of the parameters.
    adam: AdamW,
    ema: Option<Tensor>,
    group: Option<Rc<ProcessGroup>>,
    step: u64,
    skipped: u64,
    log: Vec<LogRow>,
    window: Window,
    dir: Option<PathBuf>,
    task_state: Tensors,
    // The step of the newest checkpoint.
    saved: Option<u64>,
    resumed: bool,
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
        identity: BTreeMap<String, String>,
        dir: Option<&Path>,
    ) -> Result<Self> {
        Self::distributed(config, initial, device, identity, dir, None)
    }

    /// As [`Trainer::new`], for one rank of several that train together (data parallel): gradients are averaged over the ranks of `group`,
    /// the first one writes. All ranks need the same arguments and see the same `dir`.
    ///
    /// # Errors
    /// As [`Trainer::new`], and [`Error::Distributed`] when the ranks do not fit together.
    pub fn distributed(
        config: TrainerConfig,
        initial: &Tensors,
        device: Device,
        mut identity: BTreeMap<String, String>,
        dir: Option<&Path>,
        group: Option<Rc<ProcessGroup>>,
    ) -> Result<Self> {
        config.check()?;
        let ranks = group.as_ref().map_or(1, |g| g.world());
        identity.insert("config".into(), config.identity(ranks as u64));
        let shards = Shards::new(group.clone().filter(|_| config.shard_optimizer), initial);
        let params = FlatParams::new(initial, device, shards.padded(), config.compute.kind())?;
        if let Some(group) = &group {
            // Gloo ends the process when ranks bring tensors of different sizes, so nothing is sent before this.
            group.agree("parameters", &params.signature())?;
            group.agree("run", &serde_json::to_string(&identity).expect("strings are JSON"))?;
            group.agree("settings", &serde_json::to_string(&config).expect("a plain struct is JSON"))?;
            group.broadcast(params.flat(), 0)?;
        }
        // A GPU wants few operations, a CPU small blocks, which fit into what activations leave.
        let mb = if group.is_none() && device == Device::Cpu { 1.0 } else { config.bucket_mb };
        let buckets = GradientBuckets::new(params.leaves().values(), group.clone(), (mb * 1e6) as usize)?;
        let adam = AdamW::new(&shards.own(params.buffer()));
        let ema = (config.ema_decay > 0.0).then(|| shards.own(params.buffer()).copy());
        let mut run = Self {
            config,
            identity,
            params,
            buckets,
            shards,
            adam,
            ema,
            group,
            step: 0,
            skipped: 0,
            log: Vec::new(),
            window: Window::default(),
            dir: dir.map(Path::to_path_buf),
            task_state: Tensors::new(),
            saved: None,
            resumed: false,
        };
        if let Some(dir) = dir
            && let Some(state) = checkpoint::newest(dir, &run.identity)?
        {
            run.restore(&state)?;
        }
        if run.step > run.config.steps {
            let expected = format!("at least {}, which the newest checkpoint has done", run.step);
            return Err(Error::Config { key: "steps".into(), expected, got: run.config.steps.to_string() });
        }
        if let Some(group) = &run.group {
            group.agree("checkpoint", &format!("step {}", run.step))?;
        }
        Ok(run)
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        tch::no_grad(|| -> Result<()> {
            self.params.flat().shallow_clone().f_copy_(&state.flat)?;
            self.shards.take(&state.m, &mut self.adam.m)?;
            self.shards.take(&state.v, &mut self.adam.v)?;
            if let (Some(ema), Some(saved)) = (&mut self.ema, &state.ema) {
                self.shards.take(saved, ema)?;
            }
            Ok(())
        })?;
        self.adam.updates = state.updates;
        self.step = state.step;
        self.skipped = state.skipped;
        self.log = state.log.clone();
        self.window = state.window.clone();
        self.task_state = state.task.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect();
        (self.saved, self.resumed) = (Some(self.step), true);
        Ok(())
    }

    /// Steps done so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Whether this run goes on from a checkpoint.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Steps skipped so far because something was not finite.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Steps in the run.
    pub fn steps(&self) -> u64 {
        self.config.steps
    }

    /// The log so far.
    pub fn log(&self) -> &[LogRow] {
        &self.log
    }

    /// Number of buckets of gradients, and how many of them were on their way to the other ranks before the last backward
    /// pass ended.
    pub fn overlap(&self) -> (usize, usize) {
        self.buckets.overlap()
    }

    /// The raw weights.
    pub fn tensors(&self) -> Tensors {
        self.params.shaped(self.params.flat())
    }

    /// The averaged weights; the raw ones when averaging is off. With `shard_optimizer` all ranks must ask together.
    ///
    /// # Errors
    /// [`Error::Distributed`] when another rank failed.
    pub fn averaged(&self) -> Result<Tensors> {
        let Some(ema) = &self.ema else { return Ok(self.tensors()) };
        let whole = self.shards.whole(ema)?;
        Ok(self.params.shaped(&whole.narrow(0, 0, self.params.len())))
    }

    /// Runs to the last step, or until `on_step` says stop or fails; it is called after every step.
    ///
    /// # Errors
    /// [`Error::NotFinite`] after too many skipped steps: `max_skipped`, or half of the run; [`Error::WeightsNotFinite`]; whatever the task and `on_step` report, or a checkpoint that cannot be written.
    pub fn run<E: From<Error>>(
        &mut self,
        task: &mut dyn Task,
        on_step: &mut dyn FnMut(Progress) -> Result<Control, E>,
    ) -> Result<Outcome, E> {
        self.run_to(self.config.steps, task, on_step)
    }

    /// As [`Trainer::run`], up to step `until`: what a caller does in between (a validation) changes no bit.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn run_to<E: From<Error>>(
        &mut self,
        until: u64,
        task: &mut dyn Task,
        on_step: &mut dyn FnMut(Progress) -> Result<Control, E>,
    ) -> Result<Outcome, E> {
        let (started, first) = (Instant::now(), self.step);
        task.restore(&self.task_state);
        let mut stop = false;
        while self.step < until.min(self.config.steps) {
            let lr = self.config.lr_at(self.step);
            let (losses, gradients) = self.passes(task, stop)?;
            let mean = self.end_step(task, losses)?;
            let skipped = !self.update(gradients, &mean, lr)?;
            let astray = if skipped { self.astray()? } else { None };

            let has_row = self.log_step(lr, astray.is_some());
            let samples = (self.step - first) * self.config.batch * self.micros();
            let samples_per_second = samples as f64 / started.elapsed().as_secs_f64().max(1e-9);
            let row = self.log.last().filter(|_| has_row);
            stop = on_step(Progress { step: self.step, steps: self.config.steps, loss: mean.value, samples_per_second, row })?
                == Control::Stop;
            if let Some(error) = astray {
                return Err(error.into());
            }
            let stops = self.stops_here(stop, mean.stop);
            if stops || self.is_checkpointed() {
                self.task_state = task.state();
                self.save()?;
            }
            if stops {
                return Ok(Outcome::Stopped);
            }
        }
        self.task_state = task.state();
        Ok(self.end()?)
    }

    /// A run of which more than half was skipped has no result, at its end and whenever it is asked for again.
    pub(super) fn end(&self) -> Result<Outcome> {
        if self.step == self.config.steps && 2 * self.skipped > self.step {
            return Err(self.lost(false));
        }
        Ok(Outcome::Finished)
    }

    /// What a skipped step may tell: weights that no later step brings back, or a step too many.
    fn astray(&mut self) -> Result<Option<Error>> {
        if !is_finite(self.params.flat())? {
            return Ok(Some(self.lost(true)));
        }
        Ok((self.skipped > self.config.max_skipped).then(|| self.lost(false)))
    }

    fn lost(&self, weights: bool) -> Error {
        lost(self.dir.as_deref(), self.step, self.skipped, weights)
    }

    /// Forward and backward passes of a step: the losses of this rank's micro-batches, and the sums of all ranks' gradients.
    fn passes(&mut self, task: &mut dyn Task, stop: bool) -> Result<(Losses, Vec<Tensor>)> {
        let (ranks, rank) = self.ranks();
        self.buckets.begin();
        let mut losses = Losses::new(stop);
        self.params.refresh()?;
        for a in 0..self.config.accumulate {
            if a + 1 == self.config.accumulate {
                self.buckets.arm();
            }
            let loss = task.loss(self.params.leaves(), (self.step * self.config.accumulate + a) * ranks + rank)?;
            if loss.total.requires_grad() {
                loss.total.f_backward()?;
            }
            losses.add(loss)?;
        }
        Ok((losses, self.buckets.finish()?))
    }

    /// What the ranks tell each other: the task's own numbers, then the losses.
    fn end_step(&self, task: &mut dyn Task, losses: Losses) -> Result<Mean> {
        let (ranks, _) = self.ranks();
        let average: &mut Average = &mut |values| {
            if let Some(group) = &self.group {
                group.sum(values)?;
            }
            values.iter_mut().for_each(|v| *v /= ranks as f64);
            Ok(())
        };
        task.end_step(average)?;
        losses.mean(average)
    }

    /// Number of ranks, and which one this is.
    fn ranks(&self) -> (u64, u64) {
        self.group.as_ref().map_or((1, 0), |g| (g.world() as u64, g.rank() as u64))
    }

    /// Whether this rank is the one that writes.
    pub(super) fn is_first(&self) -> bool {
        self.ranks().1 == 0
    }

    /// Work of the first rank, for which the others wait.
    pub(super) fn on_first(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        match &self.group {
            Some(group) => group.first_alone(work).map(|_| ()),
            None => work(),
        }
    }

    /// Micro-batches of a step, on all ranks together.
    fn micros(&self) -> u64 {
        self.config.accumulate * self.ranks().0
    }

    /// Counts the step, and says whether a row of the log was due; a `last` one always is.
    fn log_step(&mut self, lr: f64, last: bool) -> bool {
        self.step += 1;
        let due = last || self.step.is_multiple_of(self.config.log_every) || self.step == self.config.steps;
        if due {
            self.log.push(self.window.take(self.step, lr, self.skipped));
        }
        due
    }

    /// Whether the run ends before its last step. Several ranks stop in the same step: the wish is told with the next step's losses.
    fn stops_here(&self, wished: bool, told: bool) -> bool {
        let stop = if self.group.is_some() { told } else { wished };
        stop && self.step < self.config.steps
    }

    fn is_checkpointed(&self) -> bool {
        self.step.is_multiple_of(self.config.checkpoint_every) || self.step == self.config.steps
    }

    /// Updates the weights by `grads`, sums over the step's micro-batches; a step in which something is not finite is skipped: false.
    fn update(&mut self, grads: Vec<Tensor>, mean: &Mean, lr: f64) -> Result<bool> {
        let micros = self.micros() as f64;
        // Of the sums; the update divides them.
        let norm = norm(&grads)? / micros;
        if !(mean.value.is_finite() && norm.is_finite()) {
            self.skipped += 1;
            tracing::warn!(step = self.step, value = mean.value, norm, "loss or gradient is not finite; step skipped");
            self.window.skip(&mean.terms);
            return Ok(false);
        }
        let clip = self.config.clip_norm;
        let divisor = if clip > 0.0 && norm > clip { micros * norm / clip } else { micros };
        let own = self.shards.own(self.params.buffer());
        let TrainerConfig { beta1, beta2, weight_decay, .. } = self.config;
        let config = AdamWConfig { beta1, beta2, weight_decay };
        self.adam.step(&own, &self.shards.own_parts(&grads), divisor, lr, config)?;
        if let Some(ema) = &mut self.ema {
            let n = self.adam.updates as f64;
            let decay = self.config.ema_decay.min((1.0 + n) / (10.0 + n));
            let _ = tch::no_grad(|| ema.lerp_(&own, 1.0 - decay));
        }
        self.shards.share(self.params.buffer())?;
        self.window.add(mean.value, norm, &mean.terms);
        Ok(true)
    }

    /// Writes a checkpoint of finite weights, on the first rank, unless the newest one is of this step.
    pub(super) fn save(&mut self) -> Result<()> {
        if !is_finite(self.params.flat())? {
            return Err(self.lost(true));
        }
        if self.saved == Some(self.step) {
            return Ok(());
        }
        let Some(dir) = &self.dir else { return Ok(()) };
        let first = self.is_first();
        let whole = |part: &Tensor| -> Result<Option<Tensor>> {
            let whole = self.shards.whole(part)?.narrow(0, 0, self.params.len());
            // Put together anew it would take the device's memory until all is written.
            Ok(first.then(|| if self.shards.is_cut() { whole.to_device(Device::Cpu) } else { whole }))
        };
        let (m, v, ema) = (whole(&self.adam.m)?, whole(&self.adam.v)?, self.ema.as_ref().map(whole).transpose()?);
        let write = || match (m, v) {
            (Some(m), Some(v)) => {
                checkpoint::write(dir, &self.identity, &self.state(m, v, ema.flatten()), self.config.keep_checkpoints as usize)
            }
            _ => Ok(()),
        };
        self.on_first(write)?;
        self.saved = Some(self.step);
        Ok(())
    }

    fn state(&self, m: Tensor, v: Tensor, ema: Option<Tensor>) -> State {
        State {
            flat: self.params.flat().shallow_clone(),
            m,
            v,
            ema,
            updates: self.adam.updates,
            step: self.step,
            skipped: self.skipped,
            log: self.log.clone(),
            window: self.window.clone(),
            task: self.task_state.iter().map(|(key, t)| (key.clone(), t.shallow_clone())).collect(),
        }
    }
}

/// The norm of all together. (`dot` takes the time of `norm` and rounds less.)
fn norm(parts: &[Tensor]) -> Result<f64> {
    let squares: Vec<Tensor> = parts.iter().map(|part| part.dot(part)).collect();
    Ok(Tensor::f_stack(&squares, 0)?.sum(Kind::Double).sqrt().double_value(&[]))
}
