//! The exact search against enumeration of all subsets, against a dynamic programme over integer weights, and against
//! itself (one budget at a time, the whole front).

use crate::support;
use crate::support::{id, scores, set, table, weigh};
use proptest::prelude::*;
use prune_core::search::{greedy, random};
use prune_core::table::Cost;
use prune_core::{Budget, Constraints, Error, Front, LayerTable, RemovalSet, solve};

/// A small instance: costs, scores (small integers, so that sums are exact and ties are common), disjoint shared costs.
#[derive(Debug, Clone)]
struct Instance {
    costs: Vec<u64>,
    values: Vec<f64>,
    shared_costs: Vec<(Vec<usize>, u64)>,
}

impl Instance {
    fn table(&self) -> LayerTable {
        table(&self.costs, &self.shared_costs)
    }
}

fn instance(max_items: usize, weights: impl Strategy<Value = u64> + Clone + 'static) -> impl Strategy<Value = Instance> {
    (1..=max_items).prop_flat_map(move |n| {
        let costs = prop::collection::vec(weights.clone(), n);
        let values = prop_oneof![
            prop::collection::vec((-3i32..12).prop_map(f64::from), n),
            prop::collection::vec((0i32..3).prop_map(f64::from), n),
            prop::collection::vec((1i32..1000).prop_map(|v| f64::from(v) / 1024.0), n),
        ];
        // Owner of each layer: one of three shared costs or none; members need not be neighbours.
        let owners = prop::collection::vec(0usize..6, n);
        (costs, values, owners, prop::array::uniform3(weights.clone())).prop_map(|(costs, values, owners, extra)| {
            let members = |shared: usize| (0..owners.len()).filter(|i| owners[*i] == shared).collect::<Vec<_>>();
            let shared_costs = (0..3).map(|shared| (members(shared), extra[shared])).filter(|(m, _)| !m.is_empty());
            let shared_costs = shared_costs.collect();
            Instance { costs, values, shared_costs }
        })
    })
}

fn weights() -> impl Strategy<Value = u64> + Clone + 'static {
    prop_oneof![1u64..6, 1u64..40, prop::sample::select(vec![7u64, 7, 14, 9_999_999_999, 10_000_000_000])]
}

/// Sets as bits compared by the documented rule: score, then cost removed, then the smallest differing id, members of a
/// shared cost side by side.
fn better(table: &LayerTable, a: (u64, f64, u32), b: (u64, f64, u32)) -> bool {
    if (a.1, b.0) != (b.1, a.0) {
        return a.1 < b.1 || (a.1 == b.1 && a.0 > b.0);
    }
    let first = |i: usize| match table.shared_cost_of(id(i).as_str()) {
        Some(shared) => shared.members.iter().map(|m| table.position(m.as_str()).unwrap()).min().unwrap(),
        None => i,
    };
    let mut order: Vec<usize> = (0..table.len()).collect();
    order.sort_by_key(|i| (first(*i), *i));
    match order.iter().find(|i| (a.2 ^ b.2) >> **i & 1 == 1) {
        Some(i) => a.2 >> i & 1 == 1,
        None => false,
    }
}

fn bits_of(set: &RemovalSet, table: &LayerTable) -> u32 {
    set.iter().map(|id| 1u32 << table.position(id.as_str()).unwrap()).sum()
}

/// The best of all allowed subsets, by definition.
fn enumerate(table: &LayerTable, values: &[f64], needed: u64, allowed: impl Fn(u32) -> bool, cost: Cost) -> Option<(u64, f64, u32)> {
    let mut best = None;
    for bits in (0..1u32 << table.len()).filter(|bits| allowed(*bits)) {
        let (weight, score) = weigh(table, values, bits, cost);
        let candidate = (weight, score, bits);
        if weight >= needed && best.is_none_or(|best| better(table, candidate, best)) {
            best = Some(candidate);
        }
    }
    best
}

proptest! {
    #![proptest_config(support::cases(300))]

    #[test]
    fn one_budget_equals_enumeration(case in instance(12, weights()), share in 0.0..1.05f64, macs: bool) {
        let table = case.table();
        let cost = if macs { Cost::Macs } else { Cost::Params };
        let needed = (share * table.total(cost) as f64) as u64;
        let best = enumerate(&table, &case.values, needed, |_| true, cost);
        let scores = scores(&table, &case.values);
        let found = solve(&scores, &Budget::amount_of(cost, needed), &Constraints::none());
        match best {
            Some((weight, score, bits)) => {
                let plan = found.unwrap();
                prop_assert_eq!(plan.predicted, Some(score));
                prop_assert_eq!(plan.removed_cost(cost), weight);
                prop_assert_eq!(bits_of(&plan.removal_set(), &table), bits);
                prop_assert!(plan.optimal && plan.lower_bound == plan.predicted);
                plan.check(&table).unwrap();
            }
            None => match found {
                Err(Error::Infeasible { needed: n, available, largest_ratio, .. }) => {
                    prop_assert_eq!(n, needed);
                    prop_assert_eq!(available, table.total(cost) - 10);
                    prop_assert_eq!(largest_ratio, available as f64 / table.total(cost) as f64);
                }
                other => prop_assert!(false, "{:?}", other),
            },
        }
    }

    #[test]
    fn the_front_is_every_undominated_set(case in instance(11, weights())) {
        let table = case.table();
        let scores = scores(&table, &case.values);
        let front = Front::build(&scores, Cost::Params, &Constraints::none()).unwrap();
        let points = front.points();
        prop_assert!(points.windows(2).all(|p| p[0].removed < p[1].removed && p[0].score < p[1].score));
        let mut expected = Vec::new();
        let mut needed = 0;
        while let Some((weight, score, bits)) = enumerate(&table, &case.values, needed, |_| true, Cost::Params) {
            expected.push((weight, score, bits));
            needed = weight + 1;
        }
        let found: Vec<_> = points.iter().enumerate()
            .map(|(i, p)| (p.removed, p.score, bits_of(&front.removal(i).unwrap(), &table)))
            .collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(front.removal(points.len()), None);
        for point in points {
            let budget = Budget::params(point.removed);
            prop_assert_eq!(front.plan(&budget).unwrap(), solve(&scores, &budget, &Constraints::none()).unwrap());
        }
    }

    #[test]
    fn constraints_equal_enumeration(
        case in instance(10, weights()),
        share in 0.0..1.0f64,
        choices in prop::collection::vec(0u8..5, 10),
    ) {
        let table = case.table();
        let mut constraints = Constraints::none();
        let (mut keep, mut remove) = (0u32, 0u32);
        for (i, choice) in choices.iter().enumerate().take(table.len()) {
            match choice {
                0 => { constraints.keep.insert(id(i)); keep |= 1 << i; }
                1 => { constraints.remove.insert(id(i)); remove |= 1 << i; }
                _ => {}
            }
        }
        let needed = (share * table.total_params() as f64) as u64;
        let allowed = |bits: u32| bits & keep == 0 && bits & remove == remove;
        let best = enumerate(&table, &case.values, needed, allowed, Cost::Params);
        let scores = scores(&table, &case.values);
        let budget = Budget::params(needed);
        let found = solve(&scores, &budget, &constraints);
        match best {
            Some((.., bits)) => {
                let plan = found.unwrap();
                prop_assert_eq!(bits_of(&plan.removal_set(), &table), bits);
                prop_assert_eq!(&plan.constraints, &constraints);
                let front = Front::build(&scores, Cost::Params, &constraints).unwrap();
                prop_assert_eq!(front.plan(&budget).unwrap(), plan);
                for plan in [greedy(&scores, &budget, &constraints).unwrap(), random(&scores, &budget, &constraints, 3).unwrap()] {
                    plan.check(&table).unwrap();
                    prop_assert!(allowed(bits_of(&plan.removal_set(), &table)));
                }
            }
            None => {
                let (most, _) = weigh(&table, &case.values, !keep & ((1 << table.len()) - 1), Cost::Params);
                for found in [found, greedy(&scores, &budget, &constraints), random(&scores, &budget, &constraints, 3)] {
                    let Err(Error::Infeasible { available, .. }) = found else { panic!("{found:?}") };
                    prop_assert_eq!(available, most);
                }
            }
        }
    }

    #[test]
    fn the_order_of_rows_does_not_matter(case in instance(10, weights()), share in 0.0..0.95f64) {
        let table = case.table();
        let mut reversed = support::parts(&case.costs, &case.shared_costs);
        reversed.layers.reverse();
        reversed.shared_costs.reverse();
        for shared in &mut reversed.shared_costs {
            shared.members.reverse();
        }
        let reversed = LayerTable::new(reversed).unwrap();
        let budget = Budget::params((share * (table.total_params() - 10) as f64) as u64);
        let plan = |table: &LayerTable| {
            solve(&scores(table, &case.values), &budget, &Constraints::none()).unwrap().removal_set()
        };
        prop_assert_eq!(plan(&table), plan(&reversed));
    }

    #[test]
    fn baselines_meet_the_budget_and_are_minimal(case in instance(14, weights()), share in 0.0..1.0f64, seed: u64) {
        let table = case.table();
        let scores = scores(&table, &case.values);
        let budget = Budget::params((share * (table.total_params() - 10) as f64) as u64);
        let needed = budget.required(&table).unwrap();
        let best = solve(&scores, &budget, &Constraints::none()).unwrap();
        let greedy = greedy(&scores, &budget, &Constraints::none()).unwrap();
        let random = random(&scores, &budget, &Constraints::none(), seed).unwrap();
        prop_assert_eq!(random.seed, Some(seed));
        for plan in [greedy, random] {
            plan.check(&table).unwrap();
            prop_assert!(plan.params_removed >= needed && !plan.optimal);
            prop_assert!(plan.predicted >= best.predicted);
            for gone in &plan.removed {
                let mut without: Vec<_> = plan.removed.clone();
                without.retain(|id| id != gone);
                let cost = table.removed_cost(&without.into_iter().collect(), Cost::Params).unwrap();
                let pays = case.values[table.position(gone.as_str()).unwrap()] < 0.0;
                prop_assert!(cost < needed || (pays && plan.method == "greedy"));
            }
        }
    }
}

proptest! {
    #![proptest_config(support::cases(6))]

    #[test]
    fn larger_instances_equal_enumeration(case in instance(17, weights()), share in 0.2..0.9f64) {
        let table = case.table();
        let needed = (share * (table.total_params() - 10) as f64) as u64;
        let (_, _, bits) = enumerate(&table, &case.values, needed, |_| true, Cost::Params).unwrap();
        let plan = solve(&scores(&table, &case.values), &Budget::params(needed), &Constraints::none()).unwrap();
        prop_assert_eq!(bits_of(&plan.removal_set(), &table), bits);
    }
}

/// Least score for each removed weight, by the textbook recursion over weights: a second, independent method. Groups
/// with a shared cost get one more option, all their members at once.
fn by_weights(table: &LayerTable, values: &[i64]) -> Vec<Option<i64>> {
    let capacity = table.total_params() as usize;
    let mut best: Vec<Option<i64>> = vec![None; capacity + 1];
    best[0] = Some(0);
    let add = |from: &[Option<i64>], to: &mut [Option<i64>], weight: usize, value: i64| {
        for at in (weight..from.len()).rev() {
            if let Some(base) = from[at - weight] {
                to[at] = Some(to[at].map_or(base + value, |old| old.min(base + value)));
            }
        }
    };
    let mut grouped: Vec<Vec<usize>> = Vec::new();
    let mut extras = Vec::new();
    for shared in table.shared_costs() {
        grouped.push(shared.members.iter().map(|m| table.position(m.as_str()).unwrap()).collect());
        extras.push(shared.params as usize);
    }
    for i in (0..table.len()).filter(|i| table.shared_cost_of(id(*i).as_str()).is_none()) {
        grouped.push(vec![i]);
        extras.push(0);
    }
    for (members, extra) in grouped.iter().zip(extras) {
        let before = best.clone();
        for i in members {
            let from = best.clone();
            add(&from, &mut best, table.layers()[*i].params as usize, values[*i]);
        }
        let weight: usize = members.iter().map(|i| table.layers()[*i].params as usize).sum();
        add(&before, &mut best, weight + extra, members.iter().map(|i| values[*i]).sum());
    }
    best
}

proptest! {
    #![proptest_config(support::cases(24))]

    #[test]
    fn big_instances_equal_a_recursion_over_weights(
        costs in prop::collection::vec(1u64..60, 90),
        values in prop::collection::vec(-20i64..4000, 90),
        sizes in prop::collection::vec((0usize..7, 1u64..50), 12),
        shares in prop::array::uniform5(0.0..1.0f64),
    ) {
        let mut shared_costs = Vec::new();
        let mut start = 3;
        for (size, extra) in sizes {
            if size > 0 {
                shared_costs.push(((start..start + size).collect(), extra));
            }
            start += size;
        }
        let table = table(&costs, &shared_costs);
        let best = by_weights(&table, &values);
        let values: Vec<f64> = values.iter().map(|v| *v as f64 / 64.0).collect();
        let scores = scores(&table, &values);
        let front = Front::build(&scores, Cost::Params, &Constraints::none()).unwrap();
        for share in shares {
            let needed = (share * (table.total_params() - 10) as f64) as usize;
            let expected = best[needed..].iter().flatten().min().map(|v| *v as f64 / 64.0);
            let budget = Budget::params(needed as u64);
            let plan = solve(&scores, &budget, &Constraints::none()).unwrap();
            prop_assert_eq!(plan.predicted, expected);
            prop_assert_eq!(front.plan(&budget).unwrap(), plan);
        }
    }
}

#[test]
fn a_shared_cost_is_worth_its_last_member() {
    // Layers 0 and 1 hold 10 each, their shared cost 30 more: together cheaper than layer 2, which alone holds 40.
    let table = table(&[10, 10, 40], &[(vec![0, 1], 30)]);
    let scores = scores(&table, &[2.0, 2.0, 5.0]);
    let plan = solve(&scores, &Budget::params(40), &Constraints::none()).unwrap();
    assert_eq!(plan.removal_set(), set([0, 1]));
    assert_eq!((plan.params_removed, plan.params_left), (50, 50));
    assert_eq!(plan.removed_shared_costs[0].as_str(), "shared_costs.0");
    let mut constraints = Constraints::none();
    constraints.keep.insert(id(1));
    let plan = solve(&scores, &Budget::params(40), &constraints).unwrap();
    assert_eq!(plan.removal_set(), set([2]));
    assert!(plan.removed_shared_costs.is_empty());
}

#[test]
fn a_wrong_constraint_is_an_error() {
    let table = table(&[10, 10], &[]);
    let scores = scores(&table, &[1.0, 2.0]);
    let mut constraints = Constraints::none();
    constraints.keep.insert("layers.0O".into());
    let error = solve(&scores, &Budget::params(1), &constraints).unwrap_err();
    assert_eq!(error.to_string(), "unknown layer `layers.0O`; did you mean `layers.00`?");
    constraints.keep = [id(0)].into();
    constraints.remove = [id(0)].into();
    let error = solve(&scores, &Budget::params(1), &constraints).unwrap_err();
    assert!(matches!(error, Error::Contradiction { id } if id.as_str() == "layers.00"));
    let front = Front::build(&scores, Cost::Params, &Constraints::none()).unwrap();
    assert!(matches!(front.plan(&Budget::macs(1)), Err(Error::OtherCost { .. })));
    for ratio in [-0.1, 1.01, f64::NAN, f64::INFINITY] {
        let error = solve(&scores, &Budget::params_ratio(ratio), &Constraints::none()).unwrap_err();
        assert!(matches!(error, Error::OutOfRange { .. }), "{ratio}: {error}");
    }
}

#[test]
fn extreme_scores_are_added_exactly_or_refused() {
    let table = table(&[5, 5, 5], &[]);
    let solved = |values: [f64; 3], needed| {
        solve(&scores(&table, &values), &Budget::params(needed), &Constraints::none()).map(|plan| plan.removal_set())
    };
    assert_eq!(solved([1.0, 1e-30, 1.0 - 1e-16], 10).unwrap(), set([1, 2]));
    assert_eq!(solved([5e-324, 1e-323, 0.0], 10).unwrap(), set([0, 2]));
    assert!(matches!(solved([1e300, 0.5, 1.0], 5), Err(Error::ScoreSpread { small, .. }) if small == 0.5));
    assert!(matches!(solved([f64::MAX, f64::MAX, 0.0], 5), Err(Error::Overflow { .. })));
    // The costs of real networks, beyond what f32 or a rounded grid could tell apart.
    let big = support::table(&[9_999_999_999, 10_000_000_000, 1], &[]);
    let plan = solve(&scores(&big, &[1.0, 1.5, 0.25]), &Budget::params(10_000_000_000), &Constraints::none()).unwrap();
    assert_eq!(plan.removal_set(), set([0, 2]));
}
