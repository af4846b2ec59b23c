//! Images encoded in the step that trains on them: nothing is stored, every step pays for the encoders.

use std::sync::Arc;

use diffusion::{AutoencoderKl, TextEncoders, TimeIds};
use tch::{Device, Kind, Tensor};
use unet::{AddedConditioning, Conditioning};

use crate::buckets::BucketOrder;
use crate::error::{Error, Result};
use crate::pairs::to_tensor;
use crate::prefetch::Prefetch;
use crate::samples::{Batch, Posterior, ReadOptions, Samples, draw};

/// A captioned image, cut to the size of its bucket.
#[derive(Debug, Clone)]
pub struct Image {
    /// Interleaved RGB, `height * width * 3` bytes of the target size.
    pub rgb: Vec<u8>,
    /// What it shows.
    pub caption: String,
    /// Where it was cut from.
    pub size: TimeIds,
}

/// Captioned images in buckets of one size each; the same place always holds the same image.
pub trait ImageSource: Send + Sync + 'static {
    /// Number of images of each bucket.
    fn buckets(&self) -> Vec<u64>;
    /// The image at a place of a bucket; called from several threads.
    ///
    /// # Errors
    /// When it cannot be read.
    fn image(&self, bucket: usize, index: u64) -> Result<Image>;
}

/// Training samples from images.
pub struct ImageSamples<'a> {
    images: Prefetch<Vec<Image>>,
    vae: &'a AutoencoderKl,
    text: &'a TextEncoders,
    posterior: Posterior,
    seed: u64,
    device: Device,
}

impl<'a> ImageSamples<'a> {
    /// Samples of `source` in batches of one bucket, encoded by `vae` and `text`.
    ///
    /// # Errors
    /// As [`BucketOrder::new`].
    pub fn new(source: Arc<dyn ImageSource>, vae: &'a AutoencoderKl, text: &'a TextEncoders, reading: ReadOptions) -> Result<Self> {
        let order = BucketOrder::new(&source.buckets(), reading.batch, reading.seed)?;
        let read = Arc::new(move |bucket: usize, rows: &[u64]| rows.iter().map(|&row| source.image(bucket, row)).collect());
        let ReadOptions { seed, posterior, workers, stride, device, .. } = reading;
        Ok(Self { images: Prefetch::new(order, read, workers, stride), vae, text, posterior, seed, device })
    }
}

impl Samples for ImageSamples<'_> {
    fn batch(&mut self, micro: u64) -> Result<Batch> {
        let images = self.images.get(micro)?;
        let size = images[0].size.target_size;
        if let Some(other) = images.iter().find(|p| p.size.target_size != size || p.rgb.len() as i64 != 3 * size.0 * size.1) {
            let (expected, got) = (format!("images of {} x {}", size.0, size.1), format!("{:?}", other.size.target_size));
            return Err(Error::Input { name: "images".into(), expected, got });
        }
        let bytes: Vec<u8> = images.iter().flat_map(|p| p.rgb.iter().copied()).collect();
        let x = to_tensor(&bytes, images.len() as i64, size, self.device)?.to_kind(self.vae.kind());
        let moments = tch::no_grad(|| self.vae.encode(&x))?;
        let f = |t: &Tensor| t.to_kind(Kind::Float);
        let latents = draw(&f(&moments.mean), &f(&moments.logvar), self.posterior, self.seed, micro) * self.vae.config().scaling_factor;
        let captions: Vec<&str> = images.iter().map(|p| p.caption.as_str()).collect();
        let cond = self.text.encode(&captions, images[0].size)?;
        let ids: Vec<f32> = images.iter().flat_map(|p| p.size.to_array()).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_view([images.len() as i64, 6])?.to_device(self.device);
        let added = cond.added.map(|a| AddedConditioning { text_embeds: a.text_embeds, time_ids: ids });
        Ok(Batch { latents, cond: Conditioning { encoder_hidden_states: cond.encoder_hidden_states, added, guidance: None } })
    }
}
