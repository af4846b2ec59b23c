//! A network in Python as the crate sees it: a function from removed layers and samples to losses; and what drives it.

use std::collections::BTreeMap;
use std::ops::Range;

use prune_core::score::{Ablate, AdaptiveEvent, AdaptiveOptions, LossDeltas, ScoreEvent};
use prune_core::table::RemovalSet;
use prune_core::{LayerTable as Table, Scorer};
use pyo3::prelude::*;

use crate::errors::{Ended, invalid, raise};
use crate::request::{BudgetRequest, Rules};
use crate::scores::Scores;
use crate::table::LayerTable;

/// A network whose layers can be taken out, measured on a fixed list of samples.
///
/// `evaluate(sets, start, stop)` answers one list per set of removed layers, with one row per sample of `start..stop`; a row
/// holds one number per criterion.
#[pyclass(frozen, module = "prune_core._core")]
pub struct Model {
    table: Table,
    criteria: Vec<String>,
    bins: Vec<u32>,
    sets_at_once: usize,
    evaluate: Py<PyAny>,
}

#[pymethods]
impl Model {
    #[new]
    fn new(table: &LayerTable, criteria: Vec<String>, bins: Vec<u32>, sets_at_once: usize, evaluate: Py<PyAny>) -> Self {
        Self { table: table.0.clone(), criteria, bins, sets_at_once, evaluate }
    }
}

/// The crate asks for `&mut`, though nothing here changes.
pub struct Driven<'a>(pub &'a Model);

impl Ablate for Driven<'_> {
    type Error = PyErr;

    fn table(&self) -> &Table {
        &self.0.table
    }

    fn criteria(&self) -> Vec<String> {
        self.0.criteria.clone()
    }

    fn num_samples(&self) -> usize {
        self.0.bins.len()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        self.0.bins[index]
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> PyResult<LossDeltas> {
        Ok(self.evaluate_many(std::slice::from_ref(removed), samples)?.swap_remove(0))
    }

    fn evaluate_many(&mut self, removed: &[RemovalSet], samples: Range<usize>) -> PyResult<Vec<LossDeltas>> {
        let criteria = self.0.criteria.len();
        let sets: Vec<Vec<&str>> = removed.iter().map(|set| set.iter().map(|id| id.as_str()).collect()).collect();
        let answers: Vec<Vec<Vec<f64>>> = Python::attach(|py| {
            py.check_signals()?;
            self.0.evaluate.bind(py).call1((sets, samples.start, samples.end))?.extract()
        })?;
        if answers.len() != removed.len() {
            return Err(invalid(format!("`evaluate` answered {} sets for {}; one list for each", answers.len(), removed.len())));
        }
        let deltas = |rows: Vec<Vec<f64>>| {
            let ragged = rows.iter().find(|row| row.len() != criteria);
            match ragged {
                Some(row) => Err(invalid(format!("`evaluate` answered {} losses of a sample for {criteria} criteria", row.len()))),
                None => LossDeltas::new(criteria, rows.concat()).map_err(raise),
            }
        };
        answers.into_iter().map(deltas).collect()
    }

    fn sets_at_once(&self) -> usize {
        self.0.sets_at_once
    }
}

/// Which samples, how many per call, and what is recorded with the scores.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Run {
    pub batch: usize,
    seed: Option<u64>,
    /// A JSON object.
    settings: String,
    layers: Option<Vec<String>>,
}

impl Run {
    fn scorer<'a>(self, model: &'a Model, resume: Vec<Scores>) -> PyResult<Scorer<Driven<'a>>> {
        let settings: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(&self.settings).map_err(|problem| invalid(format!("settings are no JSON object: {problem}")))?;
        let mut scorer = Scorer::new(Driven(model)).batch(self.batch).resume(resume.into_iter().map(|scores| scores.0).collect());
        for (key, value) in settings {
            scorer = scorer.setting(key, value);
        }
        if let Some(seed) = self.seed {
            scorer = scorer.seed(seed);
        }
        Ok(match self.layers {
            Some(layers) => scorer.layers(layers),
            None => scorer,
        })
    }
}

/// Hands what is complete to a function that saves it.
fn save(on_save: Option<&Py<PyAny>>, scores: &[prune_core::Scores]) -> Result<(), Ended> {
    let Some(on_save) = on_save else { return Ok(()) };
    let so_far: Vec<Scores> = scores.iter().cloned().map(Scores).collect();
    Python::attach(|py| on_save.call1(py, (so_far,)).map(drop)).map_err(Ended::from)
}

/// Scores every layer alone: one `Scores` per criterion. `on_save` gets all that is complete after every layer.
#[pyfunction]
pub fn score(py: Python<'_>, model: &Model, run: Run, resume: Vec<Scores>, on_save: Option<Py<PyAny>>) -> PyResult<Vec<Scores>> {
    let scorer = run.scorer(model, resume)?;
    let scores = py.detach(|| {
        scorer.run_with(|event| match event {
            ScoreEvent::Layer { scores, .. } => save(on_save.as_ref(), scores),
            _ => Ok(()),
        })
    });
    Ok(scores.map_err(PyErr::from)?.into_iter().map(Scores).collect())
}

/// Scores with as many samples as the plans for some budgets need: the scores, the certificates as JSON, and how many
/// evaluations were done, of how many.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the package calls it, in one place")]
pub fn score_adaptively(
    py: Python<'_>,
    model: &Model,
    run: Run,
    budgets: Vec<BudgetRequest>,
    rules: Rules,
    first_samples: usize,
    delta: f64,
    resume: Vec<Scores>,
    on_save: Option<Py<PyAny>>,
) -> PyResult<(Vec<Scores>, String, u64, u64)> {
    let scorer = run.scorer(model, resume)?;
    let budgets = budgets.iter().map(BudgetRequest::budget).collect::<PyResult<Vec<_>>>()?;
    let options = AdaptiveOptions::new(model.criteria[0].as_str(), budgets)
        .constraints(rules.constraints())
        .first_samples(first_samples)
        .delta(delta);
    let found = py
        .detach(|| {
            scorer.run_adaptively_with(&options, |event| match event {
                AdaptiveEvent::Layers { scores, .. } => save(on_save.as_ref(), scores),
                _ => Ok::<(), Ended>(()),
            })
        })
        .map_err(PyErr::from)?;
    let certificates = prune_core::file::to_json(&found.certificates).map_err(raise)?;
    Ok((found.scores.into_iter().map(Scores).collect(), certificates, found.evaluations, found.full_evaluations))
}
