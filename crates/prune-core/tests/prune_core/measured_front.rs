//! The measured front: what comes back is not dominated by anything measured, and is told by samples that chose nothing.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::support::{self, id};
use prune_core::measured_front::{FrontEvent, FrontOptions, MeasuredFront, measured_front_with};
use prune_core::refine::RefineMethod;
use prune_core::score::{AblateError, PrefixCached};
use prune_core::search::{Resource, SearchOptions};
use prune_core::table::Cost;
use prune_core::{Ablate, Budget, Constraints, Error, Front, LayerTable, Problem, RemovalSet, Scorer, Scores, from_fn, measured_front};

const LAYERS: usize = 12;

/// A number from 0 to 1 that belongs to two others.
fn unit(a: u64, b: u64) -> f64 {
    let mut z = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xd1b5_4a32_d192_ed03);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

fn table(seed: u64) -> LayerTable {
    support::table(&(0..LAYERS as u64).map(|layer| 5 + (unit(seed, layer) * 20.0) as u64).collect::<Vec<_>>(), &[])
}

/// Neighbours lose up to three times more, or less, together than alone; the same on every sample but for a factor.
fn joint(table: &LayerTable, seed: u64, removed: &RemovalSet, sample: usize) -> f64 {
    let gone = |layer: usize| removed.contains(table.layers()[layer].id.as_str());
    let single: f64 = (0..LAYERS).filter(|layer| gone(*layer)).map(|layer| 0.2 + unit(seed + 50, layer as u64)).sum();
    let pairs = (1..LAYERS).filter(|layer| gone(*layer) && gone(layer - 1)).map(|layer| 2.0 * (unit(seed + 99, layer as u64) - 0.3));
    (single + pairs.sum::<f64>()) * (1.0 + sample as f64 / 100.0)
}

fn scored(model: &mut impl Ablate, samples: usize) -> Scores {
    Scorer::new(model).samples(0..samples).run().unwrap_or_else(|error| panic!("{error}")).remove(0)
}

fn options<'a>(max_forwards: u64) -> FrontOptions<'a> {
    FrontOptions::new("loss", 0..16, 16..32).first_samples(4).max_forwards(max_forwards).batch(8)
}

fn costs(table: &LayerTable, removed: &RemovalSet) -> u64 {
    table.removed_cost(removed, Cost::Params).unwrap()
}

/// What the file says of a set, on all samples that choose.
fn whole(front: &MeasuredFront) -> impl Iterator<Item = (&RemovalSet, f64)> {
    let all = front.samples.len();
    front
        .measured
        .iter()
        .filter(move |set| set.losses.len() == all)
        .map(move |set| (&set.removed, set.losses.iter().sum::<f64>() / all as f64))
}

#[test]
fn every_budget_gets_the_best_plan_of_the_front_where_all_can_be_measured() {
    let mut better = 0;
    for seed in 0..10 {
        let table = table(seed);
        let mut model = from_fn(&table, 32, |removed, sample| joint(&table, seed, removed, sample));
        let scores = scored(&mut model, 16);
        let problem = Problem::new(&scores, &Constraints::none()).unwrap();
        let found = measured_front(&mut model, &problem, &options(100_000)).unwrap();
        let exact = Front::build(&scores, Cost::Params, &Constraints::none()).unwrap();
        let candidates: Vec<RemovalSet> = (0..exact.points().len()).map(|point| exact.removal(point).unwrap()).collect();
        // All samples say the same, so whatever is behind on a few is behind on all.
        for needed in 1..=table.total_params() - 10 {
            let fit = candidates.iter().filter(|set| costs(&table, set) >= needed);
            let least = fit.map(|set| joint(&table, seed, set, 0)).fold(f64::INFINITY, f64::min);
            let best = found.best("params", needed).unwrap();
            assert!((joint(&table, seed, &best.removal_set(), 0) - least).abs() < 1e-9, "{seed} at {needed}");
            let plan = found.plan(&table, &Budget::params(needed)).unwrap();
            plan.check(&table).unwrap();
            let by_sum = exact.plan(&Budget::params(needed)).unwrap();
            better += usize::from(least < joint(&table, seed, &by_sum.removal_set(), 0) - 1e-9);
        }
        for plan in &found.plans {
            assert!((plan.predicted - scores.predicted(&plan.removal_set()).unwrap()).abs() < 1e-12);
            let held_out: f64 = (16..32).map(|sample| joint(&table, seed, &plan.removal_set(), sample)).sum::<f64>() / 16.0;
            assert!((plan.held_out.mean - held_out).abs() < 1e-9);
        }
    }
    // The sum misleads on many of these budgets, or the test would say nothing.
    assert!(better > 100, "{better}");
}

#[test]
fn nothing_that_was_measured_dominates_what_is_returned() {
    for (seed, max_forwards, refine) in [
        (1, 300, None),
        (2, 1500, None),
        (3, 4000, Some((RefineMethod::Swaps { candidates: 8 }, 4))),
        (4, 4000, Some((RefineMethod::Interactions { pairs: 6 }, 3))),
        (5, 4000, Some((RefineMethod::Evolution { offspring: 8 }, 3))),
    ] {
        let mut model = PrefixCached::new(support::network::Network::new(16, 64, seed), 1 << 20, 16).unwrap();
        let scores = scored(&mut model, 16);
        let problem = Problem::new(&scores, &Constraints::none()).unwrap();
        let mut options = FrontOptions::new("output_loss", 0..32, 32..64).first_samples(4).max_forwards(max_forwards);
        options.refine = refine;
        let found = measured_front(&mut model, &problem, &options).unwrap();
        assert!(found.forwards <= max_forwards && !found.plans.is_empty(), "{} of {max_forwards}", found.forwards);
        assert!(found.plans.is_sorted_by(|a, b| a.cost("params") < b.cost("params") && a.loss.mean < b.loss.mean));
        for plan in &found.plans {
            for (other, loss) in whole(&found) {
                let dominates = costs(scores.table(), other) >= plan.cost("params") && loss < plan.loss.mean * (1.0 - 1e-9);
                assert!(!dominates, "{seed}: {other:?} dominates {:?}", plan.removed);
            }
        }
        // For any budget the best that was measured to the end is there.
        for (set, loss) in whole(&found) {
            if let Some(best) = found.best("params", costs(scores.table(), set)) {
                assert!(best.loss.mean <= loss * (1.0 + 1e-9));
            }
        }
        let again = MeasuredFront::from_json(found.to_json().unwrap().as_bytes(), scores.table()).unwrap();
        assert_eq!(again, found);
    }
}

#[test]
fn what_is_reported_is_not_flattered_by_the_choice() {
    // All sets lose 1 on average, and nothing but noise tells them apart: whatever is chosen looks better than it is on the
    // samples that chose it, and not on the others.
    let (mut chosen, mut reported, mut count) = (0.0, 0.0, 0.0);
    for seed in 0..40u64 {
        let table = table(seed);
        let hash = |removed: &RemovalSet| {
            removed.iter().fold(seed, |hash, id| hash.wrapping_mul(31) + table.position(id.as_str()).unwrap() as u64)
        };
        let mut model = from_fn(&table, 32, |removed, sample| 2.0 * unit(hash(removed), sample as u64));
        let scores = support::scores(&table, &(0..LAYERS).map(|layer| 1.0 + layer as f64).collect::<Vec<_>>());
        let problem = Problem::new(&scores, &Constraints::none()).unwrap();
        let found = measured_front(&mut model, &problem, &options(4000)).unwrap();
        for plan in &found.plans {
            (chosen, reported, count) = (chosen + plan.loss.mean, reported + plan.held_out.mean, count + 1.0);
        }
    }
    let error = f64::sqrt(1.0 / 3.0 / 16.0 / count);
    assert!(chosen / count < 0.9, "{}", chosen / count);
    assert!((reported / count - 1.0).abs() < 4.0 * error, "{} with {error}", reported / count);
}

#[test]
fn samples_go_where_plans_compete() {
    let table = table(3);
    let mut model =
        from_fn(&table, 32, |removed, sample| joint(&table, 3, removed, sample) * (0.9 + 0.2 * unit(removed.len() as u64, sample as u64)));
    let scores = scored(&mut model, 16);
    let problem = Problem::new(&scores, &Constraints::none()).unwrap();
    let found = measured_front(&mut model, &problem, &options(100_000)).unwrap();
    let few = found.measured.iter().filter(|set| set.losses.len() == 4).count();
    assert!(few > 0 && few < found.measured.len(), "{few} of {}", found.measured.len());
    // A budget for a third of the candidates measures a third of them.
    let small = measured_front(&mut model, &problem, &options(400)).unwrap();
    assert!(small.forwards <= 400 && small.measured.len() < found.measured.len());
}

#[test]
fn refinement_makes_the_front_better() {
    let mut gains = 0;
    for seed in 0..6 {
        let table = table(seed);
        let mut model = from_fn(&table, 32, |removed, sample| joint(&table, seed, removed, sample));
        let scores = scored(&mut model, 16);
        let problem = Problem::new(&scores, &Constraints::none()).unwrap();
        let plain = measured_front(&mut model, &problem, &options(20_000)).unwrap();
        let refined = measured_front(&mut model, &problem, &options(20_000).refine(RefineMethod::Swaps { candidates: 12 }, 6)).unwrap();
        for plan in &plain.plans {
            let best = refined.best("params", plan.cost("params")).unwrap();
            assert!(best.loss.mean <= plan.loss.mean + 1e-12);
            gains += usize::from(best.loss.mean < plan.loss.mean - 1e-9);
        }
    }
    assert!(gains > 10, "{gains}");
}

#[test]
fn further_resources_and_constraints_are_kept() {
    let table = table(7);
    let mut model = from_fn(&table, 32, |removed, sample| joint(&table, 7, removed, sample));
    let scores = scored(&mut model, 16);
    let latency = (0..LAYERS).fold(Resource::new("latency_us"), |resource, layer| resource.layer(id(layer), 100 + layer as u64));
    let constraints = Constraints::none().keep([id(2)]).requires(id(4), id(5));
    let problem = Problem::new(&scores, &constraints).unwrap().with_resource(&latency).unwrap();
    let found = measured_front(&mut model, &problem, &options(20_000).resource("latency_us")).unwrap();
    for plan in &found.plans {
        let positions = (0..LAYERS).filter(|layer| plan.removed.contains(&id(*layer)));
        assert_eq!(plan.cost("latency_us"), positions.map(|layer| 100 + layer as u64).sum::<u64>());
        assert!(!plan.removed.contains(&id(2)) && (!plan.removed.contains(&id(4)) || plan.removed.contains(&id(5))));
    }
    assert!(found.plans.is_sorted_by(|a, b| a.cost("latency_us") < b.cost("latency_us")));
    let plan = found.plan(&table, &Budget::params_ratio(0.4)).unwrap();
    assert!(plan.params_ratio >= 0.4 && plan.constraints == constraints);
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_result() {
    let table = table(5);
    let calls = std::cell::Cell::new(0);
    let mut model = from_fn(&table, 32, |removed, sample| {
        calls.set(calls.get() + 1);
        joint(&table, 5, removed, sample)
    });
    let scores = scored(&mut model, 16);
    let problem = Problem::new(&scores, &Constraints::none()).unwrap();
    let options = options(2000).refine(RefineMethod::Swaps { candidates: 6 }, 2);
    calls.set(0);
    let whole = measured_front(&mut model, &problem, &options).unwrap();
    let all = calls.replace(0);
    assert_eq!(all, whole.forwards);
    let mut saved = None;
    let stopped = measured_front_with(&mut model, &problem, &options, None, |event| match event {
        FrontEvent::Measured { record: front } if front.forwards > 900 => {
            saved = Some(front.to_json().unwrap());
            Err(AblateError::from(Error::Stopped))
        }
        _ => Ok(()),
    });
    assert!(matches!(stopped, Err(AblateError::Core(Error::Stopped))));
    let earlier = MeasuredFront::from_json(saved.unwrap().as_bytes(), &table).unwrap();
    let done = calls.replace(0);
    let resumed = measured_front_with(&mut model, &problem, &options, Some(earlier.clone()), |_| Ok::<(), AblateError<_>>(())).unwrap();
    assert_eq!(resumed, whole);
    assert_eq!(done + calls.get(), all);
    let mut other = options.clone();
    other.samples = 0..15;
    let error = measured_front_with(&mut model, &problem, &other, Some(earlier), |_| Ok::<(), AblateError<_>>(())).unwrap_err();
    let expected = "cannot go on from earlier results: `samples` was 0..16, is now 0..15; start afresh or restore the setting";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_flag_and_a_time_limit_end_the_search_with_an_answer() {
    let table = table(5);
    let flag = AtomicBool::new(false);
    for by_time in [false, true] {
        let mut calls = 0;
        let mut model = from_fn(&table, 32, |removed, sample| {
            calls += 1;
            if by_time {
                std::thread::sleep(Duration::from_micros(200));
            } else if calls > 300 {
                flag.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            joint(&table, 5, removed, sample)
        });
        let scores = support::scores(&table, &(0..LAYERS).map(|layer| 1.0 + unit(9, layer as u64)).collect::<Vec<_>>());
        let problem = Problem::new(&scores, &Constraints::none()).unwrap();
        let search = SearchOptions::new().cancel(&flag).time_limit(Duration::from_millis(if by_time { 400 } else { 600_000 }));
        let refine = RefineMethod::Evolution { offspring: 8 };
        let found = measured_front(&mut model, &problem, &options(1_000_000).refine(refine, 4).search(search)).unwrap();
        assert!(!found.plans.is_empty() && found.forwards < 100_000, "{}", found.forwards);
        let held_out = |removed: &RemovalSet| (16..32).map(|sample| joint(&table, 5, removed, sample)).sum::<f64>() / 16.0;
        assert!(found.plans.iter().all(|plan| (plan.held_out.mean - held_out(&plan.removal_set())).abs() < 1e-9));
        flag.store(false, std::sync::atomic::Ordering::Relaxed);
    }
    // Where nothing could be measured, there is nothing to say.
    flag.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut model = from_fn(&table, 32, |removed, sample| joint(&table, 5, removed, sample));
    let scores = scored(&mut model, 16);
    let problem = Problem::new(&scores, &Constraints::none()).unwrap();
    let stopped = measured_front(&mut model, &problem, &options(1000).search(SearchOptions::new().cancel(&flag)));
    assert!(matches!(stopped, Err(AblateError::Core(Error::Stopped))));
}

#[test]
fn bad_settings_and_files_are_named() {
    let table = table(5);
    let mut model = from_fn(&table, 32, |removed, sample| joint(&table, 5, removed, sample));
    let scores = scored(&mut model, 16);
    let problem = Problem::new(&scores, &Constraints::none()).unwrap();
    let mut error = |edit: fn(&mut FrontOptions<'_>)| {
        let mut options = options(2000);
        edit(&mut options);
        measured_front(&mut model, &problem, &options).unwrap_err().to_string()
    };
    assert_eq!(error(|o| o.held_out = 15..20), "`held_out` is 15..20; expected no sample of 0..16");
    assert_eq!(error(|o| o.first_samples = 0), "`first_samples` is 0; expected at least 1");
    assert_eq!(error(|o| o.max_forwards = 19), "`max_forwards` is 19; expected at least 20");
    assert_eq!(error(|o| o.refine = Some((RefineMethod::Swaps { candidates: 4 }, 0))), "`refine` is 0; expected at least 1");
    assert_eq!(error(|o| o.criterion = "clip".to_owned()), "criterion `clip` was not measured; there are: loss");
    assert!(error(|o| o.resource = "watts".to_owned()).contains("watts"));
    assert!(error(|o| o.samples = 0..33).starts_with("samples 0..33 asked for"));

    let found = measured_front(&mut model, &problem, &options(2000)).unwrap();
    let most = found.plans.last().unwrap().cost("params");
    let error = found.plan(&table, &Budget::params(most + 1)).unwrap_err();
    assert!(matches!(error, Error::Infeasible { available, .. } if available == most), "{error}");
    let mut document: serde_json::Value = serde_json::from_str(&found.to_json().unwrap()).unwrap();
    document["plans"][0]["costs"]["params"] = 1.into();
    let error = MeasuredFront::from_json(document.to_string().as_bytes(), &table).unwrap_err();
    assert!(error.to_string().contains("plans.0.costs.params"), "{error}");
    let other = support::table(&[1, 2], &[]);
    assert!(MeasuredFront::from_json(found.to_json().unwrap().as_bytes(), &other).is_err());
}
