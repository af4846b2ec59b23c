//! How a run was made: commands, seeds, versions and hashes in the results, and what the clock said in `timings.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::io::Versioned;

/// What is needed to run it again; the same bytes every time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The commands, in order.
    pub commands: Vec<Command>,
    /// What each seed is for -> seed.
    pub seeds: BTreeMap<String, u64>,
    /// Program or library -> version.
    pub versions: BTreeMap<String, String>,
    /// File, relative to the run directory or the model -> SHA-256.
    pub hashes: BTreeMap<String, String>,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Stage, such as `score`.
    pub stage: String,
    /// The line to type.
    pub line: String,
}

/// `timings.json`: what differs between two runs of the same commands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Always [`Timings::FORMAT`](Versioned::FORMAT).
    pub format: String,
    /// Always [`Timings::VERSION`](Versioned::VERSION).
    pub version: u32,
    /// The machine.
    pub hardware: Hardware,
    /// Wall-clock time of the stages, in order.
    pub stages: Vec<StageTime>,
    /// Latency of one U-Net call, teacher first.
    pub latency: Vec<LatencyRow>,
}

impl Timings {
    /// A record without any time yet.
    pub fn new(hardware: Hardware) -> Self {
        Self { format: Self::FORMAT.into(), version: Self::VERSION, hardware, stages: Vec::new(), latency: Vec::new() }
    }
}

impl Versioned for Timings {
    const FORMAT: &'static str = "laptop-diff/timings";
    const VERSION: u32 = 1;

    fn stamp(&self) -> (&str, u32) {
        (&self.format, self.version)
    }

    fn check(&self) -> crate::error::Result<()> {
        Ok(())
    }
}

/// The machine that measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hardware {
    /// Operating system and architecture.
    pub platform: String,
    /// Processor's name.
    pub cpu: String,
    /// Logical processors that the process may use.
    pub logical_cpus: usize,
    /// Threads that libtorch used.
    pub torch_threads: usize,
    /// Main memory, in bytes; none where the system does not tell.
    pub memory_bytes: Option<u64>,
    /// Device and number type of the U-Net, such as `cpu, f32`.
    pub device: String,
}

/// Wall-clock time of one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// Stage, such as `score`.
    pub stage: String,
    /// Seconds; of the run that did the work when the stage was skipped this time.
    pub seconds: f64,
    /// Highest resident memory of the stage's process, in bytes.
    pub peak_rss_bytes: Option<u64>,
}

/// Latency of one call of one U-Net.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyRow {
    /// The U-Net.
    pub unet: String,
    /// Batch size of the call.
    pub batch: u64,
    /// Timed calls, after the warm-up.
    pub n: usize,
    /// Median of one call, in seconds.
    pub median_s: f64,
    /// First quartile.
    pub q1_s: f64,
    /// Third quartile.
    pub q3_s: f64,
    /// Median over rounds of (first U-Net's time / this one's time), both from the same round; 1 for the first.
    pub speedup: f64,
}
