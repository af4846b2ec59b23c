//! The search under everything it takes at once (several limits from both sides, groups, needs, pins, interactions, negative
//! scores) against enumeration of all subsets and against a recursion over costs.

use crate::support;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::support::{id, scores, set, table};
use proptest::prelude::*;
use prune_core::search::{Interaction, Precedence, Resource, SearchOptions, greedy, lowest_first, random};
use prune_core::{Budget, Constraints, Error, LayerTable, Limit, Problem, RemovalSet, Scores, solve};

/// Everything that a problem can have, for layers numbered from 0.
#[derive(Debug, Clone)]
struct Case {
    costs: Vec<u64>,
    latency: Vec<u64>,
    values: Vec<f64>,
    shared_costs: Vec<(Vec<usize>, u64)>,
    keep: Vec<usize>,
    remove: Vec<usize>,
    together: Vec<Vec<usize>>,
    requires: Vec<(usize, usize)>,
    pairs: Vec<(usize, usize, f64)>,
    /// Shares of what can go: params at least and at most, latency at least and at most.
    shares: [f64; 4],
}

impl Case {
    fn table(&self) -> LayerTable {
        table(&self.costs, &self.shared_costs)
    }

    fn constraints(&self) -> Constraints {
        Constraints {
            keep: self.keep.iter().map(|i| id(*i)).collect(),
            remove: self.remove.iter().map(|i| id(*i)).collect(),
            together: self.together.iter().map(|group| group.iter().map(|i| id(*i)).collect()).collect(),
            requires: self.requires.iter().map(|(a, b)| Precedence { layer: id(*a), needs: id(*b) }).collect(),
        }
    }

    fn interactions(&self) -> Vec<Interaction> {
        self.pairs.iter().map(|(a, b, score)| Interaction { first: id(*a), second: id(*b), score: *score }).collect()
    }

    fn latency(&self) -> Resource {
        let layers = self.latency.iter().enumerate().map(|(i, cost)| (id(i), *cost)).collect();
        let shared_costs = (0..self.shared_costs.len()).map(|i| (format!("shared_costs.{i}").into(), 5)).collect();
        Resource { name: "latency_us".to_owned(), layers, shared_costs }
    }

    fn allowed(&self, bits: u32) -> bool {
        let gone = |i: &usize| bits >> i & 1 == 1;
        !self.keep.iter().any(gone)
            && self.remove.iter().all(gone)
            && self.together.iter().all(|group| group.iter().all(gone) || !group.iter().any(gone))
            && self.requires.iter().all(|(a, b)| !gone(a) || gone(b))
    }

    /// Score, parameters, latency of a set, by the definition.
    fn weigh(&self, bits: u32) -> (f64, u64, u64) {
        let gone = |i: usize| bits >> i & 1 == 1;
        let (mut score, mut params, mut latency) = (0.0, 0, 0);
        for i in (0..self.costs.len()).filter(|i| gone(*i)) {
            score += self.values[i];
            params += self.costs[i];
            latency += self.latency[i];
        }
        for (members, cost) in &self.shared_costs {
            if members.iter().all(|i| gone(*i)) {
                params += cost;
                latency += 5;
            }
        }
        score += self.pairs.iter().filter(|(a, b, _)| gone(*a) && gone(*b)).map(|pair| pair.2).sum::<f64>();
        (score, params, latency)
    }

    fn limits(&self) -> [Limit; 4] {
        let params = self.costs.iter().sum::<u64>() + self.shared_costs.iter().map(|shared| shared.1).sum::<u64>();
        let latency = self.latency.iter().sum::<u64>() + 5 * self.shared_costs.len() as u64;
        let part = |share: f64, whole: u64| (share * whole as f64) as u64;
        [
            Limit::at_least("params", part(self.shares[0], params)),
            Limit::at_most("params", part(self.shares[1], params)),
            Limit::at_least("latency_us", part(self.shares[2], latency)),
            Limit::at_most("latency_us", part(self.shares[3], latency)),
        ]
    }

    fn meets(&self, bits: u32, limits: &[Limit]) -> bool {
        let (_, params, latency) = self.weigh(bits);
        limits.iter().all(|limit| {
            let cost = if limit.resource == "params" { params } else { latency };
            limit.at_least.is_none_or(|low| cost >= low) && limit.at_most.is_none_or(|high| cost <= high)
        })
    }

    /// The least score, and among its sets the one with the smallest id on which two differ.
    fn enumerate(&self, meets: impl Fn(u32) -> bool) -> Option<(f64, u32)> {
        let mut best: Option<(f64, u32)> = None;
        for bits in (0..1u32 << self.costs.len()).filter(|bits| self.allowed(*bits) && meets(*bits)) {
            let score = self.weigh(bits).0;
            let first = |other: u32| bits >> (bits ^ other).trailing_zeros() & 1 == 1;
            if best.is_none_or(|(least, other)| score < least || (score == least && first(other))) {
                best = Some((score, bits));
            }
        }
        best
    }
}

fn bits_of(set: &RemovalSet, table: &LayerTable) -> u32 {
    set.iter().map(|id| 1u32 << table.position(id.as_str()).unwrap()).sum()
}

fn case(items: impl Strategy<Value = usize>) -> impl Strategy<Value = Case> {
    items.prop_flat_map(|n| {
        let weights = prop_oneof![1u64..6, 1u64..40, prop::sample::select(vec![7u64, 14, 9_999_999_999, 10_000_000_000])];
        let values = prop_oneof![
            prop::collection::vec((-3i32..12).prop_map(f64::from), n),
            prop::collection::vec((0i32..3).prop_map(f64::from), n),
            prop::collection::vec((1i32..1000).prop_map(|v| f64::from(v) / 1024.0), n),
        ];
        let sets = (
            prop::collection::vec(0usize..6, n),
            prop::collection::vec(prop_oneof![8 => Just(0u8), 1 => Just(1), 1 => Just(2)], n),
            prop::collection::vec(prop::collection::vec(0..n, 2..4), 0..3),
            prop::collection::vec((0..n, 0..n), 0..5),
            prop::collection::vec((0..n, 0..n, (-4i32..5).prop_map(|v| f64::from(v) / 2.0)), 0..4),
        );
        let shares = prop::array::uniform4(0.0..1.0f64);
        (prop::collection::vec(weights.clone(), n), prop::collection::vec(1u64..30, n), values, sets, weights, shares).prop_map(
            |(costs, latency, values, (owners, pins, together, requires, pairs), extra, shares)| {
                let members = |shared: usize| (0..owners.len()).filter(|i| owners[*i] == shared).collect::<Vec<_>>();
                let of = |pin: u8| (0..pins.len()).filter(|i| pins[*i] == pin).collect::<Vec<_>>();
                Case {
                    shared_costs: (0..3).map(|shared| (members(shared), extra)).filter(|shared| !shared.0.is_empty()).collect(),
                    keep: of(1),
                    remove: of(2),
                    costs,
                    latency,
                    values,
                    together,
                    requires,
                    pairs: pairs.into_iter().filter(|(a, b, _)| a != b).collect(),
                    // Mostly wide ranges, so that many of them can be met.
                    shares: [shares[0] * 0.7, 0.4 + 0.6 * shares[1], shares[2] * 0.5, 0.4 + 0.6 * shares[3]],
                }
            },
        )
    })
}

/// Checks the search against enumeration; answers whether there was anything to find.
fn equals_enumeration(case: &Case, limits: &[Limit], with_pairs: bool) -> Result<bool, TestCaseError> {
    let mut case = case.clone();
    if !with_pairs {
        case.pairs.clear();
    }
    let table = case.table();
    let scores = scores(&table, &case.values);
    let problem = Problem::new(&scores, &case.constraints()).unwrap();
    let problem = problem.with_resource(&case.latency()).unwrap().with_interactions(&case.interactions()).unwrap();
    let found = problem.solve(limits, 200_000);
    match case.enumerate(|bits| case.meets(bits, limits)) {
        Some((score, bits)) => {
            let solution = found.unwrap();
            prop_assert_eq!(solution.plan.predicted, Some(score));
            prop_assert_eq!((solution.gap, solution.plan.lower_bound), (0.0, Some(score)));
            prop_assert!(solution.plan.optimal && solution.ordered);
            prop_assert_eq!(bits_of(&solution.plan.removal_set(), &table), bits);
            solution.plan.check(&table).unwrap();
            let removed: Vec<u64> = solution.plan.limits.iter().map(|limit| limit.removed).collect();
            let (_, params, latency) = case.weigh(bits);
            for (limit, removed) in limits.iter().zip(removed) {
                prop_assert_eq!(removed, if limit.resource == "params" { params } else { latency });
            }
            Ok(true)
        }
        None => {
            let refused = matches!(found, Err(Error::LimitsInfeasible { .. } | Error::Contradiction { .. }));
            prop_assert!(refused, "{:?}", found);
            Ok(false)
        }
    }
}

proptest! {
    #![proptest_config(support::cases(600))]

    #[test]
    fn several_limits_equal_enumeration(case in case(1usize..=11), which in 0usize..16, with_pairs: bool) {
        let limits: Vec<Limit> = case.limits().into_iter().enumerate().filter(|(i, _)| which >> i & 1 == 1).map(|l| l.1).collect();
        equals_enumeration(&case, &limits, with_pairs)?;
    }

    #[test]
    fn one_budget_and_the_front_take_groups_needs_and_interactions(case in case(1usize..=10), share in 0.0..1.05f64) {
        let table = case.table();
        let scores = scores(&table, &case.values);
        let needed = (share * (table.total_params() - 10) as f64) as u64;
        let problem = Problem::new(&scores, &case.constraints());
        let problem = problem.unwrap().with_interactions(&case.interactions()).unwrap();
        let best = |needed: u64| case.enumerate(|bits| case.weigh(bits).1 >= needed).map(|best| best.0);
        let found = problem.solve_budget(&Budget::params(needed));
        let front = problem.front("params");
        match best(needed) {
            None => {
                prop_assert!(matches!(found, Err(Error::Infeasible { .. } | Error::Contradiction { .. })), "{:?}", found);
                if let Ok(front) = front {
                    prop_assert_eq!(front.find(needed), None);
                }
            }
            Some(score) => {
                let plan = found.unwrap();
                prop_assert_eq!(plan.predicted, Some(score));
                plan.check(&table).unwrap();
                prop_assert!(case.allowed(bits_of(&plan.removal_set(), &table)) && plan.params_removed >= needed);
                let front = front.unwrap();
                prop_assert_eq!(front.plan(&Budget::params(needed)).unwrap(), plan);
                for (index, point) in front.points().into_iter().enumerate() {
                    let bits = bits_of(&front.removal(index).unwrap(), &table);
                    prop_assert!(case.allowed(bits));
                    prop_assert_eq!((point.score, point.removed), (case.weigh(bits).0, case.weigh(bits).1));
                    prop_assert_eq!(best(point.removed), Some(point.score));
                    prop_assert_eq!(front.find(point.removed), Some(index));
                }
            }
        }
    }

    #[test]
    fn baselines_keep_to_groups_and_needs(case in case(1usize..=14), share in 0.0..1.0f64, seed: u64) {
        let table = case.table();
        let scores = scores(&table, &case.values);
        let budget = Budget::params((share * (table.total_params() - 10) as f64) as u64);
        let constraints = case.constraints();
        match solve(&scores, &budget, &constraints) {
            Ok(best) => {
                for plan in [greedy(&scores, &budget, &constraints), lowest_first(&scores, &budget, &constraints),
                             random(&scores, &budget, &constraints, seed)] {
                    let plan = plan.unwrap();
                    plan.check(&table).unwrap();
                    prop_assert!(case.allowed(bits_of(&plan.removal_set(), &table)));
                    prop_assert!(plan.params_removed >= budget.required(&table).unwrap() && plan.predicted >= best.predicted);
                }
            }
            Err(error) => {
                let text = error.to_string();
                prop_assert_eq!(greedy(&scores, &budget, &constraints).unwrap_err().to_string(), text.as_str());
                prop_assert_eq!(random(&scores, &budget, &constraints, seed).unwrap_err().to_string(), text);
            }
        }
    }

    #[test]
    fn few_nodes_give_a_gap_that_holds(case in case(6usize..=11), max_nodes in 1u64..6) {
        let table = case.table();
        let scores = scores(&table, &case.values);
        let limits = case.limits();
        let problem = Problem::new(&scores, &case.constraints()).unwrap().with_resource(&case.latency()).unwrap();
        let problem = problem.with_interactions(&case.interactions()).unwrap();
        let best = case.enumerate(|bits| case.meets(bits, &limits));
        match problem.solve(&limits, max_nodes) {
            Ok(solution) => {
                let (predicted, bound) = (solution.plan.predicted.unwrap(), solution.plan.lower_bound.unwrap());
                let best = best.unwrap().0;
                prop_assert!(bound <= best && best <= predicted, "{} {} {}", bound, best, predicted);
                prop_assert_eq!(solution.gap, predicted - bound);
                prop_assert!(solution.nodes <= max_nodes);
                prop_assert_eq!(problem.solve(&limits, max_nodes).unwrap(), solution);
            }
            Err(Error::NoneFound { nodes }) => prop_assert_eq!(nodes, max_nodes),
            Err(_) => prop_assert_eq!(best, None),
        }
    }
}

proptest! {
    #![proptest_config(support::cases(10))]

    #[test]
    fn eighteen_layers_equal_enumeration(case in case(18usize..=18)) {
        equals_enumeration(&case, &case.limits(), true)?;
    }
}

/// Least score for each pair of costs, by the textbook recursion: an independent method for larger problems. Costs beyond
/// the caps count as the caps, which is all that lower limits need.
fn by_costs(costs: &[(usize, usize)], values: &[i64], caps: (usize, usize)) -> i64 {
    let mut best = vec![vec![i64::MAX; caps.1 + 1]; caps.0 + 1];
    best[0][0] = 0;
    for ((a, b), value) in costs.iter().zip(values) {
        let before = best.clone();
        for (i, row) in before.iter().enumerate() {
            for (j, base) in row.iter().enumerate().filter(|(_, base)| **base != i64::MAX) {
                let to = &mut best[(i + a).min(caps.0)][(j + b).min(caps.1)];
                *to = (*to).min(base + value);
            }
        }
    }
    best[caps.0][caps.1]
}

proptest! {
    #![proptest_config(support::cases(40))]

    #[test]
    fn two_limits_equal_a_recursion_over_costs(
        costs in prop::collection::vec((1usize..12, 1usize..12), 40),
        values in prop::collection::vec(-20i64..4000, 40),
        shares in (0.1..0.9f64, 0.1..0.9f64),
    ) {
        let sum = |of: fn(&(usize, usize)) -> usize| costs.iter().map(of).sum::<usize>() as f64;
        let caps = ((shares.0 * sum(|c| c.0)) as usize, (shares.1 * sum(|c| c.1)) as usize);
        let expected = by_costs(&costs, &values, caps);
        let params: Vec<u64> = costs.iter().map(|c| c.0 as u64).collect();
        let table = table(&params, &[]);
        let values: Vec<f64> = values.iter().map(|value| *value as f64 / 64.0).collect();
        let scores = scores(&table, &values);
        let latency = costs.iter().enumerate().map(|(i, c)| (id(i), c.1 as u64)).collect();
        let latency = Resource { name: "latency_us".to_owned(), layers: latency, shared_costs: BTreeMap::new() };
        let problem = Problem::new(&scores, &Constraints::none()).unwrap().with_resource(&latency).unwrap();
        let limits = [Limit::at_least("params", caps.0 as u64), Limit::at_least("latency_us", caps.1 as u64)];
        let solution = problem.solve(&limits, 1_000_000).unwrap();
        prop_assert_eq!(solution.plan.predicted, Some(expected as f64 / 64.0));
        prop_assert!(solution.plan.optimal);
    }
}

#[test]
fn one_limit_gives_the_score_of_one_budget() {
    let costs: Vec<u64> = (0..60).map(|i| 1_000_000_000 + i * i * 7_919_317).collect();
    let values: Vec<f64> = (0..60).map(|i| f64::from((i * 37) % 61) / 7.0 - 0.5).collect();
    let table = table(&costs, &[((0..9).collect(), 3_000_000_000), ((20..40).collect(), 10_000_000_000)]);
    let scores = scores(&table, &values);
    for ratio in [0.0, 0.1, 0.35, 0.8] {
        let budget = Budget::params_ratio(ratio);
        let plan = solve(&scores, &budget, &Constraints::none()).unwrap();
        let limit = Limit::from_budget(&budget, &table).unwrap();
        let solution = Problem::new(&scores, &Constraints::none()).unwrap().solve(&[limit], 100_000).unwrap();
        assert_eq!(solution.plan.predicted, plan.predicted);
        assert!(solution.plan.optimal);
    }
}

#[test]
fn a_group_a_need_and_a_range_by_hand() {
    // The cheapest way to lose 20 is layer 0 alone, until it may go only with layer 3.
    let table = table(&[20, 10, 10, 5], &[]);
    let scores = scores(&table, &[1.0, 2.0, 3.0, 8.0]);
    let mut constraints = Constraints::none();
    constraints.requires.push(Precedence { layer: id(0), needs: id(3) });
    let plan = solve(&scores, &Budget::params(20), &constraints).unwrap();
    assert_eq!(plan.removal_set(), set([1, 2]));
    constraints.together.push([id(2), id(3)].into());
    let plan = solve(&scores, &Budget::params(20), &constraints).unwrap();
    assert_eq!(plan.removal_set(), set([0, 2, 3]));
    let problem = Problem::new(&scores, &constraints).unwrap();
    let limits = [Limit::at_least("params", 20), Limit::at_most("macs", 3 * 25)];
    assert_eq!(problem.solve(&limits, 100).unwrap().plan.removal_set(), set([1, 2, 3]));
    // What is needed by a forced layer goes, what needs a pinned one stays, and both at once cannot be.
    constraints.remove.insert(id(0));
    constraints.keep.insert(id(2));
    assert!(matches!(solve(&scores, &Budget::params(1), &constraints), Err(Error::Contradiction { .. })));
}

#[test]
fn wrong_limits_are_named() {
    let table = table(&[20, 10], &[]);
    let scores = scores(&table, &[1.0, 2.0]);
    let problem = Problem::new(&scores, &Constraints::none()).unwrap();
    let text = |limits: &[Limit]| problem.solve(limits, 100).unwrap_err().to_string();
    assert_eq!(text(&[Limit::at_least("watts", 1)]), "there is no resource `watts`; there are: params, macs");
    assert_eq!(
        text(&[Limit::at_least("params", 31)]),
        "no set of layers meets the limits (at least 31 params): at most 30 params can go; loosen one, or pin fewer layers"
    );
    assert!(text(&[Limit::at_least("params", 5), Limit::at_most("params", 4)]).contains("at least 5 and at most 4"));
    assert!(text(&[Limit::at_least("params", 5), Limit::at_most("macs", 29)]).contains("cannot be met at once"));
    assert!(matches!(problem.solve(&[], 0), Err(Error::OutOfRange { .. })));
    // Nothing asked, nothing gained: nothing goes.
    let solution = problem.solve(&[], 1).unwrap();
    assert!(solution.plan.removed.is_empty() && solution.plan.optimal);
    let resource =
        |name: &str, cost| Resource { name: name.to_owned(), layers: [(id(0), cost), (id(1), 2)].into(), shared_costs: BTreeMap::new() };
    let add = |resource: Resource| problem.clone().with_resource(&resource).unwrap_err();
    assert!(matches!(add(resource("params", 1)), Error::DuplicateId { .. }));
    assert!(matches!(add(resource("", 1)), Error::EmptyName { .. }));
    assert!(matches!(add(resource("bytes", u64::MAX)), Error::Overflow { .. }));
    let pair = |second: usize, score| problem.clone().with_interactions(&[Interaction { first: id(0), second: id(second), score }]);
    assert!(matches!(pair(0, 1.0), Err(Error::DuplicateId { .. })));
    assert!(matches!(pair(1, f64::NAN), Err(Error::NotFinite { .. })));
    assert!(matches!(pair(7, 1.0), Err(Error::UnknownLayer { .. })));
}

#[test]
fn a_front_without_end_gets_coarser_and_says_so() {
    // Every subset of these costs has a sum of its own, and none dominates another.
    let costs: Vec<u64> = (0..26).map(|i| 1u64 << i).collect();
    let values: Vec<f64> = costs.iter().map(|cost| *cost as f64).collect();
    let table = table(&costs, &[]);
    let scores = scores(&table, &values);
    let problem = Problem::new(&scores, &Constraints::none()).unwrap();
    let options = SearchOptions::new().memory_limit(1 << 20);
    let front = problem.front_with("params", &options).unwrap();
    assert!(front.error() > 0.0 && front.points().len() < 20_000, "{} {}", front.error(), front.points().len());
    // The optimum for a budget is the budget itself here.
    for needed in [1u64, 12_345, 33_333_333, (1 << 26) - 1] {
        let plan = front.plan(&Budget::params(needed)).unwrap();
        let (predicted, bound) = (plan.predicted.unwrap(), plan.lower_bound.unwrap());
        assert!(plan.params_removed >= needed && bound <= needed as f64 && needed as f64 <= predicted, "{needed}: {bound} to {predicted}");
        assert!(predicted - bound <= front.error());
    }
}

/// Scores that follow costs, on which lists grow without end: (cost, score).
fn hard(n: u64, score: impl Fn(u64) -> u64) -> Scores {
    let mut state = 5u64;
    let mut cost = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (state >> 33) % 1_000_000
    };
    let costs: Vec<u64> = (0..n).map(|_| cost()).collect();
    let table = costs.iter().enumerate().fold(LayerTable::builder(), |table, (at, cost)| table.layer(format!("l{at:04}"), *cost));
    let values: Vec<(String, f64)> = costs.iter().enumerate().map(|(at, cost)| (format!("l{at:04}"), score(*cost) as f64)).collect();
    Scores::from_values(&table.build().unwrap(), "loss", values).unwrap()
}

#[test]
fn hard_classes_get_an_answer_within_memory() {
    type Costs = fn(u64) -> u64;
    let classes: [(&str, Costs); 4] = [
        ("strongly correlated", |cost| cost + 100_000),
        ("subset sum", |cost| cost),
        ("profit ceiling", |cost| cost.div_ceil(3) * 3),
        ("even-odd", |cost| cost + cost % 2 + 100_000),
    ];
    for (name, score) in classes {
        let scores = hard(200, score);
        let problem = Problem::new(&scores, &Constraints::none()).unwrap();
        let options = SearchOptions::new().memory_limit(4 << 20);
        let solution = problem.solve_budget_with(&Budget::params_ratio(0.5), &options).unwrap();
        let (predicted, bound) = (solution.plan.predicted.unwrap(), solution.plan.lower_bound.unwrap());
        assert!(predicted - bound <= 1e-4 * predicted, "{name}: {bound} to {predicted}");
        assert!(solution.plan.params_ratio >= 0.5 && solution.relative_gap() <= 1e-4);
        solution.plan.check(scores.table()).unwrap();
        // The same call gives the same answer.
        assert_eq!(problem.solve_budget_with(&Budget::params_ratio(0.5), &options).unwrap(), solution);
    }
}

#[test]
fn coarse_searches_bound_the_optimum() {
    // Little memory on instances whose optimum full memory proves.
    for seed in 0..20u64 {
        let scores = hard(60 + seed, |cost| 1 + cost.wrapping_mul(2_654_435_761 + seed) % 1000);
        let problem = Problem::new(&scores, &Constraints::none()).unwrap();
        let budget = Budget::params_ratio(0.4);
        let exact = problem.solve_budget(&budget).unwrap();
        assert!(exact.optimal);
        let coarse = problem.front_with("params", &SearchOptions::new().memory_limit(1)).unwrap();
        let plan = coarse.plan(&budget).unwrap();
        assert!(coarse.error() > 0.0);
        assert!(plan.lower_bound <= exact.predicted && exact.predicted <= plan.predicted, "{plan:?}");
    }
}

#[test]
fn whatever_stops_a_search_it_has_an_answer() {
    let scores = hard(2000, |cost| cost + 100_000 + cost.wrapping_mul(48_271) % 1999);
    let problem = Problem::new(&scores, &Constraints::none()).unwrap();
    let (set, told) = (AtomicBool::new(true), std::cell::Cell::new(0));
    let count = |_: prune_core::search::Progress| told.set(told.get() + 1);
    let stopped = [SearchOptions::new().cancel(&set), SearchOptions::new().time_limit(Duration::ZERO).on_progress(&count)];
    let limits = [Limit::at_least("params", 500_000_000), Limit::at_most("params", 500_000_001)];
    for options in stopped {
        let solution = problem.solve_budget_with(&Budget::params(500_000_000), &options).unwrap();
        assert!(solution.plan.lower_bound <= solution.plan.predicted && solution.plan.params_removed >= 500_000_000);
        assert!(problem.front_with("params", &options).unwrap().plan(&Budget::params(1000)).unwrap().params_removed >= 1000);
        match problem.solve(&limits, options) {
            Ok(solution) => assert!(solution.gap >= 0.0),
            Err(error) => assert!(matches!(error, Error::NoneFound { .. }), "{error}"),
        }
    }
}

#[test]
fn graphs_of_needs_are_solved_wherever_ids_sort() {
    type Edges = fn(u64) -> Vec<(u64, u64)>;
    let graphs: [(&str, Edges); 6] = [
        ("star, centre first", |n| (1..n).map(|at| (at, 0)).collect()),
        ("star, centre last", |n| (0..n - 1).map(|at| (at, n - 1)).collect()),
        ("reverse star", |n| (1..n).map(|at| (0, at)).collect()),
        ("binary tree", |n| (1..n).map(|at| (at, (at - 1) / 2)).collect()),
        ("reverse binary tree", |n| (1..n).map(|at| ((at - 1) / 2, at)).collect()),
        ("ring", |n| (0..n).map(|at| if at % 2 == 0 { (at, (at + 1) % n) } else { ((at + 1) % n, at) }).collect()),
    ];
    for (name, edges) in graphs {
        for n in [9, 64] {
            let scores = hard(n, |cost| 1 + cost.wrapping_mul(48_271) % 1000);
            let name_of = |at: u64| format!("l{at:04}");
            let constraints = edges(n).iter().fold(Constraints::none(), |all, (a, b)| all.requires(name_of(*a), name_of(*b)));
            let problem = Problem::new(&scores, &constraints).unwrap();
            let started = Instant::now();
            let solution = problem.solve_budget_with(&Budget::params_ratio(0.5), &SearchOptions::new()).unwrap();
            assert!(solution.plan.optimal && started.elapsed() < Duration::from_secs(2), "{name}");
            let plan = solution.plan;
            plan.check(scores.table()).unwrap();
            let limit = Limit::from_budget(&Budget::params_ratio(0.5), scores.table()).unwrap();
            let other = problem.solve(&[limit], 1_000_000).unwrap();
            assert!(other.plan.optimal && other.plan.predicted == plan.predicted, "{name}: {other:?}");
            if n == 9 {
                let layers = scores.table().layers();
                let needed = Budget::params_ratio(0.5).required(scores.table()).unwrap();
                let fits = |bits: &u32| {
                    let gone = |at: u64| bits >> at & 1 == 1;
                    let cost: u64 = (0..n).filter(|at| gone(*at)).map(|at| layers[at as usize].params).sum();
                    cost >= needed && edges(n).iter().all(|(a, b)| !gone(*a) || gone(*b))
                };
                let score = |bits: u32| (0..n).filter(|at| bits >> at & 1 == 1).map(|at| scores.value(&name_of(at)).unwrap()).sum::<f64>();
                let least = (0u32..1 << n).filter(fits).map(score).fold(f64::INFINITY, f64::min);
                assert_eq!(plan.predicted, Some(least), "{name}");
            }
        }
    }
}
