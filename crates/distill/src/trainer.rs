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

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::{AdamW, AdamWConfig, GradientBuckets, ProcessGroup};
use unet::weights::Tensors;

use crate::checkpoint::{self, State};
use crate::config::TrainerConfig;
use crate::error::{Error, Result};
use crate::params::FlatParams;
use crate::shards::Shards;

/// What one micro-batch gives: the loss to differentiate, and the terms it is made of, already weighted.
#[derive(Debug)]
pub struct StepLoss {
    /// Scalar, f32. Detached where the task has run the backward pass itself.
    pub total: Tensor,
    /// Name and weighted value (scalar tensors) of each term; they add up to `total`. The same names in every step.
    pub terms: Vec<(String, Tensor)>,
}

/// Averages numbers over the ranks, in place.
pub type Average<'a> = dyn FnMut(&mut [f64]) -> Result<()> + 'a;

/// Something that can be trained.
pub trait Task {
    /// The loss of micro-batch number `micro` with the parameters `params` (differentiable leaves in the type to compute in). Must depend on nothing
    /// else that changes. Without accumulation, on one rank, `micro` is the step.
    ///
    /// # Errors
    /// Whatever the networks and the data report.
    fn loss(&mut self, params: &Tensors, micro: u64) -> Result<StepLoss>;

    /// Called once after the micro-batches of a step. What the task carries from step to step must be the same on all ranks:
    /// `average` turns each rank's mean over its micro-batches into the mean over all.
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
        };
        if let Some(dir) = dir
            && let Some(state) = checkpoint::newest(dir, &run.identity)?
        {
            run.restore(&state)?;
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
        self.run_to(self.config.steps, task, progress, on_row)
    }

    /// As [`Trainer::run`], up to step `until`: what a caller does in between (a validation) changes no bit.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn run_to(
        &mut self,
        until: u64,
        task: &mut dyn Task,
        progress: &mut dyn FnMut(Progress) -> Control,
        on_row: &mut dyn FnMut(&LogRow),
    ) -> Result<Outcome> {
        let (started, first) = (Instant::now(), self.step);
        task.restore(&self.task_state);
        let (ranks, rank) = self.group.as_ref().map_or((1, 0), |g| (g.world() as u64, g.rank() as u64));
        let micros = self.config.accumulate * ranks;
        let mut stop = false;
        while self.step < until.min(self.config.steps) {
            let lr = self.config.lr_at(self.step);
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
            let grads = self.buckets.finish()?;
            let average: &mut Average = &mut |values| {
                if let Some(group) = &self.group {
                    group.sum(values)?;
                }
                values.iter_mut().for_each(|v| *v /= ranks as f64);
                Ok(())
            };
            task.end_step(average)?;
            let Mean { value, terms, stop: wanted } = losses.mean(average)?;
            // Of the sums; the update divides them.
            let norm = norm(&grads)? / micros as f64;
            if value.is_finite() && norm.is_finite() {
                self.update(&grads, micros as f64, norm, lr)?;
                self.window.add(value, norm, &terms);
            } else {
                self.skipped += 1;
                tracing::warn!(step = self.step, value, norm, "loss or gradient is not finite; step skipped");
            }
            drop(grads);
            self.step += 1;

            if self.step.is_multiple_of(self.config.log_every) || self.step == self.config.steps {
                let row = self.window.take(self.step, lr, self.skipped);
                on_row(&row);
                self.log.push(row);
            }
            if self.skipped > self.config.max_skipped {
                self.save(task)?;
                return Err(Error::NotFinite { step: self.step, skipped: self.skipped });
            }
            let samples = (self.step - first) * self.config.batch * micros;
            let rate = samples as f64 / started.elapsed().as_secs_f64().max(1e-9);
            let control = progress(Progress { step: self.step, steps: self.config.steps, loss: value, samples_per_second: rate });
            // Several ranks stop in the same step: the wish is told with the next step's losses.
            stop = control == Control::Stop;
            let stops = if self.group.is_some() { wanted } else { stop };
            if stops && self.step < self.config.steps {
                self.save(task)?;
                return Ok(Outcome::Stopped);
            }
            if self.step.is_multiple_of(self.config.checkpoint_every) || self.step == self.config.steps {
                self.save(task)?;
            }
        }
        self.task_state = task.state();
        Ok(Outcome::Finished)
    }

    /// By `grads`, sums of `micros` gradients, whose mean has the norm `norm`.
    fn update(&mut self, grads: &[Tensor], micros: f64, norm: f64, lr: f64) -> Result<()> {
        let clip = self.config.clip_norm;
        let divisor = if clip > 0.0 && norm > clip { micros * norm / clip } else { micros };
        let own = self.shards.own(self.params.buffer());
        let TrainerConfig { beta1, beta2, weight_decay, .. } = self.config;
        let config = AdamWConfig { beta1, beta2, weight_decay };
        self.adam.step(&own, &self.shards.own_parts(grads), divisor, lr, config)?;
        if let Some(ema) = &mut self.ema {
            let n = self.adam.updates as f64;
            let decay = self.config.ema_decay.min((1.0 + n) / (10.0 + n));
            let _ = tch::no_grad(|| ema.lerp_(&own, 1.0 - decay));
        }
        self.shards.share(self.params.buffer())
    }

    /// Writes a checkpoint, on the first rank.
    fn save(&self, task: &dyn Task) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let first = self.group.as_ref().is_none_or(|g| g.rank() == 0);
        let whole = |part: &Tensor| -> Result<Option<Tensor>> {
            let whole = self.shards.whole(part)?.narrow(0, 0, self.params.len());
            // Put together anew it would take the device's memory until all is written.
            Ok(first.then(|| if self.shards.is_cut() { whole.to_device(Device::Cpu) } else { whole }))
        };
        let (m, v, ema) = (whole(&self.adam.m)?, whole(&self.adam.v)?, self.ema.as_ref().map(whole).transpose()?);
        let (Some(m), Some(v)) = (m, v) else { return Ok(()) };
        let state = State {
            flat: self.params.flat().shallow_clone(),
            m,
            v,
            ema: ema.flatten(),
            updates: self.adam.updates,
            step: self.step,
            skipped: self.skipped,
            log: self.log.clone(),
            window: self.window.clone(),
            task: task.state(),
        };
        checkpoint::write(dir, &self.identity, &state, self.config.keep_checkpoints as usize)
    }
}

/// The norm of all together. (`dot` takes the time of `norm` and rounds less.)
fn norm(parts: &[Tensor]) -> Result<f64> {
    let squares: Vec<Tensor> = parts.iter().map(|part| part.dot(part)).collect();
    Ok(Tensor::f_stack(&squares, 0)?.sum(Kind::Double).sqrt().double_value(&[]))
}

/// Losses of one step's micro-batches.
struct Losses {
    micro: Vec<Tensor>,
    names: Vec<String>,
    stop: bool,
}

/// Their mean over micro-batches and ranks.
struct Mean {
    value: f64,
    terms: Vec<(String, f64)>,
    stop: bool,
}

impl Losses {
    fn new(stop: bool) -> Self {
        Self { micro: Vec::new(), names: Vec::new(), stop }
    }

    // One tensor, so that a GPU is waited for once and not once per term.
    fn add(&mut self, loss: StepLoss) -> Result<()> {
        let scalars: Vec<Tensor> =
            [&loss.total].into_iter().chain(loss.terms.iter().map(|(_, t)| t)).map(|t| t.detach().to_kind(Kind::Double)).collect();
        self.micro.push(Tensor::f_stack(&scalars, 0)?);
        self.names = loss.terms.into_iter().map(|(name, _)| name).collect();
        Ok(())
    }

    fn mean(self, average: &mut Average) -> Result<Mean> {
        let means = Tensor::f_stack(&self.micro, 0)?.mean_dim([0i64].as_slice(), false, Kind::Double);
        let mut values = Vec::<f64>::try_from(&means)?;
        values.push(f64::from(u8::from(self.stop)));
        average(&mut values)?;
        let stop = values.pop().is_some_and(|v| v > 0.0);
        let value = values.remove(0);
        Ok(Mean { value, terms: self.names.into_iter().zip(values).collect(), stop })
    }
}

/// Sums since the last row of the log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Window {
    steps: u64,
    loss: f64,
    norm: f64,
    terms: BTreeMap<String, f64>,
}

impl Window {
    fn add(&mut self, loss: f64, norm: f64, terms: &[(String, f64)]) {
        self.steps += 1;
        self.loss += loss;
        self.norm += norm;
        for (name, value) in terms {
            *self.terms.entry(name.clone()).or_default() += value;
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
