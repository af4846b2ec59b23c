//! The KL autoencoder between images and latents (image -> latents before calibration and training, latents -> image after sampling).
//!
//! Same keys, settings and arithmetic as diffusers' `AutoencoderKL` (Rombach et al., arXiv 2112.10752).
//! Shapes: `B` batch, `C` image channels, `L` latent channels, `H` `W` height and width, `f` the downscale factor 2^(levels - 1).

mod blocks;
mod config;
mod tiles;

use std::collections::BTreeMap;
use std::path::Path;

use artifact::Fields;
use tch::{Device, Kind, Tensor};
use unet::nn::Conv2d;
use unet::weights::{Cursor, TensorFile, Tensors, Weights, component_files, save_tensors};

use self::blocks::{Decoder, Encoder, RENAMED};
pub use self::config::VaeConfig;
pub(crate) use self::config::component_dir;
pub use self::tiles::DecodeParts;
use crate::clip::pass_over;
use crate::error::{Error, Result};

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

    /// Opens a model directory or its `vae/` folder. Tensors that are no autoencoder's are passed over. With `force_upcast` a wish for f16 is answered by f32, as diffusers does.
    ///
    /// # Errors
    /// As [`VaeConfig::open`] and [`AutoencoderKl::from_weights`].
    pub fn open(dir: impl AsRef<Path>, device: Device, kind: Kind) -> Result<Self> {
        let dir = component_dir(dir.as_ref());
        let mut config = VaeConfig::open(&dir)?;
        let weights = Weights::open(&component_files(&dir, "diffusion_pytorch_model")?, device, config.computed_in(kind))?;
        // Files from before these settings say nothing; then the weights say whether there are such convolutions.
        let settings = Fields::open(&dir.join("config.json"))?;
        let untold = |key: &str, part: &str| settings.get(key).is_none() && !weights.root().pp(part).has("weight");
        config.use_quant_conv &= !untold("use_quant_conv", "quant_conv");
        config.use_post_quant_conv &= !untold("use_post_quant_conv", "post_quant_conv");
        let parts = [
            ("encoder.", true),
            ("decoder.", true),
            ("quant_conv.", config.use_quant_conv),
            ("post_quant_conv.", config.use_post_quant_conv),
        ];
        pass_over(&weights, &dir, "an autoencoder", |key| !parts.iter().any(|(part, used)| *used && key.starts_with(part)));
        Self::from_weights(&config, weights)
    }

    /// As [`AutoencoderKl::open`], from the tensors of an opened file.
    pub(crate) fn from_file(config: &VaeConfig, file: TensorFile, device: Device, kind: Kind) -> Result<Self> {
        Self::from_weights(config, Weights::from_file(file, device, config.computed_in(kind)))
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

    /// The type in which it is computed.
    pub fn kind(&self) -> Kind {
        self.parameters.values().next().map_or(Kind::Float, Tensor::kind)
    }

    // With parameters of another type than the input's (an upcast f16 file, say) the parameters' type wins.
    fn cast(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_to_kind(self.parameters.values().next().map_or(x.kind(), Tensor::kind))?)
    }

    /// Encodes images `x [B, C, H, W]` with values in -1..1.
    ///
    /// # Errors
    /// [`Error::Input`] for another shape, or for sides smaller than `f`.
    pub fn encode(&self, x: &Tensor) -> Result<Moments> {
        check_image("x", x, self.config.in_channels, self.config.downscale())?;
        let h = self.encoder.forward(&self.cast(x)?);
        let h = match &self.quant_conv {
            Some(conv) => conv.forward(&h),
            None => h,
        };
        let l = self.config.latent_channels;
        Ok(Moments { mean: h.f_narrow(1, 0, l)?, logvar: h.f_narrow(1, l, l)?.f_clamp(-30.0, 20.0)? })
    }

    /// Decodes latents `z [B, L, h, w]`, not scaled, to images `[B, C, f h, f w]` with values around -1..1 (not clamped).
    ///
    /// # Errors
    /// [`Error::Input`] for another shape.
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        check_image("z", z, self.config.latent_channels, 1)?;
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
        Ok(artifact::write_config(&dir.join("config.json"), &self.config.to_json())?)
    }
}

// `encoder.mid_block.attentions.0.query.weight` -> `encoder.mid_block.attentions.0.to_q.weight`
pub(crate) fn modern(key: &str) -> String {
    for (before, now) in RENAMED {
        for leaf in ["weight", "bias"] {
            if let Some(at) = key.strip_suffix(&format!(".attentions.0.{before}.{leaf}")) {
                return format!("{at}.attentions.0.{now}.{leaf}");
            }
        }
    }
    key.to_string()
}

fn check_image(name: &str, x: &Tensor, channels: i64, least: i64) -> Result<()> {
    match x.size()[..] {
        [b, c, h, w] if b > 0 && c == channels && h >= least && w >= least => Ok(()),
        ref got => Err(Error::Input {
            name: name.into(),
            expected: format!("[batch, {channels}, height, width] with sides of at least {least}"),
            got: format!("{got:?}"),
        }),
    }
}
