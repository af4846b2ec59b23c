//! What every subcommand needs: logging, error text, typed outcomes for exit codes, the stop flag, output checks.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// A wrong command line or setting (exit code 2).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// An output that cannot be written (exit code 6).
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be written ({source}); choose another --out", path.display())]
pub struct Unwritable {
    pub path: PathBuf,
    pub source: std::io::Error,
}

/// An input file that is missing, damaged or of another kind (exit code 3), where no library has an error of its own for it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}; {hint}", path.display())]
pub struct BadFile {
    path: PathBuf,
    problem: String,
    hint: String,
}

impl BadFile {
    /// What is wrong with `path`, and what to do next.
    pub fn new(path: &Path, problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into(), hint: hint.into() }
    }
}

/// Stopped by a signal, with the work so far kept (exit code 130).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);

/// Logs on stderr; `-v` for details, `-vv` for more, `RUST_LOG` overrides both.
pub fn start_logging(verbose: u8) {
    let level = ["warn", "info", "debug", "trace"][usize::from(verbose.min(3))];
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .init();
}

/// The chain of causes in one line; libtorch's C++ stack is left out.
pub fn describe(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let first = text.lines().next().unwrap_or_default().trim_end().to_string();
        // Transparent wrappers repeat their source's words.
        if parts.last().is_none_or(|last| !last.contains(&first)) {
            parts.push(first);
        }
    }
    parts.join(": ")
}

/// A flag that turns true on SIGINT or SIGTERM.
pub fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // A second signal ends the program at once.
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone()).context("cannot watch signals")?;
        signal_hook::flag::register(signal, flag.clone()).context("cannot watch signals")?;
    }
    Ok(flag)
}

/// Whether the flag is up.
pub fn stopped(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}

/// Makes the folder of an output file (or the output folder itself) and proves that it can be written, before any long work.
pub fn prepare_dir(dir: &Path) -> anyhow::Result<()> {
    let unwritable = |source| Unwritable { path: dir.to_path_buf(), source };
    std::fs::create_dir_all(dir).map_err(unwritable)?;
    tempfile::tempfile_in(dir).map_err(unwritable)?;
    artifact::remove_leftovers(dir);
    Ok(())
}

/// [`prepare_dir`] for the folder in which `file` will stand.
pub fn prepare_file(file: &Path) -> anyhow::Result<()> {
    if file.is_dir() {
        return Err(BadInput(format!("--out {}: this is a folder, a file name is needed", file.display())).into());
    }
    match file.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => prepare_dir(dir),
        _ => prepare_dir(Path::new(".")),
    }
}
