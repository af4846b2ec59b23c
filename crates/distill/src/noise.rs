//! What one training step draws: timesteps, noise, dropped captions. Samples -> **noised inputs** -> losses.

use data::{Batch, Samples, TrainingData, mix};
use diffusion::{Family, NoiseSchedule, Pipeline, TextEncoders, TimeIds};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use unet::weights::seeded;
use unet::{Compute, Conditioning};

use crate::error::Result;
use crate::train::TrainerConfig;

/// The random numbers of one training step: timesteps, noise, and which captions are dropped. Drawn on the CPU, so that every
/// device trains on the same numbers.
#[derive(Debug)]
pub struct StepNoise {
    /// `[B]`, i64, uniform over the schedule, stratified within the batch.
    pub timesteps: Tensor,
    /// Shaped like the latents.
    pub noise: Tensor,
    /// `[B]`, f32: 1 keeps the caption, 0 drops it.
    pub keep: Tensor,
}

impl StepNoise {
    /// The numbers of step `step`. One timestep is drawn from each of `B` equal slices of the schedule: every step sees all noise levels.
    pub fn draw(seed: u64, step: u64, latent_shape: &[i64], num_timesteps: i64, drop: f64, device: Device) -> Self {
        let b = latent_shape[0];
        let mut rng = ChaCha8Rng::seed_from_u64(mix(seed, step));
        let mut slices: Vec<i64> = (0..b).collect();
        slices.shuffle(&mut rng);
        let t: Vec<i64> = slices
            .iter()
            .map(|&s| {
                let u: f64 = rng.random();
                (((s as f64 + u) / b as f64 * num_timesteps as f64) as i64).min(num_timesteps - 1)
            })
            .collect();
        let keep: Vec<f32> = (0..b).map(|_| if rng.random::<f64>() < drop { 0.0 } else { 1.0 }).collect();
        let noise_seed = (mix(seed, step ^ 0x6e_6f69_7365) >> 1) as i64;
        let noise = seeded(noise_seed, || Tensor::randn(latent_shape, (Kind::Float, Device::Cpu)));
        Self {
            timesteps: Tensor::from_slice(&t).to_device(device),
            noise: noise.to_device(device),
            keep: Tensor::from_slice(&keep).to_device(device),
        }
    }
}

// What the stream of random numbers beside StepNoise's is for.
const OFFSET: u64 = 0x6f66_6673_6574;

fn normal(seed: u64, shape: &[i64]) -> Tensor {
    seeded((seed >> 1) as i64, || Tensor::randn(shape, (Kind::Float, Device::Cpu)))
}

/// What a dropped caption becomes: the unconditional side of classifier-free guidance, as generation will use it.
#[derive(Debug)]
pub enum EmptyPrompt {
    /// Zeros: SDXL with `force_zeros_for_empty_prompt`.
    Zeros,
    /// The features of the empty prompt, `[1, S, D]` and for SDXL `[1, P]`; its sizes are not used.
    Features(Conditioning),
}

impl EmptyPrompt {
    /// What a model of this kind takes an empty prompt to be; `zeros` is its `force_zeros_for_empty_prompt`.
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub fn new(text: &TextEncoders, zeros: bool) -> Result<Self> {
        if zeros && text.family() == Family::StableDiffusionXl {
            return Ok(Self::Zeros);
        }
        Ok(Self::Features(text.encode(&[""], TimeIds::uncropped(1, 1))?))
    }

    /// `cond`, with the samples whose `keep` is 0 made empty.
    ///
    /// # Shapes
    /// `keep [B]`
    fn replace(&self, cond: &Conditioning, keep: &Tensor) -> Conditioning {
        let mix = |given: &Tensor, keep: Tensor, empty: Option<&Tensor>| match empty {
            None => given * keep,
            Some(empty) => given * &keep + empty * (1.0 - &keep),
        };
        let empty = match self {
            Self::Zeros => None,
            Self::Features(cond) => Some(cond),
        };
        let mut out = cond.shallow_clone();
        out.encoder_hidden_states = mix(&out.encoder_hidden_states, keep.view([-1, 1, 1]), empty.map(|e| &e.encoder_hidden_states));
        if let Some(added) = &mut out.added {
            let empty = empty.and_then(|e| e.added.as_ref()).map(|a| &a.text_embeds);
            added.text_embeds = mix(&added.text_embeds, keep.view([-1, 1]), empty);
        }
        out
    }
}

/// What a U-Net is trained on, from nothing or under a teacher: samples, noised anew in every step.
pub struct LatentData<'a> {
    /// Clean latents and their conditioning.
    pub samples: Box<dyn Samples + 'a>,
    /// Noise schedule and prediction type.
    pub schedule: &'a NoiseSchedule,
    /// Share of captions dropped, so that classifier-free guidance works.
    pub caption_dropout: f64,
    /// What a dropped caption becomes.
    pub empty: EmptyPrompt,
    /// Strength of a second noise that is one number per sample and channel, so that the mean of an image is learned as well
    /// (N. Guttenberg, "Diffusion with Offset Noise", 2023): `noise + offset_noise * N(0, 1)`; 0 switches it off.
    pub offset_noise: f64,
    /// Seed of noise and timesteps.
    pub seed: u64,
    /// Where to compute.
    pub device: Device,
    /// Number type to compute in.
    pub compute: Compute,
}

/// One micro-batch's inputs, in the type to compute in, and what the U-Net should predict, in f32.
pub(crate) struct Noised {
    pub x_t: Tensor,
    pub timesteps: Tensor,
    pub cond: Conditioning,
    pub target: Tensor,
}

impl<'a> LatentData<'a> {
    /// `samples` with the schedule and the empty prompt of `pipeline`, noised as `data` and `config` say.
    ///
    /// # Errors
    /// As [`EmptyPrompt::new`].
    pub fn new(samples: Box<dyn Samples + 'a>, pipeline: &'a Pipeline, data: &TrainingData, config: &TrainerConfig) -> Result<Self> {
        Ok(Self {
            samples,
            schedule: pipeline.schedule(),
            caption_dropout: data.caption_dropout(),
            empty: EmptyPrompt::new(pipeline.text(), pipeline.dir().force_zeros_for_empty_prompt())?,
            offset_noise: data.offset_noise(),
            seed: config.seed,
            device: pipeline.device(),
            compute: config.compute,
        })
    }

    /// The inputs of micro-batch `micro`; they depend on nothing else.
    pub(crate) fn noised(&mut self, micro: u64) -> Result<Noised> {
        let Batch { latents: x0, cond } = self.samples.batch(micro)?;
        let num_timesteps = self.schedule.config().num_train_timesteps;
        let draw = StepNoise::draw(self.seed, micro, &x0.size(), num_timesteps, self.caption_dropout, self.device);
        let noise = self.offset(draw.noise, micro);
        let kind = self.compute.kind();
        Ok(Noised {
            x_t: self.schedule.add_noise(&x0, &noise, &draw.timesteps)?.to_kind(kind),
            cond: self.empty.replace(&cond, &draw.keep).to_kind(kind),
            target: self.schedule.target(&x0, &noise, &draw.timesteps)?,
            timesteps: draw.timesteps,
        })
    }

    // [B, C, h, w] -> [B, C, h, w]
    fn offset(&self, noise: Tensor, micro: u64) -> Tensor {
        if self.offset_noise == 0.0 {
            return noise;
        }
        let size = noise.size();
        let shift = normal(mix(self.seed, micro ^ OFFSET), &[size[0], size[1], 1, 1]);
        noise + shift.to_device(self.device) * self.offset_noise
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use diffusion::{ClipTextModel, PredictionType, SchedulerConfig, Tokenizer};
    use unet::AddedConditioning;

    use super::*;

    fn cond(value: f64) -> Conditioning {
        let full = |shape: &[i64]| Tensor::full(shape, value, (Kind::Float, Device::Cpu));
        Conditioning {
            encoder_hidden_states: full(&[2, 3, 4]),
            added: Some(AddedConditioning { text_embeds: full(&[2, 5]), time_ids: full(&[2, 6]) }),
            guidance: None,
        }
    }

    #[test]
    fn a_dropped_caption_becomes_what_guidance_takes_for_an_empty_prompt() {
        let keep = Tensor::from_slice(&[1f32, 0.0]);
        let one = |t: &Tensor, i: i64| t.get(i).max().double_value(&[]);
        for (empty, expected) in [(EmptyPrompt::Zeros, 0.0), (EmptyPrompt::Features(cond(7.0).narrow(0, 1)), 7.0)] {
            let out = empty.replace(&cond(2.0), &keep);
            let added = out.added.unwrap();
            for t in [&out.encoder_hidden_states, &added.text_embeds] {
                assert_eq!((one(t, 0), one(t, 1)), (2.0, expected), "{empty:?}");
            }
            assert_eq!(one(&added.time_ids, 1), 2.0, "sizes are no part of the caption");
        }
    }

    struct Zeros;

    impl Samples for Zeros {
        fn batch(&mut self, _: u64) -> data::Result<Batch> {
            Ok(Batch { latents: Tensor::zeros([2, 4, 16, 16], (Kind::Float, Device::Cpu)), cond: cond(1.0) })
        }
    }

    #[test]
    fn offset_noise_moves_each_channel_as_a_whole_and_is_learned_as_noise() {
        let schedule = NoiseSchedule::new(SchedulerConfig::stable_diffusion(PredictionType::Epsilon)).unwrap();
        let noise = |offset_noise: f64, micro: u64| {
            let (samples, empty) = (Box::new(Zeros), EmptyPrompt::Zeros);
            let (device, compute) = (Device::Cpu, Compute::F32);
            let mut data = LatentData { samples, schedule: &schedule, caption_dropout: 0.0, empty, offset_noise, seed: 3, device, compute };
            data.noised(micro).unwrap().target
        };
        let shift = noise(0.5, 8) - noise(0.0, 8);
        let spread = shift.amax([2i64, 3].as_slice(), false) - shift.amin([2i64, 3].as_slice(), false);
        assert!(spread.max().double_value(&[]) < 1e-6, "one number per sample and channel");
        let std = shift.std(true).double_value(&[]);
        assert!((0.15..1.2).contains(&std), "of about the strength: {std}");
        assert!(noise(0.5, 8).equal(&noise(0.5, 8)) && !noise(0.5, 9).equal(&noise(0.5, 8)));
    }

    #[test]
    fn timesteps_cover_the_schedule() {
        let n = StepNoise::draw(1, 2, &[10, 4, 2, 2], 1000, 0.5, Device::Cpu);
        let mut t = Vec::<i64>::try_from(&n.timesteps).unwrap();
        t.sort_unstable();
        for (i, t) in t.iter().enumerate() {
            assert_eq!(*t / 100, i as i64);
        }
    }

    #[test]
    fn an_empty_prompt_is_encoded_where_the_model_has_no_zeros_for_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-sdxl");
        let text = ClipTextModel::open(root.join("text_encoder"), Device::Cpu, Kind::Float).unwrap();
        // The first text encoder alone stands for Stable Diffusion 1.x.
        let parts = vec![(text, Tokenizer::open(root.join("tokenizer")).unwrap())];
        let text = TextEncoders::new(Family::StableDiffusion, parts, Device::Cpu).unwrap();
        let expected = text.encode(&[""], TimeIds::uncropped(8, 8)).unwrap().encoder_hidden_states;
        for zeros in [false, true] {
            match EmptyPrompt::new(&text, zeros).unwrap() {
                EmptyPrompt::Features(cond) => assert!(cond.encoder_hidden_states.equal(&expected)),
                EmptyPrompt::Zeros => panic!("Stable Diffusion 1.x and 2.x have none"),
            }
        }
    }
}
