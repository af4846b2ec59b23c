//! Adaptive scoring: the plans of full scoring for a fraction of its evaluations, and honest certificates.

use crate::support;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;

use crate::support::id;
use crate::support::sdxl::{random_scores, sdxl};
use prune_core::score::{
    AblateError, AdaptiveEvent, AdaptiveOptions, AdaptiveScores, Certificate, HeavyTails, LayerScore, LossDeltas, Population, ScoreOptions,
    ScoresParts, certify,
};
use prune_core::{Ablate, Budget, Constraints, Error, LayerTable, RemovalSet, Scorer, Scores, from_fn, solve};

/// LossDeltas of single layers as a calibration set shows them: the layer's own level, times one factor per sample that all layers
/// share (its time step), times noise. Both factors are log-normal, with mean 1.
struct Noisy {
    table: LayerTable,
    criteria: Vec<String>,
    levels: Vec<f64>,
    samples: usize,
    seed: u64,
    evaluations: u64,
}

impl Noisy {
    fn new(scores: &Scores, samples: usize, seed: u64) -> Self {
        let criteria = vec!["output_loss".to_owned()];
        Self { table: scores.table().clone(), criteria, levels: scores.values().unwrap(), samples, seed, evaluations: 0 }
    }

    /// A normal number that belongs to a pair of numbers (Box and Muller, over SplitMix64).
    fn normal(&self, a: u64, b: u64) -> f64 {
        let mut state = self.seed ^ a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xd1b5_4a32_d192_ed03);
        let mut unit = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        };
        (-2.0 * (1.0 - unit()).ln()).sqrt() * (std::f64::consts::TAU * unit()).cos()
    }
}

impl Ablate for Noisy {
    type Error = Infallible;

    fn table(&self) -> &LayerTable {
        &self.table
    }

    fn criteria(&self) -> Vec<String> {
        self.criteria.clone()
    }

    fn num_samples(&self) -> usize {
        self.samples
    }

    fn sample_bin(&self, _: usize) -> u32 {
        0
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<LossDeltas, Infallible> {
        self.evaluations += samples.len() as u64;
        let layers: Vec<usize> = removed.iter().map(|id| self.table.position(id.as_str()).unwrap()).collect();
        let loss = |sample: usize| {
            let shared = (SHARED * self.normal(u64::MAX, sample as u64) - 0.5 * SHARED * SHARED).exp();
            let own = |layer: &usize| {
                let noise = (OWN * self.normal(*layer as u64, sample as u64) - 0.5 * OWN * OWN).exp();
                self.levels[*layer] * shared * noise
            };
            layers.iter().map(own).sum()
        };
        Ok(LossDeltas::new(1, samples.map(loss).collect()).unwrap())
    }
}

/// Spread of the logarithms.
const SHARED: f64 = 0.4;
const OWN: f64 = 0.5;

fn options(samples: usize) -> ScoreOptions {
    ScoreOptions::new(0..samples).batch(16)
}

fn adaptive(ratios: &[f64]) -> AdaptiveOptions {
    AdaptiveOptions::new("output_loss", ratios.iter().map(|ratio| Budget::params_ratio(*ratio))).first_samples(12)
}

fn run(model: &mut Noisy, adaptive: &AdaptiveOptions, resume: Vec<Scores>) -> AdaptiveScores {
    {
        let options = options(model.samples);
        Scorer::new(model).options(options).resume(resume).run_adaptively(adaptive).unwrap()
    }
}

fn plans(scores: &Scores, budgets: &[Budget]) -> Vec<RemovalSet> {
    budgets.iter().map(|budget| solve(scores, budget, &Constraints::none()).unwrap().removal_set()).collect()
}

#[test]
fn the_plans_of_full_scoring_for_a_third_of_its_evaluations() {
    let scores = random_scores(&sdxl(), 2404);
    for (ratios, most) in [(&[0.5][..], 0.2), (&[0.3, 0.5, 0.7], 1.0 / 3.0)] {
        let adaptive = adaptive(ratios);
        for seed in 0..8 {
            let mut model = Noisy::new(&scores, 256, seed);
            let full = Scorer::new(&mut model).options(options(256)).run().unwrap().remove(0);
            model.evaluations = 0;
            let found = run(&mut model, &adaptive, Vec::new());
            assert_eq!(plans(&found.scores[0], &adaptive.budgets), plans(&full, &adaptive.budgets), "{ratios:?} with {seed}");
            assert_eq!((found.evaluations, found.full_evaluations), (model.evaluations, 227 * 256));
            let share = found.evaluations as f64 / found.full_evaluations as f64;
            assert!(share <= most, "{share} of all evaluations for {ratios:?} with {seed}");
            // What a layer has is the beginning of what full scoring measures.
            for layer in model.table.layers() {
                let (few, all) = (found.scores[0].layer(layer.id.as_str()).unwrap(), full.layer(layer.id.as_str()).unwrap());
                assert!(few.samples().len() >= 12 && all.samples().starts_with(few.samples()));
            }
        }
    }
}

/// Output-loss losses of a trained model with the topology of SDXL (68 layers, 160 samples; `tests/data/README.md`). A few samples
/// carry most of a mean, up to two thirds: what a log-normal does not show.
struct Measured {
    scores: Scores,
    criteria: Vec<String>,
    order: Vec<usize>,
}

impl Measured {
    fn new() -> Self {
        let scores = Scores::from_json(include_bytes!("fixtures/output_loss.json")).unwrap();
        Self { criteria: vec![scores.criterion().to_owned()], order: (0..scores.bins().len()).collect(), scores }
    }

    fn shuffled(mut self, seed: u64) -> Self {
        self.order.sort_by_cached_key(|sample| {
            let z = (seed << 32 | *sample as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        });
        self
    }
}

impl Ablate for Measured {
    type Error = Infallible;

    fn table(&self) -> &LayerTable {
        self.scores.table()
    }

    fn criteria(&self) -> Vec<String> {
        self.criteria.clone()
    }

    fn num_samples(&self) -> usize {
        self.order.len()
    }

    fn sample_bin(&self, sample: usize) -> u32 {
        self.scores.bins()[self.order[sample]]
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<LossDeltas, Infallible> {
        let id = removed.iter().next().unwrap();
        let losses = self.scores.layer(id.as_str()).unwrap().samples();
        Ok(LossDeltas::new(1, samples.map(|sample| losses[self.order[sample]]).collect()).unwrap())
    }
}

#[test]
fn a_third_of_the_evaluations_on_a_trained_model() {
    let scores = Measured::new().scores;
    for ratio in [0.3, 0.5, 0.6] {
        // Its tails are heavy: a third suffices for those who trust the intervals all the same.
        let adaptive = adaptive(&[ratio]).heavy_tails(HeavyTails::Trust);
        let wanted = plans(&scores, &adaptive.budgets);
        let (mut evaluations, mut full, mut wrong) = (0, 0, 0);
        const ORDERS: u64 = 60;
        for seed in 0..ORDERS {
            let mut model = if seed == 0 { Measured::new() } else { Measured::new().shuffled(seed) };
            let found = Scorer::new(&mut model).options(options(160)).run_adaptively(&adaptive).unwrap();
            evaluations += found.evaluations;
            full += found.full_evaluations;
            wrong += u64::from(plans(&found.scores[0], &adaptive.budgets) != wanted);
        }
        let share = evaluations as f64 / full as f64;
        println!("ratio {ratio}: {:.1} % of the evaluations, {wrong} of {ORDERS} plans differ", 100.0 * share);
        assert!(share <= 1.0 / 3.0, "{share} of all evaluations at {ratio}");
        assert!(wrong as f64 <= adaptive.delta * ORDERS as f64, "{wrong} of {ORDERS} plans differ at {ratio}");
    }
}

/// Losses of one layer and sample, from its level, normal numbers of the pair and of the sample, and a uniform one of the pair.
type Kind = fn(f64, [f64; 2], f64) -> f64;

/// What losses may look like. The number says how many evaluations may be needed at most, in parts of all.
const KINDS: [(&str, f64, Kind); 13] = [
    ("normal", 0.3, |level, [own, _], _| level * (1.0 + 0.3 * own).max(1e-3)),
    ("log-normal 1", 0.5, |level, [own, _], _| level * own.exp()),
    ("log-normal 1.5", 1.0, |level, [own, _], _| level * (1.5 * own).exp()),
    ("log-normal 2", 1.0, |level, [own, _], _| level * (2.0 * own).exp()),
    ("Pareto 1.5", 1.0, |level, _, unit| level * unit.powf(-1.0 / 1.5)),
    ("Pareto 2.5", 0.6, |level, _, unit| level * unit.powf(-1.0 / 2.5)),
    ("one in a hundred is a hundred times larger", 1.0, |level, [own, _], unit| {
        level * (0.3 * own).exp() * if unit < 0.01 { 100.0 } else { 1.0 }
    }),
    ("flips", 1.0, |level, _, unit| f64::from(u8::from(unit < (0.1 * level).min(0.9)))),
    ("four fifths zeros", 1.0, |level, [own, _], unit| if unit < 0.8 { 0.0 } else { level * own.exp() }),
    ("a third zeros, heavy", 1.0, |level, [own, _], unit| if unit < 0.3 { 0.0 } else { level * (2.0 * own).exp() }),
    ("signed", 1.0, |level, [own, _], _| level * (1.0 + 3.0 * own)),
    ("signed, heavy", 1.0, |level, [own, _], unit| level * (1.0 + own * unit.powf(-0.8))),
    ("correlated between layers", 0.8, |level, [own, shared], _| level * (0.7 * own + 0.7 * shared).exp()),
];

#[test]
fn delta_is_kept_for_losses_of_all_kinds() {
    let table = support::table(&(0..56).map(|at| 10 + at * 37 % 91).collect::<Vec<u64>>(), &[]);
    let ids: std::collections::BTreeMap<_, _> = (0..56).map(|at| (id(at), at as u64)).collect();
    const RUNS: u64 = 8;
    for (name, most, kind) in KINDS {
        let (mut wrong, mut evaluations, mut full) = (0, 0, 0);
        for seed in 0..RUNS {
            let noise = Noisy::new(&support::scores(&table, &[1.0; 56]), 256, seed);
            let loss = |removed: &RemovalSet, sample: usize| {
                let (layer, sample) = (ids[removed.iter().next().unwrap()], sample as u64);
                let mut z = (seed << 40 | layer << 20 | sample).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                let unit = (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
                kind(noise.normal(layer, u64::MAX).exp(), [noise.normal(layer, sample), noise.normal(u64::MAX, sample)], unit)
            };
            let mut model = from_fn(&table, 256, loss).criterion("output_loss");
            let whole = Scorer::new(&mut model).run().unwrap().remove(0);
            let adaptive = adaptive(&[0.5]).first_samples(16);
            let found = Scorer::new(&mut model).run_adaptively(&adaptive).unwrap();
            wrong += u64::from(plans(&found.scores[0], &adaptive.budgets) != plans(&whole, &adaptive.budgets));
            (evaluations, full) = (evaluations + found.evaluations, full + found.full_evaluations);
            let certificate = &found.certificates[0];
            assert!(certificate.heavy_tail.is_none() || !certificate.decided, "{name}: {certificate}");
        }
        let share = evaluations as f64 / full as f64;
        println!("{name}: {wrong} of {RUNS} plans differ, {:.0} % of the evaluations", 100.0 * share);
        assert!(wrong <= 1, "{wrong} of {RUNS} plans differ for {name}");
        assert!(share <= most, "{share} of the evaluations for {name}");
    }
}

#[test]
fn heavy_tails_are_named() {
    let noise = Noisy::new(&support::scores(&support::table(&[1; 20], &[]), &[1.0; 20]), 256, 3);
    let table = noise.table.clone();
    let loss = |removed: &RemovalSet, sample: usize| {
        let layer = table.position(removed.iter().next().unwrap().as_str()).unwrap();
        (1.0 + layer as f64) * (2.0 * noise.normal(layer as u64, sample as u64)).exp()
    };
    let mut model = from_fn(&table, 256, loss).criterion("output_loss");
    let run = |model: &mut _, heavy_tails| {
        let found = Scorer::new(model).run_adaptively(&adaptive(&[0.5]).heavy_tails(heavy_tails)).unwrap();
        (found.certificates[0].to_string(), found.certificates[0].clone(), found.evaluations)
    };
    let (told, honest, all) = run(&mut model, HeavyTails::TakeAll);
    assert!(honest.heavy_tail.is_some() && !honest.decided && told.contains("single samples carry the means"), "{told}");
    let (_, trusted, fewer) = run(&mut model, HeavyTails::Trust);
    assert!(trusted.heavy_tail.is_some() && fewer < all, "{fewer} of {all}");
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_result() {
    let scores = random_scores(&sdxl(), 2404);
    let adaptive = adaptive(&[0.4]);
    let mut model = Noisy::new(&scores, 128, 1);
    let whole = run(&mut model, &adaptive, Vec::new());
    let mut saved = Vec::new();
    let stopped = Scorer::new(&mut model).options(options(128)).run_adaptively_with(&adaptive, |event| match event {
        AdaptiveEvent::Layers { evaluations: (done, _), scores, .. } if done > 5000 => {
            saved = scores.to_vec();
            Err(AblateError::from(Error::Stopped))
        }
        _ => Ok(()),
    });
    assert!(stopped.is_err());
    let saved = vec![Scores::from_json(saved[0].to_json().unwrap().as_bytes()).unwrap()];
    let done: usize = model.table.layers().iter().map(|layer| saved[0].layer(layer.id.as_str()).unwrap().samples().len()).sum();
    model.evaluations = 0;
    let mut last = (0, 0);
    let resume = saved.clone();
    let resumed = Scorer::new(&mut model)
        .options(options(128))
        .resume(resume)
        .run_adaptively_with(&adaptive, |event| {
            if let AdaptiveEvent::Batch { evaluations } = event {
                assert!(evaluations.0 > last.0);
                last = evaluations;
            }
            Ok::<(), AblateError<_>>(())
        })
        .unwrap();
    assert_eq!(resumed, whole);
    assert_eq!(model.evaluations, whole.evaluations - done as u64);
    assert_eq!(last, (whole.evaluations, whole.full_evaluations));
    // Full scoring goes on from there as well.
    let full = Scorer::new(&mut model).options(options(128)).resume(saved).run().unwrap();
    assert_eq!(full, Scorer::new(&mut model).options(options(128)).run().unwrap());
}

#[test]
fn decided_plans_are_right_about_what_the_samples_were_drawn_from() {
    let (table, budget) = (support::table(&[10, 11, 12, 13, 14, 15, 16, 17], &[]), Budget::params_ratio(0.4));
    let (mut decided, mut undecided) = (0, 0);
    for seed in 0..60 {
        let levels: Vec<f64> = (0..8).map(|layer| 1.0 + 0.55 * ((layer * 5 + seed) % 8) as f64).collect();
        let truth = support::scores(&table, &levels);
        let mut model = Noisy::new(&truth, 400, seed as u64);
        let scores = Scorer::new(&mut model).options(options(400)).run().unwrap().remove(0);
        let certificate = certify(&scores, &budget, &Constraints::none(), 0.05, Population::Expectation).unwrap();
        let plan = solve(&scores, &budget, &Constraints::none()).unwrap();
        assert_eq!(certificate.removed, plan.removed);
        if certificate.decided {
            decided += 1;
            assert_eq!(plan.removal_set(), plans(&truth, &[budget])[0], "{seed}");
            assert!(certificate.back.is_empty() && certificate.out.is_empty() && certificate.at_stake == 0.0);
        } else {
            undecided += 1;
            assert!(certificate.back.iter().all(|id| plan.removed.contains(id)) && certificate.at_stake > 0.0);
            assert!(certificate.out.iter().all(|id| !plan.removed.contains(id)) && !certificate.out.is_empty());
        }
        // All samples of the run are known, so nothing is unsure about their mean.
        assert!(certify(&scores, &budget, &Constraints::none(), 0.05, Population::Samples).unwrap().decided);
    }
    assert!(decided > 10 && undecided > 10, "{decided} decided, {undecided} not");
}

#[test]
fn intervals_are_students() {
    let table = support::table(&[1, 1, 1], &[]);
    let sampled = |rows: [&[f64]; 3]| {
        Scores::new(ScoresParts {
            table: table.clone(),
            criterion: "output_loss".to_owned(),
            seed: None,
            settings: BTreeMap::new(),
            first_sample: 0,
            bins: vec![0; 4],
            layers: rows.iter().enumerate().map(|(at, row)| (id(at), LayerScore::from_samples(row.to_vec()).unwrap())).collect(),
        })
        .unwrap()
    };
    let scores = sampled([&[-1.0, 0.5, 2.0], &[1.0, 3.0, 5.0], &[90.0, 100.0, 110.0]]);
    let certificate = |scores: &Scores, population| certify(scores, &Budget::params(1), &Constraints::none(), 0.15, population).unwrap();
    // Three intervals at level 0.05 with two degrees of freedom: 4.302653 standard errors; the first one around the mean, the
    // second around its logarithm.
    let errors = 4.302652729749462 / 3f64.sqrt();
    let open = certificate(&scores, Population::Expectation);
    let expected = (0.5 + 1.5 * errors) - 3.0 * (-errors * 2.0 / 3.0).exp();
    assert_eq!((open.decided, &open.back, &open.out), (false, &vec![id(0)], &vec![id(1)]));
    assert!((open.at_stake - expected).abs() < 1e-9, "{} is not {expected}", open.at_stake);
    // Three of four samples are known: a quarter of the variance is left, and three quarters of the mean.
    let open = certificate(&scores, Population::Samples);
    let unseen = (-0.5 * errors * 2.0 / 3.0 / 0.25).exp();
    let expected = (0.5 + 0.75 * errors) - 3.0 * (0.75 + 0.25 * unseen);
    assert!(expected > 0.0 && (open.at_stake - expected).abs() < 1e-9, "{} is not {expected}", open.at_stake);
    // A layer that happens to have equal samples counts as spread as the median layer.
    let lucky = certificate(&sampled([&[1.0, 1.0, 1.0], &[1.1, 2.2, 3.3], &[2.0, 4.0, 6.0]]), Population::Expectation);
    let expected = (errors / 2.0).exp() - 2.2 * (-errors / 2.0).exp();
    assert!((lucky.at_stake - expected).abs() < 1e-9, "{} is not {expected}", lucky.at_stake);
    let closed = certificate(&sampled([&[0.9, 1.0, 1.1], &[7.0, 8.0, 9.0], &[9.0, 8.0, 7.0]]), Population::Expectation);
    assert!(closed.decided && closed.removed == [id(0)]);
    let text = serde_json::to_string(&closed).unwrap();
    assert_eq!(serde_json::from_str::<Certificate>(&text).unwrap(), closed);
    // Scores that are one number are exact; one sample says nothing about its error.
    assert!(certificate(&support::scores(&table, &[1.0, 1.1, 2.0]), Population::Expectation).decided);
    let error = certify(&sampled([&[1.0], &[2.0], &[3.0]]), &Budget::params(1), &Constraints::none(), 0.1, Population::Samples);
    assert_eq!(error.unwrap_err().to_string(), "`samples per layer` is 1 for `layers.00`; expected at least 2");
}

#[test]
fn bad_settings_are_named() {
    let scores = support::scores(&support::table(&[1, 2], &[]), &[1.0, 2.0]);
    let error = |samples: usize, edit: fn(&mut AdaptiveOptions)| {
        let mut adaptive = adaptive(&[0.5]);
        edit(&mut adaptive);
        let mut model = Noisy::new(&scores, samples, 0);
        Scorer::new(&mut model).options(options(samples)).run_adaptively(&adaptive).unwrap_err().to_string()
    };
    assert_eq!(error(8, |a| a.delta = 1.0), "`delta` is 1; expected a number between 0 and 1");
    assert_eq!(error(8, |a| a.delta = f64::NAN), "`delta` is NaN; expected a number between 0 and 1");
    assert_eq!(error(8, |a| a.first_samples = 1), "`first_samples` is 1; expected at least 2");
    assert_eq!(error(8, |a| a.budgets.clear()), "`budgets` is 0; expected at least 1");
    assert_eq!(error(1, |_| ()), "`samples` is 1; expected at least 2");
    assert_eq!(error(8, |a| a.criterion.push('s')), "criterion `output_losss` was not measured; there are: output_loss");
    assert!(error(8, |a| a.budgets[0] = Budget::params_ratio(1.0)).starts_with("the budget asks for"));
}
