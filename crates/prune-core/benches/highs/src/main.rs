//! The same covering knapsacks solved by this crate and by HiGHS, one after the other on one thread: the layers of SDXL with
//! random scores. Both optimal values must be equal; the ratio of the times is printed.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use highs::{HighsModelStatus, RowProblem, Sense};
use prune_core::{Budget, Constraints, LayerTable, RemovalSet, Scores, solve};
use prune_core::table::Cost;

#[path = "../../../tests/prune_core/support/sdxl.rs"]
mod sdxl;

/// Runs whose median is taken: of HiGHS, and of the faster search.
const RUNS: (usize, usize) = (5, 101);
/// Instances at each ratio whose values are compared.
const INSTANCES: u64 = 10;

/// The least sum of scores of a set that removes `needed` parameters, as HiGHS finds it. A shared cost is one more 0-1 variable that
/// is at most each of its members'.
fn by_highs(table: &LayerTable, scores: &Scores, needed: u64) -> RemovalSet {
    let unit = table.layers().iter().map(|layer| layer.params).chain(table.shared_costs().iter().map(|shared| shared.params)).fold(0, gcd);
    let weight = |params: u64| (params / unit) as f64;
    let mut problem = RowProblem::default();
    let values = scores.values().expect("complete scores");
    let columns: Vec<_> = values.iter().map(|value| problem.add_integer_column(*value, 0..=1)).collect();
    let mut row: Vec<_> = columns.iter().zip(table.layers()).map(|(column, layer)| (*column, weight(layer.params))).collect();
    for shared in table.shared_costs() {
        let whole = problem.add_integer_column(0.0, 0..=1);
        row.push((whole, weight(shared.params)));
        for member in &shared.members {
            let member = columns[table.position(member.as_str()).expect("a layer")];
            problem.add_row(..=0.0, [(whole, 1.0), (member, -1.0)]);
        }
    }
    problem.add_row(needed.div_ceil(unit) as f64.., row);
    let mut model = problem.optimise(Sense::Minimise);
    model.make_quiet();
    model.set_threads(NonZeroU32::MIN);
    model.set_option("mip_rel_gap", 0.0);
    model.set_option("mip_abs_gap", 0.0);
    let solved = model.solve();
    assert_eq!(solved.status(), HighsModelStatus::Optimal);
    let solution = solved.get_solution();
    let gone = solution.columns().iter().zip(table.layers()).filter(|(value, _)| **value > 0.5);
    gone.map(|(_, layer)| layer.id.clone()).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn median(runs: usize, mut run: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[runs / 2]
}

fn main() {
    let table = sdxl::sdxl();
    println!("ratio  prune-core ms  HiGHS ms  ratio of times");
    for ratio in [0.1, 0.3, 0.5, 0.7, 0.9] {
        let budget = Budget::params_ratio(ratio);
        let needed = budget.required(&table).expect("a ratio");
        for seed in 0..INSTANCES {
            compare(&table, &sdxl::random_scores(&table, 2404 + seed), &budget, needed);
        }
        let scores = sdxl::random_scores(&table, 2404);
        let ours = median(RUNS.1, || drop(solve(&scores, &budget, &Constraints::none()).expect("feasible")));
        let theirs = median(RUNS.0, || drop(by_highs(&table, &scores, needed)));
        let (ours, theirs) = (1e3 * ours.as_secs_f64(), 1e3 * theirs.as_secs_f64());
        println!("{ratio:5}  {ours:13.3}  {theirs:8.1}  {:14.0}", theirs / ours);
    }
    println!("optimal values equal on {} instances", 5 * INSTANCES);
}

/// Both values must be equal but for the tolerance of a solver in floating point.
fn compare(table: &LayerTable, scores: &Scores, budget: &Budget, needed: u64) {
    let plan = solve(scores, budget, &Constraints::none()).expect("feasible");
    let theirs = by_highs(table, scores, needed);
    let ours = plan.predicted.expect("a sum");
    let value = scores.predicted(&theirs).expect("known layers");
    let removed = table.removed_cost(&theirs, Cost::Params).expect("known layers");
    assert!(removed >= needed, "HiGHS removes {removed} of {needed}");
    assert!(ours <= value && value - ours <= 1e-9 * value, "{ours} and {value} at {budget:?}");
}
