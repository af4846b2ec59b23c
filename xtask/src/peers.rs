//! Checks against real Python programs: `cargo xtask check-exports` (does diffusers load what `laptop-diff prune` writes, and get
//! the same numbers?) and `cargo xtask check-torchrun` (do ranks that torchrun starts train as one does?).
//!
//! Stands beside the data flow. Apart from `cargo xtask test`, because torch and diffusers for Python take 3 GB.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{proc, setup};

/// The versions that the fixtures were computed with.
const PACKAGES: [&str; 5] = ["torch==2.11.0", "diffusers==0.42.0", "transformers==5.23.0", "safetensors", "numpy"];
const ENVIRONMENT: &str = ".venv-exports";
/// Which program is the peer.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    /// diffusers, for exports.
    Exports,
    /// torchrun, for several ranks.
    Torchrun,
}

impl Peer {
    fn script(self) -> &'static str {
        match self {
            Peer::Exports => "tests/exports/check_exports.py",
            Peer::Torchrun => "tests/ranks/check_torchrun.py",
        }
    }
}

/// Builds the binary, sees to a Python with the peers, and runs the script.
pub fn run(root: &Path, peer: Peer, python: Option<PathBuf>, verbose: bool) -> Result<()> {
    setup::setup(root, verbose)?;
    proc::run(&mut proc::cargo(root, &["build", "--package", "laptop-diff"]))?;
    let python = match python {
        Some(python) => python,
        None => environment(root)?,
    };
    let binary = root.join("target/debug/laptop-diff");
    let mut command = Command::new(python);
    command.arg(root.join(peer.script())).arg(binary).current_dir(root);
    proc::run(&mut command)
}

/// The Python of an environment of our own, made where it is missing.
fn environment(root: &Path) -> Result<PathBuf> {
    let home = root.join(ENVIRONMENT);
    let (python, done) = (home.join("bin/python"), home.join("done"));
    if !done.exists() {
        eprintln!("installing torch and diffusers for Python into {ENVIRONMENT}, 3 GB, once");
        proc::run(Command::new(setup::active_python()).args(["-m", "venv", "--clear"]).arg(&home))?;
        proc::run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
        std::fs::write(&done, "").with_context(|| format!("{} cannot be written", done.display()))?;
    }
    Ok(python)
}
