//! Checks against real Python programs: `cargo xtask check-exports` (does diffusers load what `laptop-diff prune` writes, and get
//! the same numbers?) and `cargo xtask check-torchrun` (do ranks that torchrun starts train as one does?).
//!
//! Stands beside the data flow. Apart from `cargo xtask test`, because torch and diffusers for Python take 3 GB.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{proc, setup};

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
    setup::run(root, verbose)?;
    proc::run(&mut proc::cargo(root, &["build", "--package", "laptop-diff"]))?;
    let python = match python {
        Some(python) => python,
        None => setup::peers(root)?,
    };
    let binary = root.join("target/debug/laptop-diff");
    let mut command = Command::new(python);
    command.arg(root.join(peer.script())).arg(binary).current_dir(root);
    proc::run(&mut command)
}
