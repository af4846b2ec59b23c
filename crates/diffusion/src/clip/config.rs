//! The settings of CLIP models, with the names of the published config.json; a missing key takes transformers' default.

use std::path::Path;

use artifact::Fields;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The activation of the feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenAct {
    /// `x sigmoid(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
    /// The exact Gaussian error linear unit: OpenCLIP models.
    Gelu,
}

impl HiddenAct {
    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::QuickGelu => "quick_gelu",
            Self::Gelu => "gelu",
        }
    }

    fn read(f: &Fields) -> Result<Self> {
        match f.text("hidden_act")?.unwrap_or_else(|| "quick_gelu".into()).as_str() {
            "quick_gelu" => Ok(Self::QuickGelu),
            "gelu" => Ok(Self::Gelu),
            _ => Err(f.wrong("hidden_act", "`quick_gelu` or `gelu`").into()),
        }
    }
}

/// A text encoder's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipTextConfig {
    /// Number of token ids.
    pub vocab_size: i64,
    /// Width.
    pub hidden_size: i64,
    /// Width inside the feed-forward layers.
    pub intermediate_size: i64,
    /// Width of the projected pooled state, if the model projects.
    pub projection_dim: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// The longest token sequence.
    pub max_position_embeddings: i64,
    /// The activation.
    pub hidden_act: HiddenAct,
    /// Added to the variance in layer normalization.
    pub layer_norm_eps: f64,
    /// Id of the begin token.
    pub bos_token_id: i64,
    /// Id of the end token; 2 means "the largest id of the sequence", as in files older than transformers 4.31.
    pub eos_token_id: i64,
    /// Id of the padding token.
    pub pad_token_id: i64,
    /// Whether the model has a `text_projection`: `CLIPTextModelWithProjection` rather than `CLIPTextModel`.
    pub with_projection: bool,
}

impl ClipTextConfig {
    /// Reads `path`: the encoder's folder or its config.json.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], or [`Error::Config`] for a setting that is wrong or not implemented.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::read(&Fields::open(&config_file(path.as_ref()))?)
    }

    pub(crate) fn read(f: &Fields) -> Result<Self> {
        // The architecture is that of the whole file, the settings may be a part of it.
        let architectures = f.texts("architectures")?.unwrap_or_default();
        let with_projection = match architectures.first().map(String::as_str) {
            None => false,
            Some("CLIPTextModelWithProjection") => true,
            Some(name) if name.starts_with("CLIP") && !name.starts_with("CLIPVision") => false,
            Some(_) => return Err(f.wrong("architectures", "`CLIPTextModel` or `CLIPTextModelWithProjection`").into()),
        };
        // Whoever saves a whole CLIP model as a text encoder gets the settings of both towers.
        let whole = f.text("model_type")?.is_some_and(|kind| kind == "clip");
        let f = &if whole { nested(f, "text_config")? } else { f.clone() };
        let config = Self {
            vocab_size: f.int("vocab_size", 49408, 1)?,
            hidden_size: f.int("hidden_size", 512, 1)?,
            intermediate_size: f.int("intermediate_size", 2048, 1)?,
            projection_dim: f.int("projection_dim", 512, 1)?,
            num_hidden_layers: f.int("num_hidden_layers", 12, 1)?,
            num_attention_heads: f.int("num_attention_heads", 8, 1)?,
            max_position_embeddings: f.int("max_position_embeddings", 77, 1)?,
            hidden_act: HiddenAct::read(f)?,
            layer_norm_eps: f.float("layer_norm_eps", 1e-5)?,
            bos_token_id: f.int("bos_token_id", 49406, 0)?,
            eos_token_id: f.int("eos_token_id", 49407, 0)?,
            // -1 stands for none.
            pad_token_id: f.int("pad_token_id", 1, -1)?,
            with_projection,
        };
        check_heads(config.hidden_size, config.num_attention_heads, f.path())?;
        Ok(config)
    }

    /// The settings in the published form.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": [if self.with_projection { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }],
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "dropout": 0.0,
            "eos_token_id": self.eos_token_id,
            "hidden_act": self.hidden_act.name(),
            "hidden_size": self.hidden_size,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "clip_text_model",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "pad_token_id": self.pad_token_id,
            "projection_dim": self.projection_dim,
            "vocab_size": self.vocab_size,
        })
    }
}

/// An image encoder's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipVisionConfig {
    /// Width.
    pub hidden_size: i64,
    /// Width inside the feed-forward layers.
    pub intermediate_size: i64,
    /// Width of the projected pooled state.
    pub projection_dim: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// Channels of an image.
    pub num_channels: i64,
    /// Side of an image in pixels.
    pub image_size: i64,
    /// Side of a patch in pixels.
    pub patch_size: i64,
    /// The activation.
    pub hidden_act: HiddenAct,
    /// Added to the variance in layer normalization.
    pub layer_norm_eps: f64,
}

impl ClipVisionConfig {
    pub(crate) fn read(f: &Fields) -> Result<Self> {
        let config = Self {
            hidden_size: f.int("hidden_size", 768, 1)?,
            intermediate_size: f.int("intermediate_size", 3072, 1)?,
            projection_dim: f.int("projection_dim", 512, 1)?,
            num_hidden_layers: f.int("num_hidden_layers", 12, 1)?,
            num_attention_heads: f.int("num_attention_heads", 12, 1)?,
            num_channels: f.int("num_channels", 3, 1)?,
            image_size: f.int("image_size", 224, 1)?,
            patch_size: f.int("patch_size", 32, 1)?,
            hidden_act: HiddenAct::read(f)?,
            layer_norm_eps: f.float("layer_norm_eps", 1e-5)?,
        };
        if config.patch_size > config.image_size {
            return Err(f.wrong("patch_size", format!("at most image_size {}", config.image_size)).into());
        }
        check_heads(config.hidden_size, config.num_attention_heads, f.path())?;
        Ok(config)
    }

    /// The settings in the published form.
    pub fn to_json(&self) -> Value {
        json!({
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "hidden_act": self.hidden_act.name(),
            "hidden_size": self.hidden_size,
            "image_size": self.image_size,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "model_type": "clip_vision_model",
            "num_attention_heads": self.num_attention_heads,
            "num_channels": self.num_channels,
            "num_hidden_layers": self.num_hidden_layers,
            "patch_size": self.patch_size,
            "projection_dim": self.projection_dim,
        })
    }
}

/// The settings of the two towers together.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// The text tower; its `with_projection` is false, since the projection belongs to the whole model.
    pub text: ClipTextConfig,
    /// The image tower.
    pub vision: ClipVisionConfig,
    /// Width of the space in which images and texts are compared.
    pub projection_dim: i64,
    /// Where the logarithm of the inverse temperature starts; 2.6592 is ln(1 / 0.07).
    pub logit_scale_init_value: f64,
}

impl ClipConfig {
    /// Reads `path`: the model's folder or its config.json.
    ///
    /// # Errors
    /// As [`ClipTextConfig::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let f = Fields::open(&config_file(path.as_ref()))?;
        if !matches!(f.text("model_type")?.unwrap_or_else(|| "clip".into()).as_str(), "clip") {
            return Err(f.wrong("model_type", "`clip`").into());
        }
        Ok(Self {
            text: ClipTextConfig { with_projection: false, ..ClipTextConfig::read(&nested(&f, "text_config")?)? },
            vision: ClipVisionConfig::read(&nested(&f, "vision_config")?)?,
            projection_dim: f.int("projection_dim", 512, 1)?,
            logit_scale_init_value: f.float("logit_scale_init_value", 2.6592)?,
        })
    }

    /// The settings in the published form.
    pub fn to_json(&self) -> Value {
        let mut text = self.text.to_json();
        if let Some(text) = text.as_object_mut() {
            text.remove("architectures");
        }
        json!({
            "architectures": ["CLIPModel"],
            "initializer_factor": 1.0,
            "logit_scale_init_value": self.logit_scale_init_value,
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "text_config": text,
            "vision_config": self.vision.to_json(),
        })
    }
}

/// The settings of one tower. Files of the first releases repeat them in `*_config_dict`, which then wins.
fn nested(f: &Fields, key: &str) -> Result<Fields> {
    let old = format!("{key}_dict");
    let key = if f.get(&old).is_some() { old.as_str() } else { key };
    match f.get(key) {
        Some(Value::Object(map)) => Ok(Fields::new(map.clone(), f.path())),
        None => Ok(Fields::new(serde_json::Map::new(), f.path())),
        Some(_) => Err(f.wrong(key, "an object of settings").into()),
    }
}

/// The config.json that `path` names: the file itself, or the one in the folder.
pub(crate) fn config_file(path: &Path) -> std::path::PathBuf {
    if path.is_dir() { path.join("config.json") } else { path.to_path_buf() }
}

/// Heads share the width evenly.
pub(crate) fn check_heads(width: i64, heads: i64, path: &Path) -> Result<()> {
    if width > 0 && heads > 0 && width % heads == 0 {
        return Ok(());
    }
    Err(Error::Config {
        path: path.into(),
        key: "num_attention_heads".into(),
        expected: format!("a divisor of hidden_size {width}"),
        got: heads.to_string(),
    })
}
