//! The last stage of `laptop-diff train`: encode the pictures once, then train the U-Net on the latents.

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::{AutoencoderKl, ClipTextModel, Family, NoiseSchedule, TextEncoders, TimeIds, write_model_index};
use distill::{
    DenoiserTask, DenoiserTaskConfig, LatentCache, LatentData, PairSource, Shuffle, TEXT_ENCODER_PREFIX, TextEncoderTraining, Trainer,
    UNET_PREFIX, below, beneath, initial_unet,
};
use tch::Kind;
use unet::weights::{TensorFile, Tensors, Weights};
use unet::{RemovalSet, UNet, UNetConfig};

use super::train::{Run, Section, drive};
use crate::common::{BadInput, file_hash, stop_flag, stopped};
use crate::progress;

const FAMILY: Family = Family::StableDiffusionXl;
/// Key of a stretch's metadata: the settings that it was trained with.
const MADE_BY: &str = "laptop_diff.training";

/// Trains the U-Net, one stretch after the other, and completes the model directory.
pub fn run(run: &Run) -> anyhow::Result<()> {
    let config = UNetConfig::open(run.architectures.join("unet.json"))?;
    let schedule = NoiseSchedule::open(run.architectures.join("scheduler.json"))?;
    let vae_hash = file_hash(&run.out.join("vae/diffusion_pytorch_model.safetensors"))?;
    let mut text_encoder = run.contrastive_text_encoder();
    if !text_encoder.join("config.json").is_file() {
        return Err(BadInput(format!("{}: no text encoder; run --stage clip with this --work first", text_encoder.display())).into());
    }
    let dir = run.work.join("unet");
    std::fs::create_dir_all(&dir)?;
    let cache = latents(run, &dir, &vae_hash)?;
    let given = BTreeMap::from([
        ("architecture".to_string(), config.to_json().to_string()),
        ("scheduler".to_string(), schedule.config().to_json().to_string()),
        ("latents".to_string(), format!("{} scenes of seed {} through VAE {vae_hash}", run.config.data.latents, run.config.data.seed)),
        ("text_encoder".to_string(), file_hash(&text_encoder.join("model.safetensors"))?),
        ("text_encoder_2".to_string(), file_hash(&run.out.join("text_encoder_2/model.safetensors"))?),
    ]);

    let mut unet = initial_unet(&config, run.config.seed, run.device)?;
    let mut identity = given.clone();
    for (number, section) in run.config.unet.iter().enumerate() {
        let name = format!("unet/{}", number + 1);
        let dir = run.work.join(&name);
        std::fs::create_dir_all(&dir)?;
        identity.insert("task".into(), serde_json::to_string(&section.task)?);
        let result = dir.join("result");
        let made_by = serde_json::to_string(&(&identity, &section.trainer))?;
        // What a finished stretch wrote stands for it, so that the next one can begin on another machine.
        if result.join("unet/config.json").is_file() {
            check_result(&result.join("unet"), &made_by)?;
        } else {
            let start = Start { unet: &config, initial: &unet, text_encoder: &text_encoder, cache: &cache, schedule: &schedule };
            stretch(run, section, &start, identity, &name, &dir, &made_by)?;
        }
        // The next stretch starts from the files, not from memory: a stop between them changes nothing.
        let trained = UNet::open(result.join("unet"), run.device, Kind::Float)?;
        unet = trained.parameters().iter().map(|(key, t)| (key.clone(), t.shallow_clone())).collect();
        if section.task.train_text_encoder {
            text_encoder = result.join("text_encoder");
        }
        identity = given.clone();
        identity.insert("start".into(), unet::fingerprint(result.join("unet"))?);
        trained.save(run.out.join("unet"), Some(Kind::Half), &BTreeMap::new())?;
        ClipTextModel::open(&text_encoder, run.device, Kind::Float)?.save(run.out.join("text_encoder"), Some(Kind::Half))?;
    }
    schedule.save(run.out.join("scheduler"))?;
    write_model_index(&run.out, FAMILY, &schedule.config().class_name, true)?;
    Ok(())
}

/// What a stretch starts from.
struct Start<'a> {
    unet: &'a UNetConfig,
    initial: &'a Tensors,
    text_encoder: &'a Path,
    cache: &'a LatentCache,
    schedule: &'a NoiseSchedule,
}

/// Trains one stretch and writes `dir/result`; the U-Net's file, the last to be written, tells what it was made by.
fn stretch(
    run: &Run,
    section: &Section<DenoiserTaskConfig>,
    start: &Start,
    identity: BTreeMap<String, String>,
    name: &str,
    dir: &Path,
    made_by: &str,
) -> anyhow::Result<()> {
    let trainer = &section.trainer;
    let mut folders: Vec<_> =
        FAMILY.text_parts().iter().map(|(encoder, tokenizer)| (run.out.join(encoder), run.out.join(tokenizer))).collect();
    folders[0].0 = start.text_encoder.to_path_buf();
    let encoders = TextEncoders::open(FAMILY, &folders, run.device, Kind::Float)?;
    let sizes = TimeIds::uncropped(run.source.size() as i64, run.source.size() as i64);
    let conditioner = |captions: &[&str]| encoders.encode(captions, sizes);
    let trained_conditioner = |first: &ClipTextModel, captions: &[&str]| encoders.encode_with_first(first, captions, sizes);
    let first = &encoders.parts()[0].0;
    let text_encoder =
        section.task.train_text_encoder.then_some(TextEncoderTraining { config: first.config(), conditioner: &trained_conditioner });

    let mut initial = beneath(UNET_PREFIX, start.initial);
    if text_encoder.is_some() {
        initial.extend(beneath(TEXT_ENCODER_PREFIX, first.parameters()));
    }
    let mut training = Trainer::new(trainer.clone(), &initial, run.device, identity, Some(dir))?;
    let mut task = DenoiserTask {
        unet: start.unet,
        removed: &RemovalSet::empty(),
        data: LatentData {
            cache: start.cache,
            order: Shuffle::new(start.cache.len(), trainer.seed),
            conditioner: &conditioner,
            schedule: start.schedule,
            caption_dropout: section.task.caption_dropout,
            seed: trainer.seed,
            batch: trainer.batch,
            device: run.device,
            compute: trainer.compute,
        },
        text_encoder,
        config: &section.task,
    };
    drive(name, &mut training, &mut task, trainer.steps, dir)?;

    let (averaged, result) = (training.averaged(), dir.join("result"));
    if section.task.train_text_encoder {
        let weights = Weights::from_tensors(below(&averaged, TEXT_ENCODER_PREFIX));
        ClipTextModel::from_weights(first.config(), weights)?.save(result.join("text_encoder"), Some(Kind::Half))?;
    }
    let weights = Weights::from_tensors(below(&averaged, UNET_PREFIX));
    let unet = UNet::from_weights(start.unet, weights, &RemovalSet::empty())?;
    unet.save(result.join("unet"), Some(Kind::Half), &BTreeMap::from([(MADE_BY.to_string(), made_by.to_string())]))?;
    Ok(())
}

/// Refuses a stretch that was trained with other settings.
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
