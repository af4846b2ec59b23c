//! Several stages at once: whatever has its inputs starts as soon as a GPU is free.
//!
//! The order of the list still decides who goes first. Output goes to `<out>/logs/<stage>.log`, since several progress bars in
//! one terminal are none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::engine::{Begun, Options, Pipeline, Summary, duration};
use super::hashes::Hashes;
use super::process::{POLL, Watched};
use super::stage::Stage;

/// A stage at work.
struct Running<'a> {
    stage: &'a Stage,
    child: Watched,
    /// Its GPUs, by number.
    slots: Vec<usize>,
    line: String,
    log: PathBuf,
    begun: Begun,
}

/// What a run in progress keeps.
struct Run<'a> {
    pipeline: &'a Pipeline,
    options: &'a Options,
    records: &'a Path,
    logs: PathBuf,
    hashes: Hashes,
    /// GPUs that nobody uses, the first one last.
    free: Vec<usize>,
    running: Vec<Running<'a>>,
}

impl Pipeline {
    /// Runs the selected stages, as many at once as there are GPUs. After a failure nothing new starts, and what runs is awaited.
    pub(super) fn run_at_once(&self, selected: &[&Stage], options: &Options, records: &Path, hashes: Hashes) -> Result<Summary> {
        let slots = options.gpus as usize;
        if let Some(stage) = selected.iter().find(|stage| stage.ranks as usize > slots) {
            bail!("stage `{}` wants {} GPUs, but --gpus says {slots}", stage.name, stage.ranks);
        }
        let logs = self.root.join(&self.out).join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot write to {}", logs.display()))?;
        let free = (0..slots).rev().collect();
        let mut run = Run { pipeline: self, options, records, logs, hashes, free, running: Vec::new() };
        let mut waiting: Vec<&Stage> = selected.to_vec();
        let (mut summary, mut failure, start) = (Summary::default(), None, Instant::now());
        loop {
            while failure.is_none()
                && let Some(index) = (0..waiting.len()).find(|&index| run.may_start(waiting[index], &waiting[..index]))
            {
                let stage = waiting.remove(index);
                match run.start(stage) {
                    Ok(true) => {}
                    Ok(false) => {
                        eprintln!("{}: up to date", stage.name);
                        summary.up_to_date.push(stage.name.clone());
                    }
                    Err(error) => failure = Some(error),
                }
            }
            if run.running.is_empty() {
                break;
            }
            match run.next_end()? {
                Ok(name) => summary.ran.push(name),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        self.print_end(start, &summary);
        Ok(summary)
    }
}

impl<'a> Run<'a> {
    /// Are the inputs of `stage` there and a place for it free? `earlier` come before it and have not started.
    fn may_start(&self, stage: &Stage, earlier: &[&Stage]) -> bool {
        let mut before = earlier.iter().copied().chain(self.running.iter().map(|running| running.stage));
        if before.any(|other| other.outputs.iter().any(|output| stage.needs(output))) {
            return false;
        }
        match wanted(stage) {
            // One stage without tensors at a time: planning is quick, and the machine has other work.
            0 => !self.running.iter().any(|running| running.slots.is_empty()),
            wanted => wanted <= self.free.len(),
        }
    }

    /// Starts a stage on the first free GPUs; false when it is up to date.
    fn start(&mut self, stage: &'a Stage) -> Result<bool> {
        let pipeline = self.pipeline;
        let Some(begun) = pipeline.begin(stage, self.options, self.records, &mut self.hashes)? else { return Ok(false) };
        let slots = self.free.split_off(self.free.len() - wanted(stage));
        let device = match slots.first() {
            // torchrun tells each rank which GPU is its own.
            Some(slot) if self.options.device != "cpu" && stage.ranks == 1 => Some(format!("cuda:{slot}")),
            _ => None,
        };
        let log = self.logs.join(format!("{}.log", stage.name));
        let file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = pipeline.command_of(stage, device.as_deref())?;
        if self.options.device == "cpu" && std::env::var_os("OMP_NUM_THREADS").is_none() {
            // Processes that each want all cores wait for one another at every barrier.
            let cores = thread::available_parallelism().map_or(1, usize::from);
            command.env("OMP_NUM_THREADS", (cores * slots.len().max(1) / self.options.gpus as usize).max(1).to_string());
        }
        let line = pipeline.line_of(&command);
        let place = device.map_or(String::new(), |device| format!(", on {device}"));
        eprintln!("{}: {}{place}", stage.name, stage.about);
        let child = command.stdout(file.try_clone()?).stderr(file).spawn();
        let child = Watched::new(child.with_context(|| format!("cannot start `{line}`"))?);
        self.running.push(Running { stage, child, slots, line, log, begun });
        Ok(true)
    }

    /// Waits until a stage ends, and records it: its name, or why it counts as failed.
    fn next_end(&mut self) -> Result<Result<String>> {
        loop {
            for index in 0..self.running.len() {
                if let Some(status) = self.running[index].child.end()? {
                    let running = self.running.remove(index);
                    self.free.extend(running.slots.iter().rev());
                    return Ok(self.record(&running, status));
                }
            }
            thread::sleep(POLL);
        }
    }

    /// Checks what a stage left and records it.
    fn record(&mut self, running: &Running, status: ExitStatus) -> Result<String> {
        let (pipeline, stage) = (self.pipeline, running.stage);
        pipeline.check_end(stage, &running.line, status, Some(&running.log))?;
        let seconds = pipeline.end(stage, &running.begun, running.child.peak_rss_bytes, self.records, &mut self.hashes)?;
        pipeline.write_commands(self.records)?;
        eprintln!("{}: done in {}", stage.name, duration(seconds));
        Ok(stage.name.clone())
    }
}

/// GPUs that a stage takes.
fn wanted(stage: &Stage) -> usize {
    if stage.uses_device() { stage.ranks as usize } else { 0 }
}
