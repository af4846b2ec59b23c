//! A small engine for pipelines: runs stages in order, skips those that are up to date, goes on where it stopped.
//!
//! Carries the data flow weights -> scores -> plan -> pruned model -> distillation -> evaluation -> report from one
//! subcommand of `laptop-diff` to the next; what flows is files. A stage's key is a hash of its command line and of the
//! contents of its inputs, so a setting reaches a stage in one of these two ways. The key does not cover the binary
//! itself: after a change that makes old results wrong, [`FORMAT`] is raised, or the user says `--force`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hashes::{Hashes, hex};
use super::process::{INTERRUPTED_CODE, Interrupted, POLL, Watched, interrupted};
use super::stage::Stage;
use crate::proc;

/// Raised when results of an older version of the pipelines must not be taken for current ones.
const FORMAT: u32 = 1;

/// Flags that every pipeline has; paths are relative to the root of the repository.
#[derive(clap::Args)]
pub struct Options {
    /// Redo every selected stage, also those that are up to date.
    #[arg(long)]
    pub force: bool,
    /// Run this stage only.
    #[arg(long, value_name = "STAGE", conflicts_with = "from")]
    pub only: Option<String>,
    /// Start at this stage; the ones before it are taken as they are.
    #[arg(long, value_name = "STAGE")]
    pub from: Option<String>,
    /// Settings of the pipeline [default: the pipeline's own file in configs/].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where results and the record of finished stages go [default: the pipeline's own folder in runs/].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where tensors live: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Stages that may compute at once, each on a GPU of its own (with `--device cpu`: processes).
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub gpus: u32,
}

/// A list of stages and what they have in common.
pub struct Pipeline {
    /// The command that the user typed, for the advice how to rerun: `cargo xtask reproduce-tiny`.
    pub command: String,
    /// The program that every stage calls.
    pub program: PathBuf,
    /// Paths of stages are relative to this folder, and the program runs in it.
    pub root: PathBuf,
    /// Results; the engine removes nothing outside this folder.
    pub out: PathBuf,
    /// In the order in which they run.
    pub stages: Vec<Stage>,
}

/// The record of one stage, `<out>/.stages/<name>.json`.
#[derive(Serialize, Deserialize)]
struct Record {
    key: String,
    /// False from the start of the command until its success.
    done: bool,
    /// How long the last successful run took.
    seconds: Option<f64>,
    /// Highest resident memory of its process, in bytes.
    #[serde(default)]
    peak_rss_bytes: Option<u64>,
}

/// A stage that has begun.
pub(super) struct Begun {
    key: String,
    /// How long its last successful run took.
    past: Option<f64>,
    start: Instant,
}

/// What a run did, by stage name.
#[derive(Debug, Default, PartialEq)]
pub struct Summary {
    pub ran: Vec<String>,
    pub up_to_date: Vec<String>,
}

impl Pipeline {
    /// Runs the selected stages in order and stops at the first that fails or at Ctrl-C.
    pub fn run(&self, options: &Options) -> Result<Summary> {
        let selected = self.select(options)?;
        self.check_inputs(&selected)?;
        let records = self.root.join(&self.out).join(".stages");
        fs::create_dir_all(&records).with_context(|| format!("cannot write to {}", self.out.display()))?;
        let Some(_lock) = Lock::take(&records.join("lock"))? else {
            bail!("another run is at work in {}; wait for it, or give this one another folder with --out", self.out.display());
        };
        let mut hashes = Hashes::load(&self.root, records.join("hashes.json"));
        if options.gpus > 1 {
            return self.run_at_once(&selected, options, &records, hashes);
        }
        let mut summary = Summary::default();
        let (start, mut expected, mut actual) = (Instant::now(), 0.0, 0.0);
        for (index, stage) in selected.iter().enumerate() {
            self.write_commands(&records)?;
            let head = format!("[{}/{}] {}", index + 1, selected.len(), stage.name);
            let Some(begun) = self.begin(stage, options, &records, &mut hashes)? else {
                eprintln!("{head}: up to date");
                summary.up_to_date.push(stage.name.clone());
                continue;
            };
            let pace = if expected > 0.0 { actual / expected } else { 1.0 };
            let left: f64 = self.estimates(&selected[index..], &records, options, pace).iter().sum();
            eprintln!("\n{head}: {} (so far {}, about {} left)", stage.about, duration(start.elapsed().as_secs_f64()), duration(left));
            let peak_rss_bytes = self.call(stage)?;
            let seconds = self.end(stage, &begun, peak_rss_bytes, &records, &mut hashes)?;
            if begun.past.is_none() {
                expected += stage.typical_seconds;
                actual += seconds;
            }
            eprintln!("{head}: done in {}", duration(seconds));
            summary.ran.push(stage.name.clone());
        }
        self.write_commands(&records)?;
        self.print_end(start, &summary);
        Ok(summary)
    }

    /// Notes that a stage begins, without what an older run of it with other inputs left; None when it is up to date.
    pub(super) fn begin(&self, stage: &Stage, options: &Options, records: &Path, hashes: &mut Hashes) -> Result<Option<Begun>> {
        let path = records.join(format!("{}.json", stage.name));
        let record = read_record(&path);
        let key = self.key(stage, hashes)?;
        let same = record.as_ref().is_some_and(|record| record.key == key);
        if !options.force && same && record.as_ref().is_some_and(|record| record.done) && self.outputs_exist(stage) {
            return Ok(None);
        }
        if !same || options.force {
            self.remove_old(stage)?;
        }
        let past = record.and_then(|record| record.seconds);
        write_whole(&path, &Record { key: key.clone(), done: false, seconds: past, peak_rss_bytes: None })?;
        Ok(Some(Begun { key, past, start: Instant::now() }))
    }

    /// Notes that a stage ended well; returns its seconds.
    pub(super) fn end(
        &self,
        stage: &Stage,
        begun: &Begun,
        peak_rss_bytes: Option<u64>,
        records: &Path,
        hashes: &mut Hashes,
    ) -> Result<f64> {
        let seconds = begun.start.elapsed().as_secs_f64();
        // Hashed again: a stage that changed its own inputs would otherwise never be up to date, silently.
        if self.key(stage, hashes)? != begun.key {
            bail!("an input of stage `{}` changed while it ran; run `{}` again", stage.name, self.command);
        }
        let record = Record { key: begun.key.clone(), done: true, seconds: Some(seconds), peak_rss_bytes };
        write_whole(&records.join(format!("{}.json", stage.name)), &record)?;
        hashes.save()?;
        Ok(seconds)
    }

    pub(super) fn print_end(&self, start: Instant, summary: &Summary) {
        eprintln!(
            "\n{} done in {} (stages: {} run, {} up to date)",
            self.command,
            duration(start.elapsed().as_secs_f64()),
            summary.ran.len(),
            summary.up_to_date.len()
        );
    }

    /// Writes `<out>/commands.json`: the command line and duration of every stage done so far, for the report. No stage declares
    /// it as an input, since durations differ from run to run.
    pub(super) fn write_commands(&self, records: &Path) -> Result<()> {
        let done = |stage: &Stage| read_record(&records.join(format!("{}.json", stage.name))).filter(|record| record.done);
        let finished: Vec<(&Stage, Record)> = self.stages.iter().filter_map(|stage| Some((stage, done(stage)?))).collect();
        let lines = finished.iter().map(|(stage, _)| {
            let line = proc::show(Command::new("laptop-diff").args(&stage.args));
            serde_json::json!({"stage": stage.name, "line": line})
        });
        let seconds = finished.iter().map(|(stage, record)| {
            let Record { seconds, peak_rss_bytes, .. } = record;
            serde_json::json!({"stage": stage.name, "seconds": seconds, "peak_rss_bytes": peak_rss_bytes})
        });
        let all = serde_json::json!({"commands": lines.collect::<Vec<_>>(), "stages": seconds.collect::<Vec<_>>()});
        write_whole(&self.root.join(&self.out).join("commands.json"), &all)
    }

    fn select(&self, options: &Options) -> Result<Vec<&Stage>> {
        let find = |name: &str| {
            let names: Vec<&str> = self.stages.iter().map(|stage| stage.name.as_str()).collect();
            let at = names.iter().position(|known| *known == name);
            at.with_context(|| format!("there is no stage `{name}`; the stages are: {}", names.join(", ")))
        };
        Ok(match (&options.only, &options.from) {
            (Some(name), _) => vec![&self.stages[find(name)?]],
            (None, Some(name)) => self.stages[find(name)?..].iter().collect(),
            (None, None) => self.stages.iter().collect(),
        })
    }

    /// Fails before the long run when something is missing that no selected stage makes.
    fn check_inputs(&self, selected: &[&Stage]) -> Result<()> {
        let mut made: BTreeSet<&Path> = BTreeSet::new();
        for stage in selected {
            for input in &stage.inputs {
                let comes = made.iter().any(|output| input.starts_with(output) || output.starts_with(input));
                if comes || self.root.join(input).exists() {
                    continue;
                }
                let maker = self.stages.iter().find(|other| other.outputs.iter().any(|output| input.starts_with(output)));
                match maker {
                    Some(maker) => bail!(
                        "stage `{}` needs {}, which stage `{}` makes; run `{} --from {}`",
                        stage.name,
                        input.display(),
                        maker.name,
                        self.command,
                        maker.name
                    ),
                    None => bail!("stage `{}` needs {}, which does not exist", stage.name, input.display()),
                }
            }
            made.extend(stage.outputs.iter().map(PathBuf::as_path));
        }
        Ok(())
    }

    /// The hash of everything that decides what the stage writes, but the binary.
    fn key(&self, stage: &Stage, hashes: &mut Hashes) -> Result<String> {
        let mut key = Sha256::new();
        let mut add = |text: &str| {
            // With its length, so that two words never read as one.
            key.update((text.len() as u64).to_le_bytes());
            key.update(text.as_bytes());
        };
        add(&FORMAT.to_string());
        stage.args.iter().for_each(|arg| add(arg));
        for input in &stage.inputs {
            add(&input.to_string_lossy());
            add(&hashes.of(input).with_context(|| format!("cannot read {}, an input of stage `{}`", input.display(), stage.name))?);
        }
        Ok(hex(&key.finalize()))
    }

    fn outputs_exist(&self, stage: &Stage) -> bool {
        stage.outputs.iter().all(|output| self.root.join(output).exists())
    }

    /// Removes what an older run of this stage with other inputs left, so that nothing resumes from it.
    fn remove_old(&self, stage: &Stage) -> Result<()> {
        for path in stage.outputs.iter().chain(&stage.scratch).filter(|path| path.starts_with(&self.out) && **path != self.out) {
            let full = self.root.join(path);
            let result = if full.is_dir() { fs::remove_dir_all(&full) } else { fs::remove_file(&full) };
            match result {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove the old {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Expected seconds of each of `rest`, the first of which is about to run: zero for stages that will be up to date.
    fn estimates(&self, rest: &[&Stage], records: &Path, options: &Options, pace: f64) -> Vec<f64> {
        let mut changing: BTreeSet<&Path> = BTreeSet::new();
        let seconds = rest.iter().enumerate().map(|(index, stage)| {
            let record = read_record(&records.join(format!("{}.json", stage.name)));
            let fresh = record.as_ref().is_some_and(|record| record.done)
                && !stage.inputs.iter().any(|input| changing.iter().any(|path| input.starts_with(path)));
            if index > 0 && fresh && !options.force {
                return 0.0;
            }
            changing.extend(stage.outputs.iter().map(PathBuf::as_path));
            record.and_then(|record| record.seconds).unwrap_or(stage.typical_seconds * pace)
        });
        seconds.collect()
    }

    /// Runs the stage's command with everything visible, and checks that it wrote what it should. Returns its highest memory.
    fn call(&self, stage: &Stage) -> Result<Option<u64>> {
        let mut command = self.command_of(stage, None)?;
        let line = self.line_of(&command);
        eprintln!("$ {line}");
        let mut child = Watched::new(command.spawn().with_context(|| format!("cannot start `{line}`"))?);
        let status = loop {
            match child.end()? {
                Some(status) => break status,
                None => thread::sleep(POLL),
            }
        };
        self.check_end(stage, &line, status, None)?;
        Ok(child.peak_rss_bytes)
    }

    /// The stage's command, on another device than the pipeline's own where one is named.
    pub(super) fn command_of(&self, stage: &Stage, device: Option<&str>) -> Result<Command> {
        for parent in stage.outputs.iter().filter_map(|output| output.parent()) {
            fs::create_dir_all(self.root.join(parent)).with_context(|| format!("cannot write to {}", parent.display()))?;
        }
        let mut command = if stage.ranks > 1 {
            let mut torchrun = Command::new("torchrun");
            torchrun.args(["--standalone", "--no-python", "--max-restarts=3", &format!("--nproc-per-node={}", stage.ranks)]);
            torchrun.arg(&self.program);
            torchrun
        } else {
            Command::new(&self.program)
        };
        proc::with_libtorch(command.args(stage.args_on(device)).current_dir(&self.root), &self.root);
        Ok(command)
    }

    /// The command as a line, with the program relative to the root.
    pub(super) fn line_of(&self, command: &Command) -> String {
        let short = |word: &std::ffi::OsStr| {
            let path = Path::new(word);
            path.strip_prefix(&self.root).unwrap_or(path).as_os_str().to_owned()
        };
        let mut shown = Command::new(short(command.get_program()));
        proc::show(shown.args(command.get_args().map(short)))
    }

    /// What the end of a command means. `log` is where its output went, if not to the terminal.
    pub(super) fn check_end(&self, stage: &Stage, line: &str, status: ExitStatus, log: Option<&Path>) -> Result<()> {
        if interrupted() || status.code() == Some(INTERRUPTED_CODE.into()) {
            let advice = format!("interrupted in stage `{}`; `{}` goes on from there", stage.name, self.command);
            return Err(Interrupted(advice).into());
        }
        let rerun = format!("to run only this stage again: {} --only {}", self.command, stage.name);
        if !status.success() {
            let end = log.and_then(|log| fs::read_to_string(log).ok()).map(|text| format!("\n{}", proc::last_lines(&text, 12)));
            let end = end.unwrap_or_default();
            bail!("stage `{}` failed ({status}):\n  {line}{end}\n{rerun}\nto go on from it: {}", stage.name, self.command);
        }
        match stage.outputs.iter().find(|output| !self.root.join(output).exists()) {
            Some(missing) => bail!("stage `{}` ended well but did not write {}:\n  {line}\n{rerun}", stage.name, missing.display()),
            None => Ok(()),
        }
    }
}

/// Keeps a second run out of the folder for as long as it lives.
struct Lock(fs::File);

impl Lock {
    /// None when another run holds it. The system releases it even when a run is killed.
    fn take(path: &Path) -> Result<Option<Self>> {
        let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Not left to the closing of the file: a child that another thread is just starting still holds a copy of it.
        let _ = self.0.unlock();
    }
}

/// A record that cannot be read counts as none: the stage runs again.
fn read_record(path: &Path) -> Option<Record> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

/// Writes JSON to a temporary file in the same folder and renames it.
pub fn write_whole(path: &Path, value: &impl Serialize) -> Result<()> {
    let partial = path.with_extension("partial");
    let mut file = fs::File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
    file.write_all(serde_json::to_string_pretty(value)?.as_bytes())?;
    file.sync_all()?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

/// A duration as people say it: `45 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
