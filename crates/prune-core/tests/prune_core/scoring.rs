//! Scoring and measuring a model in closed form: values, order, resuming, bad answers, additivity.

use crate::support;
use std::collections::BTreeMap;

use crate::support::{ClosedForm, id, set};
use prune_core::audit::{
    AuditFile, DrawnSet, JointLoss, MeasureEvent, MeasureOptions, MeasuredSet, SetSize, draw_removal_sets, measure_sets_with,
    near_optimal_sets, plan_ratios,
};
use prune_core::score::{AblateError, LayerScore, ScoreEvent, ScoreOptions};
use prune_core::table::Cost;
use prune_core::{Budget, Error, RemovalSet, Scorer, Scores, audit, from_fn};

const VALUES: [f64; 5] = [0.5, 0.25, 4.0, 0.0, -1.0];

fn options(samples: std::ops::Range<usize>) -> ScoreOptions {
    ScoreOptions::new(samples).batch(4).seed(9).setting("steps", 3)
}

fn score(model: &mut ClosedForm, options: &ScoreOptions, resume: Vec<Scores>) -> Result<Vec<Scores>, String> {
    Scorer::new(model).options(options.clone()).resume(resume).run().map_err(|error| error.to_string())
}

#[test]
fn every_layer_is_scored_alone() {
    let mut model = ClosedForm::new(&VALUES, 10);
    let mut saved = Vec::new();
    let all = Scorer::new(&mut model)
        .options(options(0..10))
        .run_with(|event| {
            if let ScoreEvent::Layer { layer, layers, scores } = event {
                assert_eq!(scores[0].missing().len(), layers.1 - layers.0);
                saved.push(layer.clone());
            }
            Ok::<(), AblateError<_>>(())
        })
        .unwrap();
    assert_eq!(saved, (0..5).map(id).collect::<Vec<_>>());
    let [additive, squared] = &all[..] else { panic!("two criteria") };
    assert_eq!((additive.criterion(), squared.criterion()), ("additive", "squared"));
    // Mean of 1..=10 is 5.5, of the squares 38.5; the standard error of 1..=10 is sqrt(55/6/10).
    for (i, value) in VALUES.iter().enumerate() {
        let (name, score) = (id(i), additive.layer(id(i).as_str()).unwrap());
        assert_eq!(score.value(), 5.5 * value);
        assert_eq!(squared.value(name.as_str()), Some(38.5 * value * value));
        let error = score.standard_error().unwrap();
        assert!((error - value.abs() * (55.0f64 / 60.0).sqrt()).abs() < 1e-12);
        assert_eq!(score.samples()[2], 3.0 * value);
        // Bins are even and odd samples.
        assert_eq!(additive.bin_means(name.as_str()), BTreeMap::from([(0, 5.0 * value), (1, 6.0 * value)]));
        // Five samples that are 2 apart have a variance of 10.
        let errors = additive.bin_standard_errors(name.as_str());
        assert!(errors.len() == 2 && errors.values().all(|error| (error - value.abs() * 2f64.sqrt()).abs() < 1e-12), "{errors:?}");
    }
    assert!(additive.is_complete());
    assert_eq!((additive.seed(), additive.samples()), (Some(9), 0..10));
    assert_eq!(additive.predicted(&set([0, 2])).unwrap(), 5.5 * 4.5);
    let ranges: Vec<_> = model.calls[..3].iter().map(|call| call.1.clone()).collect();
    assert_eq!(ranges, [0..4, 4..8, 8..10]);
}

#[test]
fn a_callback_ends_a_run_with_the_callers_own_error() {
    #[derive(Debug)]
    enum Mine {
        DiskFull,
        Run(String),
    }
    impl From<Error> for Mine {
        fn from(error: Error) -> Self {
            Mine::Run(error.to_string())
        }
    }
    impl<E: std::error::Error> From<AblateError<E>> for Mine {
        fn from(error: AblateError<E>) -> Self {
            Mine::Run(error.to_string())
        }
    }
    let stopped = Scorer::new(ClosedForm::new(&VALUES, 10)).run_with(|_| Err(Mine::DiskFull)).unwrap_err();
    assert!(matches!(stopped, Mine::DiskFull));
    let refused = Scorer::new(ClosedForm::new(&VALUES, 10)).batch(0).run_with(|_| Err(Mine::DiskFull)).unwrap_err();
    assert!(matches!(refused, Mine::Run(text) if text == "`batch` is 0; expected at least 1"));
}

#[test]
fn functions_are_models() {
    let table = support::table(&[10, 20, 30], &[]);
    let mut model = from_fn(&table, 4, |removed, sample| removed.len() as f64 * (1.0 + sample as f64)).criterion("steps");
    let scores = Scorer::new(&mut model).run().unwrap().remove(0);
    assert_eq!((scores.criterion(), scores.value("layers.01"), scores.samples()), ("steps", Some(2.5), 0..4));
    assert_eq!(scores.bins(), [0; 4]);
    // A function may fail with an error of its own.
    let mut broken = from_fn(&table, 4, |_, sample| if sample == 2 { Err(std::fmt::Error) } else { Ok(1.0) });
    let error = Scorer::new(&mut broken).run().unwrap_err();
    assert!(matches!(error, AblateError::Model { source: std::fmt::Error, .. }), "{error}");
}

#[test]
fn a_part_of_the_samples_keeps_their_numbers() {
    let mut model = ClosedForm::new(&VALUES, 10);
    let scores = score(&mut model, &options(4..7), Vec::new()).unwrap();
    assert_eq!(scores[0].samples(), 4..7);
    assert_eq!(scores[0].bins(), [0, 1, 0]);
    assert_eq!(scores[0].layer(id(2).as_str()).unwrap().samples(), [20.0, 24.0, 28.0]);
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_result() {
    let whole = score(&mut ClosedForm::new(&VALUES, 10), &options(0..10), Vec::new()).unwrap();
    let mut saved: Vec<String> = Vec::new();
    let stopped = Scorer::new(ClosedForm::new(&VALUES, 10)).options(options(0..10)).run_with(|event| match event {
        ScoreEvent::Layer { layers: (3, _), scores, .. } => {
            saved = scores.iter().map(|scores| scores.to_json().unwrap()).collect();
            Err(AblateError::from(Error::Stopped))
        }
        _ => Ok(()),
    });
    assert!(matches!(stopped, Err(AblateError::Core(Error::Stopped))));
    let resume: Vec<Scores> = saved.iter().map(|text| Scores::from_json(text.as_bytes()).unwrap()).collect();
    assert_eq!(resume[0].missing(), [&id(3), &id(4)]);
    let error = resume[0].values().unwrap_err();
    assert!(matches!(error, Error::IncompleteScores { got: 3, expected: 5, first_missing, .. } if first_missing == id(3)));
    let mut model = ClosedForm::new(&VALUES, 10);
    let resumed = score(&mut model, &options(0..10), resume).unwrap();
    assert_eq!(resumed, whole);
    assert_eq!(model.calls[0].0, RemovalSet::single(id(3)));
    assert_eq!(model.calls.len(), 6);
}

#[test]
fn results_of_another_run_are_not_resumed() {
    let first = score(&mut ClosedForm::new(&VALUES, 10), &options(0..10), Vec::new()).unwrap();
    let mut seed = options(0..10);
    seed.seed = None;
    let mut settings = options(0..10);
    settings.settings.insert("steps".to_owned(), 4.into());
    for (other, key) in
        [(seed, "`seed` was Some(9), is now None"), (settings, "`settings.steps` was 3, is now 4"), (options(0..9), "`samples`")]
    {
        let error = score(&mut ClosedForm::new(&VALUES, 10), &other, first.clone()).unwrap_err();
        assert!(error.contains(key), "{error}");
    }
    let error = score(&mut ClosedForm::new(&VALUES, 10), &options(0..10), first[..1].to_vec()).unwrap_err();
    assert!(error.contains("`criteria` was additive, is now additive, squared"), "{error}");
    let error = score(&mut ClosedForm::new(&VALUES[..4], 10), &options(0..10), first).unwrap_err();
    assert!(error.contains("differ from this model's at the number of layers: expected 4, got 5"), "{error}");
}

#[test]
fn bad_requests_and_bad_answers_are_named() {
    let mut model = ClosedForm::new(&VALUES, 10);
    for samples in [0..11, 3..3] {
        assert!(score(&mut model, &options(samples), Vec::new()).unwrap_err().contains("the model has 10"));
    }
    let mut batch = options(0..10);
    batch.batch = 0;
    assert!(score(&mut model, &batch, Vec::new()).unwrap_err().contains("`batch` is 0"));
    model.broken_sample = Some(6);
    let error = score(&mut model, &options(0..10), Vec::new()).unwrap_err();
    assert_eq!(error, "`squared` of sample 6 with `layers.00` removed is NaN, not a finite number");
    model.criteria.push("third".to_owned());
    let error = score(&mut model, &options(0..10), Vec::new()).unwrap_err();
    assert_eq!(error, "columns of losses with `layers.00` removed: expected 3 values, got 2");
    model.criteria = vec!["same".to_owned(), "same".to_owned()];
    assert!(score(&mut model, &options(0..10), Vec::new()).unwrap_err().contains("none of them twice"));
}

#[test]
fn scores_refuse_what_does_not_fit() {
    let table = support::table(&[1, 2], &[]);
    let new = |name: &str, value| Scores::from_values(&table, "magnitude", [(name, value)]);
    assert!(matches!(new("layers.07", 1.0), Err(Error::UnknownLayer { .. })));
    assert!(matches!(new("layers.00", f64::NAN), Err(Error::NotFinite { .. })));
    assert!(matches!(Scores::from_values(&table, "", [("layers.00", 1.0)]), Err(Error::EmptyName { .. })));
    let mut scores = new("layers.00", 1.0).unwrap();
    let samples = LayerScore::from_samples(vec![1.0, 2.0]).unwrap();
    assert!(matches!(scores.insert(id(1), samples), Err(Error::Length { expected: 0, got: 2, .. })));
    assert_eq!(LayerScore::from_samples(vec![]), None);
    assert_eq!(LayerScore::from_samples(vec![f64::INFINITY]), None);
}

fn drawn(model: &ClosedForm) -> Vec<DrawnSet> {
    draw_removal_sets(&model.table, &[SetSize::Layers(2), SetSize::Layers(3), SetSize::ParamsRatio(0.5)], 6, 11).unwrap()
}

fn measure(model: &mut ClosedForm, sets: &[DrawnSet], resume: Vec<MeasuredSet>) -> Result<Vec<MeasuredSet>, String> {
    let options = MeasureOptions::new(10..20).batch(7);
    measure_sets_with(model, sets, &options, resume, |_| Ok::<(), AblateError<_>>(())).map_err(|error| error.to_string())
}

#[test]
fn an_additive_criterion_passes_the_audit_and_another_does_not() {
    let mut model = ClosedForm::new(&[0.5, 0.25, 4.0, 0.125, 1.0, 2.0, 3.0], 20);
    let scores = score(&mut model, &options(0..10), Vec::new()).unwrap();
    let sets = drawn(&model);
    assert_eq!(sets.iter().filter(|set| set.stratum == "layers=3").count(), 6);
    let measured = measure(&mut model, &sets, Vec::new()).unwrap();
    let additive = audit(&scores[0], "additive", &measured).unwrap();
    // Scores average samples 1..=10, the held-out ones 11..=20: the slope is 15.5 / 5.5.
    let close = |got: Option<f64>, expected: f64| (got.unwrap() - expected).abs() < 1e-9;
    for stats in additive.strata.values().chain([&additive.overall]) {
        assert!(close(stats.pearson, 1.0) && close(stats.spearman, 1.0) && close(stats.slope, 15.5 / 5.5), "{stats:?}");
        assert!(close(stats.line.map(|line| line.intercept), 0.0));
    }
    assert_eq!((additive.strata.len(), additive.overall.sets), (3, 18));
    let squared = audit(&scores[1], "squared", &measured).unwrap();
    assert!(squared.overall.pearson.unwrap() < 0.999);
    assert!(squared.overall.slope.unwrap() > additive.overall.slope.unwrap());
    let crossed = audit(&scores[0], "squared", &measured).unwrap();
    assert_eq!((crossed.criterion.as_str(), crossed.against.as_str()), ("additive", "squared"));
    let error = audit(&scores[0], "clip", &measured).unwrap_err();
    assert_eq!(error.to_string(), "criterion `clip` was not measured; there are: additive, squared");
}

#[test]
fn measuring_resumes_at_the_first_missing_set() {
    let mut model = ClosedForm::new(&VALUES, 20);
    let sets = drawn(&model);
    let whole = measure(&mut model, &sets, Vec::new()).unwrap();
    let mut saved = Vec::new();
    let options = MeasureOptions::new(10..20).batch(7);
    let stopped = measure_sets_with(&mut model, &sets, &options, Vec::new(), |event| match event {
        MeasureEvent::Set { sets: (4, _), measured } => {
            saved = measured.to_vec();
            Err(AblateError::from(Error::Stopped))
        }
        _ => Ok(()),
    });
    assert!(stopped.is_err());
    model.calls.clear();
    assert_eq!(measure(&mut model, &sets, saved.clone()).unwrap(), whole);
    assert_eq!(model.calls[0].0, sets[4].removed);
    let error = measure(&mut model, &sets[1..], saved.clone()).unwrap_err();
    assert!(error.contains("`sets.0` was"), "{error}");
    saved[0].losses.remove("squared");
    assert!(measure(&mut model, &sets, saved).unwrap_err().contains("`criteria`"));
}

#[test]
fn drawn_sets_are_distinct_seeded_and_of_their_size() {
    let table = support::table(&[5, 5, 5, 5, 10, 20, 40], &[(vec![0, 1, 2, 3], 7)]);
    let draw = |sizes: &[SetSize], seed| draw_removal_sets(&table, sizes, 20, seed).unwrap();
    let pairs = draw(&[SetSize::Layers(2)], 1);
    assert_eq!(pairs.len(), 20);
    assert!(pairs.iter().all(|set| set.removed.len() == 2));
    let distinct: std::collections::BTreeSet<_> = pairs.iter().map(|set| &set.removed).collect();
    assert_eq!(distinct.len(), 20);
    assert_ne!(pairs, draw(&[SetSize::Layers(2)], 2));
    // A stratum does not depend on its neighbours, and a small population is exhausted.
    assert_eq!(draw(&[SetSize::Layers(1), SetSize::Layers(2)], 1)[7..], pairs);
    let half = draw(&[SetSize::ParamsRatio(0.5)], 1);
    let needed = prune_core::Budget::params_ratio(0.5).required(&table).unwrap();
    for set in &half {
        assert!(table.removed_cost(&set.removed, prune_core::table::Cost::Params).unwrap() >= needed);
    }
    for size in [SetSize::Layers(0), SetSize::Layers(8), SetSize::ParamsRatio(2.0)] {
        assert!(matches!(draw_removal_sets(&table, &[size], 1, 0), Err(Error::OutOfRange { .. })));
    }
    assert!(matches!(draw_removal_sets(&table, &[SetSize::ParamsRatio(1.0)], 1, 0), Err(Error::Infeasible { .. })));
}

#[test]
fn some_layers_alone_are_scored_as_all_are() {
    let whole = score(&mut ClosedForm::new(&VALUES, 10), &options(0..10), Vec::new()).unwrap();
    let mut model = ClosedForm::new(&VALUES, 10);
    let wanted = [id(3), id(1)];
    let mut events = Vec::new();
    let part = Scorer::new(&mut model)
        .layers(wanted.clone())
        .options(options(0..10))
        .run_with(|event| {
            if let ScoreEvent::Layer { layer, layers, .. } = event {
                events.push((layer.clone(), layers));
            }
            Ok::<(), AblateError<_>>(())
        })
        .unwrap();
    assert_eq!(events, [(id(1), (1, 2)), (id(3), (2, 2))]);
    assert_eq!(part[0].missing(), [&id(0), &id(2), &id(4)]);
    for layer in [1, 3] {
        assert_eq!(part[1].layer(id(layer).as_str()), whole[1].layer(id(layer).as_str()));
    }
    let unknown = Scorer::new(&mut model).layers(["layers.9"]).options(options(0..10)).run();
    assert!(matches!(unknown, Err(AblateError::Core(Error::UnknownLayer { .. }))));
}

#[test]
fn a_layer_with_some_samples_gets_the_rest() {
    let whole = score(&mut ClosedForm::new(&VALUES, 10), &options(0..10), Vec::new()).unwrap();
    let cut: Vec<Scores> = whole
        .iter()
        .map(|scores| {
            let mut cut = scores.clone();
            for (layer, samples) in [(1, 4), (2, 4), (3, 8)] {
                let first = scores.layer(id(layer).as_str()).unwrap().samples()[..samples].to_vec();
                cut.insert(id(layer), LayerScore::from_samples(first).unwrap()).unwrap();
            }
            Scores::from_json(cut.to_json().unwrap().as_bytes()).unwrap()
        })
        .collect();
    let mut model = ClosedForm::new(&VALUES, 10);
    assert_eq!(score(&mut model, &options(0..10), cut).unwrap(), whole);
    let calls: Vec<_> = model.calls.iter().map(|(set, range)| (set.iter().next().unwrap().clone(), range.clone())).collect();
    assert_eq!(calls, [(id(1), 4..8), (id(1), 8..10), (id(2), 4..8), (id(2), 8..10), (id(3), 8..10)]);
}

#[test]
fn the_audit_tells_where_the_sum_is_wrong() {
    let values = [0.5, 0.25, 4.0, 0.125, 1.0, 2.0, 3.0, 0.75];
    let mut model = ClosedForm::new(&values, 10);
    let scores = score(&mut model, &options(0..10), Vec::new()).unwrap();
    // The second quarter loses twice as much together, the third half as much.
    let factors = [1.0, 2.0, 0.5, 1.0];
    let joint = |removed: &RemovalSet| -> f64 {
        let positions = removed.iter().map(|id| scores[0].table().position(id.as_str()).unwrap());
        positions.map(|at| 5.5 * values[at] * factors[at / 2]).sum()
    };
    let measured = |drawn: DrawnSet| {
        let loss = JointLoss { mean: joint(&drawn.removed), standard_error: None };
        MeasuredSet { stratum: drawn.stratum, losses: BTreeMap::from([("additive".to_owned(), loss)]), removed: drawn.removed }
    };
    let drawn = draw_removal_sets(scores[0].table(), &[SetSize::Layers(3)], 20, 5).unwrap();
    let sets: Vec<MeasuredSet> = drawn.into_iter().map(measured).collect();
    let found = audit(&scores[0], "additive", &sets).unwrap();
    assert_eq!(found.depths.keys().collect::<Vec<_>>(), ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]);
    for (part, factor) in found.depths.values().zip(factors) {
        assert!((part.slope - factor).abs() < 1e-9 && part.standard_error < 1e-9, "{part:?}");
    }
    assert!((found.depths.values().map(|part| part.share).sum::<f64>() - 1.0).abs() < 1e-12);
    // All layers are of one kind, so that its slope is the overall one.
    assert_eq!(found.kinds.keys().collect::<Vec<_>>(), ["block"]);
    assert!((found.kinds["block"].slope - found.overall.slope.unwrap()).abs() < 1e-12);
    assert!(found.kinds["block"].standard_error > 0.0);
    // Three sets cannot tell four parts apart.
    assert!(audit(&scores[0], "additive", &sets[..3]).unwrap().depths.is_empty());
}

#[test]
fn near_optimal_sets_are_the_best_ones() {
    for seed in 0..20u64 {
        let random = |layer: u64, salt: u64| (seed * 7919 + layer * 104_729 + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let table = support::table(&(0..10).map(|layer| 5 + random(layer, 1) % 20).collect::<Vec<_>>(), &[]);
        let values: Vec<f64> = (0..10).map(|layer| 1.0 + random(layer, 2) as f64 / 1e6).collect();
        let scores = support::scores(&table, &values);
        let ratios = plan_ratios(&table);
        assert!(ratios.is_sorted() && ratios.len() > 8 && *ratios.last().unwrap() > 0.85, "{ratios:?}");
        let sets = near_optimal_sets(&scores, &ratios, 3).unwrap();
        for ratio in &ratios {
            let stratum = SetSize::NearOptimal(*ratio).stratum();
            let drawn: Vec<&DrawnSet> = sets.iter().filter(|set| set.stratum == stratum).collect();
            let needed = Budget::params_ratio(*ratio).required(&table).unwrap();
            let mut all: Vec<f64> = (0u32..1 << 10)
                .map(|bits| support::weigh(&table, &values, bits, Cost::Params))
                .filter(|(cost, _)| *cost >= needed)
                .map(|(_, score)| score)
                .collect();
            all.sort_by(f64::total_cmp);
            // The plan, then what comes next: it differs from the plan in some layer, and is the best that does so there.
            for (set, expected) in drawn.iter().zip(&all).take(2) {
                assert!((scores.predicted(&set.removed).unwrap() - expected).abs() < 1e-9, "{seed} at {ratio}");
            }
            assert!(drawn.len() <= 3 && drawn.len() >= all.len().min(2), "{} at {ratio}", drawn.len());
            assert_eq!(drawn.iter().map(|set| &set.removed).collect::<std::collections::BTreeSet<_>>().len(), drawn.len());
        }
    }
}

#[test]
fn an_audit_sees_where_plans_are_misled() {
    // Six layers whose sums are right, but layers 0 and 1, the cheapest, lose ten times more together.
    let table = support::table(&[10; 6], &[]);
    let values = [1.0, 1.1, 1.5, 9.0, 10.0, 11.0];
    let scores = support::scores(&table, &values);
    let sum = |removed: &RemovalSet| removed.iter().map(|id| values[table.position(id.as_str()).unwrap()]).sum::<f64>();
    let both = |removed: &RemovalSet| [0, 1].iter().all(|layer| removed.contains(id(*layer).as_str()));
    let joint = |removed: &RemovalSet, sample: usize| {
        let loss = sum(removed) * (0.99 + 0.02 * (sample % 2) as f64);
        if both(removed) && removed.len() == 2 { 10.0 * loss } else { loss }
    };
    let mut model = from_fn(&table, 8, joint).criterion("output_loss");
    let mut drawn = draw_removal_sets(&table, &[SetSize::Layers(3)], 8, 1).unwrap();
    let random = drawn.len();
    drawn.extend(near_optimal_sets(&scores, &[0.1, 0.25, 0.4], 3).unwrap());
    let measured = prune_core::audit::measure_sets(&mut model, &drawn, &MeasureOptions::new(0..8)).unwrap();
    let audit = audit(&scores, "output_loss", &measured).unwrap();
    // Random sets say that all is well, and only they count overall.
    assert_eq!(audit.overall.sets, random);
    assert!(audit.overall.pearson.unwrap() > 0.999 && (audit.overall.slope.unwrap() - 1.0).abs() < 0.01);
    let file = AuditFile::new(&table, 1, 0..8, vec![audit], measured);
    let file = AuditFile::from_json(file.to_json().unwrap().as_bytes(), &table).unwrap();
    let told: Vec<(f64, bool, bool)> = file.at_ratios(&file.audits[0]).iter().map(|at| (at.ratio, at.tells(), at.beaten)).collect();
    assert_eq!(told, [(0.1, true, false), (0.25, false, true), (0.4, true, false)]);
}
