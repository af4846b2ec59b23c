//! The CLIP score of images and prompts, and the embeddings that the Fréchet distance takes from the same pass. Evaluation stage.
//!
//! Legend: N images, D width of the image tower, P width of the shared space.

use std::path::Path;

use diffusion::{ClipModel, ClipPreprocess, Tokenizer};
use image::RgbImage;
use tch::{Device, Kind, Tensor, no_grad};

use crate::error::{Error, Result};

/// A CLIP model with all that it needs to read images and prompts.
pub struct ClipScorer {
    model: ClipModel,
    preprocess: ClipPreprocess,
    tokenizer: Tokenizer,
    batch: usize,
}

/// What the image tower says of N images; on the CPU in f32.
pub struct ImageEmbeddings {
    /// Pooled state before the projection `[N, D]`, for [`FrechetSample`](crate::FrechetSample).
    pub pooled: Tensor,
    /// Projected features of unit length `[N, P]`, for the CLIP score.
    pub features: Tensor,
}

impl ClipScorer {
    /// A scorer that passes `batch` images or prompts at a time through the model.
    ///
    /// # Errors
    /// [`Error::Input`] for a batch of zero.
    pub fn new(model: ClipModel, preprocess: ClipPreprocess, tokenizer: Tokenizer, batch: usize) -> Result<Self> {
        if batch == 0 {
            return Err(Error::input("batch", "at least 1", "0"));
        }
        Ok(Self { model, preprocess, tokenizer, batch })
    }

    /// Opens a CLIP folder, or the one named `clip/` in a model directory; the tokenizer's files lie in the same folder.
    ///
    /// # Errors
    /// [`Error::Diffusion`] for missing or unfitting files, [`Error::Input`] where there is no tokenizer.
    pub fn open(dir: &Path, device: Device, kind: Kind, batch: usize) -> Result<Self> {
        Self::open_with(dir, None, device, kind, batch)
    }

    /// [`ClipScorer::open`] for a folder that may have no tokenizer of its own: then it is the one in `tokenizer`.
    ///
    /// # Errors
    /// As [`ClipScorer::open`].
    pub fn open_with(dir: &Path, tokenizer: Option<&Path>, device: Device, kind: Kind, batch: usize) -> Result<Self> {
        let inner = dir.join("clip");
        let dir = if inner.join("config.json").is_file() { inner } else { dir.to_path_buf() };
        let tokenizer = tokenizer_for(&dir, tokenizer)?;
        Self::new(ClipModel::open(&dir, device, kind)?, ClipPreprocess::open(&dir)?, tokenizer, batch)
    }

    /// The logarithm of the model's inverse temperature.
    pub fn logit_scale(&self) -> f64 {
        self.model.logit_scale().double_value(&[])
    }

    /// Width of the space in which images and prompts are compared.
    pub fn projected_width(&self) -> i64 {
        self.model.config().projection_dim
    }

    /// Embeds images of any size.
    ///
    /// # Errors
    /// [`Error::Input`] for no image, [`Error::NotFinite`] when the model gives NaN.
    pub fn images(&self, images: &[RgbImage]) -> Result<ImageEmbeddings> {
        if images.is_empty() {
            return Err(Error::input("images", "at least one", "none"));
        }
        let projection = self.model.parameters().get("visual_projection.weight");
        let projection = projection.ok_or_else(|| Error::input("clip", "a model with `visual_projection.weight`", "none"))?;
        let (mut pooled, mut features) = (Vec::new(), Vec::new());
        for chunk in images.chunks(self.batch) {
            let chunk: Vec<&RgbImage> = chunk.iter().collect();
            let pixels = self.preprocess.pixels(&chunk)?;
            let (p, f) = no_grad(|| -> Result<_> {
                let pixels = pixels.f_to_device(projection.device())?.f_to_kind(projection.kind())?;
                let p = self.model.image_embedding(&pixels)?;
                let f = p.f_linear(projection, None::<&Tensor>)?;
                Ok((home(&p)?, unit(&home(&f)?)?))
            })?;
            pooled.push(p);
            features.push(f);
        }
        let all = ImageEmbeddings { pooled: Tensor::f_cat(&pooled, 0)?, features: Tensor::f_cat(&features, 0)? };
        finite("the CLIP embedding of an image", &all.features)?;
        Ok(all)
    }

    /// Features of unit length of prompts: `[N, P]`, on the CPU in f32.
    ///
    /// # Errors
    /// As [`ClipScorer::images`].
    pub fn prompts(&self, prompts: &[&str]) -> Result<Tensor> {
        if prompts.is_empty() {
            return Err(Error::input("prompts", "at least one", "none"));
        }
        let mut features = Vec::new();
        for chunk in prompts.chunks(self.batch) {
            let ids = self.tokenizer.encode(chunk)?;
            features.push(unit(&home(&no_grad(|| self.model.text_features(&ids))?)?)?);
        }
        let all = Tensor::f_cat(&features, 0)?;
        finite("the CLIP embedding of a prompt", &all)?;
        Ok(all)
    }
}

/// The CLIP score of each image for the prompt of the same row: `max(100 cos(image, prompt), 0)` of unit features `[N, P]`.
///
/// This is the scale of torchmetrics' `CLIPScore` and of most published tables; the metric's paper (arXiv 2104.08718,
/// section 3) multiplies by 2.5 instead of 100.
///
/// # Errors
/// [`Error::Input`] when the two have another shape.
pub fn clip_scores(images: &Tensor, prompts: &Tensor) -> Result<Vec<f64>> {
    if images.size() != prompts.size() || images.dim() != 2 {
        return Err(Error::input("features", format!("{:?} for both", images.size()), format!("{:?}", prompts.size())));
    }
    let cos = images.f_mul(prompts)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?;
    Ok(Vec::try_from(cos.f_mul_scalar(100.0)?.f_clamp_min(0.0)?)?)
}

fn home(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?)
}

/// Rows of unit length; a row of zeros stays one.
fn unit(x: &Tensor) -> Result<Tensor> {
    let norm = x.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), true)?;
    Ok(x.f_div(&norm.f_clamp_min(1e-12)?)?)
}

fn finite(what: &str, x: &Tensor) -> Result<()> {
    if bool::try_from(x.f_isfinite()?.f_all()?)? {
        return Ok(());
    }
    Err(Error::NotFinite { what: what.into(), hint: "look at the CLIP weights and their number type".into() })
}

/// The tokenizer of CLIP weights: that in their folder `dir`, else the one in `named`.
pub(crate) fn tokenizer_for(dir: &Path, named: Option<&Path>) -> Result<Tokenizer> {
    match named {
        _ if Tokenizer::is_in(dir) => Ok(Tokenizer::open(dir)?),
        Some(named) => Ok(Tokenizer::open(named)?),
        None => Err(Error::input(
            "tokenizer",
            "the folder of a CLIP tokenizer, named with --tokenizer (that of any Stable Diffusion v1 will do) or put beside the weights",
            format!("none, and {} has no vocab.json or tokenizer.json", dir.display()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffusion::{ClipConfig, ClipTextConfig, ClipVisionConfig, HiddenAct};

    /// A random CLIP of odd sizes, saved and opened again as a user's folder.
    fn scorer(dir: &Path, batch: usize) -> ClipScorer {
        Tokenizer::write_from_words(dir, &["a", "red", "circle"], 9, "<|endoftext|>").unwrap();
        let tokenizer = Tokenizer::open(dir).unwrap();
        let text = ClipTextConfig {
            vocab_size: tokenizer.vocab_size(),
            hidden_size: 12,
            intermediate_size: 20,
            projection_dim: 10,
            num_hidden_layers: 2,
            num_attention_heads: 3,
            max_position_embeddings: 9,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
            bos_token_id: tokenizer.bos(),
            eos_token_id: tokenizer.eos(),
            pad_token_id: tokenizer.pad(),
            with_projection: false,
        };
        let vision = ClipVisionConfig {
            hidden_size: 14,
            intermediate_size: 22,
            projection_dim: 10,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_channels: 3,
            image_size: 16,
            patch_size: 8,
            hidden_act: HiddenAct::QuickGelu,
            layer_norm_eps: 1e-5,
        };
        let config = ClipConfig { text, vision, projection_dim: 10, logit_scale_init_value: 2.66 };
        let model = ClipModel::random(&config, 5, Device::Cpu, Kind::Float).unwrap();
        model.save(dir, None, &ClipPreprocess::new(16)).unwrap();
        ClipScorer::open(dir, Device::Cpu, Kind::Float, batch).unwrap()
    }

    fn images(n: u8) -> Vec<RgbImage> {
        (0..n).map(|i| RgbImage::from_fn(16, 16, |x, y| image::Rgb([i * 20, x as u8 * 9, y as u8 * 7 + i]))).collect()
    }

    #[test]
    fn batches_do_not_change_the_embeddings_and_the_pooled_state_is_the_models() {
        let dir = tempfile::tempdir().unwrap();
        let (two, five) = (scorer(dir.path(), 2), scorer(dir.path(), 5));
        let images = images(5);
        let (a, b) = (two.images(&images).unwrap(), five.images(&images).unwrap());
        assert_eq!((a.pooled.size(), a.features.size()), (vec![5, 14], vec![5, 10]));
        assert!(f64::try_from((&a.features - &b.features).abs().max()).unwrap() < 1e-5);
        let refs: Vec<&RgbImage> = images.iter().collect();
        let features = five.model.image_features(&five.preprocess.pixels(&refs).unwrap()).unwrap();
        let features = unit(&features).unwrap();
        assert!(f64::try_from((&b.features - features).abs().max()).unwrap() < 1e-5);
        assert_eq!(two.prompts(&["a red circle", "a", "red"]).unwrap().size(), [3, 10]);
        assert!(two.images(&[]).is_err() && two.prompts(&[]).is_err());
    }

    #[test]
    fn score_is_the_clipped_cosine_in_percent() {
        let images = Tensor::from_slice2(&[[1.0f32, 0.0], [0.6, 0.8], [1.0, 0.0]]);
        let prompts = Tensor::from_slice2(&[[1.0f32, 0.0], [1.0, 0.0], [-1.0, 0.0]]);
        let scores = clip_scores(&images, &prompts).unwrap();
        assert!((scores[0] - 100.0).abs() < 1e-4 && (scores[1] - 60.0).abs() < 1e-4 && scores[2] == 0.0, "{scores:?}");
        assert!(clip_scores(&images, &prompts.narrow(0, 0, 2)).is_err());
    }
}
