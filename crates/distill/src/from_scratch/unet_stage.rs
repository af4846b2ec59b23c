//! The last stage from nothing: encode the images once, ground the first text encoder, train the U-Net on the latents, phase by phase.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use artifact::file_sha256;
use data::{LatentSet, LatentSetSamples, Shuffle};
use diffusion::{AutoencoderKl, ClipTextModel, Family, NoiseSchedule, TextEncoders, TimeIds, Tokenizer, write_model_index};
use tch::Kind;
use unet::weights::{TensorFile, Tensors, Weights};
use unet::{RemovalSet, UNet, UNetConfig};

use super::session::ScratchSession;
use super::settings::{FirstTextEncoder, Phase};
use super::{DenoiserTask, GroundingTask, initial_unet};
use crate::error::{Error, Result};
use crate::noise::{EmptyPrompt, LatentData};
use crate::session::{Event, Halt, OnEvent};
use crate::train::{Control, Trainer, same_settings, storable_in_f16};

const FAMILY: Family = Family::StableDiffusionXl;
/// Key of a phase's metadata: the settings that it was trained with.
const MADE_BY: &str = "laptop_diff.training";

type Identity = BTreeMap<String, String>;

/// What all phases have in common.
struct Ground {
    config: UNetConfig,
    schedule: NoiseSchedule,
    latents: LatentSet,
    contrastive: PathBuf,
    grounded: PathBuf,
}

impl ScratchSession<'_> {
    /// Grounds the first text encoder, trains the U-Net, one phase after the other, and completes the model directory.
    ///
    /// # Errors
    /// As [`ScratchSession::train_vae`]; [`Error::Config`] when the stages before have not been trained.
    pub fn train_unet<E: From<Error>>(&self, on: &mut OnEvent<E>) -> Result<(), E> {
        let (ground, given) = self.prepare(on)?;
        let mut unet = initial_unet(&ground.config, self.settings.seed, self.device)?;
        let mut identity = given.clone();
        for (number, phase) in self.settings.unet.phases.iter().enumerate() {
            let result = self.phase(&format!("unet/{}", number + 1), phase, &ground, &unet, identity, on)?;
            // The next phase starts from the file, not from memory: a stop between them changes nothing.
            unet = self.take(&result, ground.text_encoder(phase))?;
            identity = given.clone();
            identity.insert("start".into(), unet::fingerprint(&result).map_err(Error::from)?);
        }
        ground.schedule.save(self.out.join("scheduler")).map_err(Error::from)?;
        write_model_index(&self.out, FAMILY, &ground.schedule.config().class_name, true).map_err(Error::from)?;
        Ok(())
    }

    /// Latents, text encoders, architecture and schedule, and what decides the numbers of every phase.
    fn prepare<E: From<Error>>(&self, on: &mut OnEvent<E>) -> Result<(Ground, Identity), E> {
        let config = UNetConfig::open(self.architectures.join("unet.json")).map_err(Error::from)?;
        let schedule = NoiseSchedule::open(self.architectures.join("scheduler.json")).map_err(Error::from)?;
        let contrastive = self.contrastive_text_encoder();
        if !contrastive.join("config.json").is_file() {
            let expected = format!("a text encoder in {}; train the stage clip with this work folder first", contrastive.display());
            return Err(Error::Config { key: "stage".into(), expected, got: "none".into() }.into());
        }
        let vae = hash(&self.out.join("vae/diffusion_pytorch_model.safetensors"))?;
        let latents = self.latents(&vae, on)?;
        let from_latents = format!("{} of {} through VAE {vae}", self.settings.data.latents, self.source_name);
        let grounded = self.ground(&contrastive, &latents, &from_latents, on)?;
        let identity = Identity::from([
            ("architecture".to_string(), config.to_json().to_string()),
            ("scheduler".to_string(), schedule.config().to_json().to_string()),
            ("latents".to_string(), from_latents),
            ("text_encoder_2".to_string(), hash(&self.out.join("text_encoder_2/model.safetensors"))?),
        ]);
        Ok((Ground { config, schedule, latents, contrastive, grounded }, identity))
    }

    /// The encoded training images, from the work folder when they are there already.
    fn latents<E: From<Error>>(&self, vae: &str, on: &mut OnEvent<E>) -> Result<LatentSet, E> {
        let data = &self.settings.data;
        let made_from = format!("{} size {} count {} VAE {vae}", self.source_name, data.size, data.latents);
        let dir = self.folder("unet")?;
        let path = dir.join("latents.safetensors");
        if let Some(set) = LatentSet::open(&path, &made_from).map_err(Error::from)? {
            return Ok(set);
        }
        let vae = AutoencoderKl::open(self.out.join("vae"), self.device, Kind::Float).map_err(Error::from)?;
        let progress = &mut |done| match on(Event::Encoded { done, of: data.latents }) {
            Ok(Control::Continue) => Ok(()),
            Ok(Control::Stop) => Err(Halt::Caller(Error::Stopped { stage: "latents".into(), step: done }.into())),
            Err(error) => Err(Halt::Caller(error)),
        };
        let set = LatentSet::encode(self.source, &vae, data.latents, self.device, progress).map_err(Halt::into_error)?;
        set.save(&path, &made_from).map_err(Error::from)?;
        Ok(set)
    }

    fn folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.work.join(name);
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        Ok(dir)
    }

    /// Grounds the first text encoder and returns the folder of the result, which is `<work>/unet/grounding/result`.
    fn ground<E: From<Error>>(&self, contrastive: &Path, cache: &LatentSet, from_latents: &str, on: &mut OnEvent<E>) -> Result<PathBuf, E> {
        let section = &self.settings.unet.grounding;
        let dir = self.folder("unet/grounding")?;
        let encoder = ClipTextModel::open(contrastive, self.device, Kind::Float).map_err(Error::from)?;
        let tokenizer = Tokenizer::open(self.out.join("tokenizer")).map_err(Error::from)?;
        let identity = Identity::from([
            ("latents".to_string(), from_latents.to_string()),
            ("start".to_string(), hash(&contrastive.join("model.safetensors"))?),
            ("task".to_string(), json(&section.task)),
        ]);
        let mut task = GroundingTask {
            encoder: encoder.config(),
            tokenizer: &tokenizer,
            cache,
            order: Shuffle::new(cache.len(), section.trainer.seed),
            config: &section.task,
            batch: section.trainer.batch,
            device: self.device,
            compute: section.trainer.compute,
        };
        let initial = task.initial(&encoder, self.settings.seed)?;
        let mut trainer = Trainer::new(section.trainer.clone(), &initial, self.device, identity, Some(&dir))?;
        Self::run("grounding", &dir, &mut trainer, &mut task, on)?;
        let result = dir.join("result");
        task.encoder(&storable_in_f16(trainer.averaged()?)?)?.save(&result, Some(Kind::Half)).map_err(Error::from)?;
        Ok(result)
    }

    /// Trains one phase from the parameters `initial`, unless it is done, and returns the folder of the result.
    fn phase<E: From<Error>>(
        &self,
        name: &str,
        phase: &Phase,
        ground: &Ground,
        initial: &Tensors,
        mut identity: Identity,
        on: &mut OnEvent<E>,
    ) -> Result<PathBuf, E> {
        let dir = self.folder(name)?;
        identity.insert("task".into(), json(&phase.task));
        identity.insert("text_encoder".into(), hash(&ground.text_encoder(phase).join("model.safetensors"))?);
        let result = dir.join("result");
        let made_by = json(&(&identity, &phase.trainer));
        // What a finished phase wrote stands for it, so that the next one can begin on another machine.
        if result.join("config.json").is_file() {
            check_result(&result, &made_by)?;
            return Ok(result);
        }
        let encoders = self.text_encoders(ground.text_encoder(phase))?;
        let sizes = TimeIds::uncropped(self.source.size() as i64, self.source.size() as i64);
        let conditioner = |captions: &[&str]| encoders.encode(captions, sizes);
        let config = phase.trainer.clone();
        let mut task = DenoiserTask {
            unet: &ground.config,
            removed: &RemovalSet::empty(),
            data: LatentData {
                samples: Box::new(LatentSetSamples {
                    set: &ground.latents,
                    order: Shuffle::new(ground.latents.len(), config.seed),
                    conditioner: &conditioner,
                    batch: config.batch,
                    device: self.device,
                }),
                schedule: &ground.schedule,
                caption_dropout: phase.task.caption_dropout,
                // The model index will say so.
                empty: EmptyPrompt::Zeros,
                offset_noise: 0.0,
                seed: config.seed,
                device: self.device,
                compute: config.compute,
            },
            config: &phase.task,
            passes: phase.trainer.accumulate,
        };
        let mut trainer = Trainer::new(config, initial, self.device, identity, Some(&dir))?;
        Self::run(name, &dir, &mut trainer, &mut task, on)?;
        let weights = Weights::from_tensors(storable_in_f16(trainer.averaged()?)?);
        let trained = UNet::from_weights(&ground.config, weights, &RemovalSet::empty()).map_err(Error::from)?;
        trained.save(&result, Some(Kind::Half), &Identity::from([(MADE_BY.to_string(), made_by)])).map_err(Error::from)?;
        Ok(result)
    }

    fn text_encoders(&self, first: &Path) -> Result<TextEncoders> {
        let parts = FAMILY.text_parts().iter();
        let mut folders: Vec<_> = parts.map(|(encoder, tokenizer)| (self.out.join(encoder), self.out.join(tokenizer))).collect();
        folders[0].0 = first.to_path_buf();
        Ok(TextEncoders::open(FAMILY, &folders, self.device, Kind::Float)?)
    }

    /// Puts a phase's result into the model directory, and returns its parameters.
    fn take(&self, result: &Path, text_encoder: &Path) -> Result<Tensors> {
        let trained = UNet::open(result, self.device, Kind::Float)?;
        trained.save(self.out.join("unet"), Some(Kind::Half), &BTreeMap::new())?;
        ClipTextModel::open(text_encoder, self.device, Kind::Float)?.save(self.out.join("text_encoder"), Some(Kind::Half))?;
        Ok(trained.parameters().iter().map(|(key, t)| (key.clone(), t.shallow_clone())).collect())
    }
}

impl Ground {
    /// The folder of the first text encoder that a phase is conditioned on.
    fn text_encoder(&self, phase: &Phase) -> &Path {
        match phase.text_encoder {
            FirstTextEncoder::Contrastive => &self.contrastive,
            FirstTextEncoder::Grounded => &self.grounded,
        }
    }
}

/// Refuses a phase that was trained with other settings.
fn check_result(result: &Path, made_by: &str) -> Result<()> {
    let file = TensorFile::open(&unet::weight_files(result)?[0])?;
    let found = file.metadata().get(MADE_BY).map(String::as_str);
    let parse = |text| serde_json::from_str::<(Identity, serde_json::Value)>(text).ok();
    if let (Some((identity, trainer)), Some((expected, settings))) = (found.and_then(parse), parse(made_by))
        && identity == expected
        && same_settings(&trainer, &settings)
    {
        return Ok(());
    }
    let problem = format!("expected weights trained with {made_by}, got {}", found.unwrap_or("nothing"));
    Err(Error::Format { path: result.into(), problem, hint: "delete the folder, or choose another work folder".into() })
}

fn hash(path: &Path) -> Result<String> {
    Ok(file_sha256(path)?)
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("settings are JSON")
}
