//! `Scores`: what each removal does, alone, with its samples.

use std::collections::BTreeMap;
use std::path::PathBuf;

use prune_core::score::{LayerScore, ScoresParts};
use prune_core::{LayerId, Scores as Values};
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::errors::{invalid, raise};
use crate::table::{LayerTable, html};

/// Scores of a model's layers under one criterion: lower means that the layer matters less.
#[pyclass(frozen, eq, module = "prune_core", from_py_object)]
#[derive(Clone, PartialEq)]
pub struct Scores(pub Values);

#[pymethods]
impl Scores {
    /// Scores with one number per layer and no error bars.
    #[new]
    #[pyo3(signature = (table, values, *, criterion = "score"))]
    fn new(table: &LayerTable, values: BTreeMap<String, f64>, criterion: &str) -> PyResult<Self> {
        Values::from_values(&table.0, criterion, values).map(Self).map_err(raise)
    }

    /// Scores that are means over samples: one list of losses per layer, as many in each.
    #[classmethod]
    #[pyo3(signature = (table, samples, *, criterion = "loss", bins = None))]
    fn from_samples(
        _class: &Bound<'_, PyType>,
        table: &LayerTable,
        samples: BTreeMap<String, Vec<f64>>,
        criterion: &str,
        bins: Option<Vec<u32>>,
    ) -> PyResult<Self> {
        let count = samples.values().map(Vec::len).max().unwrap_or(0);
        let mut layers = BTreeMap::new();
        for (id, losses) in samples {
            let score = LayerScore::from_samples(losses)
                .ok_or_else(|| invalid(format!("the losses of `{id}` have no finite mean; give at least one, and numbers alone")))?;
            layers.insert(LayerId::new(id), score);
        }
        let parts = ScoresParts {
            table: table.0.clone(),
            criterion: criterion.to_owned(),
            seed: None,
            settings: BTreeMap::new(),
            first_sample: 0,
            bins: bins.unwrap_or_else(|| vec![0; count]),
            layers,
        };
        Values::new(parts).map(Self).map_err(raise)
    }

    /// The model's layers.
    #[getter]
    fn table(&self) -> LayerTable {
        LayerTable(self.0.table().clone())
    }

    /// What was measured.
    #[getter]
    fn criterion(&self) -> &str {
        self.0.criterion()
    }

    /// The score of each layer that has one, in the order of the forward pass.
    #[getter]
    fn values(&self) -> PyResult<Py<PyAny>> {
        self.column(|score| Some(score.value()))
    }

    /// The standard error of each score; absent for layers with fewer than two samples.
    #[getter]
    fn standard_errors(&self) -> PyResult<Py<PyAny>> {
        self.column(LayerScore::standard_error)
    }

    /// Number of calibration samples behind the scores; 0 where layers have one number each.
    #[getter]
    fn num_samples(&self) -> usize {
        self.0.samples().len()
    }

    /// Bin of each sample, such as its time step's.
    #[getter]
    fn bins(&self) -> Vec<u32> {
        self.0.bins().to_vec()
    }

    /// How it was measured, as JSON.
    #[getter]
    fn settings_json(&self) -> PyResult<String> {
        prune_core::file::to_json(self.0.settings()).map_err(raise)
    }

    /// The layers without score, in the order of the forward pass.
    #[getter]
    fn missing(&self) -> Vec<&str> {
        self.0.missing().into_iter().map(LayerId::as_str).collect()
    }

    /// The losses behind the score of a layer, one per sample.
    fn samples(&self, id: &str) -> PyResult<Vec<f64>> {
        self.0.table().require(&LayerId::new(id)).map_err(raise)?;
        Ok(self.0.layer(id).map_or_else(Vec::new, |score| score.samples().to_vec()))
    }

    /// The mean loss of a layer in each bin.
    fn bin_means(&self, id: &str) -> BTreeMap<u32, f64> {
        self.0.bin_means(id)
    }

    /// The sum of the scores of these layers: their joint loss, if losses add up.
    fn predicted(&self, ids: Vec<String>) -> PyResult<f64> {
        self.0.predicted(&ids.into_iter().collect()).map_err(raise)
    }

    /// The document `scores.json` as text.
    fn to_json(&self) -> PyResult<String> {
        self.0.to_json().map_err(raise)
    }

    /// The scores that `to_json` wrote.
    #[classmethod]
    fn from_json(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        Values::from_json(text.as_bytes()).map(Self).map_err(raise)
    }

    /// Writes `scores.json`, whole or not at all.
    fn write(&self, path: PathBuf) -> PyResult<()> {
        self.0.write(&path).map_err(raise)
    }

    /// Reads a `scores.json`, made here or by the command `laptop-diff score`.
    #[classmethod]
    #[pyo3(signature = (path, table = None))]
    fn read(_class: &Bound<'_, PyType>, path: PathBuf, table: Option<&LayerTable>) -> PyResult<Self> {
        let scores = match table {
            Some(table) => Values::read_for(&path, &table.0),
            None => Values::read(&path),
        };
        scores.map(Self).map_err(raise)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        Ok((slf.get_type().getattr("from_json")?, (slf.get().to_json()?,)))
    }

    fn __getitem__(&self, id: &str) -> PyResult<f64> {
        self.predicted(vec![id.to_owned()])
    }

    fn __len__(&self) -> usize {
        self.0.table().len() - self.0.missing().len()
    }

    fn __repr__(&self) -> String {
        let samples = match self.num_samples() {
            0 => String::new(),
            samples => format!(", {samples} samples"),
        };
        format!("Scores({:?}, {} of {} layers{samples})", self.0.criterion(), self.__len__(), self.0.table().len())
    }

    fn _repr_html_(slf: Bound<'_, Self>) -> PyResult<String> {
        html(slf.py(), "scores", &slf)
    }
}

impl Scores {
    fn column(&self, number: impl Fn(&LayerScore) -> Option<f64>) -> PyResult<Py<PyAny>> {
        Python::attach(|py| {
            let dict = pyo3::types::PyDict::new(py);
            for layer in self.0.table().layers() {
                if let Some(number) = self.0.layer(layer.id.as_str()).and_then(&number) {
                    dict.set_item(layer.id.as_str(), number)?;
                }
            }
            Ok(dict.into_any().unbind())
        })
    }
}
