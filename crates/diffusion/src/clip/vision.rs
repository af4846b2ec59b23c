//! The CLIP image encoder, a vision transformer: pixels -> features for the CLIP score and the Frechet distance (evaluation).
//!
//! Shapes: `B` batch, `C` channels, `S` side in pixels, `N` patches, `D` width.

use std::path::Path;

use tch::Tensor;
use unet::nn::LayerNorm;
use unet::weights::{Cursor, Init};

use super::config::{ClipVisionConfig, check_heads};
use super::encoder::{Encoder, EncoderShape};
use crate::error::{Error, Result};

/// The image tower of a [`super::ClipModel`].
#[derive(Debug)]
pub struct ClipVisionModel {
    config: ClipVisionConfig,
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    // The misspelling is the published key.
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
}

impl ClipVisionModel {
    /// Builds the tower from `at`, the place of `embeddings`, `pre_layrnorm`, `encoder` and `post_layernorm`.
    ///
    /// # Errors
    /// [`Error::Config`] for impossible settings.
    pub fn build(config: &ClipVisionConfig, at: &Cursor) -> Result<Self> {
        let (d, p) = (config.hidden_size, config.patch_size);
        check_heads(d, config.num_attention_heads, Path::new("image encoder"))?;
        if p < 1 || p > config.image_size {
            return Err(Error::Config {
                path: "image encoder".into(),
                key: "patch_size".into(),
                expected: format!("1..={} (image_size)", config.image_size),
                got: p.to_string(),
            });
        }
        let patches = (config.image_size / p) * (config.image_size / p);
        let embeddings = at.pp("embeddings");
        let std = (d as f64).powf(-0.5);
        let shape = EncoderShape {
            width: d,
            inner: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            act: config.hidden_act,
            eps: config.layer_norm_eps,
            causal: false,
        };
        let fan_in = (config.num_channels * p * p) as f64;
        Ok(Self {
            class_embedding: embeddings.tensor("class_embedding", &[d], Init::Normal(std)),
            patch_embedding: embeddings.pp("patch_embedding").tensor(
                "weight",
                &[d, config.num_channels, p, p],
                Init::Uniform(fan_in.powf(-0.5)),
            ),
            position_embedding: embeddings.pp("position_embedding").tensor("weight", &[patches + 1, d], Init::Normal(std)),
            pre_layrnorm: LayerNorm::new(&at.pp("pre_layrnorm"), d, config.layer_norm_eps),
            encoder: Encoder::new(&at.pp("encoder"), shape),
            post_layernorm: LayerNorm::new(&at.pp("post_layernorm"), d, config.layer_norm_eps),
            config: config.clone(),
        })
    }

    /// The settings.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// The pooled state `[B, D]` of normalized pixels `[B, C, S, S]`: the class token after the last layer normalization.
    ///
    /// # Errors
    /// [`Error::Input`] for another shape.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (c, s, d) = (self.config.num_channels, self.config.image_size, self.config.hidden_size);
        let b = match pixels.size()[..] {
            [b, channels, h, w] if b > 0 && channels == c && h == s && w == s => b,
            ref got => {
                return Err(Error::Input { name: "pixels".into(), expected: format!("[batch, {c}, {s}, {s}]"), got: format!("{got:?}") });
            }
        };
        let p = self.config.patch_size;
        let pixels = pixels.f_to_kind(self.patch_embedding.kind())?;
        // [B, C, S, S] -> [B, D, S/p, S/p] -> [B, N, D]
        let patches =
            pixels.f_conv2d(&self.patch_embedding, None::<&Tensor>, [p, p], [0, 0], [1, 1], 1)?.f_flatten(2, 3)?.f_transpose(1, 2)?;
        let class = self.class_embedding.f_expand([b, 1, d], false)?;
        let x = Tensor::f_cat(&[class, patches], 1)? + &self.position_embedding;
        let states = self.encoder.forward(self.pre_layrnorm.forward(&x));
        let class = states[states.len() - 1].f_select(1, 0)?;
        Ok(self.post_layernorm.forward(&class))
    }
}
