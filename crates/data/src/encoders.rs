//! The networks that encode images and captions, which sizes they take, and how an image file becomes one of them.
//! Model directory -> **encoders** -> calibration set, latent cache, training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use artifact::file_sha256;
use diffusion::images::{self, Size, aspect_sizes, fit, nearest_size};
use diffusion::{AutoencoderKl, ModelDir, ModelRef, TextEncoders, TimeIds, VaeConfig, native_size};
use image::RgbImage;
use tch::{Device, Kind};
use unet::UNetConfig;

use crate::error::{Error, Result};

/// Side in pixels of the images of a model that does not say.
const USUAL_SIZE: (i64, i64) = (512, 512);

/// A model's autoencoder and text encoders, without its U-Net, which is by far the largest part.
#[derive(Debug)]
pub struct Encoders {
    dir: ModelDir,
    unet: UNetConfig,
    vae: AutoencoderKl,
    text: TextEncoders,
    device: Device,
}

impl Encoders {
    /// Those of `model`, a model directory or a whole checkpoint, in `kind` on `device`.
    ///
    /// # Errors
    /// [`Error::Diffusion`] and [`Error::Unet`] for what is missing or does not fit.
    pub fn open(model: impl Into<ModelRef>, device: Device, kind: Kind) -> Result<Self> {
        let dir = ModelDir::open(model, None)?;
        let unet = unet::architecture(dir.unet())?;
        let (vae, text) = (dir.vae(device, kind)?, dir.text_encoders(device, kind)?);
        Ok(Self { dir, unet, vae, text, device })
    }

    /// The model directory.
    pub fn dir(&self) -> &ModelDir {
        &self.dir
    }

    /// The autoencoder.
    pub fn vae(&self) -> &AutoencoderKl {
        &self.vae
    }

    /// The text encoders.
    pub fn text(&self) -> &TextEncoders {
        &self.text
    }

    /// Where they compute.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Height and width of the model's own images.
    pub fn native_size(&self) -> (i64, i64) {
        native_size(&self.unet, self.vae.config()).unwrap_or(USUAL_SIZE)
    }

    /// As [`bucket_sizes`].
    ///
    /// # Errors
    /// As [`bucket_sizes`].
    pub fn buckets(&self, size: Option<i64>, step: Option<i64>) -> Result<Buckets> {
        bucket_sizes(size, step, &self.unet, self.vae.config())
    }
}

/// Sizes that images are cut to: all of about the same area, in many proportions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    /// Side in pixels of the square that every bucket has the area of.
    pub size: i64,
    /// What sides are multiples of.
    pub step: i64,
    /// Heights and widths.
    pub sizes: Vec<Size>,
}

/// Buckets of the area of a square of side `size`, sides being multiples of `step`. By default the model's own size, and 64 from 512
/// pixels on, else the least that the model takes.
///
/// # Errors
/// [`Error::Input`] for sides that the model does not take.
pub fn bucket_sizes(size: Option<i64>, step: Option<i64>, unet: &UNetConfig, vae: &VaeConfig) -> Result<Buckets> {
    let multiple = vae.downscale() * unet.down_factor();
    let native = unet.sample_size.map_or(USUAL_SIZE.0, |(h, w)| h.min(w) * vae.downscale());
    let size = size.unwrap_or(native);
    let step = step.unwrap_or(if size >= 512 { 64 } else { multiple });
    if size <= 0 || step <= 0 || step % multiple != 0 || size % step != 0 {
        let expected = format!("a multiple of the step, which is a multiple of {multiple}");
        return Err(Error::Input { name: "size".into(), expected, got: format!("{size} with a step of {step}") });
    }
    Ok(Buckets { size, step, sizes: aspect_sizes(size, step) })
}

/// An image file's middle, in the size of the bucket with the nearest proportions; or what is wrong with it.
pub(crate) fn decode(bytes: &[u8], buckets: &[Size]) -> std::result::Result<(RgbImage, TimeIds), String> {
    let whole = images::decode(bytes).map_err(|e| e.to_string())?;
    let (w, h) = whole.dimensions();
    let (height, width) = nearest_size(buckets, h, w).map(|i| buckets[i]).ok_or("there is no bucket")?;
    let cut = fit(&whole, width as u32, height as u32).map_err(|e| e.to_string())?;
    Ok((cut, TimeIds::cropped((h.into(), w.into()), (height, width))))
}

/// Hashes of everything that decides what an image and its caption are encoded to: file name in the model directory -> SHA-256.
///
/// # Errors
/// When a file is missing or cannot be read.
pub fn encoder_identity(dir: &ModelDir) -> Result<BTreeMap<String, String>> {
    let hashed = |file: PathBuf| {
        let name = file.strip_prefix(dir.root()).ok().filter(|name| !name.as_os_str().is_empty());
        let name = name.or_else(|| file.file_name().map(Path::new)).unwrap_or(&file);
        Ok((name.display().to_string(), file_sha256(&file)?))
    };
    dir.encoder_files()?.into_iter().map(hashed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_have_the_area_and_the_proportions() {
        let all = aspect_sizes(1024, 64);
        assert!(all.contains(&(1024, 1024)) && all.contains(&(768, 1344)) && all.contains(&(1344, 768)));
        for &(h, w) in &all {
            assert!(h % 64 == 0 && w % 64 == 0 && h <= 2 * w && w <= 2 * h && h * w <= 1024 * 1024 && h * w > 900 * 1024, "{h} x {w}");
        }
        let nearest = |h, w| all[nearest_size(&all, h, w).unwrap()];
        assert_eq!(nearest(3000, 3001), (1024, 1024));
        assert_eq!(nearest(768, 1344), (768, 1344));
        // Far beyond the longest, the longest.
        assert_eq!(nearest(100, 1000), nearest(100, 5000));
    }

    #[test]
    fn crops_are_told_at_the_scale_of_the_result() {
        // 400 x 200 covers 100 x 100 at half its size: 200 x 100, and 50 rows are cut off above.
        let told = TimeIds::cropped((400, 200), (100, 100));
        assert_eq!((told.original_size, told.crop_top_left, told.target_size), ((400, 200), (50, 0), (100, 100)));
    }
}
