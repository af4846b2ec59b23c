//! From RGB images to the normalized pixels that the CLIP image tower expects (images -> evaluation), as preprocessor_config.json says.

use std::path::Path;

use artifact::{Fields, warn_once};
use image::{RgbImage, imageops};
use rayon::prelude::*;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::config::ClipConfig;
use super::model::clip_dir;
use crate::error::{Error, Result};
use crate::resample::{Filter, resize};

/// How a resized image becomes a square: where the middle one lies when an odd number of pixels is left over, or whether it is padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipCrop {
    /// The half pixel is dropped: transformers' image processors.
    Down,
    /// Half pixels go to the even neighbour: torchvision's `CenterCrop`, which OpenAI's, OpenCLIP's and ImageReward's code use.
    HalfToEven,
    /// Nothing is cut: the longer side is resized, on floating numbers by torch's bicubic filter with antialiasing, and black fills the
    /// rest. So does HPSv2's own code.
    Padded,
}

impl ClipCrop {
    fn start(self, left_over: u32) -> u32 {
        match self {
            Self::HalfToEven if left_over % 4 == 3 => left_over / 2 + 1,
            _ => left_over / 2,
        }
    }
}

/// How an image becomes the image tower's input.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipPreprocess {
    /// The shorter side is resized to this.
    pub shortest_edge: u32,
    /// Then the middle square of this side is taken.
    pub crop_size: u32,
    /// Where exactly that square lies.
    pub crop: ClipCrop,
    /// Mean of each channel, of values in 0..1.
    pub image_mean: [f64; 3],
    /// Standard deviation of each channel, of values in 0..1.
    pub image_std: [f64; 3],
}

/// The statistics of OpenAI's CLIP training images.
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

impl ClipPreprocess {
    /// OpenAI's normalization for square inputs of `size` pixels.
    pub fn new(size: u32) -> Self {
        Self { shortest_edge: size, crop_size: size, crop: ClipCrop::Down, image_mean: MEAN, image_std: STD }
    }

    /// Reads `preprocessor_config.json` in a CLIP folder, or in the `clip/` folder of a model directory. A folder of weights alone is taken for
    /// one that wants OpenAI's normalization at its own size.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], or [`Error::Config`] for a setting that is not implemented.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = clip_dir(dir.as_ref());
        let path = dir.join("preprocessor_config.json");
        if !path.is_file() && dir.join("config.json").is_file() {
            let size = ClipConfig::open(&dir)?.vision.image_size;
            warn_once(format!("{}: no such file; images become {size} x {size} pixels as OpenAI's CLIP takes them", path.display()));
            return Ok(Self::new(u32::try_from(size).unwrap_or(224)));
        }
        let f = Fields::open(&path)?;
        for key in ["do_resize", "do_center_crop", "do_rescale", "do_normalize"] {
            if !f.flag(key, true)? {
                return Err(f.wrong(key, "true").into());
            }
        }
        if f.int("resample", 3, 0)? != 3 {
            return Err(f.wrong("resample", "3 (bicubic)").into());
        }
        if (f.float("rescale_factor", 1.0 / 255.0)? * 255.0 - 1.0).abs() > 1e-6 {
            return Err(f.wrong("rescale_factor", "1/255").into());
        }
        // A side is a number in old files, an object in newer ones.
        let side = |key: &str, names: [&str; 2]| -> Result<u32> {
            let Some(value) = f.get(key) else { return Ok(224) };
            let sides = match value {
                Value::Object(map) => names.map(|n| map.get(n).and_then(Value::as_u64)),
                number => [number.as_u64(); 2],
            };
            match sides {
                [Some(a), Some(b)] if a == b && a > 0 => u32::try_from(a).map_err(|_| f.wrong(key, "a side in pixels").into()),
                _ => Err(f.wrong(key, format!("a number of pixels, or `{}` and `{}` of the same size", names[0], names[1])).into()),
            }
        };
        let read = Self {
            shortest_edge: side("size", ["shortest_edge"; 2])?,
            crop_size: side("crop_size", ["height", "width"])?,
            crop: ClipCrop::Down,
            image_mean: f.floats("image_mean")?.unwrap_or(MEAN),
            image_std: f.floats("image_std")?.unwrap_or(STD),
        };
        if read.crop_size > read.shortest_edge {
            return Err(f.wrong("crop_size", format!("at most the resized side {}", read.shortest_edge)).into());
        }
        Ok(read)
    }

    /// Writes `dir/preprocessor_config.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let config = json!({
            "crop_size": {"height": self.crop_size, "width": self.crop_size},
            "do_center_crop": true,
            "do_convert_rgb": true,
            "do_normalize": true,
            "do_rescale": true,
            "do_resize": true,
            "image_mean": self.image_mean,
            "image_processor_type": "CLIPImageProcessor",
            "image_std": self.image_std,
            "resample": 3,
            "rescale_factor": 1.0 / 255.0,
            "size": {"shortest_edge": self.shortest_edge},
        });
        Ok(artifact::write_config(&dir.as_ref().join("preprocessor_config.json"), &config)?)
    }

    /// Images of any size -> normalized pixels `[B, 3, crop_size, crop_size]` in f32 on the CPU. An image that has the
    /// right size already is not resampled; others are resized by Pillow's bicubic filter and cropped, in parallel.
    ///
    /// # Errors
    /// [`Error::Input`] for no image or an empty one.
    pub fn pixels(&self, images: &[&RgbImage]) -> Result<Tensor> {
        if self.crop == ClipCrop::Padded {
            let padded = images.par_iter().map(|image| self.pad(image)).collect::<Result<Vec<_>>>()?;
            if padded.is_empty() {
                return Err(Error::Input { name: "images".into(), expected: "at least one".into(), got: "none".into() });
            }
            return self.normalize(&Tensor::f_cat(&padded, 0)?);
        }
        let fitted = images.par_iter().map(|image| self.fit(image)).collect::<Result<Vec<_>>>()?;
        let bytes = fitted.iter().map(|image| image.as_raw().as_slice()).collect::<Vec<_>>().concat();
        let (b, side) = (images.len() as i64, i64::from(self.crop_size));
        if b == 0 {
            return Err(Error::Input { name: "images".into(), expected: "at least one".into(), got: "none".into() });
        }
        // [B, S, S, 3] -> [B, 3, S, S]
        let x = Tensor::f_from_slice(&bytes)?.f_view([b, side, side, 3])?.f_permute([0, 3, 1, 2])?;
        self.normalize(&(x.f_to_kind(Kind::Float)? / 255.0))
    }

    /// Values in 0..1 `[B, 3, H, W]` -> normalized pixels of the same shape.
    ///
    /// # Errors
    /// [`Error::Torch`] for another number of channels.
    pub fn normalize(&self, x: &Tensor) -> Result<Tensor> {
        let rgb = |v: [f64; 3]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(&v)?.f_to_kind(x.kind())?.f_to_device(x.device())?.f_view([1, 3, 1, 1])?)
        };
        Ok(x.f_sub(&rgb(self.image_mean)?)?.f_div(&rgb(self.image_std)?)?)
    }

    /// Values in 0..1 `[1, 3, crop_size, crop_size]`.
    fn pad(&self, image: &RgbImage) -> Result<Tensor> {
        let (w, h) = (i64::from(image.width()), i64::from(image.height()));
        if w == 0 || h == 0 {
            return Err(Error::Input { name: "image".into(), expected: "at least one pixel".into(), got: format!("{w} x {h}") });
        }
        // [H, W, 3] -> [1, 3, H, W]
        let x = Tensor::f_from_slice(image.as_raw())?.f_view([1, h, w, 3])?.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)? / 255.0;
        let side = i64::from(self.crop_size);
        if w.max(h) == side && w == h {
            return Ok(x);
        }
        let scaled = |n: i64| ((n * side) as f64 / w.max(h) as f64).round_ties_even() as i64;
        let (wide, high) = (scaled(w).max(1), scaled(h).max(1));
        let x = x.f_contiguous()?.f_internal_upsample_bicubic2d_aa([high, wide], false, None::<f64>, None::<f64>)?;
        let (left, top) = ((side - wide) / 2, (side - high) / 2);
        Ok(x.f_constant_pad_nd([left, side - wide - left, top, side - high - top])?)
    }

    fn fit(&self, image: &RgbImage) -> Result<RgbImage> {
        let (w, h) = image.dimensions();
        if w == 0 || h == 0 {
            return Err(Error::Input { name: "image".into(), expected: "at least one pixel".into(), got: format!("{w} x {h}") });
        }
        let (short, edge, crop) = (w.min(h), self.shortest_edge, self.crop_size);
        let scaled = |side: u32| (u64::from(side) * u64::from(edge) / u64::from(short)) as u32;
        let (w, h) = (scaled(w), scaled(h));
        let resized = if short == edge { image.clone() } else { resize(image, w, h, Filter::Bicubic) };
        Ok(imageops::crop_imm(&resized, self.crop.start(w - crop), self.crop.start(h - crop), crop, crop).to_image())
    }
}
