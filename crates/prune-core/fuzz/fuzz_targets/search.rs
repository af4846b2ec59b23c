//! Bytes as a small problem: both searches find the least sum that trying all sets finds.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use prune_core::{Budget, Constraints, LayerId, LayerTable, Limit, Problem, RemovalSet, Scores, solve};
use prune_core::table::{Cost, Layer, SharedCost, TableParts};

/// At most this many layers; each takes two bytes, for cost and score.
const MOST: usize = 10;

fuzz_target!(|data: &[u8]| {
    let [share, members, layers @ ..] = data else { return };
    let count = (layers.len() / 2).min(MOST);
    let id = |at: usize| LayerId::new(format!("layers.{at}"));
    let parts: Vec<(u64, f64)> = layers.chunks_exact(2).take(count).map(|pair| (u64::from(pair[0]), f64::from(pair[1] as i8))).collect();
    let layer = |(at, (params, _)): (usize, &(u64, f64))| Layer {
        id: id(at),
        kind: "block".to_owned(),
        stage: "main".to_owned(),
        params: *params,
        macs: 1,
    };
    let inside: Vec<LayerId> = (0..count).filter(|at| members >> (at % 8) & 1 == 1).map(id).collect();
    let shared_costs = if inside.is_empty() { vec![] } else { vec![SharedCost { id: "shared".into(), members: inside, params: 9, macs: 0 }] };
    let table = LayerTable::new(TableParts {
        model: "m".to_owned(),
        fingerprint: "f".to_owned(),
        total_params: 256 * MOST as u64,
        total_macs: MOST as u64,
        layers: parts.iter().enumerate().map(layer).collect(),
        shared_costs,
    });
    let Ok(table) = table else { return };
    let values: BTreeMap<LayerId, f64> = parts.iter().enumerate().map(|(at, (_, score))| (id(at), *score)).collect();
    let scores = Scores::from_values(&table, "score", values).expect("whole numbers");
    let needed = u64::from(*share) * count as u64;
    let none = Constraints::none();
    let best = (0u32..1 << count)
        .map(|bits| (0..count).filter(|at| bits >> at & 1 == 1).map(id).collect::<RemovalSet>())
        .filter(|set| table.removed_cost(set, Cost::Params).expect("known layers") >= needed)
        .map(|set| scores.predicted(&set).expect("known layers"))
        .min_by(f64::total_cmp);
    let one = solve(&scores, &Budget::params(needed), &none).ok().and_then(|plan| plan.predicted);
    let problem = Problem::new(&scores, &none).expect("complete scores");
    let several = problem.solve(&[Limit::at_least("params", needed)], 1 << 20).ok().and_then(|found| found.plan.predicted);
    assert_eq!((one, several), (best, best));
});
