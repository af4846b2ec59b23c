//! The last stage of `laptop-diff train`: encode the pictures once, then train the U-Net on the latents.

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::{AutoencoderKl, ClipTextModel, NoiseSchedule, Tokenizer};
use distill::{DenoiserTask, LatentCache, PairSource, Shuffle, Trainer};
use tch::{Device, Kind, Tensor};
use unet::weights::Weights;
use unet::{AddedCond, Cond, RemovalSet, UNet, UNetConfig};

use super::train::{Run, drive};
use crate::common::{file_hash, stop_flag, stopped};
use crate::progress;

/// The two text encoders of a model of SDXL's kind, and the size conditioning of training pictures.
pub struct TextEncoders {
    tokenizers: [Tokenizer; 2],
    encoders: [ClipTextModel; 2],
    size: i64,
    device: Device,
}

impl TextEncoders {
    /// Reads them from a model directory.
    pub fn open(model: &Path, size: usize, device: Device, kind: Kind) -> anyhow::Result<Self> {
        Ok(Self {
            tokenizers: [Tokenizer::open(model.join("tokenizer"))?, Tokenizer::open(model.join("tokenizer_2"))?],
            encoders: [
                ClipTextModel::open(model.join("text_encoder"), device, kind)?,
                ClipTextModel::open(model.join("text_encoder_2"), device, kind)?,
            ],
            size: size as i64,
            device,
        })
    }

    /// Captions -> conditioning: penultimate states side by side, pooled projection of the second, sizes without cropping.
    ///
    /// # Shapes
    /// `encoder_hidden_states [B, T, D1 + D2]`, `text_embeds [B, P]`, `time_ids [B, 6]`
    pub fn encode(&self, captions: &[&str]) -> diffusion::Result<Cond> {
        let mut states = Vec::new();
        let mut pooled = None;
        for (tokenizer, encoder) in self.tokenizers.iter().zip(&self.encoders) {
            let out = encoder.forward(&tokenizer.encode(captions)?.to_device(self.device))?;
            let penultimate = out.hidden_states.len() - 2;
            states.push(out.hidden_states[penultimate].shallow_clone());
            pooled = out.projected;
        }
        let s = self.size as f32;
        let ids = Tensor::from_slice(&[s, s, 0.0, 0.0, s, s]).to_device(self.device).repeat([captions.len() as i64, 1]);
        let text_embeds = pooled.ok_or_else(|| diffusion::Error::Input {
            name: "text_encoder_2".into(),
            expected: "a CLIPTextModelWithProjection".into(),
            got: "an encoder without projection".into(),
        })?;
        Ok(Cond {
            encoder_hidden_states: Tensor::cat(&states, -1),
            added: Some(AddedCond { text_embeds, time_ids: ids }),
        })
    }
}

/// Trains the U-Net and completes the model directory.
pub fn run(run: &Run) -> anyhow::Result<()> {
    let section = &run.config.unet;
    let config = UNetConfig::open(&run.architectures.join("unet.json"))?;
    let schedule = NoiseSchedule::open(&run.architectures.join("scheduler.json"))?;
    let vae_hash = file_hash(&run.out.join("vae/diffusion_pytorch_model.safetensors"))?;
    let text_hash = file_hash(&run.out.join("text_encoder/model.safetensors"))?;
    let dir = run.work.join("unet");
    std::fs::create_dir_all(&dir)?;
    let cache = latents(run, &dir, &vae_hash)?;
    let encoders = TextEncoders::open(&run.out, run.source.size(), run.device, Kind::Float)?;

    let initial = UNet::random(&config, run.config.seed, run.device, Kind::Float)?;
    let identity = BTreeMap::from([
        ("architecture".to_string(), config.to_json().to_string()),
        ("scheduler".to_string(), schedule.config().to_json().to_string()),
        ("latents".to_string(), format!("{} scenes of seed {} through VAE {vae_hash}", run.config.data.latents, run.config.data.seed)),
        ("text_encoders".to_string(), text_hash),
    ]);
    let mut trainer = Trainer::new(section.trainer.clone(), initial.parameters(), run.device, identity, Some(&dir))?;
    let conditioner = |captions: &[&str]| encoders.encode(captions);
    let mut task = DenoiserTask {
        unet: &config,
        removed: &RemovalSet::empty(),
        cache: &cache,
        order: Shuffle::new(cache.len(), section.trainer.seed),
        conditioner: &conditioner,
        schedule: &schedule,
        config: section.task.clone(),
        seed: section.trainer.seed,
        batch: section.trainer.batch,
        device: run.device,
        compute: section.trainer.compute,
    };
    drive("unet", &mut trainer, &mut task, section.trainer.steps, &dir)?;

    let unet = UNet::from_weights(&config, Weights::from_tensors(trainer.averaged()), &RemovalSet::empty())?;
    unet.save(run.out.join("unet"), Some(Kind::Half), &BTreeMap::new())?;
    schedule.save(run.out.join("scheduler"))?;
    Ok(())
}

/// The encoded training pictures, from the work folder when they are there already.
fn latents(run: &Run, dir: &Path, vae_hash: &str) -> anyhow::Result<LatentCache> {
    let data = &run.config.data;
    let made_from = format!("scenes seed {} size {} count {} VAE {vae_hash}", data.seed, data.size, data.latents);
    let path = dir.join("latents.safetensors");
    if let Some(cache) = LatentCache::open(&path, &made_from)? {
        return Ok(cache);
    }
    let vae = AutoencoderKl::open(run.out.join("vae"), run.device, Kind::Float)?;
    let bar = progress::bar("latents", data.latents);
    let stop = stop_flag()?;
    let cache = LatentCache::encode(&run.source, &vae, 0, data.latents, run.device, &mut |n| {
        bar.set_position(n);
        if stopped(&stop) {
            std::process::exit(130);
        }
    })?;
    bar.finish();
    cache.save(&path, &made_from)?;
    Ok(cache)
}
