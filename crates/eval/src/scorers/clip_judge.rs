//! The scores that are a cosine in some CLIP model's space: CLIP score, PickScore and HPSv2 differ in weights and scale only.

use std::path::Path;
use std::rc::Rc;

use diffusion::{ClipCrop, ClipModel, Tokenizer};
use image::RgbImage;
use tch::{Device, Kind};

use super::paired;
use crate::clip_score::ClipScorer;
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
    /// Opens `path`: a folder in transformers' layout with its tokenizer, or a file in OpenCLIP's layout
    /// ([`ClipModel::open_clip`]) with the tokenizer's files in `tokenizer`, or beside it where that is none.
    ///
    /// # Errors
    /// [`crate::Error::Diffusion`] for missing or unfitting files, [`crate::Error::Input`] for a batch of zero.
    pub fn open(path: &Path, tokenizer: Option<&Path>, scale: ClipScale, device: Device, kind: Kind, batch: usize) -> Result<Self> {
        let scorer = if path.is_dir() {
            ClipScorer::open(path, device, kind, batch)?
        } else {
            let (model, mut preprocess) = ClipModel::open_clip(path, device, kind)?;
            if scale == ClipScale::Percent {
                preprocess.crop = ClipCrop::Padded;
            }
            let tokenizer = Tokenizer::open(tokenizer.unwrap_or_else(|| path.parent().unwrap_or(Path::new("."))))?;
            ClipScorer::new(model, preprocess, tokenizer, batch)?
        };
        Ok(Self::new(Rc::new(scorer), scale))
    }

    /// The scale `scale` of an opened model.
    pub fn new(scorer: Rc<ClipScorer>, scale: ClipScale) -> Self {
        let factor = if scale == ClipScale::LogitScale { scorer.logit_scale().exp() } else { 100.0 };
        Self { scorer, factor, clipped: scale == ClipScale::ClipScore }
    }
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
