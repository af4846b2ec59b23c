//! The scores that are a cosine in some CLIP model's space: CLIP score, PickScore and HPSv2 differ in weights and scale only.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use diffusion::{ClipCrop, ClipModel};
use image::RgbImage;
use tch::{Device, Kind};

use super::paired;
use crate::clip_score::{ClipScorer, tokenizer_for};
use crate::error::Result;
use crate::metric::ImageScorer;

/// What a cosine is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipScale {
    /// `max(100 cos, 0)`: the CLIP score (arXiv 2104.08718) with the factor of torchmetrics.
    ClipScore,
    /// `exp(logit_scale) cos`: PickScore (arXiv 2305.01569, equation 2) before the softmax over candidates.
    LogitScale,
    /// `100 cos`: HPSv2 (arXiv 2306.09341) as its benchmark's tables state it; its `score` function leaves the 100 out. Images are
    /// padded, not cropped, as its code does.
    Percent,
}

/// A CLIP model with a scale.
pub struct ClipJudge {
    scorer: Rc<ClipScorer>,
    factor: f64,
    clipped: bool,
}

impl ClipJudge {
    /// Opens `path`: a folder in transformers' layout, or a file in OpenCLIP's layout ([`ClipModel::open_clip`]) or a folder with one. The
    /// tokenizer's files lie in the same folder, else in `tokenizer`.
    ///
    /// # Errors
    /// [`crate::Error::Diffusion`] for missing or unfitting files, [`crate::Error::Input`] for a batch of zero or where there is no tokenizer.
    pub fn open(path: &Path, tokenizer: Option<&Path>, scale: ClipScale, device: Device, kind: Kind, batch: usize) -> Result<Self> {
        let scorer = match open_clip_file(path) {
            None => ClipScorer::open_with(path, tokenizer, device, kind, batch)?,
            Some(file) => {
                let tokenizer = tokenizer_for(file.parent().unwrap_or(Path::new(".")), tokenizer)?;
                let (model, mut preprocess) = ClipModel::open_clip(&file, device, kind)?;
                if scale == ClipScale::Percent {
                    preprocess.crop = ClipCrop::Padded;
                }
                ClipScorer::new(model, preprocess, tokenizer, batch)?
            }
        };
        Ok(Self::new(Rc::new(scorer), scale))
    }

    /// The scale `scale` of an opened model.
    pub fn new(scorer: Rc<ClipScorer>, scale: ClipScale) -> Self {
        let factor = if scale == ClipScale::LogitScale { scorer.logit_scale().exp() } else { 100.0 };
        Self { scorer, factor, clipped: scale == ClipScale::ClipScore }
    }
}

/// The weights in OpenCLIP's layout that `path` names; `None` for a folder in transformers' layout.
fn open_clip_file(path: &Path) -> Option<PathBuf> {
    const PUBLISHED: [&str; 4] =
        ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt"];
    if !path.is_dir() {
        return Some(path.to_path_buf());
    }
    let inside = PUBLISHED.iter().map(|name| path.join(name)).find(|file| file.is_file());
    inside.filter(|_| !path.join("config.json").is_file())
}

impl ImageScorer for ClipJudge {
    fn score(&self, images: &[RgbImage], prompts: &[&str]) -> Result<Vec<f64>> {
        paired(images.len(), prompts.len())?;
        let (images, prompts) = (self.scorer.images(images)?.features, self.scorer.prompts(prompts)?);
        let cos = images.f_mul(&prompts)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?;
        let values = super::finite_values("a CLIP cosine", &(cos * self.factor))?;
        Ok(if self.clipped { values.into_iter().map(|v| v.max(0.0)).collect() } else { values })
    }
}
