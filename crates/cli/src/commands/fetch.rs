//! `laptop-diff fetch`: weights of the Hugging Face Hub under a path of one's own. Hub -> **model directory or file**.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::common::{BadInput, prepare_file};
use crate::hub;

/// Arguments of `fetch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// org/name or org/name@revision for a model directory, org/name:file for one file.
    what: PathBuf,
    /// The link to make; the files themselves lie in the hub's cache, where other programs find them too.
    #[arg(long)]
    out: PathBuf,
}

/// Fetches what is not in the cache yet, and links to it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.out.exists() && !args.out.is_symlink() {
        return Err(BadInput(format!("{}: something is already there; name another path or remove it", args.out.display())).into());
    }
    if !args.out.is_symlink() {
        prepare_file(&args.out)?;
    }
    let found = hub::weights(&args.what)?;
    let found = std::path::absolute(&found).with_context(|| format!("cannot find {}", found.display()))?;
    if args.out.is_symlink() {
        // An older link; what it leads to stays in the cache.
        std::fs::remove_file(&args.out).with_context(|| format!("cannot replace the link {}", args.out.display()))?;
    }
    link(&found, &args.out).with_context(|| format!("cannot link {} to {}", args.out.display(), found.display()))?;
    println!("{} -> {}", args.out.display(), found.display());
    Ok(())
}

#[cfg(unix)]
fn link(to: &Path, at: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::Error::other("links are made on Unix only; give --model org/name to the other commands"))
}
