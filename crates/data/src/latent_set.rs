//! Encoded training data: latents and captions of a fixed set of images, so that the autoencoder runs once per image.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use diffusion::AutoencoderKl;
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};

use crate::error::{Error, Result};
use crate::pairs::{PairSource, image_batch};

const FORMAT: &str = "laptop-diff/latents";
const ENCODE_BATCH: u64 = 32;

/// Latents (scaled as the U-Net sees them) and captions.
#[derive(Debug)]
pub struct LatentSet {
    latents: Tensor,
    captions: Vec<String>,
}

impl LatentSet {
    /// Encodes the images `0 .. len` of `source`: means of the posterior, times the scaling factor, kept as f16. `progress` hears how
    /// many are done.
    ///
    /// # Errors
    /// Whatever the autoencoder reports; what `progress` fails with.
    pub fn encode<E: From<Error>>(
        source: &dyn PairSource,
        vae: &AutoencoderKl,
        len: u64,
        device: Device,
        progress: &mut dyn FnMut(u64) -> std::result::Result<(), E>,
    ) -> std::result::Result<Self, E> {
        let (mut latents, mut captions) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < len {
            let n = ENCODE_BATCH.min(len - at);
            let (x, mut texts) = encode(source, vae, at..at + n, device)?;
            latents.push(x);
            captions.append(&mut texts);
            at += n;
            progress(at)?;
        }
        Ok(Self { latents: Tensor::f_cat(&latents, 0).map_err(Error::from)?, captions })
    }

    /// A set of latents that exist already.
    ///
    /// # Errors
    /// [`Error::Input`] when latents and captions differ in number.
    ///
    /// # Shapes
    /// `latents [N, C, h, w]`
    pub fn from_parts(latents: &Tensor, captions: Vec<String>) -> Result<Self> {
        let n = latents.size().first().copied().unwrap_or(0);
        if n != captions.len() as i64 || n == 0 {
            let expected = format!("one caption for each of {n} latents, at least one");
            return Err(Error::Input { name: "captions".into(), expected, got: captions.len().to_string() });
        }
        Ok(Self { latents: latents.to_kind(Kind::Half).to_device(Device::Cpu), captions })
    }

    /// Number of images.
    pub fn len(&self) -> u64 {
        self.captions.len() as u64
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.captions.is_empty()
    }

    /// `[N, C, h, w]`, f16 on the CPU.
    pub fn latents(&self) -> &Tensor {
        &self.latents
    }

    /// The captions, in the order of the latents.
    pub fn captions(&self) -> &[String] {
        &self.captions
    }

    /// Latents (f32 on `device`) and captions of the chosen images.
    ///
    /// # Shapes
    /// `[B, C, h, w]`
    pub fn batch(&self, indices: &[i64], device: Device) -> (Tensor, Vec<&str>) {
        let x = self.latents.index_select(0, &Tensor::from_slice(indices)).to_device(device).to_kind(Kind::Float);
        (x, indices.iter().map(|&i| self.captions[i as usize].as_str()).collect())
    }

    /// Writes the set as one safetensors file; `made_from` tells what it was made from.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path, made_from: &str) -> Result<()> {
        let meta = BTreeMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("made_from".to_string(), made_from.to_string()),
            ("captions".to_string(), serde_json::to_string(&self.captions).expect("strings are JSON")),
        ]);
        let tensors = Tensors::from([("latents".to_string(), self.latents.shallow_clone())]);
        Ok(save_tensors(path, &tensors, &meta, None)?)
    }

    /// Reads a set; `None` when the file is absent or was made from something else.
    ///
    /// # Errors
    /// [`Error::Format`] when it is no such file.
    pub fn open(path: &Path, made_from: &str) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let file = TensorFile::open(path)?;
        let bad =
            |problem: &str| Error::Format { path: path.into(), problem: problem.into(), hint: "delete it; it will be made again".into() };
        if file.metadata().get("format").map(String::as_str) != Some(FORMAT) {
            return Err(bad("not a latent cache"));
        }
        if file.metadata().get("made_from").map(String::as_str) != Some(made_from) {
            return Ok(None);
        }
        let captions: Vec<String> =
            file.metadata().get("captions").and_then(|c| serde_json::from_str(c).ok()).ok_or_else(|| bad("no captions"))?;
        let latents = file.tensor("latents")?.ok_or_else(|| bad("no latents"))?;
        if latents.size().first() != Some(&(captions.len() as i64)) {
            return Err(bad("latents and captions differ in number"));
        }
        Ok(Some(Self { latents, captions }))
    }
}

// Scaled latents of some images, f16 on the CPU, and what they show.
fn encode(source: &dyn PairSource, vae: &AutoencoderKl, indices: Range<u64>, device: Device) -> Result<(Tensor, Vec<String>)> {
    let (x, captions) = image_batch(source, &indices.collect::<Vec<_>>(), device)?;
    let moments = tch::no_grad(|| vae.encode(&x))?;
    Ok(((moments.mean * vae.config().scaling_factor).to_kind(Kind::Half).to_device(Device::Cpu), captions))
}
