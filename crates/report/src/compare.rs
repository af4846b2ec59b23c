//! The U-Nets of several runs in one table, and which one to ship at a latency. Results of runs -> **table**.

use std::path::{Path, PathBuf};

use artifact::Document;
use eval::{MetricInfo, MetricValue, Timings};
use serde::Serialize;

use crate::choice::{Candidate, best_within, pareto_front};
use crate::error::{Error, Result};
use crate::results::{ResultsSummary, UNetResult};

/// What decides.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CompareOptions {
    /// The metric; the first that all runs have where none is given.
    pub metric: Option<String>,
    /// The longest acceptable latency, in seconds.
    pub max_latency_s: Option<f64>,
    /// What that latency is of.
    pub time_of: TimeOf,
    /// The most memory that is acceptable, in bytes.
    pub max_memory_bytes: Option<f64>,
}

/// What is timed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TimeOf {
    /// One call of the U-Net.
    #[default]
    Call,
    /// One image, from prompt to pixels.
    Image,
}

/// One U-Net of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedUNet {
    /// The run: its folder's name.
    pub run: String,
    /// The U-Net.
    pub unet: String,
    /// Parameters.
    pub params: u64,
    /// Multiply-accumulates of one forward, batch 1.
    pub macs: u64,
    /// Median seconds of one call, where it was timed.
    pub latency_s: Option<f64>,
    /// How many times as fast as the teacher's.
    pub speedup: Option<f64>,
    /// Median seconds of one image, where it was timed.
    pub image_s: Option<f64>,
    /// How many times as fast as the teacher's.
    pub image_speedup: Option<f64>,
    /// Highest memory of a process that draws an image, or that calls the U-Net where no image was drawn; the GPU's where it was
    /// measured on one.
    pub memory_bytes: Option<u64>,
    /// Bytes of the U-Net's weight files.
    pub file_bytes: Option<u64>,
    /// The metric that decides.
    #[serde(flatten)]
    pub quality: MetricValue,
    /// Not beaten in latency and the metric by another one.
    pub pareto: bool,
}

/// All U-Nets that have the metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunComparison {
    /// The metric that decides.
    pub metric: MetricInfo,
    /// By run, in the order in which the runs were named; each run's teacher first.
    pub rows: Vec<ComparedUNet>,
    /// Place of the best row within the limits, where some were given and met.
    pub choice: Option<usize>,
}

struct Run {
    name: String,
    results: ResultsSummary,
    timings: Option<Timings>,
}

/// Reads the `results.json` and `timings.json` that [`crate::write()`] left in each folder, and sets their U-Nets beside each other.
///
/// # Errors
/// [`artifact::Error`] for a missing or damaged file, [`Error::Input`] for a metric that not every run has.
pub fn compare_runs(dirs: &[PathBuf], options: &CompareOptions) -> Result<RunComparison> {
    let runs = dirs.iter().map(|dir| read(dir)).collect::<Result<Vec<_>>>()?;
    let metric = metric(&runs, options.metric.as_deref())?;
    let mut rows: Vec<ComparedUNet> = Vec::new();
    for run in &runs {
        rows.extend(run.results.unets.iter().filter_map(|unet| Some(row(run, unet, unet.metric(&metric.id)?))));
    }
    let time = |r: &ComparedUNet| if options.time_of == TimeOf::Call { r.latency_s } else { r.image_s };
    let candidates: Vec<Candidate> = rows.iter().map(|r| Candidate { latency_s: time(r), value: r.quality.value.value }).collect();
    let front = pareto_front(&candidates, metric.higher_is_better);
    // One whose memory is not known is not known to fit.
    let fits = |r: &ComparedUNet| options.max_memory_bytes.is_none_or(|most| r.memory_bytes.is_some_and(|n| n as f64 <= most));
    let fitting: Vec<Candidate> =
        rows.iter().zip(&candidates).map(|(r, c)| Candidate { latency_s: c.latency_s.filter(|_| fits(r)), value: c.value }).collect();
    let limit = options.max_latency_s.or(options.max_memory_bytes.map(|_| f64::INFINITY));
    let choice = limit.and_then(|limit| best_within(&fitting, limit, metric.higher_is_better));
    for (row, on) in rows.iter_mut().zip(front) {
        row.pareto = on;
    }
    Ok(RunComparison { metric, rows, choice })
}

fn read(dir: &Path) -> Result<Run> {
    let timings = dir.join("timings.json");
    let full = std::fs::canonicalize(dir).ok().and_then(|d| d.file_name().map(|n| n.to_string_lossy().into_owned()));
    Ok(Run {
        name: full.unwrap_or_else(|| dir.display().to_string()),
        results: ResultsSummary::read(&dir.join("results.json"))?,
        timings: timings.is_file().then(|| Timings::read(&timings)).transpose()?,
    })
}

fn row(run: &Run, unet: &UNetResult, quality: &MetricValue) -> ComparedUNet {
    let (timings, names) = (run.timings.as_ref(), unet.names());
    let (call, image) = (timings.and_then(|t| t.call_of(&names)), timings.and_then(|t| t.image_of(&names)));
    let found = timings.and_then(|t| t.footprint_of(&names));
    ComparedUNet {
        run: run.name.clone(),
        unet: unet.name.clone(),
        params: unet.params,
        macs: unet.macs,
        latency_s: call.map(|t| t.median_s),
        speedup: call.map(|t| t.speedup),
        image_s: image.map(|t| t.median_s),
        image_speedup: image.map(|t| t.speedup),
        memory_bytes: found.and_then(|f| f.image.or(f.call)).map(|p| p.device_bytes.unwrap_or(p.resident_bytes)),
        file_bytes: found.map(|f| f.unet_file_bytes),
        quality: quality.clone(),
        pareto: false,
    }
}

/// The metric that was asked for, or the first one that every run has.
fn metric(runs: &[Run], asked: Option<&str>) -> Result<MetricInfo> {
    let everywhere = |id: &str| runs.iter().all(|run| run.results.metrics.iter().any(|m| m.id == id));
    let common: Vec<&MetricInfo> = runs.iter().take(1).flat_map(|run| &run.results.metrics).filter(|m| everywhere(&m.id)).collect();
    let found = match asked {
        Some(id) => common.iter().find(|m| m.id == id),
        None => common.first(),
    };
    let known = || common.iter().map(|m| m.id.as_str()).collect::<Vec<_>>().join(", ");
    let problem = || match asked {
        Some(id) => Error::input("metric", format!("one that every run has ({})", known()), id),
        None => Error::input("metric", "one that every run has; evaluate them with the same --metric", "none"),
    };
    Ok((*found.ok_or_else(problem)?).clone())
}
