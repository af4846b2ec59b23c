//! Time of the search on the layers of SDXL, and of several limits on 2,000 layers.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use prune_core::score::{Population, certify};
use prune_core::search::{Resource, greedy};
use prune_core::table::{Cost, Layer, TableParts};
use prune_core::{Budget, Constraints, Front, LayerId, LayerTable, Limit, Problem, Scores, solve};

#[path = "../tests/prune_core/support/sdxl.rs"]
mod sdxl;

use sdxl::{random_scores, sdxl};

fn one_budget(criterion: &mut Criterion) {
    let table = sdxl();
    let mut sizes: Vec<u64> = table.layers().iter().map(|layer| layer.params).collect();
    sizes.sort_unstable();
    sizes.dedup();
    assert_eq!((table.len(), table.shared_costs().len(), sizes.len()), (227, 11, 18), "not the layers of SDXL");
    let scores = random_scores(&table, 2404);
    let none = Constraints::none();
    for cost in [Cost::Params, Cost::Macs] {
        let points = Front::build(&scores, cost, &none).expect("complete scores").points().len();
        criterion.bench_function(&format!("whole front, {cost} ({points} points)"), |b| {
            b.iter(|| Front::build(black_box(&scores), cost, &none).expect("complete scores"));
        });
        for ratio in [0.3, 0.5, 0.7] {
            let budget = Budget::ratio_of(cost, ratio);
            criterion.bench_function(&format!("one budget, {cost} ratio {ratio}"), |b| {
                b.iter(|| solve(black_box(&scores), &budget, &none).expect("feasible"));
            });
        }
    }
    criterion.bench_function("greedy, params ratio 0.5", |b| {
        b.iter(|| greedy(black_box(&scores), &Budget::params_ratio(0.5), &none).expect("feasible"));
    });
}

/// At least half the parameters, four tenths of the multiply-accumulates, and between 0.3 and 0.45 of the time.
fn limits(table: &LayerTable, time: &Resource) -> [Limit; 3] {
    let part = |total: u64, percent: u64| (u128::from(total) * u128::from(percent) / 100) as u64;
    let total: u64 = time.layers.values().sum();
    [
        Limit::at_least("params", part(table.total_params(), 50)),
        Limit::at_least("macs", part(table.total_macs(), 40)),
        Limit { resource: time.name.clone(), at_least: Some(part(total, 30)), at_most: Some(part(total, 45)) },
    ]
}

/// A third cost, from a fixed linear congruential sequence: 50 to 1,050 microseconds.
fn time(table: &LayerTable) -> Resource {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        50 + (state >> 33) % 1000
    };
    let layers = table.layers().iter().map(|layer| (layer.id.clone(), next())).collect();
    Resource { name: "time_us".to_owned(), layers, shared_costs: BTreeMap::new() }
}

/// 2,000 layers of any size from 10,000 to 10 million parameters.
fn large() -> LayerTable {
    let mut state = 11u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        10_000 + (state >> 20) % 9_990_000
    };
    let layer = |at: usize| {
        let (params, rate) = (next(), next());
        Layer {
            id: LayerId::new(format!("layers.{at:04}")),
            kind: "block".to_owned(),
            stage: "main".to_owned(),
            params,
            macs: params + rate,
        }
    };
    let layers: Vec<Layer> = (0..2000).map(layer).collect();
    LayerTable::new(TableParts {
        model: "large".to_owned(),
        fingerprint: "benchmark".to_owned(),
        total_params: layers.iter().map(|layer| layer.params).sum(),
        total_macs: layers.iter().map(|layer| layer.macs).sum(),
        layers,
        shared_costs: Vec::new(),
    })
    .expect("a valid table")
}

fn several_limits(criterion: &mut Criterion) {
    for (name, table, max_nodes) in [("SDXL", sdxl(), 100_000), ("2,000 layers", large(), 100), ("2,000 layers", large(), 2_000)] {
        let scores = random_scores(&table, 2404);
        let time = time(&table);
        let limits = limits(&table, &time);
        let problem =
            Problem::new(&scores, &Constraints::none()).and_then(|problem| problem.with_resource(&time)).expect("a valid problem");
        let found = problem.solve(&limits, max_nodes).expect("feasible");
        let gap = found.gap / found.plan.predicted.expect("a sum");
        let label = format!("three limits, {name}, at most {max_nodes} nodes ({} used, relative gap {gap:.1e})", found.nodes);
        criterion.bench_function(&label, |b| b.iter(|| black_box(&problem).solve(&limits, max_nodes).expect("feasible")));
    }
}

/// Whether a plan of SDXL could still change, from 16 samples per layer.
fn certificate(criterion: &mut Criterion) {
    let table = sdxl();
    let values = random_scores(&table, 2404);
    let mut parts = prune_core::score::ScoresParts {
        table: table.clone(),
        criterion: "output_loss".to_owned(),
        seed: None,
        settings: BTreeMap::new(),
        first_sample: 0,
        bins: vec![0; 16],
        layers: BTreeMap::new(),
    };
    for (at, layer) in table.layers().iter().enumerate() {
        let value = values.value(layer.id.as_str()).expect("a score");
        let samples = (0..16).map(|sample| value * (0.5 + ((at * 7 + sample * 5) % 16) as f64 / 16.0)).collect();
        parts.layers.extend(prune_core::score::LayerScore::from_samples(samples).map(|score| (layer.id.clone(), score)));
    }
    let scores = Scores::new(parts).expect("finite scores");
    let (budget, none) = (Budget::params_ratio(0.5), Constraints::none());
    criterion.bench_function("certificate, params ratio 0.5", |b| {
        b.iter(|| certify(black_box(&scores), &budget, &none, 0.05, Population::Expectation).expect("feasible"));
    });
}

criterion_group!(fast, one_budget, certificate);
criterion_group!(name = slow; config = Criterion::default().sample_size(10); targets = several_limits);
criterion_main!(fast, slow);
