//! The last stage of `laptop-diff train`: encode the pictures once, ground the first text encoder, train the U-Net on the latents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::{CachedSamples, LatentCache, PairSource, Shuffle};
use diffusion::{AutoencoderKl, ClipTextModel, Family, NoiseSchedule, TextEncoders, TimeIds, Tokenizer, write_model_index};
use distill::{DenoiserTask, EmptyPrompt, GroundingTask, LatentData, Trainer, initial_unet};
use tch::Kind;
use unet::weights::{TensorFile, Tensors, Weights};
use unet::{RemovalSet, UNet, UNetConfig};

use super::train::{FirstTextEncoder, Phase, Run, drive};
use crate::common::{BadInput, file_hash, stop_flag, stopped};
use crate::progress;

const FAMILY: Family = Family::StableDiffusionXl;
/// Key of a phase's metadata: the settings that it was trained with.
const MADE_BY: &str = "laptop_diff.training";

/// Grounds the first text encoder, trains the U-Net, one phase after the other, and completes the model directory.
pub fn run(run: &Run) -> anyhow::Result<()> {
    let config = UNetConfig::open(run.architectures.join("unet.json"))?;
    let schedule = NoiseSchedule::open(run.architectures.join("scheduler.json"))?;
    let vae_hash = file_hash(&run.out.join("vae/diffusion_pytorch_model.safetensors"))?;
    let contrastive = run.contrastive_text_encoder();
    if !contrastive.join("config.json").is_file() {
        return Err(BadInput(format!("{}: no text encoder; run --stage clip with this --work first", contrastive.display())).into());
    }
    let dir = run.work.join("unet");
    std::fs::create_dir_all(&dir)?;
    let cache = latents(run, &dir, &vae_hash)?;
    let from_latents = format!("{} scenes of seed {} through VAE {vae_hash}", run.config.data.latents, run.config.data.seed);
    let grounded = ground(run, &contrastive, &cache, &from_latents)?;
    let given = BTreeMap::from([
        ("architecture".to_string(), config.to_json().to_string()),
        ("scheduler".to_string(), schedule.config().to_json().to_string()),
        ("latents".to_string(), from_latents),
        ("text_encoder_2".to_string(), file_hash(&run.out.join("text_encoder_2/model.safetensors"))?),
    ]);

    let mut unet = initial_unet(&config, run.config.seed, run.device)?;
    let mut identity = given.clone();
    for (number, settings) in run.config.unet.phases.iter().enumerate() {
        let name = format!("unet/{}", number + 1);
        let dir = run.work.join(&name);
        std::fs::create_dir_all(&dir)?;
        let text_encoder = match settings.text_encoder {
            FirstTextEncoder::Contrastive => &contrastive,
            FirstTextEncoder::Grounded => &grounded,
        };
        identity.insert("task".into(), serde_json::to_string(&settings.task)?);
        identity.insert("text_encoder".into(), file_hash(&text_encoder.join("model.safetensors"))?);
        let result = dir.join("result");
        let made_by = serde_json::to_string(&(&identity, &settings.trainer))?;
        // What a finished phase wrote stands for it, so that the next one can begin on another machine.
        if result.join("config.json").is_file() {
            check_result(&result, &made_by)?;
        } else {
            let start = Start { unet: &config, initial: &unet, text_encoder, cache: &cache, schedule: &schedule };
            let trained = phase(run, settings, &start, identity, &name, &dir)?;
            trained.save(&result, Some(Kind::Half), &BTreeMap::from([(MADE_BY.to_string(), made_by)]))?;
        }
        // The next phase starts from the file, not from memory: a stop between them changes nothing.
        let trained = UNet::open(&result, run.device, Kind::Float)?;
        unet = trained.parameters().iter().map(|(key, t)| (key.clone(), t.shallow_clone())).collect();
        identity = given.clone();
        identity.insert("start".into(), unet::fingerprint(&result)?);
        trained.save(run.out.join("unet"), Some(Kind::Half), &BTreeMap::new())?;
        ClipTextModel::open(text_encoder, run.device, Kind::Float)?.save(run.out.join("text_encoder"), Some(Kind::Half))?;
    }
    schedule.save(run.out.join("scheduler"))?;
    write_model_index(&run.out, FAMILY, &schedule.config().class_name, true)?;
    Ok(())
}

/// Grounds the first text encoder and returns the folder of the result, which is `<work>/unet/grounding/result`.
fn ground(run: &Run, contrastive: &Path, cache: &LatentCache, from_latents: &str) -> anyhow::Result<PathBuf> {
    let section = &run.config.unet.grounding;
    let dir = run.work.join("unet/grounding");
    std::fs::create_dir_all(&dir)?;
    let encoder = ClipTextModel::open(contrastive, run.device, Kind::Float)?;
    let tokenizer = Tokenizer::open(run.out.join("tokenizer"))?;
    let identity = BTreeMap::from([
        ("latents".to_string(), from_latents.to_string()),
        ("start".to_string(), file_hash(&contrastive.join("model.safetensors"))?),
        ("task".to_string(), serde_json::to_string(&section.task)?),
    ]);
    let mut task = GroundingTask {
        encoder: encoder.config(),
        tokenizer: &tokenizer,
        cache,
        order: Shuffle::new(cache.len(), section.trainer.seed),
        config: &section.task,
        batch: section.trainer.batch,
        device: run.device,
        compute: section.trainer.compute,
    };
    let initial = task.initial(&encoder, run.config.seed)?;
    let mut trainer = Trainer::new(section.trainer.clone(), &initial, run.device, identity, Some(&dir))?;
    drive("grounding", &mut trainer, &mut task, section.trainer.steps, &dir)?;
    let result = dir.join("result");
    task.encoder(&trainer.averaged()?)?.save(&result, Some(Kind::Half))?;
    Ok(result)
}

/// What a phase starts from.
struct Start<'a> {
    unet: &'a UNetConfig,
    initial: &'a Tensors,
    text_encoder: &'a Path,
    cache: &'a LatentCache,
    schedule: &'a NoiseSchedule,
}

/// Trains one phase.
fn phase(run: &Run, settings: &Phase, start: &Start, identity: BTreeMap<String, String>, name: &str, dir: &Path) -> anyhow::Result<UNet> {
    let trainer = &settings.trainer;
    let mut folders: Vec<_> =
        FAMILY.text_parts().iter().map(|(encoder, tokenizer)| (run.out.join(encoder), run.out.join(tokenizer))).collect();
    folders[0].0 = start.text_encoder.to_path_buf();
    let encoders = TextEncoders::open(FAMILY, &folders, run.device, Kind::Float)?;
    let sizes = TimeIds::uncropped(run.source.size() as i64, run.source.size() as i64);
    let conditioner = |captions: &[&str]| encoders.encode(captions, sizes);

    let mut training = Trainer::new(trainer.clone(), start.initial, run.device, identity, Some(dir))?;
    let mut task = DenoiserTask {
        unet: start.unet,
        removed: &RemovalSet::empty(),
        data: LatentData {
            samples: Box::new(CachedSamples {
                cache: start.cache,
                order: Shuffle::new(start.cache.len(), trainer.seed),
                conditioner: &conditioner,
                batch: trainer.batch,
                device: run.device,
            }),
            schedule: start.schedule,
            caption_dropout: settings.task.caption_dropout,
            // The model index below says so.
            empty: EmptyPrompt::Zeros,
            offset_noise: 0.0,
            seed: trainer.seed,
            device: run.device,
            compute: trainer.compute,
        },
        config: &settings.task,
    };
    drive(name, &mut training, &mut task, trainer.steps, dir)?;
    Ok(UNet::from_weights(start.unet, Weights::from_tensors(training.averaged()?), &RemovalSet::empty())?)
}

/// Refuses a phase that was trained with other settings.
fn check_result(result: &Path, made_by: &str) -> anyhow::Result<()> {
    let file = TensorFile::open(&unet::weight_files(result)?[0])?;
    let found = file.metadata().get(MADE_BY).map(String::as_str);
    if found == Some(made_by) {
        return Ok(());
    }
    let (result, found) = (result.display(), found.unwrap_or("nothing"));
    Err(BadInput(format!("{result}: expected weights trained with {made_by}, got {found}; delete the folder, or choose another --work"))
        .into())
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
