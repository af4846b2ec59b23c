//! The small model that files are read for.

use prune_core::{LayerId, LayerTable};
use prune_core::table::{Layer, SharedCost, TableParts};

pub fn table() -> LayerTable {
    let layer =
        |name: &str, params| Layer { id: LayerId::new(name), kind: "block".to_owned(), stage: "main".to_owned(), params, macs: 3 * params };
    LayerTable::new(TableParts {
        model: "m".to_owned(),
        fingerprint: "f".to_owned(),
        total_params: 100,
        total_macs: 300,
        layers: vec![layer("a", 10), layer("b", 20), layer("c", 30)],
        shared_costs: vec![SharedCost { id: "s".into(), members: vec!["a".into(), "b".into()], params: 5, macs: 15 }],
    })
    .expect("a valid table")
}
