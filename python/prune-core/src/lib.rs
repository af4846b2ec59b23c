//! The extension module `prune_core._core`: the crate `prune-core` for Python, and nothing of its own.
//!
//! Each class holds a value of the crate; each function is one call of it. What is Python's (arrays, networks, progress bars,
//! notebooks) lies beside it in the package. Searches and runs release the interpreter's lock, look for signals some times per
//! second, and fail with the classes of `prune_core.errors`.
#![forbid(unsafe_code)]

mod errors;
mod plan;
mod scores;
mod table;

mod request;
mod search;

mod checks;
mod model;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    #[pymodule_export]
    use super::checks::{audit, measured_front, refine};
    #[pymodule_export]
    use super::model::{Model, score, score_adaptively};
    #[pymodule_export]
    use super::plan::Plan;
    #[pymodule_export]
    use super::scores::Scores;
    #[pymodule_export]
    use super::search::{Front, certify, front, solve};
    #[pymodule_export]
    use super::table::LayerTable;

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
