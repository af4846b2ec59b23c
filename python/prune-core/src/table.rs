//! `LayerTable`: what can be removed and what it costs.

use prune_core::table::{Cost, Layer, LayerTableBuilder, SharedCost, TableParts};
use prune_core::{LayerTable as Table, RemovalSet};
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::errors::{invalid, raise};

/// The removable layers of a model, in the order of the forward pass, and what each costs.
///
/// Costs are whole numbers: parameters, and multiply-accumulates of one forward pass (0 where they are not counted).
#[pyclass(frozen, eq, module = "prune_core", from_py_object)]
#[derive(Clone, PartialEq)]
pub struct LayerTable(pub Table);

/// Id, members, parameters, multiply-accumulates.
type Shared = (String, Vec<String>, u64, u64);

#[pymethods]
impl LayerTable {
    #[new]
    #[pyo3(signature = (ids, params, macs = None, *, kinds = None, stages = None, model = None, fingerprint = None, total_params = None,
        total_macs = None, shared_costs = Vec::new()))]
    #[expect(clippy::too_many_arguments, reason = "all of them are keywords in Python")]
    fn new(
        ids: Vec<String>,
        params: Vec<u64>,
        macs: Option<Vec<u64>>,
        kinds: Option<Vec<String>>,
        stages: Option<Vec<String>>,
        model: Option<String>,
        fingerprint: Option<String>,
        total_params: Option<u64>,
        total_macs: Option<u64>,
        shared_costs: Vec<Shared>,
    ) -> PyResult<Self> {
        let count = ids.len();
        let lengths = [
            ("params", Some(params.len())),
            ("macs", macs.as_ref().map(Vec::len)),
            ("kinds", kinds.as_ref().map(Vec::len)),
            ("stages", stages.as_ref().map(Vec::len)),
        ];
        if let Some((name, got)) = lengths.into_iter().find_map(|(name, got)| Some((name, got.filter(|got| *got != count)?))) {
            return Err(invalid(format!("`{name}` has {got} entries for {count} layers; give one for each")));
        }
        let mut builder = Table::builder();
        for (at, id) in ids.into_iter().enumerate() {
            let mut layer = Layer::new(id, params[at]);
            layer.macs = macs.as_ref().map_or(0, |macs| macs[at]);
            layer.kind = kinds.as_ref().map_or(layer.kind, |kinds| kinds[at].clone());
            layer.stage = stages.as_ref().map_or(layer.stage, |stages| stages[at].clone());
            builder = builder.push(layer);
        }
        for (id, members, params, macs) in shared_costs {
            builder = builder.shared_cost(SharedCost::new(id, members, params).macs(macs));
        }
        builder = given(builder, model, |builder, name| builder.model(name));
        builder = given(builder, fingerprint, |builder, hash| builder.fingerprint(hash));
        builder = given(builder, total_params, LayerTableBuilder::total_params);
        builder = given(builder, total_macs, LayerTableBuilder::total_macs);
        builder.build().map(Self).map_err(raise)
    }

    /// Names of the layers, in the order of the forward pass.
    #[getter]
    fn ids(&self) -> Vec<&str> {
        self.0.layers().iter().map(|layer| layer.id.as_str()).collect()
    }

    /// Parameters that go with each layer.
    #[getter]
    fn params(&self) -> Vec<u64> {
        self.0.layers().iter().map(|layer| layer.params).collect()
    }

    /// Multiply-accumulates of one forward pass that go with each layer.
    #[getter]
    fn macs(&self) -> Vec<u64> {
        self.0.layers().iter().map(|layer| layer.macs).collect()
    }

    /// What each layer is, such as `attention`.
    #[getter]
    fn kinds(&self) -> Vec<&str> {
        self.0.layers().iter().map(|layer| layer.kind.as_str()).collect()
    }

    /// The part of the network that each layer sits in.
    #[getter]
    fn stages(&self) -> Vec<&str> {
        self.0.layers().iter().map(|layer| layer.stage.as_str()).collect()
    }

    /// Costs that go with the last of their members: name, members, parameters, multiply-accumulates.
    #[getter]
    fn shared_costs(&self) -> Vec<Shared> {
        let members = |shared: &SharedCost| shared.members.iter().map(|id| id.as_str().to_owned()).collect();
        self.0.shared_costs().iter().map(|shared| (shared.id.as_str().to_owned(), members(shared), shared.params, shared.macs)).collect()
    }

    /// Name of the model, for people.
    #[getter]
    fn model(&self) -> &str {
        self.0.model()
    }

    /// Hash of weights and configuration, or of the costs; files made for another one are refused.
    #[getter]
    fn fingerprint(&self) -> &str {
        self.0.fingerprint()
    }

    /// Parameters of the whole model.
    #[getter]
    fn total_params(&self) -> u64 {
        self.0.total_params()
    }

    /// Multiply-accumulates of one forward pass of the whole model; 0 where they are not counted.
    #[getter]
    fn total_macs(&self) -> u64 {
        self.0.total_macs()
    }

    /// Parameters and multiply-accumulates that go with these layers, shared costs included.
    fn cost_of(&self, ids: Vec<String>) -> PyResult<(u64, u64)> {
        let set: RemovalSet = ids.into_iter().collect();
        let cost = |cost| self.0.removed_cost(&set, cost).map_err(raise);
        Ok((cost(Cost::Params)?, cost(Cost::Macs)?))
    }

    /// The table as JSON, as it stands in files of scores.
    fn to_json(&self) -> PyResult<String> {
        prune_core::file::to_json(&TableParts::from(self.0.clone())).map_err(raise)
    }

    /// The table that `to_json` wrote.
    #[classmethod]
    fn from_json(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        let parts: TableParts = serde_json::from_str(text).map_err(|problem| invalid(format!("not a table of layers: {problem}")))?;
        Table::new(parts).map(Self).map_err(raise)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, (String,))> {
        Ok((slf.get_type().getattr("from_json")?, (slf.get().to_json()?,)))
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __contains__(&self, id: &str) -> bool {
        self.0.position(id).is_some()
    }

    fn __repr__(&self) -> String {
        format!(
            "LayerTable({:?}, {} layers, {} of {} parameters can go)",
            self.0.model(),
            self.0.len(),
            self.0.layers().iter().map(|layer| layer.params).chain(self.0.shared_costs().iter().map(|shared| shared.params)).sum::<u64>(),
            self.0.total_params()
        )
    }

    fn _repr_html_(slf: Bound<'_, Self>) -> PyResult<String> {
        html(slf.py(), "table", &slf)
    }
}

fn given<T>(
    builder: LayerTableBuilder,
    value: Option<T>,
    with: impl FnOnce(LayerTableBuilder, T) -> LayerTableBuilder,
) -> LayerTableBuilder {
    match value {
        Some(value) => with(builder, value),
        None => builder,
    }
}

/// The view of a value in a notebook: a function of `prune_core._display`.
pub fn html(py: Python<'_>, function: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    py.import("prune_core._display")?.getattr(function)?.call1((value,))?.extract()
}
