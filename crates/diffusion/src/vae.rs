//! The KL autoencoder between pictures and latents (picture -> latents before calibration and training, latents -> picture after sampling).
//!
//! Same keys, settings and arithmetic as diffusers' `AutoencoderKL` (Rombach et al., arXiv 2112.10752).
//! Shapes: `B` batch, `C` picture channels, `L` latent channels, `H` `W` height and width, `f` the downscale factor 2^(levels - 1).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unet::nn::{Conv2d, GroupNorm, Linear, attention};
use unet::weights::{Cursor, Tensors, Weights, component_files, save_tensors};

use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::files::write_json;

const EPS: f64 = 1e-6;

/// The settings of an autoencoder, with the names of the published config.json.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of the picture that is encoded.
    pub in_channels: i64,
    /// Channels of the picture that is decoded.
    pub out_channels: i64,
    /// Channels of each level, finest first.
    pub block_out_channels: Vec<i64>,
    /// ResNets per encoder level; a decoder level has one more.
    pub layers_per_block: i64,
    /// Channels of a latent.
    pub latent_channels: i64,
    /// Groups of every group normalization.
    pub norm_num_groups: i64,
    /// Side of the training pictures in pixels.
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

    fn read(f: &Fields) -> Result<Self> {
        let class = f.text("_class_name", "AutoencoderKL")?;
        if class != "AutoencoderKL" {
            return Err(f.wrong("_class_name", "`AutoencoderKL`"));
        }
        let config = Self {
            in_channels: f.int("in_channels", 3, 1)?,
            out_channels: f.int("out_channels", 3, 1)?,
            block_out_channels: f.ints("block_out_channels", &[64])?,
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
            if f.get(key).is_some() {
                return Err(f.wrong(key, "null (latents that are shifted are not implemented)"));
            }
        }
        if !matches!(f.text("act_fn", "silu")?.as_str(), "silu" | "swish") {
            return Err(f.wrong("act_fn", "`silu`"));
        }
        for (key, block) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let types = f.texts(key)?.unwrap_or_else(|| vec![block.into()]);
            if types.len() != config.block_out_channels.len() || types.iter().any(|t| t != block) {
                return Err(f.wrong(key, format!("`{block}` {} times, once per level", config.block_out_channels.len())));
            }
        }
        config.check(f.path())?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
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

    /// `f`: how many picture pixels one latent pixel stands for, per side.
    pub fn downscale(&self) -> i64 {
        1 << (self.block_out_channels.len().max(1) - 1)
    }
}

// A component folder is named directly, or by the model directory around it.
fn component_dir(dir: &Path) -> std::path::PathBuf {
    if dir.join("vae").join("config.json").is_file() { dir.join("vae") } else { dir.to_path_buf() }
}

/// The encoder's answer: a normal distribution per latent value. Both tensors are `[B, L, H/f, W/f]`, not scaled by `scaling_factor`.
#[derive(Debug)]
pub struct Moments {
    /// The mean.
    pub mean: Tensor,
    /// The logarithm of the variance, held between -30 and 20.
    pub logvar: Tensor,
}

impl Moments {
    /// `mean + std * noise` with `noise` from N(0, 1) of the mean's shape.
    pub fn sample(&self, noise: &Tensor) -> Tensor {
        &self.mean + (&self.logvar * 0.5).exp() * noise
    }

    /// KL divergence from N(0, 1), summed over each latent: `[B]`.
    pub fn kl(&self) -> Tensor {
        let terms = self.mean.square() + self.logvar.exp() - 1.0 - &self.logvar;
        terms.sum_dim_intlist([1i64, 2, 3].as_slice(), false, None::<Kind>) * 0.5
    }
}

// norm -> silu -> conv, twice, around a skip that is a 1x1 convolution when the widths differ.
#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    fn new(at: &Cursor, groups: i64, c_in: i64, c_out: i64) -> Self {
        Self {
            norm1: GroupNorm::new(&at.pp("norm1"), groups, c_in, EPS),
            conv1: Conv2d::same3(&at.pp("conv1"), c_in, c_out),
            norm2: GroupNorm::new(&at.pp("norm2"), groups, c_out, EPS),
            conv2: Conv2d::same3(&at.pp("conv2"), c_out, c_out),
            conv_shortcut: (c_in != c_out).then(|| Conv2d::point(&at.pp("conv_shortcut"), c_in, c_out)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.conv1.forward(&self.norm1.forward(x).silu());
        let h = self.conv2.forward(&self.norm2.forward(&h).silu());
        match &self.conv_shortcut {
            Some(conv) => conv.forward(x) + h,
            None => x + h,
        }
    }
}

// Single-head self-attention over all pixels.
#[derive(Debug)]
struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

// Names of the projections before diffusers 0.14 and today's; checkpoints such as SD-v1.5's still use the old ones.
const RENAMED: [(&str, &str); 4] = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];

impl PixelAttention {
    fn new(at: &Cursor, groups: i64, channels: i64) -> Self {
        let old = !at.has("to_q.weight") && at.has("query.weight");
        let linear = |n: usize| {
            let (before, now) = RENAMED[n];
            let at = if old { at.pp(before) } else { at.pp(now) };
            Linear::new(&at, channels, channels, true)
        };
        Self {
            group_norm: GroupNorm::new(&at.pp("group_norm"), groups, channels, EPS),
            to_q: linear(0),
            to_k: linear(1),
            to_v: linear(2),
            to_out: linear(3),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        // [B, C, H, W] -> [B, H W, C]
        let h = self.group_norm.forward(x).flatten(2, 3).transpose(1, 2).contiguous();
        let h = attention(&self.to_q.forward(&h), &self.to_k.forward(&h), &self.to_v.forward(&h), 1, false);
        // [B, H W, C] -> [B, C, H, W]
        x + self.to_out.forward(&h).transpose(1, 2).reshape(x.size())
    }
}

#[derive(Debug)]
struct MidBlock {
    first: Resnet,
    attention: Option<PixelAttention>,
    second: Resnet,
}

impl MidBlock {
    fn new(at: &Cursor, config: &VaeConfig, channels: i64) -> Self {
        let groups = config.norm_num_groups;
        let resnets = at.pp("resnets");
        Self {
            first: Resnet::new(&resnets.pp(0), groups, channels, channels),
            attention: config.mid_block_add_attention.then(|| PixelAttention::new(&at.pp("attentions").pp(0), groups, channels)),
            second: Resnet::new(&resnets.pp(1), groups, channels, channels),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.first.forward(x);
        if let Some(attention) = &self.attention {
            x = attention.forward(&x);
        }
        self.second.forward(&x)
    }
}

// One level of either half: ResNets, then a change of resolution except at the last level.
#[derive(Debug)]
struct Level {
    resnets: Vec<Resnet>,
    resample: Option<Conv2d>,
}

#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<Level>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(at: &Cursor, config: &VaeConfig, widest: i64) -> Self {
        let groups = config.norm_num_groups;
        let mut c_in = config.block_out_channels[0];
        let conv_in = Conv2d::same3(&at.pp("conv_in"), config.in_channels, c_in);
        let last = config.block_out_channels.len() - 1;
        let mut down_blocks = Vec::new();
        for (i, &c_out) in config.block_out_channels.iter().enumerate() {
            let at = at.pp("down_blocks").pp(i);
            let mut resnets = Vec::new();
            for n in 0..config.layers_per_block {
                resnets.push(Resnet::new(&at.pp("resnets").pp(n), groups, c_in, c_out));
                c_in = c_out;
            }
            // Padding is added by hand in `forward`, on the right and at the bottom only.
            let resample = (i != last).then(|| Conv2d::new(&at.pp("downsamplers").pp(0).pp("conv"), c_out, c_out, 3, 2, 0));
            down_blocks.push(Level { resnets, resample });
        }
        Self {
            conv_in,
            down_blocks,
            mid_block: MidBlock::new(&at.pp("mid_block"), config, widest),
            conv_norm_out: GroupNorm::new(&at.pp("conv_norm_out"), groups, widest, EPS),
            conv_out: Conv2d::same3(&at.pp("conv_out"), widest, 2 * config.latent_channels),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.conv_in.forward(x);
        for level in &self.down_blocks {
            for resnet in &level.resnets {
                x = resnet.forward(&x);
            }
            if let Some(conv) = &level.resample {
                x = conv.forward(&x.constant_pad_nd([0, 1, 0, 1]));
            }
        }
        let x = self.mid_block.forward(&x);
        self.conv_out.forward(&self.conv_norm_out.forward(&x).silu())
    }
}

#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(at: &Cursor, config: &VaeConfig, widest: i64) -> Self {
        let groups = config.norm_num_groups;
        let last = config.block_out_channels.len() - 1;
        let mut c_in = widest;
        let mut up_blocks = Vec::new();
        for (i, &c_out) in config.block_out_channels.iter().rev().enumerate() {
            let at = at.pp("up_blocks").pp(i);
            let mut resnets = Vec::new();
            for n in 0..=config.layers_per_block {
                resnets.push(Resnet::new(&at.pp("resnets").pp(n), groups, c_in, c_out));
                c_in = c_out;
            }
            let resample = (i != last).then(|| Conv2d::same3(&at.pp("upsamplers").pp(0).pp("conv"), c_out, c_out));
            up_blocks.push(Level { resnets, resample });
        }
        Self {
            conv_in: Conv2d::same3(&at.pp("conv_in"), config.latent_channels, widest),
            mid_block: MidBlock::new(&at.pp("mid_block"), config, widest),
            up_blocks,
            conv_norm_out: GroupNorm::new(&at.pp("conv_norm_out"), groups, c_in, EPS),
            conv_out: Conv2d::same3(&at.pp("conv_out"), c_in, config.out_channels),
        }
    }

    fn forward(&self, z: &Tensor) -> Tensor {
        let mut x = self.mid_block.forward(&self.conv_in.forward(z));
        for level in &self.up_blocks {
            for resnet in &level.resnets {
                x = resnet.forward(&x);
            }
            if let Some(conv) = &level.resample {
                let (h, w) = (x.size()[2], x.size()[3]);
                x = conv.forward(&x.upsample_nearest2d([2 * h, 2 * w], None, None));
            }
        }
        self.conv_out.forward(&self.conv_norm_out.forward(&x).silu())
    }
}

/// The autoencoder.
#[derive(Debug)]
pub struct AutoencoderKl {
    config: VaeConfig,
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    parameters: Tensors,
}

impl AutoencoderKl {
    /// Builds the network from the parameters at `at`. What does not fit is reported by [`Weights::finish`], and
    /// [`AutoencoderKl::parameters`] is empty until then: see [`AutoencoderKl::from_weights`].
    ///
    /// # Errors
    /// [`Error::Config`] for impossible settings.
    pub fn build(config: &VaeConfig, at: &Cursor) -> Result<Self> {
        config.check(Path::new("autoencoder"))?;
        let widest = *config.block_out_channels.last().expect("checked: at least one level");
        let latent = config.latent_channels;
        Ok(Self {
            encoder: Encoder::new(&at.pp("encoder"), config, widest),
            quant_conv: config.use_quant_conv.then(|| Conv2d::point(&at.pp("quant_conv"), 2 * latent, 2 * latent)),
            post_quant_conv: config.use_post_quant_conv.then(|| Conv2d::point(&at.pp("post_quant_conv"), latent, latent)),
            decoder: Decoder::new(&at.pp("decoder"), config, widest),
            config: config.clone(),
            parameters: Tensors::new(),
        })
    }

    /// Builds the network from `weights`, all of which must be used.
    ///
    /// # Errors
    /// [`Error::Config`] for impossible settings, [`unet::Error::Weights`] when the weights do not fit.
    pub fn from_weights(config: &VaeConfig, weights: Weights) -> Result<Self> {
        let mut vae = Self::build(config, &weights.root())?;
        let (taken, _) = weights.finish()?;
        vae.parameters = taken.into_iter().map(|(key, t)| (modern(&key), t)).collect();
        Ok(vae)
    }

    /// Opens a model directory or its `vae/` folder. With `force_upcast` a wish for f16 is answered by f32, as diffusers does.
    ///
    /// # Errors
    /// As [`VaeConfig::open`] and [`AutoencoderKl::from_weights`].
    pub fn open(dir: impl AsRef<Path>, device: Device, kind: Kind) -> Result<Self> {
        let dir = component_dir(dir.as_ref());
        let config = VaeConfig::open(&dir)?;
        let kind = if config.force_upcast && kind == Kind::Half { Kind::Float } else { kind };
        let weights = Weights::open(&component_files(&dir, "diffusion_pytorch_model")?, device, kind)?;
        Self::from_weights(&config, weights)
    }

    /// A network with fresh parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for impossible settings.
    pub fn random(config: &VaeConfig, seed: u64, device: Device, kind: Kind) -> Result<Self> {
        Self::from_weights(config, Weights::random(seed, device, kind))
    }

    /// The settings.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Every parameter by its key: the very tensors that the network holds.
    pub fn parameters(&self) -> &Tensors {
        &self.parameters
    }

    // With parameters of another type than the input's (an upcast f16 file, say) the parameters' type wins.
    fn cast(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_to_kind(self.parameters.values().next().map_or(x.kind(), Tensor::kind))?)
    }

    /// Encodes pictures `x [B, C, H, W]` with values in -1..1.
    ///
    /// # Errors
    /// [`Error::Input`] for another shape, or for sides smaller than `f`.
    pub fn encode(&self, x: &Tensor) -> Result<Moments> {
        check_picture("x", x, self.config.in_channels, self.config.downscale())?;
        let h = self.encoder.forward(&self.cast(x)?);
        let h = match &self.quant_conv {
            Some(conv) => conv.forward(&h),
            None => h,
        };
        let l = self.config.latent_channels;
        Ok(Moments { mean: h.f_narrow(1, 0, l)?, logvar: h.f_narrow(1, l, l)?.f_clamp(-30.0, 20.0)? })
    }

    /// Decodes latents `z [B, L, h, w]`, not scaled, to pictures `[B, C, f h, f w]` with values around -1..1 (not clamped).
    ///
    /// # Errors
    /// [`Error::Input`] for another shape.
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        check_picture("z", z, self.config.latent_channels, 1)?;
        let z = self.cast(z)?;
        Ok(match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(&conv.forward(&z)),
            None => self.decoder.forward(&z),
        })
    }

    /// Writes `dir/config.json` and `dir/diffusion_pytorch_model.safetensors`, stored as `kind` when it is given.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>, kind: Option<Kind>) -> Result<()> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        save_tensors(dir.join("diffusion_pytorch_model.safetensors"), &self.parameters, &metadata, kind)?;
        write_json(&dir.join("config.json"), &self.config.to_json())
    }
}

// `encoder.mid_block.attentions.0.query.weight` -> `encoder.mid_block.attentions.0.to_q.weight`
fn modern(key: &str) -> String {
    for (before, now) in RENAMED {
        for leaf in ["weight", "bias"] {
            if let Some(at) = key.strip_suffix(&format!(".attentions.0.{before}.{leaf}")) {
                return format!("{at}.attentions.0.{now}.{leaf}");
            }
        }
    }
    key.to_string()
}

fn check_picture(name: &str, x: &Tensor, channels: i64, least: i64) -> Result<()> {
    match x.size()[..] {
        [b, c, h, w] if b > 0 && c == channels && h >= least && w >= least => Ok(()),
        ref got => Err(Error::Input {
            name: name.into(),
            expected: format!("[batch, {channels}, height, width] with sides of at least {least}"),
            got: format!("{got:?}"),
        }),
    }
}
