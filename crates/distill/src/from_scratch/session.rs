//! A complete small text-to-image model from nothing: autoencoder, CLIP towers, U-Net, in this order. What the command `train` does,
//! for any Rust program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::{PairSource, image_batch};
use diffusion::{AutoencoderKl, ClipConfig, ClipModel, ClipPreprocess, ClipTextConfig, ClipTextModel, Tokenizer, VaeConfig};
use tch::{Device, Kind, Tensor};
use unet::weights::{Tensors, Weights};

use super::settings::ScratchSettings;
use super::{ClipTask, VaeTask, below};
use crate::error::{Error, Result};
use crate::session::{Event, OnEvent};
use crate::train::{LoggedRun, Task, Trainer, storable_in_f16};

/// A model in the making: where it comes from, and where it and its checkpoints go.
pub struct ScratchSession<'a> {
    /// The settings.
    pub settings: ScratchSettings,
    /// Folder of the networks' configurations.
    pub architectures: PathBuf,
    /// The model directory to write (diffusers layout).
    pub out: PathBuf,
    /// Folder of checkpoints, logs and caches; an interrupted run goes on from there.
    pub work: PathBuf,
    /// Where to compute.
    pub device: Device,
    /// Captioned images without end.
    pub source: &'a dyn PairSource,
    /// All words that captions are made of.
    pub words: Vec<&'a str>,
    /// What the source is, for checkpoints: its kind and seed.
    pub source_name: String,
}

impl ScratchSession<'_> {
    /// The first text encoder as the CLIP stage leaves it.
    pub(super) fn contrastive_text_encoder(&self) -> PathBuf {
        self.work.join("text_encoder")
    }

    /// Runs one trainer to its end, with its log in `dir`.
    pub(super) fn run<E: From<Error>>(
        stage: &str,
        dir: &Path,
        trainer: &mut Trainer,
        task: &mut dyn Task,
        on: &mut OnEvent<E>,
    ) -> Result<(), E> {
        on(Event::Stage { name: stage, step: trainer.step(), steps: trainer.steps() })?;
        LoggedRun { stage, dir }.run(trainer, task, None, &mut |progress| on(Event::Step(progress)))?;
        Ok(())
    }

    /// Trains the autoencoder.
    ///
    /// # Errors
    /// [`Error::Stopped`] when `on` says stop; those of [`Trainer::run`] and of `on`; files that cannot be read or written.
    pub fn train_vae<E: From<Error>>(&self, on: &mut OnEvent<E>) -> Result<(), E> {
        let section = &self.settings.vae;
        let architecture = VaeConfig::open(self.architectures.join("vae.json")).map_err(Error::from)?;
        let dir = self.work.join("vae");
        let initial = AutoencoderKl::random(&architecture, self.settings.seed, self.device, Kind::Float).map_err(Error::from)?;
        let identity = self.identity(architecture.to_json().to_string());
        let mut trainer = Trainer::new(section.trainer.clone(), initial.parameters(), self.device, identity, Some(&dir))?;
        let mut task = VaeTask {
            vae: &architecture.clone(),
            source: self.source,
            config: section.task.clone(),
            seed: section.trainer.seed,
            batch: section.trainer.batch,
            device: self.device,
            compute: section.trainer.compute,
        };
        Self::run("vae", &dir, &mut trainer, &mut task, on)?;
        Ok(self.save_vae(architecture, &trainer)?)
    }

    /// Writes the autoencoder, with the scaling factor that brings latents to unit variance (arXiv 2112.10752, appendix G).
    fn save_vae(&self, mut architecture: VaeConfig, trainer: &Trainer) -> Result<()> {
        const BATCHES: u64 = 16;
        let averaged = storable_in_f16(trainer.averaged()?)?;
        let vae = AutoencoderKl::from_weights(&architecture, Weights::from_tensors(averaged))?;
        let mut squares = 0.0;
        for i in 0..BATCHES {
            let indices: Vec<u64> = (0..32).map(|j| (1 << 40) + i * 32 + j).collect();
            let (x, _) = image_batch(self.source, &indices, self.device)?;
            let moments = tch::no_grad(|| vae.encode(&x))?;
            squares += moments.mean.square().mean(Kind::Double).double_value(&[]);
            if i == 0 {
                let y = tch::no_grad(|| vae.decode(&moments.mean))?.clamp(-1.0, 1.0);
                let mse = ((y - x) * 0.5).square().mean(Kind::Double).double_value(&[]);
                tracing::info!(psnr_db = -10.0 * mse.log10(), "autoencoder on unseen images");
            }
        }
        architecture.scaling_factor = (squares / BATCHES as f64).sqrt().recip();
        let vae = AutoencoderKl::from_weights(&architecture, Weights::from_tensors(trainer.averaged()?))?;
        Ok(vae.save(self.out.join("vae"), Some(Kind::Half))?)
    }

    fn identity(&self, architecture: String) -> BTreeMap<String, String> {
        let data = format!("{} size {}", self.source_name, self.settings.data.size);
        BTreeMap::from([("data".to_string(), data), ("architecture".to_string(), architecture)])
    }

    /// Trains the image tower with two text towers, and writes the tokenizers.
    ///
    /// # Errors
    /// As [`ScratchSession::train_vae`].
    pub fn train_clip<E: From<Error>>(&self, on: &mut OnEvent<E>) -> Result<(), E> {
        let section = &self.settings.clip;
        let Towers { first_tokenizer, tokenizer, first, clip } = self.towers()?;
        let dir = self.work.join("clip");
        let preprocess = ClipPreprocess::new(self.source.size() as u32);
        let mut task = ClipTask {
            clip: &clip,
            first: &first,
            tokenizer: &tokenizer,
            first_tokenizer: &first_tokenizer,
            source: self.source,
            config: section.task.clone(),
            preprocess: &preprocess,
            batch: section.trainer.batch,
            device: self.device,
            compute: section.trainer.compute,
        };
        let identity = self.identity(serde_json::json!([clip.to_json(), first.to_json()]).to_string());
        let initial = task.initial(self.settings.seed)?;
        let mut trainer = Trainer::new(section.trainer.clone(), &initial, self.device, identity, Some(&dir))?;
        Self::run("clip", &dir, &mut trainer, &mut task, on)?;
        Ok(self.save_towers(&clip, &first, &preprocess, &storable_in_f16(trainer.averaged()?)?)?)
    }

    /// Writes the tokenizers, and fits the towers' configurations to them.
    fn towers(&self) -> Result<Towers> {
        let max = self.settings.data.max_tokens;
        for (folder, pad) in [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!"), ("clip", "!")] {
            Tokenizer::write_from_words(self.out.join(folder), &self.words, max, pad)?;
        }
        let first_tokenizer = Tokenizer::open(self.out.join("tokenizer"))?;
        let tokenizer = Tokenizer::open(self.out.join("tokenizer_2"))?;
        let mut first = ClipTextConfig::open(self.architectures.join("text_encoder.json"))?;
        let mut clip = ClipConfig::open(self.architectures.join("clip.json"))?;
        for (text, tokenizer) in [(&mut first, &first_tokenizer), (&mut clip.text, &tokenizer)] {
            text.vocab_size = tokenizer.vocab_size();
            text.bos_token_id = tokenizer.bos();
            text.eos_token_id = tokenizer.eos();
            text.pad_token_id = tokenizer.pad();
        }
        Ok(Towers { first_tokenizer, tokenizer, first, clip })
    }

    fn save_towers(&self, clip: &ClipConfig, first: &ClipTextConfig, preprocess: &ClipPreprocess, averaged: &Tensors) -> Result<()> {
        let scorer = ClipModel::from_weights(clip, Weights::from_tensors(below(averaged, "clip")))?;
        scorer.save(self.out.join("clip"), Some(Kind::Half), preprocess)?;
        // Not in the model directory yet: the U-Net's stage grounds the first encoder.
        ClipTextModel::from_weights(first, Weights::from_tensors(below(averaged, "first")))?
            .save(self.contrastive_text_encoder(), Some(Kind::Half))?;
        // The second text encoder is the scorer's own text tower, as SDXL's is that of OpenCLIP's bigG.
        let second = ClipTextConfig { with_projection: true, ..clip.text.clone() };
        let keep = |(name, t): (&String, &Tensor)| {
            (name.starts_with("text_model.") || name.starts_with("text_projection.")).then(|| (name.clone(), t.shallow_clone()))
        };
        let tensors: Tensors = below(averaged, "clip").iter().filter_map(keep).collect();
        let second = ClipTextModel::from_weights(&second, Weights::from_tensors(tensors))?;
        Ok(second.save(self.out.join("text_encoder_2"), Some(Kind::Half))?)
    }
}

/// Two text towers and an image tower, not trained yet.
struct Towers {
    first_tokenizer: Tokenizer,
    tokenizer: Tokenizer,
    first: ClipTextConfig,
    clip: ClipConfig,
}
