//! The diffusers model directory: which parts there are, where they lie, and what identifies the U-Net.
//! First arrow of the flow (weights -> U-Net), and the form in which pruned models are handed on.

mod fits;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use artifact::{Fields, hex};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use unet::weights::{TensorFile, component_files, identify};
use unet::{UNetConfig, architecture, weight_files};

use crate::error::{Error, Result};

const INDEX: &str = "model_index.json";
const UNET_STEM: &str = "diffusion_pytorch_model";

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

/// A complete model directory, all of whose parts were found.
#[derive(Debug, Clone)]
pub struct ModelDir {
    root: PathBuf,
    family: Family,
    unet: PathBuf,
    config: UNetConfig,
    force_zeros_for_empty_prompt: bool,
}

impl ModelDir {
    /// Finds the parts of `root` and checks, before any weights are read, that images can be drawn from text with them. With `unet`, the
    /// U-Net is that one instead: a `unet/` folder, a model directory with one, or a single file.
    ///
    /// # Errors
    /// [`Error::Format`] that names the folder or file that is missing, or says what was named instead of a model directory;
    /// [`Error::Config`] for another kind of model, or a U-Net that does not fit the other parts.
    pub fn open(root: impl AsRef<Path>, unet: Option<&Path>) -> Result<Self> {
        let root = root.as_ref().to_path_buf();
        let hint = "name a model directory in diffusers' layout, the one that holds model_index.json";
        if root.is_file() {
            return Err(a_file(&root));
        }
        if !root.is_dir() {
            return Err(missing(&root, "no such folder", hint));
        }
        let index_file = root.join(INDEX);
        if !index_file.is_file() {
            let part = root.join("config.json").is_file();
            let problem = if part { "no such file, so this folder is one part of a model" } else { "no such file" };
            return Err(missing(&index_file, problem, hint));
        }
        let index = Fields::open(&index_file)?.into_map();
        fits::check_class(&index, &index_file)?;
        let unet = match unet {
            Some(path) => unet_place(path)?,
            None => unet_place(&root.join("unet"))?,
        };
        let config = architecture(&unet)?;
        let family = family_of(&index, &index_file, &config, &unet)?;
        fits::check_unet(&root, family, &config, &unet)?;
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
        component_files(&part("vae", "config.json")?, UNET_STEM)?;
        for (encoder, tokenizer) in family.text_parts() {
            component_files(&part(encoder, "config.json")?, "model")?;
            // Either form of a tokenizer will do.
            part(tokenizer, "vocab.json").or_else(|e| part(tokenizer, "tokenizer.json").map_err(|_| e))?;
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
        Ok(Self { root, family, unet, config, force_zeros_for_empty_prompt })
    }

    /// The model directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Which text conditioning the model has.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The U-Net's folder, or the file that takes its place.
    pub fn unet(&self) -> &Path {
        &self.unet
    }

    /// The U-Net's architecture.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The VAE's folder.
    pub fn vae(&self) -> PathBuf {
        self.root.join("vae")
    }

    /// The folder with `scheduler_config.json`.
    pub fn scheduler(&self) -> PathBuf {
        self.root.join("scheduler")
    }

    /// The folders of each text encoder and its tokenizer, in the order in which their features are joined.
    pub fn text_parts(&self) -> Vec<(PathBuf, PathBuf)> {
        self.family.text_parts().iter().map(|(e, t)| (self.root.join(e), self.root.join(t))).collect()
    }

    /// Whether an absent negative prompt means zeros rather than the features of the empty text (SDXL).
    pub fn force_zeros_for_empty_prompt(&self) -> bool {
        self.force_zeros_for_empty_prompt
    }

    /// [`fingerprint`] of the U-Net.
    ///
    /// # Errors
    /// As [`fingerprint`].
    pub fn fingerprint(&self) -> Result<String> {
        fingerprint(&self.unet)
    }
}

/// What identifies a U-Net in score and plan files: SHA-256 over its config.json and its weight files, in hexadecimal.
///
/// `path` is a model directory, its `unet/` folder or a single file, which is hashed alone. Every byte is read, which takes seconds for
/// large models.
///
/// # Errors
/// [`Error::Format`] when the folder has no U-Net, [`Error::Io`] when a file cannot be read.
pub fn fingerprint(path: impl AsRef<Path>) -> Result<String> {
    let place = unet_place(path.as_ref())?;
    let mut whole = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let settings = place.is_dir().then(|| place.join("config.json"));
    for file in settings.into_iter().chain(weight_files(&place)?) {
        let mut one = Sha256::new();
        let mut reader = File::open(&file).map_err(Error::io(&file))?;
        loop {
            let n = reader.read(&mut buffer).map_err(Error::io(&file))?;
            if n == 0 {
                break;
            }
            one.update(&buffer[..n]);
        }
        whole.update(one.finalize());
    }
    Ok(hex(&whole.finalize()))
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
    if config.added.is_some() != (family == Family::StableDiffusionXl) {
        let kind = |xl: bool| if xl { "text_time (SDXL)" } else { "null (Stable Diffusion 1.x or 2.x)" };
        return Err(Error::Config {
            path: settings_of(unet),
            key: "addition_embed_type".into(),
            expected: format!("{}, as {} says", kind(family == Family::StableDiffusionXl), index_file.display()),
            got: kind(config.added.is_some()).into(),
        });
    }
    Ok(family)
}

// What a file is that was named in place of a folder.
fn a_file(path: &Path) -> Error {
    match TensorFile::open(path) {
        Ok(file) => {
            let what = identify(&file).map_or("a file of weights", |known| known.what);
            let problem =
                format!("{what}, where a whole model directory is needed: text encoders, autoencoder and scheduler beside the U-Net");
            missing(path, &problem, "write one with diffusers' `from_single_file(..).save_pretrained(DIR)`; a U-Net alone goes to `--unet`")
        }
        Err(e) => e.into(),
    }
}

// Where the U-Net's settings stand; those of a single file are its own.
fn settings_of(unet: &Path) -> PathBuf {
    if unet.is_file() { unet.into() } else { unet.join("config.json") }
}

fn missing(path: &Path, problem: &str, hint: &str) -> Error {
    Error::Format { path: path.into(), problem: problem.into(), hint: hint.into() }
}
