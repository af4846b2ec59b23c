//! The architecture of a U-Net, read from a published `config.json`. Start of the flow: it decides which weights are asked for.
//!
//! This module and its two children are the only code that knows diffusers' field names, among them
//! `attention_head_dim`, which holds a number of heads. What comes out speaks of stages, parts and skips, so that the
//! layout, the network and the hand-crafted plans walk one and the same description.
//! Source of the settings' meaning: `UNet2DConditionModel` of diffusers 0.42.

mod fields;
mod topology;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::export::MID_DEPTH;
use fields::Fields;

pub use topology::{Part, Resnet, Sampler, Stage, StageKind, Transformer};

/// The sinusoidal time embedding and the width of the vector that conditions every ResNet.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TimeConfig {
    /// Numbers in the sinusoidal embedding of one timestep.
    pub channels: i64,
    /// Width `e` of the time vector that every ResNet projects.
    pub width: i64,
    /// Cosines before sines.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the half width in the frequencies' exponent.
    pub freq_shift: f64,
    /// Width `G` of the embedded guidance scale that models distilled for few steps take (`time_cond_proj_dim`).
    pub guidance: Option<i64>,
}

/// The embedding of pooled text and image sizes that SDXL adds to the time vector.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AddedConfig {
    /// Numbers in the sinusoidal embedding of one size.
    pub channels: i64,
    /// Width of pooled text and embedded sizes together.
    pub input: i64,
}

/// Everything that fixes a U-Net's parameters and arithmetic.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct UNetConfig {
    /// Channels of the noisy sample.
    pub in_channels: i64,
    /// Channels of the prediction.
    pub out_channels: i64,
    /// Height and width of the latents that the model was trained on, where the file says so.
    pub sample_size: Option<(i64, i64)>,
    /// Whether the sample is taken from 0..1 to -1..1 first.
    pub center_input_sample: bool,
    /// Kernel size of `conv_in`; odd.
    pub conv_in_kernel: i64,
    /// Kernel size of `conv_out`; odd.
    pub conv_out_kernel: i64,
    /// Groups of every group normalization.
    pub norm_num_groups: i64,
    /// Epsilon of the ResNets' and the last group normalization. Those of the transformers are fixed.
    pub norm_eps: f64,
    /// Whether a transformer's `proj_in` and `proj_out` are linear layers; 1x1 convolutions otherwise.
    pub use_linear_projection: bool,
    /// Whether attention is computed in f32 whatever the parameters' type.
    pub upcast_attention: bool,
    /// The time embedding.
    pub time: TimeConfig,
    /// Pooled text and sizes, where the model takes them.
    pub added: Option<AddedConfig>,
    /// Width of the text features.
    pub text_width: i64,
    /// Channels of the first level; `conv_in` makes them and `conv_out` takes them.
    pub base_channels: i64,
    /// All down stages, the mid stage if there is one, all up stages, in the order of the forward pass.
    pub stages: Vec<Stage>,
    /// The file's own content.
    json: Map<String, Value>,
}

impl UNetConfig {
    /// Reads the configuration of a model directory, of its `unet` folder, or the JSON file itself.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such file, otherwise as [`UNetConfig::parse`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let file = Self::locate(path.as_ref());
        let text = std::fs::read_to_string(&file).map_err(Error::io(&file))?;
        Self::parse(&text, &file)
    }

    fn locate(path: &Path) -> PathBuf {
        let inner = path.join("unet").join("config.json");
        if inner.is_file() {
            inner
        } else if path.is_dir() {
            path.join("config.json")
        } else {
            path.to_path_buf()
        }
    }

    /// Reads the text of a `config.json`; `path` is only named in errors.
    ///
    /// # Errors
    /// [`Error::Format`] when it is not JSON, [`Error::Config`] for a setting that is missing, contradictory, unknown,
    /// or known and not implemented.
    pub fn parse(text: &str, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json: Map<String, Value> = serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|e| Error::Format {
            path: path.into(),
            problem: format!("not a JSON object ({e})"),
            hint: "name the `config.json` of a U-Net in diffusers' layout".into(),
        })?;
        let f = Fields::new(&json, path)?;
        if f.is_null("norm_num_groups") {
            return Err(f.error("norm_num_groups", "a number of groups", "null"));
        }
        let channels = f.levels("block_out_channels")?;
        let base_channels = channels[0];
        let stages = topology::stages(&f, &channels)?;
        let added = match f.text("addition_embed_type")?.as_deref() {
            None => None,
            Some("text_time") => Some(AddedConfig {
                channels: f.positive("addition_time_embed_dim", None)?,
                input: f.positive("projection_class_embeddings_input_dim", None)?,
            }),
            Some(other) => return Err(f.error("addition_embed_type", "null or \"text_time\"", other)),
        };
        let config = Self {
            in_channels: f.positive("in_channels", Some(4))?,
            out_channels: f.positive("out_channels", Some(4))?,
            sample_size: f.size("sample_size")?,
            center_input_sample: f.flag("center_input_sample", false)?,
            conv_in_kernel: f.odd("conv_in_kernel", 3)?,
            conv_out_kernel: f.odd("conv_out_kernel", 3)?,
            norm_num_groups: f.positive("norm_num_groups", Some(32))?,
            norm_eps: f.number("norm_eps", 1e-5)?,
            use_linear_projection: f.flag("use_linear_projection", false)?,
            upcast_attention: f.flag("upcast_attention", false)?,
            time: TimeConfig {
                channels: base_channels,
                width: f.positive("time_embedding_dim", Some(4 * base_channels))?,
                flip_sin_to_cos: f.flag("flip_sin_to_cos", true)?,
                freq_shift: f.number("freq_shift", 0.0)?,
                guidance: f.guidance_width()?,
            },
            added,
            text_width: topology::text_width(&f, &stages, channels.len())?,
            base_channels,
            stages,
            json: json.clone(),
        };
        config.check_widths(&f)?;
        Ok(config)
    }

    // What would otherwise fail inside libtorch in the middle of a forward pass.
    fn check_widths(&self, f: &Fields) -> Result<()> {
        let groups = self.norm_num_groups;
        for width in self.stages.iter().flat_map(|s| &s.parts).flat_map(Part::normalized_widths).chain([self.base_channels]) {
            if width % groups != 0 {
                return Err(f.error(
                    "norm_num_groups",
                    "a divisor of every group-normalized width",
                    &format!("{groups}, which does not divide {width}"),
                ));
            }
        }
        if (self.time.channels / 2) as f64 == self.time.freq_shift {
            return Err(f.error("freq_shift", "less than half of block_out_channels[0]", &self.time.freq_shift.to_string()));
        }
        Ok(())
    }

    /// The configuration in diffusers' keys, as it was read.
    pub fn to_json(&self) -> Value {
        Value::Object(self.json.clone())
    }

    /// SHA-256 of the settings, ordered by key and without those that start with `_` and change no number.
    pub fn hash(&self) -> String {
        let ordered: BTreeMap<&String, &Value> = self.json.iter().filter(|(k, _)| !k.starts_with('_') || *k == MID_DEPTH).collect();
        let text = serde_json::to_string(&ordered).expect("JSON read from text can be written");
        artifact::sha256(text)
    }

    /// Stable Diffusion v1.5.
    pub fn sd15() -> Self {
        Self::built_in(include_str!("../../../configs/unet/sd15.json"))
    }

    /// Stable Diffusion v2.1 (768 px, v-prediction).
    pub fn sd21() -> Self {
        Self::built_in(include_str!("../../../configs/unet/sd21.json"))
    }

    /// Stable Diffusion XL base 1.0.
    pub fn sdxl() -> Self {
        Self::built_in(include_str!("../../../configs/unet/sdxl.json"))
    }

    fn built_in(text: &str) -> Self {
        Self::parse(text, "built-in configuration").expect("the built-in configurations are tested")
    }

    /// Factor between the sample's size and that of the lowest level.
    pub fn down_factor(&self) -> i64 {
        1 << self.stages.iter().filter(|s| s.kind == StageKind::Down && s.sampler.is_some()).count()
    }
}
