//! A small world to train in.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use data::{LatentSet, LatentSetSamples, Shuffle};
use diffusion::{NoiseSchedule, PredictionType, SchedulerConfig};
use distill::{
    Compute, Control, DistillTask, EmptyPrompt, FeatureLosses, LatentData, LossConfig, LrSchedule, NormScope, Outcome, Progress, Task,
    Trainer, TrainerConfig,
};
use tch::{Device, Kind, Tensor};
use torch_ext::ProcessGroup;
use unet::weights::{Tensors, seeded};
use unet::{AddedConditioning, Conditioning, RemovalSet, TapSet, UNet, UNetConfig};

const UNET: &str = r#"{"_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [12, 24], "layers_per_block": 1, "transformer_layers_per_block": [1, 2], "attention_head_dim": [2, 3],
    "cross_attention_dim": 10, "norm_num_groups": 3, "use_linear_projection": true, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6, "projection_class_embeddings_input_dim": 43}"#;

pub fn config(steps: u64) -> TrainerConfig {
    TrainerConfig {
        steps,
        batch: 3,
        lr: 3e-3,
        warmup: 2,
        lr_schedule: LrSchedule::Cosine,
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
        accumulate: 1,
        keep_checkpoints: 2,
        max_skipped: 50,
        shard_optimizer: false,
        bucket_mb: 25.0,
    }
}

/// A small teacher, what its student lacks, and latents.
pub struct World {
    pub config: UNetConfig,
    pub teacher: UNet,
    pub removed: RemovalSet,
    pub cache: LatentSet,
    pub schedule: NoiseSchedule,
}

impl World {
    pub fn new() -> Self {
        // The same bits come from the same order of sums.
        tch::set_num_threads(1);
        let config = UNetConfig::parse(UNET, Path::new("unet.json")).unwrap();
        let teacher = UNet::random(&config, 1, Device::Cpu, Kind::Float).unwrap();
        let mut removed = RemovalSet::empty();
        removed.insert("mid_block.attentions.0.transformer_blocks.0.ff");
        removed.insert("up_blocks.0.resnets.1");
        let latents = seeded(3, || Tensor::randn([8, 4, 8, 8], (Kind::Float, Device::Cpu)));
        let cache = LatentSet::from_parts(&latents, (0..8).map(|i| format!("caption {i}")).collect()).unwrap();
        let schedule = NoiseSchedule::new(SchedulerConfig::stable_diffusion(PredictionType::VPrediction)).unwrap();
        Self { config, teacher, removed, cache, schedule }
    }

    pub fn student(&self) -> Tensors {
        let pruned = self.teacher.prune(&self.removed).unwrap();
        pruned.parameters().iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect()
    }

    /// Runs a trainer; `stop_at` makes the hook ask for a stop from that step on.
    pub fn run(&self, steps: u64, losses: &LossConfig, dir: Option<&Path>, stop_at: u64) -> distill::Result<(Trainer, Outcome)> {
        self.run_with(Run { stop_at, ..Run::new(config(steps)) }, losses, dir)
    }

    /// As [`World::run`], with everything that can differ.
    pub fn run_with(&self, run: Run, losses: &LossConfig, dir: Option<&Path>) -> distill::Result<(Trainer, Outcome)> {
        let stop_at = run.stop_at;
        self.run_hooked(run, losses, dir, &mut |p| if p.step >= stop_at { Control::Stop } else { Control::Continue })
    }

    /// As [`World::run_with`], with a hook of one's own.
    pub fn run_hooked(
        &self,
        run: Run,
        losses: &LossConfig,
        dir: Option<&Path>,
        hook: &mut dyn FnMut(Progress) -> Control,
    ) -> distill::Result<(Trainer, Outcome)> {
        let mut outcome = Outcome::Finished;
        let trainer = self.run_task(run, losses, dir, &mut |trainer, task| {
            outcome = trainer.run(task, &mut |p| Ok::<_, distill::Error>(hook(p)))?;
            Ok(())
        })?;
        Ok((trainer, outcome))
    }

    /// Makes trainer and task, and lets `go` run them.
    pub fn run_task(
        &self,
        run: Run,
        losses: &LossConfig,
        dir: Option<&Path>,
        go: &mut dyn FnMut(&mut Trainer, &mut dyn Task) -> distill::Result<()>,
    ) -> distill::Result<Trainer> {
        let Run { config, checkpointing, group, .. } = run;
        let conditioner = |captions: &[&str]| {
            let rows: Vec<f32> = captions.iter().flat_map(|c| (0..50).map(|i| ((c.len() * 7 + i) % 11) as f32 / 11.0)).collect();
            let x = Tensor::from_slice(&rows).view([captions.len() as i64, 50]);
            let b = captions.len() as i64;
            Ok(Conditioning {
                encoder_hidden_states: x.narrow(1, 0, 40).reshape([b, 4, 10]),
                added: Some(AddedConditioning {
                    text_embeds: x.narrow(1, 0, 7),
                    time_ids: Tensor::full([b, 6], 8.0, (Kind::Float, Device::Cpu)),
                }),
                guidance: None,
            })
        };
        let data = LatentData {
            samples: Box::new(LatentSetSamples {
                set: &self.cache,
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
        let (taps, known) = (TapSet::stages(&self.config), FeatureLosses::builtin());
        let mut task = DistillTask::new(&self.teacher, &self.config, &self.removed, taps, losses.clone(), &known, data)?
            .with_checkpointing(checkpointing);
        let identity = BTreeMap::from([("losses".to_string(), serde_json::to_string(losses).unwrap())]);
        let mut trainer = Trainer::distributed(config, &self.student(), Device::Cpu, identity, dir, group)?;
        go(&mut trainer, &mut task)?;
        Ok(trainer)
    }
}

/// How a run may differ from the plainest.
pub struct Run {
    pub config: TrainerConfig,
    pub checkpointing: bool,
    pub group: Option<Rc<ProcessGroup>>,
    pub stop_at: u64,
}

impl Run {
    pub fn new(config: TrainerConfig) -> Self {
        Self { config, checkpointing: false, group: None, stop_at: u64::MAX }
    }
}

pub fn losses(feature_loss: &str, norm_scope: NormScope) -> LossConfig {
    LossConfig {
        task_weight: 1.0,
        output_weight: 1.0,
        feature_weight: 0.5,
        feature_loss: feature_loss.into(),
        norm_power: 2,
        norm_scope,
        mask_threshold: 1.5,
        min_snr_gamma: 0.0,
    }
}

pub fn same_bits(a: &Tensors, b: &Tensors) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((ka, ta), (kb, tb))| ka == kb && ta.equal(tb))
}
