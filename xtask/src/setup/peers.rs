//! The Python programs that results are compared with, in an environment of their own.
//!
//! Stands before the data flow. Only the checks against real peers use it, because torch and diffusers for Python take 3 GB.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::libtorch::active_python;
use super::versions::{PEERS, requirement};
use crate::proc;

const ENVIRONMENT: &str = ".venv-exports";

/// The Python of an environment of our own, made where it is missing.
pub fn environment(root: &Path) -> Result<PathBuf> {
    let home = root.join(ENVIRONMENT);
    let (python, done) = (home.join("bin/python"), home.join("done"));
    if !done.exists() {
        eprintln!("installing torch and diffusers for Python into {ENVIRONMENT}, 3 GB, once");
        proc::run(Command::new(active_python()).args(["-m", "venv", "--clear"]).arg(&home))?;
        proc::run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PEERS.map(requirement)))?;
        std::fs::write(&done, "").with_context(|| format!("{} cannot be written", done.display()))?;
    }
    Ok(python)
}
