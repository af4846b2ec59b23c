//! `results.json`, `runs.json`: what the report says, for programs. Results -> **files** -> [`crate::compare_runs`].

use std::path::Path;

use artifact::Document;
use eval::{MetricInfo, Timings, add_scales};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Results, UNetResult};
use crate::error::Result;

/// What is read of a `results.json` to set runs beside each other: the U-Nets and their metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultsSummary {
    /// One line that names the run.
    pub title: String,
    /// What each metric is.
    pub metrics: Vec<MetricInfo>,
    /// The teacher first.
    pub unets: Vec<UNetResult>,
}

impl Document for ResultsSummary {
    const FORMAT: &'static str = "laptop-diff/results";
    const VERSION: u32 = 3;
    const HINT: &'static str = "let `report` write it again";

    /// Versions 1 and 2 know no scales, and declines of every metric.
    fn upgrade(_: u32, mut keys: Map<String, Value>) -> Option<Map<String, Value>> {
        add_scales(&mut keys)?;
        Some(keys)
    }
}

#[derive(Serialize)]
struct Stamped<'a> {
    format: &'static str,
    version: u32,
    #[serde(flatten)]
    results: &'a Results,
}

impl Results {
    /// Checks and writes `results.json`.
    ///
    /// # Errors
    /// Those of [`Results::check`]; [`artifact::Error::Io`] when the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.check()?;
        let stamped = Stamped { format: ResultsSummary::FORMAT, version: ResultsSummary::VERSION, results: self };
        Ok(artifact::write_json(path, &stamped)?)
    }
}

/// `runs.json`: the results and times of several runs, as each has them in its own files.
#[derive(Serialize)]
pub(crate) struct RunsFile<'a> {
    format: &'static str,
    version: u32,
    title: &'a str,
    runs: Vec<RunRow<'a>>,
}

#[derive(Serialize)]
struct RunRow<'a> {
    name: &'a str,
    results: Stamped<'a>,
    timings: &'a Timings,
}

impl<'a> RunsFile<'a> {
    pub(crate) fn new(title: &'a str, runs: impl IntoIterator<Item = (&'a str, &'a Results, &'a Timings)>) -> Self {
        let stamped = |results| Stamped { format: ResultsSummary::FORMAT, version: ResultsSummary::VERSION, results };
        let rows = runs.into_iter().map(|(name, results, timings)| RunRow { name, results: stamped(results), timings });
        Self { format: "laptop-diff/runs", version: 3, title, runs: rows.collect() }
    }
}
