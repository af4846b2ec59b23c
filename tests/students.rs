//! Retraining knows no plan: a searched, a hand-crafted and a random student go through the same code, and all come nearer to
//! their teacher.

use std::collections::BTreeMap;
use std::path::Path;

use data::{LatentSet, LatentSetSamples, Shuffle};
use diffusion::{NoiseSchedule, PredictionType, SchedulerConfig};
use distill::{
    Compute, Control, DistillTask, EmptyPrompt, FeatureLosses, LatentData, LossConfig, LrSchedule, NormScope, Task, Trainer, TrainerConfig,
};
use prune_core::RemovalSet;
use prune_core::table::Cost;
use tch::{Device, Kind, Tensor};
use unet::weights::{Tensors, Weights, save_tensors, seeded};
use unet::{AddedConditioning, Conditioning, TapSet, UNet, bk_sdm_style, layer_table};

use crate::plans::{fixture, searched};

/// Latents without images: what matters here is the arithmetic of training.
fn cache(dir: &Path) -> LatentSet {
    let latents = seeded(3, || Tensor::randn([6, 4, 12, 8], (Kind::Float, Device::Cpu))).to_kind(Kind::Half);
    let captions: Vec<String> = (0..6).map(|i| format!("caption {i}")).collect();
    let metadata = [
        ("format", "laptop-diff/latents".to_string()),
        ("made_from", "noise".into()),
        ("captions", serde_json::json!(captions).to_string()),
    ];
    let path = dir.join("latents.safetensors");
    let metadata = metadata.map(|(k, v)| (k.to_string(), v)).into();
    save_tensors(&path, &Tensors::from([("latents".to_string(), latents)]), &metadata, None).unwrap();
    LatentSet::open(&path, "noise").unwrap().expect("made from noise")
}

/// A condition for each caption, from its number.
fn conditioner(captions: &[&str]) -> diffusion::Result<Conditioning> {
    let numbers: Vec<f32> = captions.iter().map(|c| c.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0)).collect();
    let n = numbers.len() as i64;
    let wave = |width: i64| {
        let row = Tensor::arange(width, (Kind::Float, Device::Cpu)).view([1, width]);
        (row * 0.3 + Tensor::from_slice(&numbers).view([n, 1])).sin()
    };
    let added = AddedConditioning { text_embeds: wave(19), time_ids: Tensor::full([n, 6], 64, (Kind::Float, Device::Cpu)) };
    Ok(Conditioning { encoder_hidden_states: wave(6 * 26).view([n, 6, 26]), added: Some(added), guidance: None })
}

fn losses() -> LossConfig {
    LossConfig {
        task_weight: 0.0,
        output_weight: 1.0,
        feature_weight: 1.0,
        feature_loss: "normalized".into(),
        norm_power: 2,
        norm_scope: NormScope::Sample,
        mask_threshold: 3.0,
        min_snr_gamma: 0.0,
    }
}

fn config(steps: u64) -> TrainerConfig {
    TrainerConfig {
        steps,
        batch: 3,
        lr: 2e-3,
        warmup: 1,
        lr_schedule: LrSchedule::Constant,
        lr_end_ratio: 1.0,
        beta1: 0.9,
        beta2: 0.99,
        weight_decay: 0.0,
        clip_norm: 1.0,
        ema_decay: 0.0,
        seed: 1,
        compute: Compute::F32,
        log_every: 1,
        checkpoint_every: 1000,
        accumulate: 1,
        keep_checkpoints: 2,
        max_skipped: 50,
        shard_optimizer: false,
        bucket_mb: 25.0,
    }
}

struct Lesson<'a> {
    teacher: &'a UNet,
    cache: &'a LatentSet,
    schedule: &'a NoiseSchedule,
}

impl<'a> Lesson<'a> {
    fn task(&self, student: &'a UNet) -> DistillTask<'a> {
        let (order, device) = (Shuffle::new(self.cache.len(), 1), Device::Cpu);
        let data = LatentData {
            samples: Box::new(LatentSetSamples { set: self.cache, order, conditioner: &conditioner, batch: 3, device }),
            schedule: self.schedule,
            caption_dropout: 0.0,
            empty: EmptyPrompt::Zeros,
            offset_noise: 0.0,
            seed: 1,
            device,
            compute: Compute::F32,
        };
        let (taps, known) = (TapSet::stages(student.config()), FeatureLosses::builtin());
        DistillTask::new(self.teacher, student.config(), student.removed(), taps, losses(), &known, data).unwrap()
    }
}

#[test]
fn students_of_every_kind_come_nearer_to_their_teacher() {
    let dir = tempfile::tempdir().unwrap();
    let teacher = UNet::open(fixture(), Device::Cpu, Kind::Float).unwrap();
    let (cache, schedule) = (cache(dir.path()), NoiseSchedule::new(SchedulerConfig::stable_diffusion(PredictionType::Epsilon)).unwrap());
    let lesson = Lesson { teacher: &teacher, cache: &cache, schedule: &schedule };
    let table = layer_table(teacher.config(), 12, 8).unwrap();
    let hand: RemovalSet = bk_sdm_style(teacher.config(), table.total_params() * 3 / 10).unwrap().into_iter().collect();
    // Every third layer stands for a random choice.
    let random: RemovalSet = table.layers().iter().step_by(3).map(|l| l.id.clone()).collect();
    let mut by_cost: Vec<_> = table.layers().iter().collect();
    by_cost.sort_by_key(|l| std::cmp::Reverse(l.cost(Cost::Params)));
    let largest: RemovalSet = by_cost.iter().take(6).map(|l| l.id.clone()).collect();
    for (name, removed) in [("searched", searched(0.3)), ("hand-crafted", hand), ("random", random), ("largest", largest)] {
        let student = teacher.prune(&removed).unwrap();
        let mut trainer = Trainer::new(config(40), student.parameters(), Device::Cpu, BTreeMap::new(), None).unwrap();
        trainer.run(&mut lesson.task(&student), &mut |_| Ok::<_, distill::Error>(Control::Continue)).unwrap();
        let log = trainer.log();
        let mean = |rows: &[distill::LogRow]| rows.iter().map(|r| r.loss).sum::<f64>() / rows.len() as f64;
        let (first, last) = (mean(&log[..5]), mean(&log[35..]));
        assert!(last < 0.8 * first, "{name}: {first} -> {last}");
        // What was trained is the student's own architecture, and loads as such.
        let trained = UNet::from_weights(student.config(), Weights::from_tensors(trainer.averaged().unwrap()), student.removed()).unwrap();
        assert_eq!(trained.num_parameters(), student.num_parameters());
    }
}

#[test]
fn a_student_that_lacks_nothing_has_nothing_to_learn() {
    let dir = tempfile::tempdir().unwrap();
    let teacher = UNet::open(fixture(), Device::Cpu, Kind::Float).unwrap();
    let (cache, schedule) = (cache(dir.path()), NoiseSchedule::new(SchedulerConfig::stable_diffusion(PredictionType::Epsilon)).unwrap());
    let lesson = Lesson { teacher: &teacher, cache: &cache, schedule: &schedule };
    let twin = teacher.prune(&RemovalSet::empty()).unwrap();
    let loss = lesson.task(&twin).loss(twin.parameters(), 0).unwrap();
    assert_eq!(loss.total.double_value(&[]), 0.0);
    assert_eq!(loss.terms.iter().filter(|(name, _)| name.starts_with("feat.")).count(), 7);
}
