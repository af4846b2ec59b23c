//! `cargo xtask check`: everything but tests that must hold before a change lands, cheapest first.
//!
//! Stands beside the data flow.

use std::path::Path;

use anyhow::Result;

use super::tidy;
use crate::{proc, setup};

/// Formatting, house rules, lints, documentation.
pub fn check(root: &Path, verbose: bool) -> Result<()> {
    proc::run(&mut proc::cargo(root, &["fmt", "--all", "--check"]))?;
    tidy::tidy(root)?;
    setup::run(root, verbose)?;
    proc::run(&mut proc::cargo(root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    proc::run(proc::cargo(root, &["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    eprintln!("check: formatting, house rules, lints and documentation are in order");
    Ok(())
}
