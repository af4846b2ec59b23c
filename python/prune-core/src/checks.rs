//! `audit` and `refine`: whether the sum of scores told the truth, and plans that lose less together.

use std::ops::Range;

use prune_core::audit::{AuditFile, DrawnSet, MeasureOptions, MeasuredSet, SetSize, draw_removal_sets, measure_sets_with};
use prune_core::refine::{RefineMethod, RefineOptions, refine_with};
use prune_core::score::Ablate;
use prune_core::{Limit, Scores as Values};
use pyo3::prelude::*;

use crate::errors::{Ended, invalid, raise};
use crate::model::{Driven, Model};
use crate::plan::Plan;
use crate::request::{LimitRequest, Rules};
use crate::scores::Scores;

/// Measures random removal sets and named ones, and compares them with the sums of scores: an audit file as JSON.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the package calls it, in one place")]
pub fn audit(
    py: Python<'_>,
    model: &Model,
    scores: Vec<Scores>,
    layers: Vec<usize>,
    ratios: Vec<f64>,
    per_size: usize,
    plans: Vec<(String, Vec<String>)>,
    seed: u64,
    samples: (usize, usize),
    batch: usize,
) -> PyResult<String> {
    let mut driven = Driven(model);
    let sizes: Vec<SetSize> = layers.into_iter().map(SetSize::Layers).chain(ratios.into_iter().map(SetSize::ParamsRatio)).collect();
    py.detach(|| -> Result<String, Ended> {
        let table = driven.table().clone();
        let mut sets = draw_removal_sets(&table, &sizes, per_size, seed)?;
        let named = plans.into_iter().map(|(stratum, removed)| DrawnSet { stratum, removed: removed.into_iter().collect() });
        sets.extend(named);
        let options = MeasureOptions::new(samples.0..samples.1).batch(batch);
        let measured: Vec<MeasuredSet> = measure_sets_with(&mut driven, &sets, &options, Vec::new(), |_| Ok::<(), Ended>(()))?;
        let of = |scores: &Scores| {
            table.check_same(scores.0.table())?;
            prune_core::audit(&scores.0, scores.0.criterion(), &measured)
        };
        let audits = scores.iter().map(of).collect::<Result<Vec<_>, _>>()?;
        Ok(AuditFile::new(&table, seed, samples.0..samples.1, audits, measured).to_json()?)
    })
    .map_err(PyErr::from)
}

/// How to refine: `swaps`, `beam`, `evolution` or `interactions`, with the number of candidates and, for a beam, its width.
fn method(name: &str, candidates: usize, width: usize) -> PyResult<RefineMethod> {
    match name {
        "swaps" => Ok(RefineMethod::Swaps { candidates }),
        "beam" => Ok(RefineMethod::Beam { width, candidates }),
        "evolution" => Ok(RefineMethod::Evolution { offspring: candidates }),
        "interactions" => Ok(RefineMethod::Interactions { pairs: candidates }),
        other => Err(invalid(format!("`method` is `{other}`; expected swaps, beam, evolution or interactions"))),
    }
}

/// The settings of a refinement.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Settings {
    method: String,
    candidates: usize,
    width: usize,
    samples: (usize, usize),
    held_out: (usize, usize),
    first_samples: usize,
    max_forwards: u64,
    batch: usize,
    seed: u64,
}

impl Settings {
    fn options(&self, criterion: &str, method: RefineMethod) -> RefineOptions<'static> {
        let range = |(start, end): (usize, usize)| -> Range<usize> { start..end };
        RefineOptions::new(criterion, range(self.samples), range(self.held_out))
            .method(method)
            .first_samples(self.first_samples)
            .max_forwards(self.max_forwards)
            .batch(self.batch)
            .seed(self.seed)
    }
}

/// Looks for a set with a lower joint loss under the same limits: the plan, and how it was found as JSON.
#[pyfunction]
pub fn refine(
    py: Python<'_>,
    model: &Model,
    scores: &Scores,
    start: &Plan,
    limits: Vec<LimitRequest>,
    rules: Rules,
    settings: Settings,
) -> PyResult<(Plan, String)> {
    let values: &Values = &scores.0;
    let method = method(&settings.method, settings.candidates, settings.width)?;
    let limits: Vec<Limit> = limits.iter().map(LimitRequest::limit).collect();
    let mut driven = Driven(model);
    let refined = py
        .detach(|| -> Result<_, Ended> {
            let problem = rules.problem(values)?;
            let options = settings.options(values.criterion(), method);
            refine_with(&mut driven, &problem, &limits, &start.plan, &options, None, |_| Ok::<(), Ended>(()))
        })
        .map_err(PyErr::from)?;
    let record = prune_core::file::to_json(&refined.record).map_err(raise)?;
    Ok((Plan { plan: refined.plan, table: values.table().clone() }, record))
}
