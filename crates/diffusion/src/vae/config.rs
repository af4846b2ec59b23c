//! The settings of an autoencoder.

use std::path::{Path, PathBuf};

use artifact::Fields;
use serde_json::{Value, json};
use tch::Kind;

use crate::error::{Error, Result};

/// The settings of an autoencoder, with the names of the published config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of the image that is encoded.
    pub in_channels: i64,
    /// Channels of the image that is decoded.
    pub out_channels: i64,
    /// Channels of each level, finest first.
    pub block_out_channels: Vec<i64>,
    /// ResNets per encoder level; a decoder level has one more.
    pub layers_per_block: i64,
    /// Channels of a latent.
    pub latent_channels: i64,
    /// Groups of every group normalization.
    pub norm_num_groups: i64,
    /// Side of the training images in pixels.
    pub sample_size: i64,
    /// Latents are multiplied by this before they go to the U-Net.
    pub scaling_factor: f64,
    /// True when the weights overflow in f16, so that f32 is used instead.
    pub force_upcast: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle has self-attention.
    pub mid_block_add_attention: bool,
}

impl VaeConfig {
    /// Reads `path`: a model directory, its `vae/` folder or the config.json itself.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], or [`Error::Config`] for a setting that is not implemented and would change numbers.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { component_dir(path).join("config.json") } else { path.to_path_buf() };
        Self::read(&Fields::open(&file)?)
    }

    /// As [`VaeConfig::open`], from the file's text; `path` only names it in errors.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self> {
        Self::read(&Fields::parse(text, path)?)
    }

    fn read(f: &Fields) -> Result<Self> {
        let class = f.text("_class_name")?.unwrap_or_else(|| "AutoencoderKL".into());
        if class != "AutoencoderKL" {
            return Err(f.wrong("_class_name", "`AutoencoderKL`").into());
        }
        let config = Self {
            in_channels: f.int("in_channels", 3, 1)?,
            out_channels: f.int("out_channels", 3, 1)?,
            block_out_channels: f.ints("block_out_channels")?.unwrap_or_else(|| vec![64]),
            layers_per_block: f.int("layers_per_block", 1, 1)?,
            latent_channels: f.int("latent_channels", 4, 1)?,
            norm_num_groups: f.int("norm_num_groups", 32, 1)?,
            sample_size: match f.get("sample_size").and_then(Value::as_array) {
                Some(sides) => sides.first().and_then(Value::as_i64).ok_or_else(|| f.wrong("sample_size", "a number of pixels"))?,
                None => f.int("sample_size", 32, 1)?,
            },
            scaling_factor: f.float("scaling_factor", 0.18215)?,
            force_upcast: f.flag("force_upcast", true)?,
            use_quant_conv: f.flag("use_quant_conv", true)?,
            use_post_quant_conv: f.flag("use_post_quant_conv", true)?,
            mid_block_add_attention: f.flag("mid_block_add_attention", true)?,
        };
        for key in ["shift_factor", "latents_mean", "latents_std"] {
            // A shift by nothing is none.
            if f.get(key).is_some_and(|value| value.as_f64() != Some(0.0)) {
                return Err(f.wrong(key, "null (latents that are shifted are not implemented)").into());
            }
        }
        if !matches!(f.text("act_fn")?.unwrap_or_else(|| "silu".into()).as_str(), "silu" | "swish") {
            return Err(f.wrong("act_fn", "`silu`").into());
        }
        for (key, block) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let types = f.texts(key)?.unwrap_or_else(|| vec![block.into()]);
            if types.len() != config.block_out_channels.len() || types.iter().any(|t| t != block) {
                return Err(f.wrong(key, format!("`{block}` {} times, once per level", config.block_out_channels.len())).into());
            }
        }
        config.check(f.path())?;
        Ok(config)
    }

    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let bad = self.block_out_channels.iter().find(|&&c| c % self.norm_num_groups != 0);
        let (expected, got) = match bad {
            Some(c) => (format!("channels divisible by norm_num_groups {}", self.norm_num_groups), c.to_string()),
            None if self.block_out_channels.is_empty() => ("at least one level".into(), "[]".into()),
            None => return Ok(()),
        };
        Err(Error::Config { path: path.into(), key: "block_out_channels".into(), expected, got })
    }

    /// The settings in the published form.
    pub fn to_json(&self) -> Value {
        let levels = self.block_out_channels.len();
        json!({
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": self.block_out_channels,
            "down_block_types": vec!["DownEncoderBlock2D"; levels],
            "force_upcast": self.force_upcast,
            "in_channels": self.in_channels,
            "latent_channels": self.latent_channels,
            "latents_mean": null,
            "latents_std": null,
            "layers_per_block": self.layers_per_block,
            "mid_block_add_attention": self.mid_block_add_attention,
            "norm_num_groups": self.norm_num_groups,
            "out_channels": self.out_channels,
            "sample_size": self.sample_size,
            "scaling_factor": self.scaling_factor,
            "shift_factor": null,
            "up_block_types": vec!["UpDecoderBlock2D"; levels],
            "use_post_quant_conv": self.use_post_quant_conv,
            "use_quant_conv": self.use_quant_conv,
        })
    }

    /// The type in which it is computed where `kind` is wished: f32 for weights that overflow in f16.
    pub(super) fn computed_in(&self, kind: Kind) -> Kind {
        if self.force_upcast && kind == Kind::Half { Kind::Float } else { kind }
    }

    /// `f`: how many image pixels one latent pixel stands for, per side.
    pub fn downscale(&self) -> i64 {
        1 << (self.block_out_channels.len().max(1) - 1)
    }
}

// A component folder is named directly, or by the model directory around it.
pub(crate) fn component_dir(dir: &Path) -> PathBuf {
    if dir.join("vae").join("config.json").is_file() { dir.join("vae") } else { dir.to_path_buf() }
}
