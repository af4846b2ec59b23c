//! Pictures encoded in the step that trains on them: nothing is stored, every step pays for the encoders.

use std::sync::Arc;

use diffusion::{AutoencoderKl, TextEncoders, TimeIds};
use tch::{Device, Kind, Tensor};
use unet::{AddedCond, Cond};

use crate::buckets::BucketOrder;
use crate::error::{Error, Result};
use crate::pairs::to_tensor;
use crate::prefetch::Prefetch;
use crate::samples::{Batch, Posterior, Samples, draw};
use crate::shard_cache::Reading;

/// A captioned picture, cut to the size of its bucket.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Interleaved RGB, `height * width * 3` bytes of the target size.
    pub rgb: Vec<u8>,
    /// What it shows.
    pub caption: String,
    /// Where it was cut from.
    pub size: TimeIds,
}

/// Captioned pictures in buckets of one size each; the same place always holds the same picture.
pub trait PictureSource: Send + Sync + 'static {
    /// Number of pictures of each bucket.
    fn buckets(&self) -> Vec<u64>;
    /// The picture at a place of a bucket; called from several threads.
    ///
    /// # Errors
    /// When it cannot be read.
    fn picture(&self, bucket: usize, index: u64) -> Result<Picture>;
}

/// Training samples from pictures.
pub struct PictureSamples<'a> {
    pictures: Prefetch<Vec<Picture>>,
    vae: &'a AutoencoderKl,
    text: &'a TextEncoders,
    posterior: Posterior,
    seed: u64,
    device: Device,
}

impl<'a> PictureSamples<'a> {
    /// Samples of `source` in batches of one bucket, encoded by `vae` and `text`.
    ///
    /// # Errors
    /// As [`BucketOrder::new`].
    pub fn new(source: Arc<dyn PictureSource>, vae: &'a AutoencoderKl, text: &'a TextEncoders, reading: Reading) -> Result<Self> {
        let order = BucketOrder::new(&source.buckets(), reading.batch, reading.seed)?;
        let read = Arc::new(move |bucket: usize, rows: &[u64]| rows.iter().map(|&row| source.picture(bucket, row)).collect());
        let Reading { seed, posterior, workers, stride, device, .. } = reading;
        Ok(Self { pictures: Prefetch::new(order, read, workers, stride), vae, text, posterior, seed, device })
    }
}

impl Samples for PictureSamples<'_> {
    fn batch(&mut self, micro: u64) -> Result<Batch> {
        let pictures = self.pictures.get(micro)?;
        let size = pictures[0].size.target_size;
        if let Some(other) = pictures.iter().find(|p| p.size.target_size != size || p.rgb.len() as i64 != 3 * size.0 * size.1) {
            let (expected, got) = (format!("pictures of {} x {}", size.0, size.1), format!("{:?}", other.size.target_size));
            return Err(Error::Input { name: "pictures".into(), expected, got });
        }
        let bytes: Vec<u8> = pictures.iter().flat_map(|p| p.rgb.iter().copied()).collect();
        let x = to_tensor(&bytes, pictures.len() as i64, size, self.device)?.to_kind(self.vae.kind());
        let moments = tch::no_grad(|| self.vae.encode(&x))?;
        let f = |t: &Tensor| t.to_kind(Kind::Float);
        let latents = draw(&f(&moments.mean), &f(&moments.logvar), self.posterior, self.seed, micro) * self.vae.config().scaling_factor;
        let captions: Vec<&str> = pictures.iter().map(|p| p.caption.as_str()).collect();
        let cond = self.text.encode(&captions, pictures[0].size)?;
        let ids: Vec<f32> = pictures.iter().flat_map(|p| p.size.to_array()).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_view([pictures.len() as i64, 6])?.to_device(self.device);
        let added = cond.added.map(|a| AddedCond { text_embeds: a.text_embeds, time_ids: ids });
        Ok(Batch { latents, cond: Cond { encoder_hidden_states: cond.encoder_hidden_states, added, guidance: None } })
    }
}
