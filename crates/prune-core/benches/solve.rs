//! Time of the search on the layers of SDXL.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use prune_core::{Budget, Constraints, Cost, Front, greedy, solve};

#[path = "../tests/common/sdxl.rs"]
mod sdxl;

use sdxl::{random_scores, sdxl};

fn benchmarks(criterion: &mut Criterion) {
    let table = sdxl();
    let mut sizes: Vec<u64> = table.layers().iter().map(|layer| layer.params).collect();
    sizes.sort_unstable();
    sizes.dedup();
    assert_eq!((table.len(), table.shells().len(), sizes.len()), (227, 11, 18), "not the layers of SDXL");
    let scores = random_scores(&table);
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

criterion_group!(solve_sdxl, benchmarks);
criterion_main!(solve_sdxl);
