//! The processes of a run: a stage's child while it lives, and Ctrl-C.
//!
//! Part of the stage engine. Whoever wants a program called and nothing more takes `proc`.

use std::fs;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::proc;

/// How often a running stage is looked at.
pub const POLL: Duration = Duration::from_millis(20);

/// A child whose highest resident memory is noted while it lives.
pub struct Watched {
    child: Child,
    /// In bytes, as far as it has been seen.
    pub peak_rss_bytes: Option<u64>,
}

impl Watched {
    /// Watches `child` from now on.
    pub fn new(child: Child) -> Self {
        Watched { child, peak_rss_bytes: None }
    }

    /// Its status, once it has ended.
    pub fn end(&mut self) -> Result<Option<ExitStatus>> {
        // VmHWM never falls, so the last look before the end tells (nearly) all.
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        self.peak_rss_bytes = proc::bytes_of(&status, "VmHWM:").max(self.peak_rss_bytes);
        self.child.try_wait().context("cannot wait for a stage")
    }
}

/// The exit code of a program that stopped because it was asked to, with its work so far kept.
pub const INTERRUPTED_CODE: u8 = 130;

/// The error of a run that the user stopped; ends the process with [`INTERRUPTED_CODE`].
#[derive(Debug)]
pub struct Interrupted(pub String);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Has Ctrl-C been pressed since [`outlive_interrupts`]?
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// From now on Ctrl-C only sets a flag here, so that xtask waits while the child, which gets the same signal from the
/// terminal, saves its state. A handler, unlike an ignored signal, is not inherited by children.
pub fn outlive_interrupts() {
    const SIGINT: i32 = 2;
    extern "C" fn note(_signal: i32) {
        INTERRUPTED.store(true, Ordering::SeqCst);
    }
    unsafe extern "C" {
        fn signal(signal: i32, handler: extern "C" fn(i32)) -> usize;
    }
    // SAFETY: `signal` is the C library's, which the standard library links; the handler only stores an atomic flag.
    unsafe { signal(SIGINT, note) };
}
