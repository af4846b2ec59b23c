//! Pruning in steps: one-shot pruning is its first step, later ones see what is gone, and files are the usual ones.

use crate::support::network::{Network, Plain};
use crate::support::{ClosedForm, set};
use prune_core::refine::{AfterRemoval, Step, StepOptions, prune_in_steps, prune_in_steps_with};
use prune_core::score::{AblateError, PrefixCached, ScoreEvent, ScoreOptions};
use prune_core::{Ablate, Budget, Constraints, Error, RemovalSet, Scorer, Scores, solve};

const SAMPLES: usize = 24;

fn options(ratios: &[f64]) -> StepOptions {
    let score = ScoreOptions::new(0..SAMPLES).batch(8).seed(3);
    StepOptions::new("output_loss", ratios.iter().map(|ratio| Budget::params_ratio(*ratio)), score)
}

fn network(seed: u64) -> PrefixCached<Network> {
    PrefixCached::new(Network::new(16, SAMPLES, seed), 1000, 16).unwrap()
}

fn steps<M: Ablate>(model: &mut M, options: &StepOptions) -> Vec<Step> {
    prune_in_steps(model, options).unwrap_or_else(|error| panic!("{error}"))
}

fn joint<M: Ablate>(model: &mut M, removed: &RemovalSet) -> f64 {
    let losses = model.evaluate(removed, 0..SAMPLES).unwrap_or_else(|error| panic!("{error}"));
    (0..SAMPLES).map(|sample| losses.row(sample)[0]).sum::<f64>() / SAMPLES as f64
}

#[test]
fn four_steps_lose_less_than_one_on_average() {
    let mut shares = Vec::new();
    for seed in 0..8 {
        let mut model = network(seed);
        let one = steps(&mut model, &options(&[0.6])).remove(0).plan;
        let four = steps(&mut model, &options(&[0.15, 0.3, 0.45, 0.6]));
        assert_eq!(four.len(), 4);
        for (before, after) in four.iter().zip(&four[1..]) {
            assert!(before.plan.removed.iter().all(|id| after.plan.removed.contains(id)));
            after.plan.check(model.table()).unwrap();
        }
        let last = &four[3].plan;
        assert!(last.params_ratio >= 0.6 && last.budget.as_ref().unwrap().ratio == Some(0.6));
        shares.push(joint(&mut model, &last.removal_set()) / joint(&mut model, &one.removal_set()));
    }
    let mean = shares.iter().sum::<f64>() / 8.0;
    assert!(mean < 0.95, "{shares:?}");
}

#[test]
fn the_first_step_is_one_shot_and_scores_are_given_what_is_gone() {
    let mut model = Plain(Network::new(8, SAMPLES, 4));
    let options = options(&[0.2, 0.5]);
    let found = steps(&mut model, &options);
    let one_shot = Scorer::new(&mut model).options(options.score.clone()).run().unwrap();
    assert_eq!(found[0].scores, one_shot);
    assert_eq!(found[0].plan, solve(&one_shot[0], &options.budgets[0], &Constraints::none()).unwrap());
    let gone = found[0].plan.removal_set();
    let scores = &found[1].scores[0];
    assert!(scores.is_complete() && !gone.is_empty());
    let names: Vec<&str> = found[0].plan.removed.iter().map(|id| id.as_str()).collect();
    assert_eq!(scores.settings()["removed"], serde_json::json!(names));
    let before = joint(&mut model, &gone);
    for layer in model.table().layers().to_vec() {
        let value = scores.value(layer.id.as_str()).unwrap();
        if gone.contains(layer.id.as_str()) {
            assert_eq!(Some(value), one_shot[0].value(layer.id.as_str()));
        } else {
            let mut with = gone.clone();
            with.insert(layer.id);
            assert!((value - (joint(&mut model, &with) - before)).abs() < 1e-12);
        }
    }
    assert_eq!(Scores::from_json(scores.to_json().unwrap().as_bytes()).unwrap(), *scores);
}

#[test]
fn given_layers_are_gone_from_every_set() {
    let mut model = ClosedForm::new(&[1.0, 2.0, 4.0], 6);
    let mut given = AfterRemoval::new(&mut model, set([1])).unwrap();
    assert_eq!(given.evaluate(&RemovalSet::empty(), 0..2).unwrap().row(1), [0.0, 0.0]);
    // Sample 2 loses 3 per unit: (2 + 4) * 3 less 2 * 3, and the squares of these.
    let losses = given.evaluate_many(&[set([2]), set([0, 2])], 2..4).unwrap();
    assert_eq!(losses[0].row(0), [12.0, 18.0 * 18.0 - 6.0 * 6.0]);
    assert_eq!(losses[1].row(0), [15.0, 21.0 * 21.0 - 6.0 * 6.0]);
    given.evaluate(&set([0]), 2..4).unwrap();
    // What is gone is measured once for each range of samples.
    let alone = model.calls.iter().filter(|(removed, _)| *removed == set([1])).count();
    assert_eq!(alone, 3);
    assert!(matches!(AfterRemoval::new(&mut model, RemovalSet::single("layers.9")), Err(Error::UnknownLayer { .. })));
}

#[test]
fn interrupted_steps_go_on_to_the_same_result() {
    let options = options(&[0.2, 0.4, 0.6]);
    let whole = steps(&mut Plain(Network::new(6, SAMPLES, 1)), &options);
    let mut saved: Vec<Vec<String>> = Vec::new();
    let stopped = prune_in_steps_with(&mut Plain(Network::new(6, SAMPLES, 1)), &options, Vec::new(), |step, event| {
        if let ScoreEvent::Layer { layers, scores, .. } = event {
            saved.truncate(step);
            saved.push(scores.iter().map(|scores| scores.to_json().unwrap()).collect());
            if step == 1 && layers.0 == 2 {
                return Err(AblateError::from(Error::Stopped));
            }
        }
        Ok(())
    });
    assert!(matches!(stopped, Err(AblateError::Core(Error::Stopped))) && saved.len() == 2);
    let read = |texts: &Vec<String>| texts.iter().map(|text| Scores::from_json(text.as_bytes()).unwrap()).collect::<Vec<_>>();
    let resume: Vec<Vec<Scores>> = saved.iter().map(read).collect();
    let mut model = Plain(Network::new(6, SAMPLES, 1));
    let mut first = None;
    let resumed = prune_in_steps_with(&mut model, &options, resume.clone(), |step, _| {
        first.get_or_insert(step);
        Ok::<(), AblateError<_>>(())
    })
    .unwrap();
    assert_eq!((resumed, first), (whole, Some(1)));
    // Scores of a step at another point are not taken.
    let swapped = vec![resume[1].clone()];
    let error = prune_in_steps_with(&mut model, &options, swapped, |_, _| Ok::<(), AblateError<_>>(())).unwrap_err().to_string();
    assert!(error.contains("`settings.removed` was [") && error.contains("is now absent"), "{error}");
}

#[test]
fn constraints_hold_in_every_step_and_bad_settings_are_named() {
    let mut model = Plain(Network::new(8, SAMPLES, 4));
    let mut rules = options(&[0.2, 0.5]);
    let free = steps(&mut model, &rules).remove(0).plan;
    rules.constraints.keep.insert(free.removed[0].clone());
    for step in steps(&mut model, &rules) {
        assert!(!step.plan.removed.contains(&free.removed[0]));
    }
    let mut error = |edit: fn(&mut StepOptions)| {
        let mut options = options(&[0.2, 0.5]);
        edit(&mut options);
        prune_in_steps(&mut model, &options).unwrap_err().to_string()
    };
    let rising = "expected at least one, of one cost, each more than the one before";
    assert!(error(|o| o.budgets.reverse()).ends_with(rising));
    assert!(error(|o| o.budgets.clear()).ends_with(rising));
    assert!(error(|o| o.budgets[1] = Budget::macs_ratio(0.5)).ends_with(rising));
    assert_eq!(error(|o| o.criterion = "clip".to_owned()), "criterion `clip` was not measured; there are: output_loss");
}
