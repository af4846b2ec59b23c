//! Latents -> images, the last step of generation: the VAE decoder with a guard against numbers that its type cannot hold.

use std::cell::OnceCell;

use image::RgbImage;
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::images::{from_tensor, is_finite};
use crate::model_dir::ModelDir;
use crate::vae::{AutoencoderKl, DecodeParts};

/// A VAE, and where it comes from should it be needed in f32.
#[derive(Debug)]
pub(crate) struct ImageDecoder {
    vae: AutoencoderKl,
    // Opened when the first image overflows.
    wide: OnceCell<AutoencoderKl>,
    dir: ModelDir,
    device: Device,
}

impl ImageDecoder {
    /// Opens the model's VAE; one whose weights are known to overflow in f16 (`force_upcast`) is computed in f32.
    pub(crate) fn open(dir: &ModelDir, device: Device, kind: Kind) -> Result<Self> {
        Ok(Self { vae: dir.vae(device, kind)?, wide: OnceCell::new(), dir: dir.clone(), device })
    }

    pub(crate) fn vae(&self) -> &AutoencoderKl {
        &self.vae
    }

    /// Latents at the U-Net's scale `[B, L, h, w]` -> images. What is not finite in f16 or bf16 is decoded again in f32, as
    /// the VAE of the first SDXL needs it.
    pub(crate) fn images(&self, latents: &Tensor, parts: DecodeParts) -> Result<Vec<RgbImage>> {
        let _no_grad = tch::no_grad_guard();
        let z = latents.f_to_device(self.device)?.f_to_kind(Kind::Float)? / self.vae.config().scaling_factor;
        let x = self.vae.decode_in_parts(&z, parts)?;
        // Latents that are themselves not finite would not be better in f32.
        if self.vae.kind() == Kind::Float || is_finite(&x)? || !is_finite(&z)? {
            return from_tensor(&x);
        }
        tracing::warn!("{}: not finite in {:?}, decoded again in f32", self.dir.root().display(), self.vae.kind());
        from_tensor(&self.wide()?.decode_in_parts(&z, parts)?)
    }

    fn wide(&self) -> Result<&AutoencoderKl> {
        match self.wide.get() {
            Some(vae) => Ok(vae),
            None => {
                let vae = self.dir.vae(self.device, Kind::Float)?;
                Ok(self.wide.get_or_init(|| vae))
            }
        }
    }
}
