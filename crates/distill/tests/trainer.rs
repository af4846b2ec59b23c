//! The training loop as its users see it: distillation of a pruned U-Net, stopping and resuming, refusing what does not belong.

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::{NoiseSchedule, PredictionType, SchedulerConfig};
use distill::{
    CachedSamples, Compute, Control, DistillTask, EmptyPrompt, Error, FeatureLoss, LatentCache, LatentData, LogRow, LossConfig, LrSchedule,
    NormScope, Outcome, Shuffle, StepLoss, Task, Trainer, TrainerConfig,
};
use tch::{Device, Kind, Tensor};
use unet::weights::{Tensors, seeded};
use unet::{AddedCond, Cond, RemovalSet, TapSet, UNet, UNetConfig};

const UNET: &str = r#"{"_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [12, 24], "layers_per_block": 1, "transformer_layers_per_block": [1, 2], "attention_head_dim": [2, 3],
    "cross_attention_dim": 10, "norm_num_groups": 3, "use_linear_projection": true, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6, "projection_class_embeddings_input_dim": 43}"#;

fn config(steps: u64) -> TrainerConfig {
    TrainerConfig {
        steps,
        batch: 3,
        lr: 3e-3,
        warmup: 2,
        schedule: LrSchedule::Cosine,
        lr_end_ratio: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        weight_decay: 0.01,
        clip_norm: 1.0,
        ema_decay: 0.9,
        seed: 5,
        compute: Compute::F32,
        log_every: 3,
        checkpoint_every: 6,
    }
}

struct World {
    config: UNetConfig,
    teacher: UNet,
    removed: RemovalSet,
    cache: LatentCache,
    schedule: NoiseSchedule,
}

impl World {
    fn new() -> Self {
        let config = UNetConfig::parse(UNET, Path::new("unet.json")).unwrap();
        let teacher = UNet::random(&config, 1, Device::Cpu, Kind::Float).unwrap();
        let mut removed = RemovalSet::empty();
        removed.insert("mid_block.attentions.0.transformer_blocks.0.ff");
        removed.insert("up_blocks.0.resnets.1");
        let latents = seeded(3, || Tensor::randn([8, 4, 8, 8], (Kind::Float, Device::Cpu)));
        let cache = LatentCache::from_parts(&latents, (0..8).map(|i| format!("caption {i}")).collect()).unwrap();
        let schedule = NoiseSchedule::new(SchedulerConfig::stable_diffusion(PredictionType::VPrediction)).unwrap();
        Self { config, teacher, removed, cache, schedule }
    }

    fn student(&self) -> Tensors {
        let pruned = self.teacher.prune(&self.removed).unwrap();
        pruned.parameters().iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect()
    }

    /// Runs a trainer; `stop_at` makes the hook ask for a stop from that step on.
    fn run(&self, steps: u64, losses: &LossConfig, dir: Option<&Path>, stop_at: u64) -> distill::Result<(Trainer, Outcome)> {
        self.run_with(false, steps, losses, dir, stop_at)
    }

    fn run_with(
        &self,
        checkpointing: bool,
        steps: u64,
        losses: &LossConfig,
        dir: Option<&Path>,
        stop_at: u64,
    ) -> distill::Result<(Trainer, Outcome)> {
        let conditioner = |captions: &[&str]| {
            let rows: Vec<f32> = captions.iter().flat_map(|c| (0..50).map(|i| ((c.len() * 7 + i) % 11) as f32 / 11.0)).collect();
            let x = Tensor::from_slice(&rows).view([captions.len() as i64, 50]);
            let b = captions.len() as i64;
            Ok(Cond {
                encoder_hidden_states: x.narrow(1, 0, 40).reshape([b, 4, 10]),
                added: Some(AddedCond { text_embeds: x.narrow(1, 0, 7), time_ids: Tensor::full([b, 6], 8.0, (Kind::Float, Device::Cpu)) }),
            })
        };
        let config = config(steps);
        let data = LatentData {
            samples: Box::new(CachedSamples {
                cache: &self.cache,
                order: Shuffle::new(self.cache.len(), config.seed),
                conditioner: &conditioner,
                batch: config.batch,
                device: Device::Cpu,
            }),
            schedule: &self.schedule,
            caption_dropout: 0.2,
            empty: EmptyPrompt::Zeros,
            offset_noise: 0.0,
            seed: config.seed,
            device: Device::Cpu,
            compute: config.compute,
        };
        let mut task = DistillTask::new(&self.teacher, &self.config, &self.removed, TapSet::stages(&self.config), losses.clone(), data)?
            .with_checkpointing(checkpointing);
        let identity = BTreeMap::from([("losses".to_string(), serde_json::to_string(losses).unwrap())]);
        let mut trainer = Trainer::new(config, &self.student(), Device::Cpu, identity, dir)?;
        let outcome = trainer.run(&mut task, &mut |p| if p.step >= stop_at { Control::Stop } else { Control::Continue }, &mut |_| {})?;
        Ok((trainer, outcome))
    }
}

fn losses(features: FeatureLoss, norm_scope: NormScope) -> LossConfig {
    LossConfig { task: 1.0, out: 1.0, feat: 0.5, features, norm_power: 2, norm_scope, mask_threshold: 1.5, min_snr_gamma: 0.0 }
}

fn same_bits(a: &Tensors, b: &Tensors) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((ka, ta), (kb, tb))| ka == kb && ta.equal(tb))
}

#[test]
fn distillation_brings_the_student_back_and_logs_every_term() {
    tch::set_num_threads(1);
    let world = World::new();
    for (features, taps) in [(FeatureLoss::None, 0), (FeatureLoss::Plain, 5), (FeatureLoss::Normalized, 5)] {
        // Without the task term: a teacher of random weights is right about nothing, the student shall equal it all the same.
        let losses = LossConfig { task: 0.0, ..losses(features, NormScope::Sample) };
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
    tch::set_num_threads(1);
    let world = World::new();
    for features in [FeatureLoss::None, FeatureLoss::Normalized] {
        let losses = losses(features, NormScope::Running);
        let (plain, _) = world.run(6, &losses, None, u64::MAX).unwrap();
        let (checkpointed, _) = world.run_with(true, 6, &losses, None, u64::MAX).unwrap();
        assert!(same_bits(&plain.tensors(), &checkpointed.tensors()) && same_bits(&plain.averaged(), &checkpointed.averaged()));
        assert_eq!(plain.log(), checkpointed.log());
    }
}

#[test]
fn a_resumed_run_has_the_bits_of_an_uninterrupted_one() {
    tch::set_num_threads(1);
    let world = World::new();
    for scope in [NormScope::Sample, NormScope::Running] {
        let losses = losses(FeatureLoss::Normalized, scope);
        let (whole, _) = world.run(18, &losses, None, u64::MAX).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let (_, outcome) = world.run(18, &losses, Some(dir.path()), 8).unwrap();
        assert_eq!(outcome, Outcome::Stopped, "stops at the end of the log window");
        let (resumed, outcome) = world.run(18, &losses, Some(dir.path()), u64::MAX).unwrap();
        assert_eq!(outcome, Outcome::Finished);

        assert!(same_bits(&whole.tensors(), &resumed.tensors()), "{scope:?}: weights");
        assert!(same_bits(&whole.averaged(), &resumed.averaged()), "{scope:?}: average");
        assert_eq!(whole.log(), resumed.log());
        assert!(!same_bits(&whole.tensors(), &whole.averaged()), "the average is not the weights themselves");
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused_by_name() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    world.run(6, &losses(FeatureLoss::Plain, NormScope::Batch), Some(dir.path()), u64::MAX).unwrap();
    let err = world.run(6, &losses(FeatureLoss::Normalized, NormScope::Batch), Some(dir.path()), u64::MAX).unwrap_err();
    match err {
        Error::ForeignCheckpoint { key, expected, found, .. } => {
            assert_eq!(key, "losses");
            assert!(expected.contains("normalized") && found.contains("plain"), "{expected} / {found}");
        }
        other => panic!("{other}"),
    }
    let err = world.run(9, &losses(FeatureLoss::Plain, NormScope::Batch), Some(dir.path()), u64::MAX).unwrap_err();
    assert!(matches!(&err, Error::ForeignCheckpoint { key, expected, .. } if key == "config" && expected.contains("steps")), "{err}");
}

#[test]
fn a_truncated_checkpoint_is_an_error_and_not_a_silent_restart() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let losses = losses(FeatureLoss::Plain, NormScope::Batch);
    world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap();
    let file = dir.path().join("checkpoint-00000006.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let err = world.run(6, &losses, Some(dir.path()), u64::MAX).unwrap_err();
    assert!(err.to_string().contains("checkpoint-00000006.safetensors"), "{err}");
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
        let outcome = trainer.run(&mut Sick { bad }, &mut |_| Control::Continue, &mut |_| {});
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
    let mut losses = losses(FeatureLoss::Plain, NormScope::Batch);
    losses.norm_power = 3;
    assert!(matches!(losses.check(), Err(Error::Config { key, .. }) if key == "norm_power"));
    let unknown = "steps = 3\nlearning_rate = 0.1";
    assert!(toml::from_str::<TrainerConfig>(unknown).unwrap_err().to_string().contains("learning_rate"));
}
