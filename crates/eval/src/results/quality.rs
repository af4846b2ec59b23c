//! Rows of the results about U-Nets that made pictures, and what others published.

use serde::{Deserialize, Serialize};

use super::io::Versioned;
use crate::error::{Error, Result};
use crate::file::{KindAccuracy, MetricValue};

/// What a U-Net is in the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The unpruned model.
    Teacher,
    /// Pruned, not retrained.
    Pruned,
    /// Pruned and retrained.
    Student,
}

/// One U-Net that made pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UNetResult {
    /// Unique machine name.
    pub name: String,
    /// Name for people.
    pub label: String,
    /// Its role.
    pub role: Role,
    /// The plan it was pruned by.
    pub plan: Option<String>,
    /// The run that retrained it.
    pub distillation: Option<String>,
    /// Parameters.
    pub params: u64,
    /// Multiply-accumulates of one forward, batch 1.
    pub macs: u64,
    /// One entry per metric.
    pub metrics: Vec<MetricValue>,
    /// Checker accuracy by kind of attribute.
    pub by_kind: Vec<KindAccuracy>,
}

impl UNetResult {
    /// The names under which it was timed: its own, or that of the plan.
    pub fn names(&self) -> Vec<&str> {
        [Some(self.name.as_str()), self.plan.as_deref()].into_iter().flatten().collect()
    }

    /// The value of one metric.
    pub fn metric(&self, id: &str) -> Option<&MetricValue> {
        self.metrics.iter().find(|m| m.metric == id)
    }
}

/// A relative decline that others published, to be set beside the run's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedDecline {
    /// What was pruned, and how.
    pub name: String,
    /// The metric's id.
    pub metric: String,
    /// Share of the U-Net's parameters that went.
    pub ratio: f64,
    /// Relative decline against the teacher in per cent.
    pub decline_percent: f64,
    /// Where it stands, and what it is a bound of.
    pub source: String,
}

/// `published.json`: results of others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedFile {
    /// Always [`PublishedFile::FORMAT`](Versioned::FORMAT).
    pub format: String,
    /// Always [`PublishedFile::VERSION`](Versioned::VERSION).
    pub version: u32,
    /// In the order of the report.
    pub results: Vec<PublishedDecline>,
}

impl Versioned for PublishedFile {
    const FORMAT: &'static str = "laptop-diff/published";
    const VERSION: u32 = 1;

    fn stamp(&self) -> (&str, u32) {
        (&self.format, self.version)
    }

    fn check(&self) -> Result<()> {
        match self.results.iter().find(|p| !(0.0..=1.0).contains(&p.ratio)) {
            None => Ok(()),
            Some(p) => Err(Error::Results {
                key: format!("published `{}`: ratio", p.name),
                expected: "a share between 0 and 1".into(),
                got: p.ratio.to_string(),
            }),
        }
    }
}
