//! `Plan`: which layers go, what that saves and what it is predicted to cost.

use std::path::PathBuf;

use prune_core::table::LayerId;
use prune_core::{LayerTable as Table, Plan as Chosen};
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::errors::raise;
use crate::scores::Scores;
use crate::table::{LayerTable, html};

/// A set of layers to remove from one model.
#[pyclass(frozen, eq, module = "prune_core", from_py_object)]
#[derive(Clone, PartialEq)]
pub struct Plan {
    pub plan: Chosen,
    pub table: Table,
}

#[pymethods]
impl Plan {
    /// The plan that removes exactly these layers; with scores, also what it is predicted to lose.
    #[new]
    #[pyo3(signature = (table, removed, *, method = "by hand", scores = None))]
    fn new(table: &LayerTable, removed: Vec<String>, method: &str, scores: Option<&Scores>) -> PyResult<Self> {
        let mut plan = Chosen::from_removed(&table.0, method, removed).map_err(raise)?;
        if let Some(scores) = scores {
            plan.set_scores(&scores.0).map_err(raise)?;
        }
        Ok(Self { plan, table: table.0.clone() })
    }

    /// The model's layers.
    #[getter]
    fn table(&self) -> LayerTable {
        LayerTable(self.table.clone())
    }

    /// The layers that go, in the order of the forward pass.
    #[getter]
    fn removed(&self) -> Vec<&str> {
        self.plan.removed.iter().map(LayerId::as_str).collect()
    }

    /// The layers that stay, in the order of the forward pass.
    #[getter]
    fn kept(&self) -> Vec<&str> {
        let gone = self.plan.removal_set();
        self.table.layers().iter().map(|layer| layer.id.as_str()).filter(|id| !gone.contains(id)).collect()
    }

    /// The shared costs that go with their last member.
    #[getter]
    fn removed_shared_costs(&self) -> Vec<&str> {
        self.plan.removed_shared_costs.iter().map(LayerId::as_str).collect()
    }

    /// How the set was chosen: `exact`, `bounded`, `branch-and-bound`, `swaps`, ...
    #[getter]
    fn method(&self) -> &str {
        &self.plan.method
    }

    /// The criterion whose scores were used.
    #[getter]
    fn criterion(&self) -> Option<&str> {
        self.plan.criterion.as_deref()
    }

    /// Sum of the scores of the removed layers: the joint loss if losses add up.
    #[getter]
    fn predicted(&self) -> Option<f64> {
        self.plan.predicted
    }

    /// No set that meets the limits has a lower sum.
    #[getter]
    fn lower_bound(&self) -> Option<f64> {
        self.plan.lower_bound
    }

    /// Whether the plan is proven to have the least sum of scores.
    #[getter]
    fn optimal(&self) -> bool {
        self.plan.optimal
    }

    /// Parameters that go, shared costs included.
    #[getter]
    fn params_removed(&self) -> u64 {
        self.plan.params_removed
    }

    /// Parameters that stay.
    #[getter]
    fn params_left(&self) -> u64 {
        self.plan.params_left
    }

    /// Share of the whole model's parameters that goes.
    #[getter]
    fn params_ratio(&self) -> f64 {
        self.plan.params_ratio
    }

    /// Multiply-accumulates that go, shared costs included.
    #[getter]
    fn macs_removed(&self) -> u64 {
        self.plan.macs_removed
    }

    /// Multiply-accumulates that stay.
    #[getter]
    fn macs_left(&self) -> u64 {
        self.plan.macs_left
    }

    /// Share of the whole model's multiply-accumulates that goes; 0 where they are not counted.
    #[getter]
    fn macs_ratio(&self) -> f64 {
        self.plan.macs_ratio
    }

    /// The limits that it was made for: resource, at least, at most, and what goes of it.
    #[getter]
    fn limits(&self) -> Vec<(&str, Option<u64>, Option<u64>, u64)> {
        let rows = self.plan.limits.iter();
        rows.map(|row| (row.limit.resource.as_str(), row.limit.at_least, row.limit.at_most, row.removed)).collect()
    }

    /// The document `plan.json` as text.
    fn to_json(&self) -> PyResult<String> {
        self.plan.to_json().map_err(raise)
    }

    /// Reads the text of a `plan.json` and checks it against the model it is meant for.
    #[classmethod]
    fn from_json(_class: &Bound<'_, PyType>, text: &str, table: &LayerTable) -> PyResult<Self> {
        let plan = Chosen::from_json(text.as_bytes(), &table.0).map_err(raise)?;
        Ok(Self { plan, table: table.0.clone() })
    }

    /// Writes `plan.json`, whole or not at all.
    fn write(&self, path: PathBuf) -> PyResult<()> {
        self.plan.write(&path).map_err(raise)
    }

    /// Reads a `plan.json`, made here or by the command `laptop-diff plan`, and checks it against the model it is meant for.
    #[classmethod]
    fn read(_class: &Bound<'_, PyType>, path: PathBuf, table: &LayerTable) -> PyResult<Self> {
        let plan = Chosen::read(&path, &table.0).map_err(raise)?;
        Ok(Self { plan, table: table.0.clone() })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (String, LayerTable))> {
        Ok((slf.get_type().getattr("from_json")?, (slf.get().to_json()?, slf.get().table())))
    }

    fn __contains__(&self, id: &str) -> bool {
        self.plan.removal_set().contains(id)
    }

    fn __len__(&self) -> usize {
        self.plan.removed.len()
    }

    fn __repr__(&self) -> String {
        let predicted = self.plan.predicted.map_or_else(String::new, |loss| format!(", predicted {loss:.6}"));
        let proof = if self.plan.optimal { ", optimal" } else { "" };
        let (removed, all) = (self.plan.removed.len(), self.table.len());
        format!(
            "Plan({:?}, {removed} of {all} layers, {:.1} % of the parameters go{predicted}{proof})",
            self.plan.method,
            100.0 * self.plan.params_ratio
        )
    }

    fn _repr_html_(slf: Bound<'_, Self>) -> PyResult<String> {
        html(slf.py(), "plan", &slf)
    }
}
