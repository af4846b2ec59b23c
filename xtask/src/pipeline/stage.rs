//! One step of a pipeline, and what it costs.

use std::path::{Path, PathBuf};

/// One step: a command line, the files or folders that it reads and writes, and how long it usually takes.
#[derive(Clone, Debug)]
pub struct Stage {
    pub(super) name: String,
    /// What the user reads in the header.
    pub(super) about: String,
    pub(super) args: Vec<String>,
    pub(super) inputs: Vec<PathBuf>,
    pub(super) outputs: Vec<PathBuf>,
    /// Resumable work (checkpoints), removed with the outputs when the stage starts anew.
    pub(super) scratch: Vec<PathBuf>,
    pub(super) typical_seconds: f64,
    /// Processes that share the work, started by torchrun where there are several.
    pub(super) ranks: u32,
    pub(super) work: Work,
}

/// What a stage computes, in units that a short measurement turns into seconds, and what it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Forward passes of the whole U-Net for one sample.
    pub forwards: f64,
    /// Forward passes with backward, of the whole U-Net for one sample.
    pub trainings: f64,
    /// Images that the autoencoder encodes, and latents that it decodes.
    pub encodes: f64,
    pub decodes: f64,
    /// Bytes that it writes, and bytes of memory at its peak.
    pub disk: f64,
    pub memory: f64,
}

impl Stage {
    /// A stage that calls `subcommand` and takes about `typical_seconds` on two CPU cores.
    pub fn new(name: impl Into<String>, about: impl Into<String>, typical_seconds: f64, subcommand: &str) -> Self {
        let args = vec![subcommand.to_owned()];
        let (name, about) = (name.into(), about.into());
        Stage {
            name,
            about,
            args,
            inputs: Vec::new(),
            outputs: Vec::new(),
            scratch: Vec::new(),
            typical_seconds,
            ranks: 1,
            work: Work::default(),
        }
    }

    /// Adds `flag value` to the command line.
    pub fn set(mut self, flag: &str, value: impl ToString) -> Self {
        self.args.extend([flag.to_owned(), value.to_string()]);
        self
    }

    /// Adds words to the command line as they are.
    pub fn words(mut self, words: &[&str]) -> Self {
        self.args.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Adds `flag path` and declares that the stage reads this file or folder.
    pub fn input(mut self, flag: &str, path: impl AsRef<Path>) -> Self {
        self.inputs.push(path.as_ref().to_path_buf());
        self.set(flag, path.as_ref().display())
    }

    /// Declares that the stage reads this file or folder, which its command line does not name.
    pub fn reads(mut self, path: impl AsRef<Path>) -> Self {
        self.inputs.push(path.as_ref().to_path_buf());
        self
    }

    /// Adds `flag path` and declares that the stage writes this file or folder.
    pub fn output(mut self, flag: &str, path: impl AsRef<Path>) -> Self {
        self.outputs.push(path.as_ref().to_path_buf());
        self.set(flag, path.as_ref().display())
    }

    /// Declares that the stage writes this file or folder, which its command line does not name.
    pub fn writes(mut self, path: impl AsRef<Path>) -> Self {
        self.outputs.push(path.as_ref().to_path_buf());
        self
    }

    /// Declares that the stage keeps unfinished work here, from which it resumes.
    pub fn scratch(mut self, path: impl AsRef<Path>) -> Self {
        self.scratch.push(path.as_ref().to_path_buf());
        self
    }

    /// Declares that this many processes train together.
    pub fn ranks(mut self, ranks: u32) -> Self {
        self.ranks = ranks;
        self
    }

    /// Says what the stage computes.
    pub fn work(mut self, work: Work) -> Self {
        self.work = work;
        self
    }

    /// The name by which the user selects it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it reads.
    pub fn inputs(&self) -> &[PathBuf] {
        &self.inputs
    }

    /// What it writes.
    pub fn outputs(&self) -> &[PathBuf] {
        &self.outputs
    }

    /// What it computes.
    pub fn costs(&self) -> Work {
        self.work
    }

    /// Does it need `path`, or something in it?
    pub fn needs(&self, path: &Path) -> bool {
        self.inputs.iter().any(|input| input.starts_with(path) || path.starts_with(input))
    }

    /// The command line with tensors on another device than the pipeline's own.
    pub(super) fn args_on(&self, device: Option<&str>) -> Vec<String> {
        let mut args = self.args.clone();
        if let (Some(device), Some(at)) = (device, args.iter().position(|arg| arg == "--device")) {
            args[at + 1] = device.to_owned();
        }
        args
    }

    /// Does it compute with tensors?
    pub(super) fn uses_device(&self) -> bool {
        self.args.iter().any(|arg| arg == "--device")
    }
}
