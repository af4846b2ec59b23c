//! The small model that files are read for.

use prune_core::{Layer, LayerId, LayerTable, Shell, TableParts};

pub fn table() -> LayerTable {
    let layer =
        |name: &str, params| Layer { id: LayerId::new(name), kind: "block".to_owned(), stage: "main".to_owned(), params, macs: 3 * params };
    LayerTable::new(TableParts {
        model: "m".to_owned(),
        fingerprint: "f".to_owned(),
        total_params: 100,
        total_macs: 300,
        layers: vec![layer("a", 10), layer("b", 20), layer("c", 30)],
        shells: vec![Shell { id: "s".into(), members: vec!["a".into(), "b".into()], params: 5, macs: 15 }],
    })
    .expect("a valid table")
}
