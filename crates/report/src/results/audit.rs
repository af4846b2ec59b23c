//! The additivity audits with the sizes of their sets, typed. Audit file -> **results** -> charts and tables.

use std::cmp::Ordering;

use prune_core::audit::{Audit, AuditFile, AuditStats, SetSize};
use serde::Serialize;
use unet::scoring::Criterion;

use crate::error::{Error, Result};

/// The audits of a run, in the order of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct AuditResult {
    /// The file, its audits in the order of the report.
    pub file: AuditFile,
    #[serde(skip)]
    sizes: Vec<SetSize>,
}

/// One removal set under one criterion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AuditPoint {
    /// What it was drawn for.
    pub size: SetSize,
    /// Number of layers in it.
    pub layers: usize,
    /// Sum of the single scores.
    pub predicted: f64,
    /// The joint value.
    pub measured: f64,
    /// Standard error of the joint value.
    pub standard_error: Option<f64>,
}

impl AuditResult {
    /// Orders the audits, and reads for which size each set was drawn.
    ///
    /// # Errors
    /// [`Error::Results`] for a stratum that is no size of sets.
    pub fn new(mut file: AuditFile) -> Result<Self> {
        file.audits.sort_by_key(|audit| Criterion::position(&audit.criterion));
        let sizes = file.sets.iter().map(|set| size_of(&set.stratum)).collect::<Result<_>>()?;
        file.audits.iter().flat_map(|audit| audit.strata.keys()).try_for_each(|stratum| size_of(stratum).map(drop))?;
        Ok(Self { file, sizes })
    }

    /// The statistics of one audit by what its sets were drawn for: numbers of layers, shares of the parameters, near-optimal sets; each
    /// ascending.
    pub fn by_size<'a>(&self, audit: &'a Audit) -> Vec<(SetSize, &'a AuditStats)> {
        let mut rows: Vec<_> = audit.strata.iter().filter_map(|(stratum, stats)| Some((size_of(stratum).ok()?, stats))).collect();
        let key = |size: &SetSize| match size {
            SetSize::Layers(n) => (0, *n as f64),
            SetSize::ParamsRatio(ratio) => (1, *ratio),
            SetSize::NearOptimal(ratio) => (2, *ratio),
            _ => (3, 0.0),
        };
        rows.sort_by(|a, b| key(&a.0).partial_cmp(&key(&b.0)).unwrap_or(Ordering::Equal));
        rows
    }

    /// Every set that was drawn, under one of the audits.
    pub fn points(&self, audit: &Audit) -> Vec<AuditPoint> {
        let sets = self.file.sets.iter().zip(&self.sizes).zip(audit.predicted.iter().zip(&audit.measured));
        let point = |((set, size), (predicted, measured)): ((&prune_core::audit::MeasuredSet, &SetSize), (&f64, &f64))| AuditPoint {
            size: *size,
            layers: set.removed.len(),
            predicted: *predicted,
            measured: *measured,
            standard_error: set.losses.get(&audit.against).and_then(|joint| joint.standard_error),
        };
        sets.map(point).collect()
    }

    /// What the joint value of one audit is and on which samples, in one sentence.
    pub fn description(&self, audit: &Audit) -> String {
        let samples = self.file.samples.len();
        if audit.against == audit.criterion {
            return format!("Joint value of the same criterion for sets of layers, on {samples} held-out points.");
        }
        format!(
            "Joint {} of sets of layers on {samples} held-out points; the two have different units, so only ranks count.",
            super::scores::label(&audit.against)
        )
    }
}

/// The size that a stratum's name stands for.
fn size_of(stratum: &str) -> Result<SetSize> {
    SetSize::of_stratum(stratum).ok_or_else(|| {
        Error::contradiction("audit", "strata such as `layers=3`, `params_ratio=0.3` or `near_optimal=0.3`", format!("`{stratum}`"))
    })
}
