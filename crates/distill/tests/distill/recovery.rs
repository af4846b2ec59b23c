//! Other ways to bring a student back: adapters alone, each gap by itself, other taps and losses.

use std::collections::BTreeMap;
use std::path::Path;

use data::{LatentSet, LatentSetSamples, Shuffle};
use diffusion::{NoiseSchedule, PredictionType, SchedulerConfig};
use distill::{
    Compute, Control, DenoiserTask, DenoiserTaskConfig, DistillTask, EmptyPrompt, Error, FeatureLosses, LatentData, LayerwiseTask, LogRow,
    Lora, LoraConfig, LoraTarget, LossConfig, NormScope, Task, Trainer, TrainerConfig,
};
use tch::{Device, Kind, Tensor};
use unet::weights::{Tensors, Weights, seeded};
use unet::{Conditioning, RemovalSet, TapSet, UNet, UNetConfig};

use crate::support::same_bits;

const UNET: &str = r#"{"_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [12, 24], "layers_per_block": 1, "transformer_layers_per_block": [1, 2], "attention_head_dim": [2, 3],
    "cross_attention_dim": 10, "norm_num_groups": 3, "use_linear_projection": true}"#;

// Every setting is given somewhere else; what matters here are steps and rate.
fn config(steps: u64, lr: f64) -> TrainerConfig {
    let rest = "batch = 3\nwarmup = 2\nlr_schedule = \"constant\"\nlr_end_ratio = 1.0\nbeta1 = 0.9\nbeta2 = 0.99\nweight_decay = 0.01\n\
        clip_norm = 1.0\nema_decay = 0.0\nseed = 5\ncompute = \"f32\"\nlog_every = 4\ncheckpoint_every = 100\n";
    toml::from_str(&format!("steps = {steps}\nlr = {lr}\n{rest}")).unwrap()
}

struct World {
    config: UNetConfig,
    teacher: UNet,
    student: UNet,
    cache: LatentSet,
    schedule: NoiseSchedule,
}

fn conditioner(captions: &[&str]) -> diffusion::Result<Conditioning> {
    let rows: Vec<f32> = captions.iter().flat_map(|c| (0..40).map(|i| ((c.len() * 7 + i) % 11) as f32 / 11.0)).collect();
    Ok(Conditioning::text(Tensor::from_slice(&rows).view([captions.len() as i64, 4, 10])))
}

impl World {
    fn new(removed: &[&str]) -> Self {
        tch::set_num_threads(1);
        let config = UNetConfig::parse(UNET, Path::new("unet.json")).unwrap();
        let teacher = UNet::random(&config, 1, Device::Cpu, Kind::Float).unwrap();
        let student = teacher.prune(&removed.iter().copied().collect()).unwrap();
        let latents = seeded(3, || Tensor::randn([8, 4, 8, 8], (Kind::Float, Device::Cpu)));
        let cache = LatentSet::from_parts(&latents, (0..8).map(|i| format!("caption {i}")).collect()).unwrap();
        let schedule = NoiseSchedule::new(SchedulerConfig::stable_diffusion(PredictionType::Epsilon)).unwrap();
        Self { config, teacher, student, cache, schedule }
    }

    fn data(&self) -> LatentData<'_> {
        let (order, device) = (Shuffle::new(self.cache.len(), 5), Device::Cpu);
        LatentData {
            samples: Box::new(LatentSetSamples { set: &self.cache, order, conditioner: &conditioner, batch: 3, device }),
            schedule: &self.schedule,
            caption_dropout: 0.2,
            empty: EmptyPrompt::Features(conditioner(&[""]).unwrap()),
            offset_noise: 0.1,
            seed: 5,
            device,
            compute: Compute::F32,
        }
    }

    fn task(&self, feature_loss: &str, taps: TapSet, gamma: f64) -> DistillTask<'_> {
        let losses = LossConfig {
            task_weight: 0.1,
            output_weight: 1.0,
            feature_weight: 0.5,
            feature_loss: feature_loss.into(),
            norm_power: 2,
            norm_scope: NormScope::Running,
            mask_threshold: 1.5,
            min_snr_gamma: gamma,
        };
        let known = FeatureLosses::builtin();
        DistillTask::new(&self.teacher, &self.config, self.student.removed(), taps, losses, &known, self.data()).unwrap()
    }
}

fn train(task: &mut dyn Task, initial: &Tensors, steps: u64, lr: f64) -> Trainer {
    let mut trainer = Trainer::new(config(steps, lr), initial, Device::Cpu, BTreeMap::new(), None).unwrap();
    trainer.run(task, &mut |_| Ok::<_, Error>(Control::Continue)).unwrap();
    trainer
}

// Of the rows at both ends of a log.
fn fall(log: &[LogRow], term: &str) -> f64 {
    let mean = |rows: &[LogRow]| rows.iter().map(|row| row.terms[term]).sum::<f64>() / rows.len() as f64;
    mean(&log[log.len() - 3..]) / mean(&log[..3])
}

const GAPS: [&str; 3] =
    ["mid_block.attentions.0.transformer_blocks.0.attn1", "down_blocks.1.attentions.0.transformer_blocks.1.ff", "up_blocks.0.resnets.1"];

#[test]
fn every_form_of_features_and_taps_brings_the_student_nearer() {
    let world = World::new(&GAPS);
    let removed = world.student.removed();
    let attention = TapSet::self_attention(&world.config, removed).unwrap();
    let behind = TapSet::removed(&world.config, removed).unwrap();
    for (features, taps, gamma, count) in [
        ("direction", TapSet::stages(&world.config), 0.0, 5),
        ("masked", TapSet::all(&world.config), 5.0, 17),
        ("normalized", attention, 5.0, 8),
        ("plain", behind, 0.0, 3),
    ] {
        let mut task = world.task(features, taps, gamma);
        let trainer = train(&mut task, world.student.parameters(), 60, 3e-3);
        let log = trainer.log();
        let features: Vec<&String> = log[0].terms.keys().filter(|k| k.starts_with("feat.")).collect();
        assert_eq!(features.len(), count, "{features:?}");
        assert!(fall(log, "out") < 0.75, "{}", fall(log, "out"));
        for row in log {
            assert!((row.terms.values().sum::<f64>() - row.loss).abs() < 1e-5 * row.loss, "terms add up to the loss");
        }
    }
}

#[test]
fn taps_inside_a_checkpointed_block_change_no_bit() {
    let world = World::new(&GAPS);
    let taps = || TapSet::self_attention(&world.config, world.student.removed()).unwrap();
    let run = |checkpointing| {
        let mut task = world.task("normalized", taps(), 5.0).with_checkpointing(checkpointing);
        train(&mut task, world.student.parameters(), 4, 3e-3)
    };
    let (plain, checkpointed) = (run(false), run(true));
    assert!(same_bits(&plain.tensors(), &checkpointed.tensors()));
    assert_eq!(plain.log(), checkpointed.log());
}

#[test]
fn adapters_alone_bring_the_student_nearer_and_leave_it_frozen() {
    let world = World::new(&GAPS);
    let before: Tensors = world.student.parameters().iter().map(|(k, t)| (k.clone(), t.copy())).collect();
    let lora = LoraConfig { rank: 4, alpha: 8.0, targets: vec![LoraTarget::Attention, LoraTarget::FeedForward] };
    let lora = Lora::new(world.student.parameters(), &lora).unwrap();
    let initial = lora.initial(7, Device::Cpu).unwrap();
    let taps = || TapSet::stages(&world.config);
    // Nothing changes at first.
    let whole = world.task("normalized", taps(), 0.0).loss(world.student.parameters(), 0).unwrap().total;
    let with = world.task("normalized", taps(), 0.0).with_lora(&lora).loss(&initial, 0).unwrap().total;
    assert!(with.equal(&whole));
    let run = |checkpointing, steps| {
        let mut task = world.task("normalized", taps(), 0.0).with_lora(&lora).with_checkpointing(checkpointing);
        train(&mut task, &initial, steps, 1e-2)
    };
    let trainer = run(false, 60);
    assert!(fall(trainer.log(), "out") < 0.9, "{}", fall(trainer.log(), "out"));
    assert!(same_bits(&before, world.student.parameters()), "the base is frozen");
    let trained: u64 = trainer.tensors().values().map(|t| t.numel() as u64).sum();
    assert!(trained * 4 < world.student.num_parameters());
    // The merged network is the one that was trained.
    let merged = UNet::from_weights(&world.config, Weights::from_tensors(lora.merge(&trainer.tensors()).unwrap()), world.student.removed());
    let as_student = world.task("normalized", taps(), 0.0).loss(merged.unwrap().parameters(), 3).unwrap().total;
    let as_adapters = world.task("normalized", taps(), 0.0).with_lora(&lora).loss(&trainer.tensors(), 3).unwrap().total;
    assert!(as_student.equal(&as_adapters));
    // Checkpointed, the factors are reached behind all pieces of the backward pass, in another order of additions.
    let (plain, checkpointed) = (run(false, 4), run(true, 4));
    for (key, t) in plain.tensors() {
        let error = (&t - &checkpointed.tensors()[&key]).abs().max().double_value(&[]);
        assert!(error < 1e-5, "{key}: {error}");
    }
}

#[test]
fn each_gap_learns_what_the_teacher_makes_of_its_own_inputs() {
    let world = World::new(&GAPS);
    let neighborhoods = world.student.neighborhoods();
    let ids: Vec<&str> = neighborhoods.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(ids, ["down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.resnets.1"]);
    assert_eq!(neighborhoods[1].parts, ["mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"]);
    // A network does on its own inputs what it does.
    let cond = conditioner(&["a", "bb"]).unwrap();
    let x = seeded(4, || Tensor::randn([2, 4, 8, 8], (Kind::Float, Device::Cpu)));
    let inputs = tch::no_grad(|| world.student.layerwise_inputs(&x, &Tensor::from_slice(&[3i64, 900]), &cond)).unwrap();
    for neighborhood in &neighborhoods {
        let leaving = tch::no_grad(|| world.student.layerwise(&inputs, neighborhood));
        assert!(leaving.iter().all(|(a, b)| a.equal(b)), "{}", neighborhood.id);
        // Around the first gap stand a ResNet and the mid block's; what the gap's own part leaves is a skip as well.
        assert_eq!(leaving.len(), if neighborhood.id.starts_with("down") { 2 } else { 1 }, "{}", neighborhood.id);
    }

    let mut task = LayerwiseTask::new(&world.teacher, &world.student, world.data()).unwrap();
    let initial = task.initial();
    assert!(initial.len() < world.student.parameters().len() && initial.keys().all(|key| !key.starts_with("conv_in")));
    let trainer = train(&mut task, &initial, 60, 3e-3);
    for neighborhood in &neighborhoods {
        let fall = fall(trainer.log(), &format!("layerwise.{}", neighborhood.id));
        assert!(fall < 0.75, "{}: {fall}", neighborhood.id);
    }
    // And that helps the whole.
    let recovered = task.complete(&trainer.tensors());
    assert_eq!(recovered.len(), world.student.parameters().len());
    let out = |params: &Tensors| {
        let mut task = world.task("none", TapSet::none(), 0.0);
        (0..4).map(|n| tch::no_grad(|| task.loss(params, n)).unwrap().terms[1].1.double_value(&[])).sum::<f64>()
    };
    let (before, after) = (out(world.student.parameters()), out(&recovered));
    assert!(after < 0.8 * before, "{before} -> {after}");
}

#[test]
fn min_snr_weighs_the_steps_that_it_is_set_for_whatever_their_passes() {
    let world = World::new(&[]);
    let removed = RemovalSet::empty();
    let loss = |min_snr_gamma, passes, micro| {
        let config = DenoiserTaskConfig { caption_dropout: 0.2, min_snr_gamma, min_snr_steps: 2 };
        let mut task = DenoiserTask { unet: &world.config, removed: &removed, data: world.data(), config: &config, passes };
        tch::no_grad(|| task.loss(world.teacher.parameters(), micro)).unwrap().total.double_value(&[])
    };
    for passes in [1, 4] {
        for micro in 0..3 * passes {
            let weighed = loss(0.05, passes, micro) != loss(0.0, passes, micro);
            assert_eq!(weighed, micro / passes < 2, "pass {micro}, {passes} of them a step");
        }
    }
}

#[test]
fn a_student_that_lacks_nothing_has_no_gap() {
    let world = World::new(&[]);
    let refused = LayerwiseTask::new(&world.teacher, &world.student, world.data()).map(|_| ());
    assert!(matches!(refused, Err(Error::Config { key, .. }) if key == "layerwise"));
    assert_eq!(world.student.removed(), &RemovalSet::empty());
}
