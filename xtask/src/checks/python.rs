//! `cargo xtask check-python`: the package `prune-core` for Python, built and tested as its users have it.
//!
//! Stands beside the data flow. The tests of the search need NumPy alone and run in the continuous integration; with `--full` the tests
//! on real networks, the types and the source distribution are checked as well, which takes torch and diffusers for Python.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{proc, setup};

const PACKAGE: &str = "python/prune-core";
/// What the tests of the search need, and what `--full` needs beside the peers.
const SMALL: [&str; 2] = ["numpy", "pytest"];
const FULL: [&str; 6] = ["pytest", "pandas", "tqdm", "mypy", "types-tqdm", "maturin>=1.9,<2"];

/// Builds the extension module, puts it into the package's folder, and runs the tests.
pub fn run(root: &Path, full: bool, python: Option<PathBuf>) -> Result<()> {
    proc::run(&mut proc::cargo(root, &["build", "--package", "prune-core-python"]))?;
    let package = root.join(PACKAGE);
    let built = root.join("target/debug/libprune_core_python.so");
    std::fs::copy(&built, package.join("prune_core/_core.abi3.so")).with_context(|| format!("{} cannot be copied", built.display()))?;
    let given = python.is_some();
    let (python, beside) = match (python, full) {
        (Some(python), _) => (python, None),
        (None, true) => (setup::peers(root)?, None),
        (None, false) => (setup::active_python(), Some(small(root)?)),
    };
    if full && !given {
        proc::run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(FULL))?;
    }
    // One test compares with the command itself.
    let command = root.join("target/debug/laptop-diff");
    if full {
        setup::run(root, false)?;
        proc::run(&mut proc::cargo(root, &["build", "--package", "laptop-diff"]))?;
    }
    let tests: &[&str] = if full { &["tests"] } else { &["tests/test_numbers.py"] };
    let mut pytest = in_package(&python, &package, beside.as_deref());
    pytest.args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider"]).args(tests);
    if full {
        pytest.env("LAPTOP_DIFF", command);
    }
    proc::run(&mut pytest)?;
    if full {
        proc::run(in_package(&python, &package, None).args(["-m", "mypy", "--config-file", "pyproject.toml"]))?;
        source_distribution(root, &python, &package)?;
    }
    Ok(())
}

/// A folder with NumPy and pytest, filled once. No environment of its own: not every Python can make one.
fn small(root: &Path) -> Result<PathBuf> {
    let (folder, done) = (root.join("target/python-check"), root.join("target/python-check/done"));
    if !done.exists() {
        proc::run(Command::new(setup::active_python()).args(["-m", "pip", "install", "--quiet", "--target"]).arg(&folder).args(SMALL))?;
        std::fs::write(&done, "").with_context(|| format!("{} cannot be written", done.display()))?;
    }
    Ok(folder)
}

/// Python in the package's folder, which is imported from there.
fn in_package(python: &Path, package: &Path, beside: Option<&Path>) -> Command {
    let mut path = OsString::from(package);
    if let Some(beside) = beside {
        path.push(":");
        path.push(beside);
    }
    let mut command = Command::new(python);
    command.current_dir(package).env("PYTHONPATH", path);
    command
}

/// Packs the sources and looks whether licences, types and the crates that they need are inside.
fn source_distribution(root: &Path, python: &Path, package: &Path) -> Result<()> {
    let out = root.join("target/python-sdist");
    proc::run(in_package(python, package, None).args(["-m", "maturin", "sdist", "--out"]).arg(&out))?;
    let archive = out.join(format!("prune_core-{}.tar.gz", env!("CARGO_PKG_VERSION")));
    let listed = proc::capture(Command::new("tar").arg("-tzf").arg(&archive))?;
    for part in ["LICENSE-MIT", "LICENSE-APACHE", "prune_core/py.typed", "prune_core/_core.pyi", "crates/prune-core/src/lib.rs"] {
        ensure!(listed.lines().any(|line| line.ends_with(part)), "{} holds no {part}", archive.display());
    }
    Ok(())
}
