//! Text to image with one part in memory at a time: text encoders, then the U-Net, then the VAE. For machines that cannot
//! hold them together; the images are the same.

use std::path::Path;

use tch::{Device, Kind, Tensor};
use unet::{Conditioning, UNet, UNetConfig};

use crate::decoder::ImageDecoder;
use crate::error::Result;
use crate::model_dir::ModelDir;
use crate::model_ref::ModelRef;
use crate::pipeline::{Batch, GenerateOptions, Generated, Progress, check, native_size};
use crate::vae::VaeConfig;

/// A model directory of which each call loads one part after the other. Many images a call share the loading.
#[derive(Debug)]
pub struct OffloadedPipeline {
    dir: ModelDir,
    unet: UNetConfig,
    vae: VaeConfig,
    device: Device,
    kind: Kind,
}

impl OffloadedPipeline {
    /// As [`Pipeline::open`](crate::Pipeline::open), without loading weights.
    ///
    /// # Errors
    /// As [`ModelDir::open`], and those of every part's configuration.
    pub fn open(model: impl Into<ModelRef>, unet: Option<&Path>, device: Device, kind: Kind) -> Result<Self> {
        let dir = ModelDir::open(model, unet)?;
        dir.said_scheduler()?;
        Ok(Self { unet: dir.config().clone(), vae: dir.vae_config()?, dir, device, kind })
    }

    /// Where the parts lie.
    pub fn dir(&self) -> &ModelDir {
        &self.dir
    }

    /// As [`Pipeline::native_size`](crate::Pipeline::native_size).
    pub fn native_size(&self) -> Option<(i64, i64)> {
        native_size(&self.unet, &self.vae)
    }

    /// As [`Pipeline::generate`](crate::Pipeline::generate) with the model's own U-Net or the one in its place. Images
    /// count as done when they are decoded, which is after the last batch's last step.
    ///
    /// # Errors
    /// As [`Pipeline::generate`](crate::Pipeline::generate), and those of opening each part.
    pub fn generate(&self, options: &GenerateOptions, progress: &mut dyn FnMut(Progress)) -> Result<Generated> {
        let schedule = self.dir.schedule(None)?;
        check(options, &self.unet, &self.vae, &schedule)?;
        let _no_grad = tch::no_grad_guard();
        let starts = (0..options.prompts.len()).step_by(options.batch);

        let conds: Vec<(Conditioning, Option<Conditioning>)> = {
            let text = self.dir.text_encoders(self.device, self.kind)?;
            let rest = |cond: Conditioning| cond.to_device(Device::Cpu);
            let encode = |start| {
                let (cond, negative) = Batch::new(options, start).encode(&text, &self.unet, self.dir.force_zeros_for_empty_prompt())?;
                Ok((rest(cond), negative.map(rest)))
            };
            starts.clone().map(encode).collect::<Result<_>>()?
        };

        let latents: Vec<Tensor> = {
            let unet = UNet::open(self.dir.unet(), self.device, self.kind)?;
            let mut denoise = |(start, (cond, negative)): (usize, &(Conditioning, Option<Conditioning>))| {
                let x = Batch::new(options, start).denoise(&schedule, &unet, &self.vae, (cond, negative.as_ref()), &mut *progress)?;
                Ok(x.f_to_device(Device::Cpu)?)
            };
            starts.clone().zip(&conds).map(&mut denoise).collect::<Result<_>>()?
        };

        let decoder = ImageDecoder::open(&self.dir, self.device, self.kind)?;
        let mut images = Vec::with_capacity(options.prompts.len());
        for (start, x) in starts.zip(&latents) {
            images.extend(decoder.images(x, options.decode)?);
            let batch = Batch::new(options, start);
            progress(batch.progress(batch.len, options.steps));
        }
        Ok(Generated { latents: Tensor::f_cat(&latents, 0)?, images })
    }
}
