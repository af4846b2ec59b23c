//! A whole model with random weights of given architectures, to rehearse a run before its weights are there. config.json files ->
//! **model directory**.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind};
use unet::{UNet, UNetConfig};

use crate::clip::{ClipTextConfig, ClipTextModel};
use crate::error::{Error, Result};
use crate::model_dir::{Family, write_model_index};
use crate::schedule::NoiseSchedule;
use crate::tokenizer::Tokenizer;
use crate::vae::{AutoencoderKl, VaeConfig};

/// What a random model is made of.
#[derive(Debug, Clone)]
pub struct RandomModel {
    /// config.json of the U-Net.
    pub unet: PathBuf,
    /// config.json of the autoencoder; `None` takes that of `rest` as it is.
    pub vae: Option<PathBuf>,
    /// config.json of each text encoder, likewise.
    pub text_encoders: [Option<PathBuf>; 2],
    /// The model directory from which all other parts are copied: tokenizers, scheduler and whatever is not named above.
    pub rest: PathBuf,
    /// Seed of the weights.
    pub seed: u64,
    /// Number type of the written weights.
    pub kind: Kind,
}

impl RandomModel {
    /// Draws the weights and writes the model directory.
    ///
    /// # Errors
    /// [`Error::Input`] for a second text encoder of a U-Net that takes one, or fewer words than the tokenizer has; where a part of `rest` is
    /// missing, or `out` cannot be written.
    pub fn write(&self, out: &Path) -> Result<()> {
        let config = UNetConfig::open(&self.unet)?;
        let family = if config.added.is_some() { Family::StableDiffusionXl } else { Family::StableDiffusion };
        let second = family.text_parts().len() > 1;
        if self.text_encoders[1].is_some() && !second {
            return Err(Error::Input {
                name: "text_encoder_2".into(),
                expected: format!("nothing: the U-Net of {} takes one text encoder", self.unet.display()),
                got: "a second one".into(),
            });
        }
        let schedule = NoiseSchedule::open(self.rest.join("scheduler"))?;
        let copy = |part: &str| artifact::copy_tree(&self.rest.join(part), &out.join(part), None);
        std::fs::create_dir_all(out).map_err(|source| artifact::Error::Write { path: out.into(), source })?;
        for ((encoder, tokenizer), drawn) in family.text_parts().iter().zip(&self.text_encoders) {
            copy(tokenizer)?;
            match drawn {
                None => copy(encoder)?,
                Some(path) => self.text_encoder(path, &self.rest.join(tokenizer))?.save(out.join(encoder), Some(self.kind))?,
            }
        }
        match &self.vae {
            None => copy("vae")?,
            Some(path) => {
                let vae = AutoencoderKl::random(&VaeConfig::open(path)?, self.seed, Device::Cpu, self.kind)?;
                vae.save(out.join("vae"), Some(self.kind))?;
            }
        }
        if self.rest.join("clip").is_dir() {
            copy("clip")?;
        }
        schedule.save(out.join("scheduler"))?;
        UNet::random(&config, self.seed, Device::Cpu, self.kind)?.save(out.join("unet"), Some(self.kind), &BTreeMap::new())?;
        write_model_index(out, family, &schedule.config().class_name, second)
    }

    /// A text encoder that ends texts as its tokenizer does.
    fn text_encoder(&self, path: &Path, tokenizer: &Path) -> Result<ClipTextModel> {
        let mut config = ClipTextConfig::open(path)?;
        let tokenizer = Tokenizer::open(tokenizer)?;
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::Input {
                name: format!("{}: vocab_size", path.display()),
                expected: format!("at least the tokenizer's {}", tokenizer.vocab_size()),
                got: config.vocab_size.to_string(),
            });
        }
        (config.bos_token_id, config.eos_token_id, config.pad_token_id) = (tokenizer.bos(), tokenizer.eos(), tokenizer.pad());
        ClipTextModel::random(&config, self.seed, Device::Cpu, self.kind)
    }
}
