//! The last stage of `laptop-diff train`: encode the pictures once, then train the U-Net on the latents.

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::{AutoencoderKl, Family, NoiseSchedule, TextEncoders, TimeIds, write_model_index};
use distill::{DenoiserTask, LatentCache, LatentData, PairSource, Shuffle, Trainer, initial_unet};
use tch::Kind;
use unet::weights::{TensorFile, Weights};
use unet::{RemovalSet, UNet, UNetConfig};

use super::train::{Run, drive};
use crate::common::{BadInput, file_hash, stop_flag, stopped};
use crate::progress;

/// Key of a stretch's metadata: the settings that it was trained with.
const MADE_BY: &str = "laptop_diff.training";

/// Trains the U-Net, one stretch after the other, and completes the model directory.
pub fn run(run: &Run) -> anyhow::Result<()> {
    let config = UNetConfig::open(run.architectures.join("unet.json"))?;
    let schedule = NoiseSchedule::open(run.architectures.join("scheduler.json"))?;
    let vae_hash = file_hash(&run.out.join("vae/diffusion_pytorch_model.safetensors"))?;
    let text_hash = file_hash(&run.out.join("text_encoder/model.safetensors"))?;
    let dir = run.work.join("unet");
    std::fs::create_dir_all(&dir)?;
    let cache = latents(run, &dir, &vae_hash)?;
    let family = Family::StableDiffusionXl;
    let folders: Vec<_> = family.text_parts().iter().map(|(encoder, tokenizer)| (run.out.join(encoder), run.out.join(tokenizer))).collect();
    let encoders = TextEncoders::open(family, &folders, run.device, Kind::Float)?;
    let sizes = TimeIds::uncropped(run.source.size() as i64, run.source.size() as i64);
    let conditioner = |captions: &[&str]| encoders.encode(captions, sizes);
    let given = BTreeMap::from([
        ("architecture".to_string(), config.to_json().to_string()),
        ("scheduler".to_string(), schedule.config().to_json().to_string()),
        ("latents".to_string(), format!("{} scenes of seed {} through VAE {vae_hash}", run.config.data.latents, run.config.data.seed)),
        ("text_encoders".to_string(), text_hash),
    ]);

    let mut initial = initial_unet(&config, run.config.seed, run.device)?;
    let mut identity = given.clone();
    for (number, section) in run.config.unet.iter().enumerate() {
        let name = format!("unet-{}", number + 1);
        let dir = run.work.join(&name);
        std::fs::create_dir_all(&dir)?;
        identity.insert("task".into(), serde_json::to_string(&section.task)?);
        let result = dir.join("result");
        let made_by = serde_json::to_string(&(&identity, &section.trainer))?;
        // What a finished stretch wrote stands for it, so that the next one can begin on another machine.
        if result.join("config.json").is_file() {
            check_result(&result, &made_by)?;
        } else {
            let mut trainer = Trainer::new(section.trainer.clone(), &initial, run.device, identity, Some(&dir))?;
            let mut task = DenoiserTask {
                unet: &config,
                removed: &RemovalSet::empty(),
                data: LatentData {
                    cache: &cache,
                    order: Shuffle::new(cache.len(), section.trainer.seed),
                    conditioner: &conditioner,
                    schedule: &schedule,
                    caption_dropout: section.task.caption_dropout,
                    seed: section.trainer.seed,
                    batch: section.trainer.batch,
                    device: run.device,
                    compute: section.trainer.compute,
                },
                config: &section.task,
            };
            drive(&name, &mut trainer, &mut task, section.trainer.steps, &dir)?;
            let unet = UNet::from_weights(&config, Weights::from_tensors(trainer.averaged()), &RemovalSet::empty())?;
            unet.save(&result, Some(Kind::Half), &BTreeMap::from([(MADE_BY.to_string(), made_by)]))?;
        }
        // The next stretch starts from the file, not from memory: a stop between them changes nothing.
        let unet = UNet::open(&result, run.device, Kind::Float)?;
        initial = unet.parameters().iter().map(|(key, t)| (key.clone(), t.shallow_clone())).collect();
        identity = given.clone();
        identity.insert("start".into(), unet::fingerprint(&result)?);
        unet.save(run.out.join("unet"), Some(Kind::Half), &BTreeMap::new())?;
    }
    schedule.save(run.out.join("scheduler"))?;
    write_model_index(&run.out, family, &schedule.config().class_name, true)?;
    Ok(())
}

/// Refuses a stretch that was trained with other settings.
fn check_result(result: &Path, made_by: &str) -> anyhow::Result<()> {
    let file = TensorFile::open(&unet::weight_files(result)?[0])?;
    if file.metadata().get(MADE_BY).map(String::as_str) == Some(made_by) {
        return Ok(());
    }
    Err(BadInput(format!("{}: it was trained with other settings; delete it, or choose another --work", result.display())).into())
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
