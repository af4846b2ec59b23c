//! Whole checkpoints in the original layout, the single files in which models are shared: U-Net, autoencoder and text encoders in one,
//! without tokenizers, schedule and settings. File -> **parts** -> pipeline, and model directory <-> file.
//!
//! The file is mapped once. A part is a view of it: its tensors are read when a network takes them, each byte once.

mod companions;
mod convert;
mod model_spec;
mod names;
mod part_files;
mod parts;
mod prediction;
mod shapes;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use artifact::Fields;
use tch::{Device, Kind};
use unet::weights::{TensorFile, Weights};
use unet::{Markers, StoredUNet, UNet, UNetConfig};

use self::names::Slices;
use self::part_files::PartFiles;
use self::parts::{TextPlace, Version};
use crate::clip::{ClipTextConfig, ClipTextModel};
use crate::error::{Error, Result};
use crate::model_dir::Family;
use crate::scheduler_config::{PredictionType, SchedulerConfig};
use crate::tokenizer::Tokenizer;
use crate::vae::{AutoencoderKl, VaeConfig};

pub use companions::Companions;
pub use convert::convert;

/// What a training program leaves before every name.
const WRAPPER: &str = "state_dict.";
/// CLIP's length.
const TOKENS: usize = 77;

/// A whole checkpoint, opened.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    file: TensorFile,
    unet: UNetConfig,
    markers: Markers,
    version: Version,
    files: PartFiles,
    // What the U-Net answered when it was asked.
    asked: OnceLock<PredictionType>,
}

impl Checkpoint {
    /// Reads the header.
    ///
    /// # Errors
    /// As [`StoredUNet::open`]; [`Error::Format`] unless its text encoders are there.
    pub fn open(path: &Path) -> Result<Self> {
        let stored = StoredUNet::open(path)?;
        let (unet, markers) = (stored.config().clone(), stored.markers().clone());
        let mut file = TensorFile::open(path)?.dequantised()?;
        // Training programs wrap all of it.
        if file.shapes().any(|(name, _)| name.starts_with(WRAPPER)) {
            file.retain(|name| Some(name.strip_prefix(WRAPPER).unwrap_or(name).to_string()));
        }
        let version = Version::of(&file, &unet)?;
        let files = PartFiles::of(file.metadata(), path)?;
        Ok(Self { path: path.into(), file, unet, markers, version, files, asked: OnceLock::new() })
    }

    /// The architecture of its U-Net.
    pub fn unet(&self) -> &UNetConfig {
        &self.unet
    }

    /// Which text conditioning it has.
    pub fn family(&self) -> Family {
        self.version.family()
    }

    /// Whether an absent negative prompt means zeros.
    pub fn force_zeros_for_empty_prompt(&self) -> bool {
        let said = self.files.get("model_index.json").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        let said = said.and_then(|index| index.get("force_zeros_for_empty_prompt")?.as_bool());
        said.unwrap_or(self.family() == Family::StableDiffusionXl)
    }

    /// The names of tensors that belong to autoencoder or text encoders.
    fn taken(&self) -> BTreeSet<String> {
        let text = self.text_places().flat_map(|(place, ..)| place.slices(&self.file).into_keys());
        parts::autoencoder(&self.file).into_iter().flat_map(Slices::into_keys).chain(text).collect()
    }

    /// The autoencoder's settings, and its tensors under the names of a model directory.
    pub fn vae_parts(&self) -> Result<(VaeConfig, TensorFile)> {
        let slices = parts::autoencoder(&self.file).ok_or_else(|| parts::no_autoencoder(&self.file))?;
        let tensors = parts::under(&slices, &self.file);
        let config = match self.files.get("vae/config.json") {
            Some(text) => VaeConfig::parse(text, &self.path)?,
            None => shapes::autoencoder(&tensors, self.version.untold(&self.unet))?,
        };
        Ok((config, tensors))
    }

    /// The autoencoder's settings.
    pub fn vae_config(&self) -> Result<VaeConfig> {
        Ok(self.vae_parts()?.0)
    }

    /// The autoencoder.
    pub fn vae(&self, device: Device, kind: Kind) -> Result<AutoencoderKl> {
        let (config, tensors) = self.vae_parts()?;
        AutoencoderKl::from_file(&config, tensors, device, kind)
    }

    /// Text encoders with the names of their folders in a model directory.
    fn text_places(&self) -> impl Iterator<Item = (TextPlace, &'static str, &'static str)> {
        let folders = self.family().text_parts().iter();
        self.version.text(&self.file).into_iter().zip(folders).map(|(place, (encoder, tokenizer))| (place, *encoder, *tokenizer))
    }

    fn text_config(&self, place: TextPlace, folder: &str, tensors: &TensorFile) -> Result<ClipTextConfig> {
        match self.files.get(&format!("{folder}/config.json")) {
            Some(text) => ClipTextConfig::read(&Fields::parse(text, &self.path)?),
            None => place.config(tensors),
        }
    }

    /// The settings of its text encoders.
    pub fn text_configs(&self) -> Result<Vec<ClipTextConfig>> {
        self.text_places().map(|(place, folder, _)| self.text_config(place, folder, &place.tensors(&self.file))).collect()
    }

    /// Each text encoder with its tokenizer, which is that in the folder `tokenizer` where one is given: its own, or a model directory's.
    pub fn text(&self, tokenizer: Option<&Path>, device: Device, kind: Kind) -> Result<Vec<(ClipTextModel, Tokenizer)>> {
        let open = |(place, encoder, folder): (TextPlace, &str, &str)| {
            let tensors = place.tensors(&self.file);
            let config = self.text_config(place, encoder, &tensors)?;
            let tokenizer = match tokenizer {
                Some(dir) => given_tokenizer(dir, folder)?,
                None => self.tokenizer(place, folder, &config)?,
            };
            let tokenizer = tokenizer.for_encoder(config.max_position_embeddings);
            Ok((ClipTextModel::from_weights(&config, Weights::from_file(tensors, device, kind))?, tokenizer))
        };
        self.text_places().map(open).collect()
    }

    fn tokenizer(&self, place: TextPlace, folder: &str, config: &ClipTextConfig) -> Result<Tokenizer> {
        let dir = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
        if !self.files.write_folder(folder, dir.path())? {
            self.check_vocabulary(config)?;
            Tokenizer::write_published(dir.path(), TOKENS, place.pad())?;
        }
        Tokenizer::open(dir.path())
    }

    fn check_vocabulary(&self, config: &ClipTextConfig) -> Result<()> {
        match config.vocab_size >= Tokenizer::PUBLISHED_IDS {
            true => Ok(()),
            false => Err(Error::Format {
                path: self.path.clone(),
                problem: format!("its text encoder knows {} tokens, fewer than CLIP's {}", config.vocab_size, Tokenizer::PUBLISHED_IDS),
                hint: "name its own tokenizer's folder with --tokenizer".into(),
            }),
        }
    }

    /// What the file says of its schedule; `None` where it does not say what is predicted.
    ///
    /// # Errors
    /// [`Error::Config`] for a schedule that is not implemented.
    pub fn said_scheduler(&self) -> Result<Option<SchedulerConfig>> {
        if let Some(text) = self.files.get("scheduler/scheduler_config.json") {
            return Ok(Some(SchedulerConfig::parse(text, &self.path)?));
        }
        Ok(prediction::said(&self.markers, &self.path)?.map(|predicted| prediction::scheduler(&self.markers, predicted)))
    }

    /// The settings of the schedule, where `asked` or the file says what is predicted; else that is asked from `unet`, or from the file's own.
    ///
    /// # Errors
    /// As [`Checkpoint::said_scheduler`]; those of loading and running the U-Net.
    pub fn scheduler(&self, given: Option<PredictionType>, unet: Option<&UNet>) -> Result<SchedulerConfig> {
        if let Some(predicted) = given {
            let said = if self.files.get("scheduler/scheduler_config.json").is_some() { self.said_scheduler()? } else { None };
            return Ok(SchedulerConfig { prediction_type: predicted, ..said.unwrap_or(prediction::scheduler(&self.markers, predicted)) });
        }
        if let Some(said) = self.said_scheduler()? {
            return Ok(said);
        }
        if self.asked.get().is_none() {
            let found = match unet {
                Some(unet) => prediction::ask(unet, &self.path)?,
                None => prediction::ask(&UNet::open(&self.path, Device::Cpu, Kind::Float)?, &self.path)?,
            };
            // Nobody else sets it to anything else.
            let _ = self.asked.set(found);
        }
        Ok(prediction::scheduler(&self.markers, *self.asked.get().unwrap_or(&PredictionType::Epsilon)))
    }
}

/// A tokenizer in the folder `dir`, or in the model directory `dir`, where it has a folder of its own.
pub(crate) fn given_tokenizer(dir: &Path, folder: &str) -> Result<Tokenizer> {
    let inner = dir.join(folder);
    Tokenizer::open(if inner.is_dir() { &inner } else { dir })
}

/// The autoencoder of `--vae`: a folder, a model directory, or a file that holds one; `like` says what its file does not.
///
/// # Errors
/// [`Error::Format`] when there is none.
pub(crate) fn given_vae(path: &Path, like: &UNetConfig) -> Result<(VaeConfig, TensorFile)> {
    let file = TensorFile::open(path)?;
    let slices = parts::autoencoder(&file).ok_or_else(|| parts::no_autoencoder(&file))?;
    let tensors = parts::under(&slices, &file);
    let config = match PartFiles::of(file.metadata(), path)?.get("vae/config.json") {
        Some(text) => VaeConfig::parse(text, path)?,
        None => shapes::autoencoder(&tensors, Version::of_config(like).untold(like))?,
    };
    Ok((config, tensors))
}
