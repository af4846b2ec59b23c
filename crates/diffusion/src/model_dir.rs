//! A whole model, as a directory in diffusers' layout or as a checkpoint in one file: which parts there are, where they lie, and what
//! identifies the U-Net. First arrow of the flow (weights -> U-Net), and the form in which pruned models are handed on.

mod fits;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::Fields;
use serde_json::{Map, Value, json};
use tch::{Device, Kind};
use unet::weights::{TensorFile, component_files};
use unet::{UNet, UNetConfig, architecture, weight_files};

use crate::checkpoint::{Checkpoint, given_tokenizer, given_vae};
use crate::conditioning::TextEncoders;
use crate::error::{Error, Result};
use crate::model_ref::{ModelRef, Overrides};
use crate::schedule::NoiseSchedule;
use crate::scheduler_config::SchedulerConfig;
use crate::tokenizer::Tokenizer;
use crate::vae::{AutoencoderKl, VaeConfig};

const INDEX: &str = "model_index.json";
const UNET_STEM: &str = "diffusion_pytorch_model";
const VAE: &str = "vae";

/// Which text conditioning a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1.x and 2.x: one text encoder.
    StableDiffusion,
    /// SDXL: two text encoders, pooled text and image sizes.
    StableDiffusionXl,
}

impl Family {
    /// diffusers' pipeline class.
    pub fn class_name(self) -> &'static str {
        match self {
            Family::StableDiffusion => "StableDiffusionPipeline",
            Family::StableDiffusionXl => "StableDiffusionXLPipeline",
        }
    }

    /// The folders of its text encoders and their tokenizers, in the order in which their features are joined.
    pub fn text_parts(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Family::StableDiffusion => &[("text_encoder", "tokenizer")],
            Family::StableDiffusionXl => &[("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")],
        }
    }

    /// Whether text encoder `n` projects its pooled state.
    pub(crate) fn projects(self, n: usize) -> bool {
        self == Family::StableDiffusionXl && n == 1
    }
}

/// A complete model, all of whose parts were found: a model directory, or a whole checkpoint.
#[derive(Debug, Clone)]
pub struct ModelDir {
    model: ModelRef,
    form: Form,
    family: Family,
    unet: PathBuf,
    config: UNetConfig,
    force_zeros_for_empty_prompt: bool,
}

#[derive(Debug, Clone)]
enum Form {
    Folder,
    File(Arc<Checkpoint>),
}

impl ModelDir {
    /// Finds the parts of `model`, a model directory or a whole checkpoint, and checks, before any weights are read, that images can be
    /// drawn from text with them. With `unet`, the U-Net is that one instead: a `unet/` folder, a model directory with one, or a file.
    ///
    /// # Errors
    /// [`Error::Format`] that names the folder, file or part that is missing, or says what was named instead of a model;
    /// [`Error::Config`] for another kind of model, or a U-Net that does not fit the other parts.
    pub fn open(model: impl Into<ModelRef>, unet: Option<&Path>) -> Result<Self> {
        let model = model.into();
        if model.path.is_file() { Self::of_file(model, unet) } else { Self::of_folder(model, unet) }
    }

    fn of_file(model: ModelRef, unet: Option<&Path>) -> Result<Self> {
        let checkpoint = Checkpoint::open(&model.path)?;
        let (unet, config) = match unet.map(unet_place).transpose()? {
            Some(unet) => (unet.clone(), architecture(&unet)?),
            None => (model.path.clone(), checkpoint.unet().clone()),
        };
        let family = checkpoint.family();
        check_family(family, &config, &unet, &model.path)?;
        let vae = match &model.overrides.vae {
            Some(path) => vae_of(path, &config)?,
            None => checkpoint.vae_config()?,
        };
        let encoders = checkpoint.text_configs()?.into_iter().map(Some).collect();
        fits::check_unet(&config, &unet, &fits::Others { root: &model.path, vae: Some(vae), encoders })?;
        let force_zeros_for_empty_prompt = checkpoint.force_zeros_for_empty_prompt();
        Ok(Self { model, form: Form::File(Arc::new(checkpoint)), family, unet, config, force_zeros_for_empty_prompt })
    }

    fn of_folder(model: ModelRef, unet: Option<&Path>) -> Result<Self> {
        let (root, overrides) = (&model.path, &model.overrides);
        let hint = "name a model directory in diffusers' layout, the one that holds model_index.json, or a whole checkpoint file";
        if !root.is_dir() {
            return Err(missing(root, "no such folder", hint));
        }
        let index_file = root.join(INDEX);
        if !index_file.is_file() {
            let part = root.join("config.json").is_file();
            let problem = if part { "no such file, so this folder is one part of a model" } else { "no such file" };
            return Err(missing(&index_file, problem, hint));
        }
        let index = Fields::open(&index_file)?.into_map();
        fits::check_class(&index, &index_file)?;
        let unet = unet_place(unet.unwrap_or(&root.join("unet")))?;
        let config = architecture(&unet)?;
        let family = family_of(&index, &index_file, &config, &unet)?;
        let vae = overrides.vae.as_ref().map(|path| vae_of(path, &config)).transpose()?;
        fits::check_unet(&config, &unet, &fits::Others::in_folder(root, family, vae)?)?;
        weight_files(&unet)?;

        let part = |folder: &str, file: &str| -> Result<PathBuf> {
            let dir = root.join(folder);
            let hint = format!("a {} needs it; fetch the whole model directory", family.class_name());
            if !dir.is_dir() {
                return Err(missing(&dir, "no such folder", &hint));
            }
            match dir.join(file).is_file() {
                true => Ok(dir),
                false => Err(missing(&dir.join(file), "no such file", &hint)),
            }
        };
        part("scheduler", "scheduler_config.json")?;
        if overrides.vae.is_none() {
            component_files(&part("vae", "config.json")?, UNET_STEM)?;
        }
        for (encoder, tokenizer) in family.text_parts() {
            component_files(&part(encoder, "config.json")?, "model")?;
            if overrides.tokenizer.is_none() {
                // Either form of a tokenizer will do.
                part(tokenizer, "vocab.json").or_else(|e| part(tokenizer, "tokenizer.json").map_err(|_| e))?;
            }
        }
        let force_zeros_for_empty_prompt = match index.get("force_zeros_for_empty_prompt") {
            // diffusers' own default.
            None | Some(Value::Null) => family == Family::StableDiffusionXl,
            Some(Value::Bool(b)) => *b,
            Some(other) => {
                return Err(Error::Config {
                    path: index_file,
                    key: "force_zeros_for_empty_prompt".into(),
                    expected: "true or false".into(),
                    got: other.to_string(),
                });
            }
        };
        Ok(Self { model, form: Form::Folder, family, unet, config, force_zeros_for_empty_prompt })
    }

    /// The model directory or checkpoint.
    pub fn root(&self) -> &Path {
        &self.model.path
    }

    /// Which text conditioning the model has.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The U-Net's folder or file.
    pub fn unet(&self) -> &Path {
        &self.unet
    }

    /// The U-Net's architecture.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The autoencoder's settings.
    ///
    /// # Errors
    /// As [`VaeConfig::open`]; [`Error::Format`] for a file without one.
    pub fn vae_config(&self) -> Result<VaeConfig> {
        match (&self.overrides().vae, &self.form) {
            (Some(path), _) => vae_of(path, &self.config),
            (None, Form::Folder) => VaeConfig::open(self.root().join(VAE)),
            (None, Form::File(checkpoint)) => checkpoint.vae_config(),
        }
    }

    /// The autoencoder's tensors in a checkpoint, or in the file that takes their place.
    pub(crate) fn vae_tensors(&self, checkpoint: &Checkpoint) -> Result<TensorFile> {
        match &self.overrides().vae {
            Some(path) => Ok(given_vae(path, &self.config)?.1),
            None => Ok(checkpoint.vae_parts()?.1),
        }
    }

    /// The autoencoder, in f32 where its weights are known to overflow in f16.
    ///
    /// # Errors
    /// As [`AutoencoderKl::open`] and [`ModelDir::vae_config`].
    pub fn vae(&self, device: Device, kind: Kind) -> Result<AutoencoderKl> {
        match (&self.overrides().vae, &self.form) {
            (Some(path), _) if path.is_file() => {
                let (config, tensors) = given_vae(path, &self.config)?;
                AutoencoderKl::from_file(&config, tensors, device, kind)
            }
            (Some(path), _) => AutoencoderKl::open(path, device, kind),
            (None, Form::Folder) => AutoencoderKl::open(self.root().join(VAE), device, kind),
            (None, Form::File(checkpoint)) => checkpoint.vae(device, kind),
        }
    }

    /// The text encoders with their tokenizers.
    ///
    /// # Errors
    /// As [`TextEncoders::open`].
    pub fn text_encoders(&self, device: Device, kind: Kind) -> Result<TextEncoders> {
        let given = self.overrides().tokenizer.as_deref();
        let parts = match &self.form {
            Form::File(checkpoint) => checkpoint.text(given, device, kind)?,
            Form::Folder => {
                let open = |(n, (encoder, folder)): (usize, &(&str, &str))| {
                    let tokenizer = match given {
                        Some(dir) => given_tokenizer(dir, folder)?,
                        None => Tokenizer::open(self.root().join(folder))?,
                    };
                    TextEncoders::open_part(self.family, n, &self.root().join(encoder), tokenizer, device, kind)
                };
                self.family.text_parts().iter().enumerate().map(open).collect::<Result<_>>()?
            }
        };
        TextEncoders::new(self.family, parts, device)
    }

    /// The noise schedule. A checkpoint that does not say what its U-Net predicts is asked, with `unet` where it is loaded already.
    ///
    /// # Errors
    /// As [`SchedulerConfig::open`]; for a checkpoint those of loading and running its U-Net.
    pub fn schedule(&self, unet: Option<&UNet>) -> Result<NoiseSchedule> {
        let given = self.overrides().prediction_type;
        let config = match &self.form {
            Form::File(checkpoint) => checkpoint.scheduler(given, unet)?,
            Form::Folder => {
                let own = SchedulerConfig::open(self.root().join("scheduler"))?;
                SchedulerConfig { prediction_type: given.unwrap_or(own.prediction_type), ..own }
            }
        };
        NoiseSchedule::new(config)
    }

    /// What the model says of its schedule without being asked.
    ///
    /// # Errors
    /// As [`SchedulerConfig::open`].
    pub fn said_scheduler(&self) -> Result<Option<SchedulerConfig>> {
        match &self.form {
            Form::Folder => Ok(Some(SchedulerConfig::open(self.root().join("scheduler"))?)),
            Form::File(checkpoint) => checkpoint.said_scheduler(),
        }
    }

    /// The files that hold the weights of autoencoder, which come first, and text encoders.
    ///
    /// # Errors
    /// [`Error::Format`] where one is missing.
    pub fn encoder_files(&self) -> Result<Vec<PathBuf>> {
        let vae = match &self.overrides().vae {
            Some(path) if path.is_file() => vec![path.clone()],
            Some(path) => component_files(path, UNET_STEM)?,
            None => Vec::new(),
        };
        let own = match &self.form {
            Form::File(_) => vec![self.root().to_path_buf()],
            Form::Folder => {
                let mut files = if vae.is_empty() { component_files(&self.root().join(VAE), UNET_STEM)? } else { Vec::new() };
                for (encoder, _) in self.family.text_parts() {
                    files.extend(component_files(&self.root().join(encoder), "model")?);
                }
                files
            }
        };
        Ok(vae.into_iter().chain(own).collect())
    }

    fn overrides(&self) -> &Overrides {
        &self.model.overrides
    }

    /// Whether an absent negative prompt means zeros rather than the features of the empty text (SDXL).
    pub fn force_zeros_for_empty_prompt(&self) -> bool {
        self.force_zeros_for_empty_prompt
    }

    /// What identifies its U-Net in score and plan files: [`unet::fingerprint`].
    ///
    /// # Errors
    /// As [`unet::fingerprint`].
    pub fn fingerprint(&self) -> Result<String> {
        Ok(unet::fingerprint(&self.unet)?)
    }
}

/// Writes `dir/model_index.json`, so that diffusers and [`ModelDir::open`] accept the directory. `scheduler_class` is the
/// `_class_name` of its scheduler_config.json.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be written.
pub fn write_model_index(dir: impl AsRef<Path>, family: Family, scheduler_class: &str, force_zeros_for_empty_prompt: bool) -> Result<()> {
    let mut index = json!({
        "_class_name": family.class_name(),
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler_class],
        // Parts of diffusers' pipelines that an image can do without.
        "feature_extractor": [null, null],
        "image_encoder": [null, null],
    });
    match family {
        Family::StableDiffusion => {
            index["safety_checker"] = json!([null, null]);
            index["requires_safety_checker"] = json!(false);
        }
        Family::StableDiffusionXl => {
            index["text_encoder_2"] = json!(["transformers", "CLIPTextModelWithProjection"]);
            index["tokenizer_2"] = json!(["transformers", "CLIPTokenizer"]);
            index["force_zeros_for_empty_prompt"] = json!(force_zeros_for_empty_prompt);
        }
    }
    let dir = dir.as_ref();
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    Ok(artifact::write_config(&dir.join(INDEX), &index)?)
}

// The path itself, or the `unet/` in it.
fn unet_place(dir: &Path) -> Result<PathBuf> {
    if dir.is_file() {
        return Ok(dir.to_path_buf());
    }
    let inner = dir.join("unet");
    let dir = if inner.join("config.json").is_file() { inner } else { dir.to_path_buf() };
    if dir.join("config.json").is_file() {
        return Ok(dir);
    }
    let (what, problem) = if dir.is_dir() { (dir.join("config.json"), "no such file") } else { (dir, "no such folder") };
    Err(missing(&what, problem, "name a model directory in diffusers' layout, the `unet` folder of one, or a file with a U-Net"))
}

fn family_of(index: &Map<String, Value>, index_file: &Path, config: &UNetConfig, unet: &Path) -> Result<Family> {
    let class = index.get("_class_name").and_then(Value::as_str);
    let family = match class {
        Some(name) if name.starts_with("StableDiffusionXL") => Family::StableDiffusionXl,
        Some(name) if name.starts_with("StableDiffusion") && !name.starts_with("StableDiffusion3") => Family::StableDiffusion,
        // The same parts; the U-Net takes the weight of guidance as an input.
        Some("LatentConsistencyModelPipeline") => Family::StableDiffusion,
        // A directory without a name is what its U-Net is.
        None if config.added.is_some() => Family::StableDiffusionXl,
        None => Family::StableDiffusion,
        Some(other) => {
            return Err(Error::Config {
                path: index_file.into(),
                key: "_class_name".into(),
                expected: "a StableDiffusion, StableDiffusionXL or LatentConsistencyModel pipeline".into(),
                got: other.into(),
            });
        }
    };
    check_family(family, config, unet, index_file)?;
    Ok(family)
}

/// Refuses a U-Net of another family than the rest of the model, which `said_by` says.
fn check_family(family: Family, config: &UNetConfig, unet: &Path, said_by: &Path) -> Result<()> {
    if config.added.is_some() == (family == Family::StableDiffusionXl) {
        return Ok(());
    }
    let kind = |xl: bool| if xl { "text_time (SDXL)" } else { "null (Stable Diffusion 1.x or 2.x)" };
    Err(Error::Config {
        path: settings_of(unet),
        key: "addition_embed_type".into(),
        expected: format!("{}, as {} says", kind(family == Family::StableDiffusionXl), said_by.display()),
        got: kind(config.added.is_some()).into(),
    })
}

/// The settings of an autoencoder that takes the place of a model's own.
fn vae_of(path: &Path, unet: &UNetConfig) -> Result<VaeConfig> {
    if path.is_file() { Ok(given_vae(path, unet)?.0) } else { VaeConfig::open(path) }
}

// Where the U-Net's settings stand; those of a single file are its own.
fn settings_of(unet: &Path) -> PathBuf {
    if unet.is_file() { unet.into() } else { unet.join("config.json") }
}

fn missing(path: &Path, problem: &str, hint: &str) -> Error {
    Error::Format { path: path.into(), problem: problem.into(), hint: hint.into() }
}
