//! `audit`, `refine` and `measured_front`: whether the sum of scores told the truth, and plans that lose less together.

use std::ops::Range;

use prune_core::audit::{
    AuditFile, DrawnSet, MeasureOptions, MeasuredSet, SetSize, draw_removal_sets, measure_sets_with, near_optimal_sets,
};
use prune_core::measured_front::{FrontOptions, measured_front_with};
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
    near: Vec<f64>,
    per_near: usize,
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
        if let Some(scores) = scores.first() {
            sets.extend(near_optimal_sets(&scores.0, &near, per_near)?);
        }
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

/// How to refine, with the number of candidates and, for a beam, its width.
fn method(name: &str, candidates: usize, width: usize) -> PyResult<RefineMethod> {
    match name {
        "swaps" => Ok(RefineMethod::Swaps { candidates }),
        "beam" => Ok(RefineMethod::Beam { width, candidates }),
        "evolution" => Ok(RefineMethod::Evolution { offspring: candidates }),
        "interactions" => Ok(RefineMethod::Interactions { pairs: candidates }),
        other => Err(invalid(format!("`method` is `{other}`; expected swaps, beam, evolution or interactions"))),
    }
}

/// The settings of a refinement or a measured front.
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
    /// The samples of the search, and those that it does not see.
    fn samples(&self) -> (Range<usize>, Range<usize>) {
        (self.samples.0..self.samples.1, self.held_out.0..self.held_out.1)
    }

    fn method(&self) -> PyResult<RefineMethod> {
        method(&self.method, self.candidates, self.width)
    }

    fn refinement(&self, criterion: &str) -> PyResult<RefineOptions<'static>> {
        let (samples, held_out) = self.samples();
        Ok(RefineOptions::new(criterion, samples, held_out)
            .method(self.method()?)
            .first_samples(self.first_samples)
            .max_forwards(self.max_forwards)
            .batch(self.batch)
            .seed(self.seed))
    }

    /// `winners` around which the search goes on; none for plans of the exact front alone.
    fn front(&self, criterion: &str, resource: &str, winners: usize) -> PyResult<FrontOptions<'static>> {
        let (samples, held_out) = self.samples();
        let options = FrontOptions::new(criterion, samples, held_out)
            .resource(resource)
            .first_samples(self.first_samples)
            .max_forwards(self.max_forwards)
            .batch(self.batch)
            .seed(self.seed);
        Ok(if winners == 0 { options } else { options.refine(self.method()?, winners) })
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
    let limits: Vec<Limit> = limits.iter().map(LimitRequest::limit).collect();
    let mut driven = Driven(model);
    let refined = py
        .detach(|| -> Result<_, Ended> {
            let options = settings.refinement(values.criterion())?;
            let problem = rules.problem(values)?;
            refine_with(&mut driven, &problem, &limits, &start.plan, &options, None, |_| Ok::<(), Ended>(()))
        })
        .map_err(PyErr::from)?;
    let record = prune_core::file::to_json(&refined.record).map_err(raise)?;
    Ok((Plan { plan: refined.plan, table: values.table().clone() }, record))
}

/// The best measured plan of every budget: the file of the front, as JSON.
#[pyfunction]
pub fn measured_front(
    py: Python<'_>,
    model: &Model,
    scores: &Scores,
    resource: &str,
    rules: Rules,
    settings: Settings,
    winners: usize,
) -> PyResult<String> {
    let values: &Values = &scores.0;
    let mut driven = Driven(model);
    py.detach(|| -> Result<String, Ended> {
        let options = settings.front(values.criterion(), resource, winners)?;
        let problem = rules.problem(values)?;
        let front = measured_front_with(&mut driven, &problem, &options, None, |_| Ok::<(), Ended>(()))?;
        Ok(front.to_json()?)
    })
    .map_err(PyErr::from)
}
