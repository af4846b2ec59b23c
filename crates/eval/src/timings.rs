//! `timings.json`: what the clock and the system said of a run; the part of its results that differs between two runs of the same
//! commands. Written by latency measurements, completed by the report.

use artifact::Document;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::file::rename;

/// `timings.json`: what differs between two runs of the same commands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// The machine.
    pub hardware: Hardware,
    /// Wall-clock time of the stages, in order.
    pub stages: Vec<StageTime>,
    /// Latency of one U-Net call, teacher first.
    pub latency: Vec<LatencyRow>,
    /// Latency of a whole image, where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageTimes>,
    /// Size, files and memory of each U-Net, teacher first; empty where that was not measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub footprints: Vec<Footprint>,
}

impl Timings {
    /// A record without any time yet.
    pub fn new(hardware: Hardware) -> Self {
        Self { hardware, stages: Vec::new(), latency: Vec::new(), image: None, footprints: Vec::new() }
    }

    /// The row of the first of `names` that was measured.
    fn find<'a, T>(rows: &'a [T], of: impl Fn(&T) -> &str, names: &[&str]) -> Option<&'a T> {
        names.iter().find_map(|wanted| rows.iter().find(|row| of(row) == *wanted))
    }

    /// The latency of one call of the U-Net, by the first of its names that was timed: retraining changes no shape, so a student
    /// is as fast as the U-Net that its plan alone gives.
    pub fn call_of(&self, names: &[&str]) -> Option<&LatencyRow> {
        Self::find(&self.latency, |row| &row.unet, names)
    }

    /// The latency of one image by this U-Net, likewise.
    pub fn image_of(&self, names: &[&str]) -> Option<&LatencyRow> {
        Self::find(&self.image.as_ref()?.rows, |row| &row.unet, names)
    }

    /// Size, files and memory of this U-Net, likewise.
    pub fn footprint_of(&self, names: &[&str]) -> Option<&Footprint> {
        Self::find(&self.footprints, |row| &row.unet, names)
    }
}

impl Document for Timings {
    const FORMAT: &'static str = "laptop-diff/timings";
    const VERSION: u32 = 2;
    const HINT: &'static str = "let `bench` or `report` write it again";

    /// Version 1 calls images by an older word.
    fn upgrade(version: u32, keys: Map<String, Value>) -> Option<Map<String, Value>> {
        let mut all = Value::Object(keys);
        rename(&mut all, "picture", "image");
        for footprint in all.get_mut("footprints").and_then(Value::as_array_mut).into_iter().flatten() {
            rename(footprint, "picture", "image");
        }
        all.as_object().filter(|_| version == 1).cloned()
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

/// Latency of one call of one U-Net, or of one image.
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

/// Latency from prompt to image: text encoders, every step with guidance, VAE; nothing is read from or written to a disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageTimes {
    /// Sampler, such as `ddim`.
    pub sampler: String,
    /// Sampling steps.
    pub steps: u32,
    /// Classifier-free guidance scale.
    pub guidance: f64,
    /// Height and width in pixels.
    pub size: [u32; 2],
    /// One row per U-Net, teacher first; all timed in turns.
    pub rows: Vec<LatencyRow>,
}

/// What one U-Net takes up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Footprint {
    /// The U-Net.
    pub unet: String,
    /// Parameters.
    pub params: u64,
    /// Multiply-accumulates of one forward, batch 1.
    pub macs: u64,
    /// Height and width of the latents that `macs` and `call` refer to.
    pub latent: [u32; 2],
    /// Bytes of the U-Net's weight files.
    pub unet_file_bytes: u64,
    /// Bytes of the weight files of the whole model with this U-Net; none where only a U-Net was given.
    pub model_file_bytes: Option<u64>,
    /// Memory for calls of the U-Net alone.
    pub call: Option<PeakMemory>,
    /// Memory for drawing an image with all parts of the model loaded.
    pub image: Option<PeakMemory>,
}

/// The highest memory of a fresh process that did one thing, loading included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeakMemory {
    /// Highest resident memory in bytes, as Linux counts it (VmHWM); the program itself and pages of mapped files are in it.
    pub resident_bytes: u64,
    /// The same before the first weight was read: the program and its libraries.
    pub before_bytes: u64,
    /// What the process had taken of the GPU's memory at its end beyond CUDA's own context, in bytes; libtorch gives nothing back, so
    /// this is its highest. None on a CPU.
    pub device_bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn times_of_version_1_are_read() {
        let peak = r#"{"resident_bytes": 2, "before_bytes": 1, "device_bytes": null}"#;
        let old = format!(
            r#"{{"format": "laptop-diff/timings", "version": 1,
            "hardware": {{"platform": "l", "cpu": "c", "logical_cpus": 1, "torch_threads": 1, "memory_bytes": null, "device": "cpu"}},
            "stages": [], "latency": [], "picture": {{"sampler": "ddim", "steps": 2, "guidance": 1.0, "size": [8, 8], "rows": []}},
            "footprints": [{{"unet": "teacher", "params": 1, "macs": 1, "latent": [4, 4], "unet_file_bytes": 9, "model_file_bytes": null,
                "call": null, "picture": {peak}}}]}}"#
        );
        let timings = Timings::parse(old.as_bytes(), Path::new("timings.json")).unwrap();
        assert_eq!((timings.image.unwrap().steps, timings.footprints[0].image.unwrap().resident_bytes), (2, 2));
    }
}
