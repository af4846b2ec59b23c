//! The training loop as its users see it: distillation of a pruned U-Net, stopping and resuming, refusing what does not belong.

use std::collections::BTreeMap;
use std::path::Path;

use crate::support::{Run, World, config, losses, same_bits};
use distill::{Control, Error, LogRow, LoggedRun, LossConfig, LrSchedule, NormScope, Outcome, StepLoss, Task, Trainer, TrainerConfig};
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
fn a_longer_run_under_a_constant_rate_goes_on_with_the_bits_of_an_uninterrupted_one() {
    let world = World::new();
    let losses = losses("normalized", NormScope::Running);
    let run = |steps, log_every, checkpoint_every, dir: Option<&Path>| {
        let config = TrainerConfig { lr_schedule: LrSchedule::Constant, log_every, checkpoint_every, ..config(steps) };
        world.run_with(Run::new(config), &losses, dir).map(|(trainer, _)| trainer)
    };
    let whole = run(12, 3, 6, None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    run(6, 3, 6, Some(dir.path())).unwrap();
    let longer = run(12, 3, 5, Some(dir.path())).unwrap();
    assert!(same_bits(&whole.tensors(), &longer.tensors()) && same_bits(&whole.averaged().unwrap(), &longer.averaged().unwrap()));
    assert_eq!(whole.log(), longer.log());
    // Rows at other steps from here on.
    let last = run(16, 2, 6, Some(dir.path())).unwrap();
    assert_eq!(last.log().iter().map(|row| row.step).collect::<Vec<_>>(), [3, 6, 9, 12, 14, 16]);
    assert!(same_bits(&run(16, 1, 6, None).unwrap().tensors(), &last.tensors()));
    let shorter = run(9, 3, 6, Some(dir.path())).unwrap_err();
    assert!(matches!(&shorter, Error::Config { key, expected, .. } if key == "steps" && expected.contains("16")), "{shorter}");
}

/// Replaces a checkpoint by a copy with other tensors and metadata.
fn rewrite(path: &Path, change: impl FnOnce(&mut Tensors, &mut BTreeMap<String, String>)) {
    let file = TensorFile::open(path).unwrap();
    // Copies: the file is mapped.
    let mut tensors: Tensors = file.shapes().map(|(name, _)| (name.to_string(), file.tensor(name).unwrap().unwrap().copy())).collect();
    let mut metadata = file.metadata().clone();
    change(&mut tensors, &mut metadata);
    save_tensors(path, &tensors, &metadata, None).unwrap();
}

#[test]
fn a_checkpoint_of_the_program_before_goes_on_whatever_its_rows_were() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let losses = losses("plain", NormScope::Batch);
    world.run(6, &losses, Some(dir.path()), 4).unwrap();
    rewrite(&dir.path().join("checkpoint-00000004.safetensors"), |_, meta| {
        let mut config: serde_json::Value = serde_json::from_str(&meta["identity.config"]).unwrap();
        config["log_every"] = 77.into();
        meta.insert("identity.config".into(), config.to_string());
    });
    let (trainer, _) = world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap();
    assert!(trainer.is_resumed() && trainer.step() == 6);
}

#[test]
fn a_damaged_checkpoint_is_an_error_that_names_the_older_one_that_is_whole() {
    let world = World::new();
    let losses = losses("plain", NormScope::Batch);
    let cut = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    };
    let zeros = |path: &Path| std::fs::write(path, vec![0; 4096]).unwrap();
    let empty = |path: &Path| std::fs::write(path, "").unwrap();
    let nan = |path: &Path| rewrite(path, |tensors, _| drop(tensors.get_mut("params").unwrap().narrow(0, 3, 1).fill_(f64::NAN)));
    let lacks = |path: &Path| rewrite(path, |tensors, _| drop(tensors.remove("adam.v")));
    let no_step = |path: &Path| rewrite(path, |_, meta| drop(meta.insert("step".into(), "six".into())));
    let other = |path: &Path| rewrite(path, |_, meta| drop(meta.insert("format".into(), "pt".into())));
    let damages: [&dyn Fn(&Path); 7] = [&cut, &zeros, &empty, &nan, &lacks, &no_step, &other];
    for (n, damage) in damages.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [4, 6].map(|step| dir.path().join(format!("checkpoint-{step:08}.safetensors")));
        world.run(6, &losses, Some(dir.path()), 4).unwrap();
        let (whole, _) = world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap();
        damage(&paths[1]);
        let error = world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap_err();
        assert!(
            matches!(&error, Error::DamagedCheckpoint { path, whole: Some(whole), .. } if *path == paths[1] && *whole == paths[0]),
            "{n}: {error}"
        );
        let said = error.to_string();
        assert!(said.contains("delete it to go on from") && !said.contains("LFS"), "{said}");
        // What it says works.
        std::fs::remove_file(&paths[1]).unwrap();
        assert!(same_bits(&world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap().0.tensors(), &whole.tensors()));
        for path in &paths {
            cut(path);
        }
        let error = world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap_err();
        assert!(matches!(&error, Error::DamagedCheckpoint { whole: None, .. }), "{error}");
        assert!(error.to_string().contains("delete it to start over"), "{error}");
    }
}

#[test]
fn a_checkpoint_of_an_older_program_is_refused_with_what_to_do() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let losses = losses("plain", NormScope::Batch);
    world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap();
    rewrite(&dir.path().join("checkpoint-00000006.safetensors"), |_, meta| drop(meta.insert("version".into(), "3".into())));
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
fn a_row_of_skipped_steps_has_no_loss_and_a_run_of_them_is_no_success() {
    let initial = Tensors::from([("w".to_string(), Tensor::from_slice(&[1f32, -2.0]))]);
    let dir = tempfile::tempdir().unwrap();
    let run = |steps, bad| {
        let mut trainer = Trainer::new(config(steps), &initial, Device::Cpu, BTreeMap::new(), Some(dir.path())).unwrap();
        let run = LoggedRun { stage: "sick", dir: dir.path() };
        run.run(&mut trainer, &mut Sick { bad }, None, &mut |_| Ok::<_, Error>(Control::Continue))
    };
    // Three of twelve steps, all of one row.
    run(12, 3..6).unwrap();
    let text = std::fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    let raw: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(raw[1]["loss"].is_null() && raw[1]["grad_norm"].is_null() && raw[1]["terms"]["task"].is_null(), "{text}");
    assert!([0, 2, 3].iter().all(|&n: &usize| raw[n]["loss"].as_f64().unwrap() > 0.0), "{text}");
    let rows: Vec<LogRow> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows[1].loss.is_nan() && rows[1].terms["task"].is_nan() && distill::shares(&rows[1].terms)["task"].is_nan());
    assert_eq!(rows[1].skipped, 3);

    std::fs::remove_dir_all(dir.path()).unwrap();
    std::fs::create_dir(dir.path()).unwrap();
    for again in 0..2 {
        // Seven of twelve, fewer than `max_skipped`; the same the second time, when no step is left to make.
        let error = run(12, 2..9).unwrap_err();
        assert!(matches!(&error, Error::NotFinite { step: 12, skipped: 7, checkpoint: Some(_) }), "{again}: {error}");
        assert!(error.to_string().contains("7 of 12 steps") && error.to_string().contains("checkpoint-00000012"), "{error}");
    }
}

/// A loss whose gradient leaves f32 when the weights are squared once more.
struct Steep;

impl Task for Steep {
    fn loss(&mut self, params: &Tensors, _: u64) -> distill::Result<StepLoss> {
        let total = params["w"].square().sum(Kind::Float);
        Ok(StepLoss { terms: vec![("task".into(), total.detach())], total })
    }
}

#[test]
fn weights_that_are_not_finite_end_the_run_at_once_and_are_never_saved() {
    let initial = Tensors::from([("w".to_string(), Tensor::from_slice(&[1f32, -2.0]))]);
    // Rates whose steps leave f32: the first, or one of the last.
    for (lr, warmup, steps, every) in [(1e39, 0, 12, 1), (3e38, 6, 6, 2), (1e39, 0, 1, 1), (1e30, 0, 12, 4)] {
        let dir = tempfile::tempdir().unwrap();
        let config =
            TrainerConfig { lr, warmup, clip_norm: 0.0, weight_decay: 0.5, checkpoint_every: every, log_every: 100, ..config(steps) };
        let go = || {
            let mut trainer = Trainer::new(config.clone(), &initial, Device::Cpu, BTreeMap::new(), Some(dir.path())).unwrap();
            let run = LoggedRun { stage: "steep", dir: dir.path() };
            run.run(&mut trainer, &mut Steep, None, &mut |_| Ok::<_, Error>(Control::Continue))
        };
        let error = go().unwrap_err();
        assert!(matches!(&error, Error::WeightsNotFinite { .. } | Error::NotFinite { .. }), "rate {lr}: {error}");
        assert!(error.to_string().contains("`clip_norm`") && error.to_string().contains("`lr`"), "{error}");
        for entry in
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        {
            let params = TensorFile::open(&entry).unwrap().tensor("params").unwrap().unwrap();
            assert!(bool::try_from(params.isfinite().all()).unwrap(), "{entry:?}");
            assert!(error.to_string().contains("holds the last finite ones"), "{error}");
        }
        assert!(go().is_err(), "the same command again is no success either");
    }
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
