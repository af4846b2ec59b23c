//! The training loop as its users see it: distillation of a pruned U-Net, stopping and resuming, refusing what does not belong.

use std::collections::BTreeMap;

use crate::support::{Run, World, config, losses, same_bits};
use distill::{Control, Error, LogRow, LossConfig, NormScope, Outcome, StepLoss, Task, Trainer, TrainerConfig};
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};

#[test]
fn distillation_brings_the_student_back_and_logs_every_term() {
    let world = World::new();
    for (features, taps) in [("none", 0), ("plain", 5), ("normalized", 5)] {
        // Without the task term: a teacher of random weights is right about nothing, the student shall equal it all the same.
        let losses = LossConfig { task_weight: 0.0, ..losses(features, NormScope::Sample) };
        let (trainer, outcome) = world.run(60, &losses, None, u64::MAX).unwrap();
        assert_eq!(outcome, Outcome::Finished);
        let log = trainer.log();
        let out = |row: &LogRow| row.terms["out"];
        assert!(out(&log[log.len() - 1]) < 0.6 * out(&log[0]), "{features:?}: {} -> {}", out(&log[0]), out(&log[log.len() - 1]));
        for row in log {
            assert_eq!(row.terms.keys().filter(|k| k.starts_with("feat.")).count(), taps);
            let sum: f64 = row.terms.values().sum();
            assert!((sum - row.loss).abs() < 1e-5 * row.loss, "terms {sum} add up to the loss {}", row.loss);
        }
    }
}

#[test]
fn checkpointing_activations_changes_no_bit_of_a_run() {
    let world = World::new();
    for features in ["none", "normalized"] {
        let losses = losses(features, NormScope::Running);
        let (plain, _) = world.run(6, &losses, None, u64::MAX).unwrap();
        let (checkpointed, _) = world.run_with(Run { checkpointing: true, ..Run::new(config(6)) }, &losses, None).unwrap();
        assert!(
            same_bits(&plain.tensors(), &checkpointed.tensors())
                && same_bits(&plain.averaged().unwrap(), &checkpointed.averaged().unwrap())
        );
        assert_eq!(plain.log(), checkpointed.log());
    }
}

#[test]
fn a_resumed_run_has_the_bits_of_an_uninterrupted_one() {
    let world = World::new();
    for scope in [NormScope::Sample, NormScope::Running] {
        let losses = losses("normalized", scope);
        let (whole, _) = world.run(18, &losses, None, u64::MAX).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let (_, outcome) = world.run(18, &losses, Some(dir.path()), 8).unwrap();
        assert_eq!(outcome, Outcome::Stopped, "in the middle of a log window");
        let (resumed, outcome) = world.run(18, &losses, Some(dir.path()), u64::MAX).unwrap();
        assert_eq!(outcome, Outcome::Finished);

        assert!(same_bits(&whole.tensors(), &resumed.tensors()), "{scope:?}: weights");
        assert!(same_bits(&whole.averaged().unwrap(), &resumed.averaged().unwrap()), "{scope:?}: average");
        assert_eq!(whole.log(), resumed.log());
        assert!(!same_bits(&whole.tensors(), &whole.averaged().unwrap()), "the average is not the weights themselves");
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused_by_name() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    world.run(6, &losses("plain", NormScope::Batch), Some(dir.path()), u64::MAX).unwrap();
    let err = world.run(6, &losses("normalized", NormScope::Batch), Some(dir.path()), u64::MAX).unwrap_err();
    match err {
        Error::ForeignCheckpoint { key, expected, found, .. } => {
            assert_eq!(key, "losses");
            assert!(expected.contains("normalized") && found.contains("plain"), "{expected} / {found}");
        }
        other => panic!("{other}"),
    }
    let err = world.run(9, &losses("plain", NormScope::Batch), Some(dir.path()), u64::MAX).unwrap_err();
    assert!(matches!(&err, Error::ForeignCheckpoint { key, expected, .. } if key == "config" && expected.contains("steps")), "{err}");
}

#[test]
fn a_truncated_checkpoint_is_an_error_and_not_a_silent_restart() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let losses = losses("plain", NormScope::Batch);
    world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap();
    let file = dir.path().join("checkpoint-00000006.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let err = world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap_err();
    assert!(err.to_string().contains("checkpoint-00000006.safetensors"), "{err}");
}

#[test]
fn a_checkpoint_of_an_older_program_is_refused_with_what_to_do() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let losses = losses("plain", NormScope::Batch);
    world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap();
    let path = dir.path().join("checkpoint-00000006.safetensors");
    let file = TensorFile::open(&path).unwrap();
    let tensors: Tensors = file.shapes().map(|(name, _)| (name.to_string(), file.tensor(name).unwrap().unwrap())).collect();
    let mut metadata = file.metadata().clone();
    metadata.insert("version".into(), "3".into());
    save_tensors(&path, &tensors, &metadata, None).unwrap();
    let error = world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap_err().to_string();
    assert!(error.contains("version 3") && error.contains("the program that began it"), "{error}");
}

#[test]
fn accumulated_passes_make_the_step_of_a_larger_batch() {
    let world = World::new();
    // Sums over the batch: terms that are means over elements do not care how a batch is cut.
    let losses = losses("plain", NormScope::Batch);
    let cut = |accumulate| Run::new(TrainerConfig { accumulate, log_every: 1, ..config(3) });
    let (one, _) = world.run_with(cut(1), &losses, None).unwrap();
    let (two, _) = world.run_with(cut(2), &losses, None).unwrap();
    // By hand: the first step's loss is the mean of the first two passes' losses, at the same weights.
    let single = |micro: u64| {
        let rates = TrainerConfig { lr: 1e-30, weight_decay: 0.0, log_every: 1, ..config(3) };
        let (run, _) = world.run_with(Run::new(rates), &losses, None).unwrap();
        run.log()[micro as usize].loss
    };
    let expected = (single(0) + single(1)) / 2.0;
    let got = two.log()[0].loss;
    assert!((got - expected).abs() < 1e-6 * expected, "{got} is not {expected}");
    assert_ne!(one.log()[0].loss, got);
}

#[test]
fn a_run_may_go_on_with_its_passes_cut_otherwise_but_not_with_another_number() {
    let world = World::new();
    let losses = losses("plain", NormScope::Batch);
    let dir = tempfile::tempdir().unwrap();
    let run = |accumulate, stop_at, every| {
        let config = TrainerConfig { accumulate, checkpoint_every: every, ..config(6) };
        world.run_with(Run { stop_at, ..Run::new(config) }, &losses, Some(dir.path()))
    };
    run(2, 3, 6).unwrap();
    let err = run(1, u64::MAX, 6).unwrap_err();
    assert!(
        matches!(&err, Error::ForeignCheckpoint { expected, found, .. }
        if expected.contains("accumulate x ranks = 1") && found.contains("accumulate x ranks = 2")),
        "{err}"
    );
    assert_eq!(run(2, u64::MAX, 2).unwrap().1, Outcome::Finished, "how often it is saved may change");
}

/// A loss that is NaN at chosen steps.
struct Sick {
    bad: std::ops::Range<u64>,
}

impl Task for Sick {
    fn loss(&mut self, params: &Tensors, step: u64) -> distill::Result<StepLoss> {
        let loss = params["w"].square().sum(Kind::Float);
        let total = if self.bad.contains(&step) { &loss * f64::NAN } else { loss };
        Ok(StepLoss { terms: vec![("task".into(), total.detach())], total })
    }
}

#[test]
fn a_step_that_is_not_finite_is_skipped_and_too_many_stop_the_run() {
    let initial = Tensors::from([("w".to_string(), Tensor::from_slice(&[1f32, -2.0]))]);
    let run = |bad| {
        let mut trainer = Trainer::new(config(90), &initial, Device::Cpu, BTreeMap::new(), None).unwrap();
        let outcome = trainer.run(&mut Sick { bad }, &mut |_| Ok::<_, Error>(Control::Continue));
        (trainer, outcome)
    };
    let (trainer, outcome) = run(10..13);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert_eq!(trainer.log().last().unwrap().skipped, 3);
    let norm = trainer.tensors()["w"].norm().double_value(&[]);
    assert!(norm < 2.2, "it went on learning: {norm}");

    let (_, outcome) = run(0..90);
    assert!(matches!(outcome, Err(Error::NotFinite { skipped: 51, .. })));
}

#[test]
fn settings_out_of_range_are_named() {
    let mut bad = config(3);
    bad.beta2 = 1.0;
    assert!(matches!(bad.check(), Err(Error::Config { key, .. }) if key == "beta2"));
    let mut losses = losses("plain", NormScope::Batch);
    losses.norm_power = 3;
    assert!(matches!(losses.check(), Err(Error::Config { key, .. }) if key == "norm_power"));
    let unknown = "steps = 3\nlearning_rate = 0.1";
    assert!(toml::from_str::<TrainerConfig>(unknown).unwrap_err().to_string().contains("learning_rate"));
}
