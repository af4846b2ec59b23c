//! The two networks of BLIP (arXiv 2201.12086) that ImageReward scores with: a vision transformer, and a BERT whose every layer
//! also attends to the image. Keys and arithmetic are those of Salesforce's release.
//!
//! Shapes: `B` batch, `S` side in pixels, `N` patches and the class token, `T` tokens, `V` width of the image's states, `D` of the text's.

use tch::Tensor;
use unet::nn::{LayerNorm, Linear, attention};
use unet::weights::{Cursor, Init};

/// Layer normalization of the vision transformer and of BERT.
const VISION_EPS: f64 = 1e-6;
const TEXT_EPS: f64 = 1e-12;
/// Every published BLIP has heads of this width.
const HEAD_WIDTH: i64 = 64;

/// Sizes of the two networks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BlipShape {
    pub image_size: i64,
    pub patch: i64,
    pub vision_width: i64,
    pub vision_inner: i64,
    pub vision_layers: i64,
    pub vocabulary: i64,
    pub longest: i64,
    pub text_width: i64,
    pub text_inner: i64,
    pub text_layers: i64,
}

struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

/// The vision transformer, at `visual_encoder`.
pub(super) struct Vision {
    class: Tensor,
    positions: Tensor,
    patch_weight: Tensor,
    patch_bias: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    shape: BlipShape,
}

impl Vision {
    pub fn new(at: &Cursor, shape: BlipShape) -> Self {
        let (d, p) = (shape.vision_width, shape.patch);
        let patches = (shape.image_size / p) * (shape.image_size / p);
        let proj = at.pp("patch_embed").pp("proj");
        let block = |n| {
            let at = at.pp("blocks").pp(n);
            let (attn, mlp) = (at.pp("attn"), at.pp("mlp"));
            Block {
                norm1: LayerNorm::new(&at.pp("norm1"), d, VISION_EPS),
                qkv: Linear::new(&attn.pp("qkv"), d, 3 * d, true),
                proj: Linear::new(&attn.pp("proj"), d, d, true),
                norm2: LayerNorm::new(&at.pp("norm2"), d, VISION_EPS),
                fc1: Linear::new(&mlp.pp("fc1"), d, shape.vision_inner, true),
                fc2: Linear::new(&mlp.pp("fc2"), shape.vision_inner, d, true),
            }
        };
        Self {
            class: at.tensor("cls_token", &[1, 1, d], Init::Normal(0.02)),
            positions: at.tensor("pos_embed", &[1, patches + 1, d], Init::Normal(0.02)),
            patch_weight: proj.tensor("weight", &[d, 3, p, p], Init::Normal(0.02)),
            patch_bias: proj.tensor("bias", &[d], Init::Zeros),
            blocks: (0..shape.vision_layers).map(block).collect(),
            norm: LayerNorm::new(&at.pp("norm"), d, VISION_EPS),
            shape,
        }
    }

    /// Normalized pixels `[B, 3, S, S]` -> states `[B, N, V]`.
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let (b, d, p) = (pixels.size()[0], self.shape.vision_width, self.shape.patch);
        // [B, 3, S, S] -> [B, V, S/p, S/p] -> [B, N - 1, V]
        let patches = pixels.conv2d(&self.patch_weight, Some(&self.patch_bias), [p, p], [0, 0], [1, 1], 1).flatten(2, 3).transpose(1, 2);
        let mut x = Tensor::cat(&[self.class.expand([b, 1, d], false), patches], 1) + &self.positions;
        for block in &self.blocks {
            let qkv = block.qkv.forward(&block.norm1.forward(&x)).chunk(3, -1);
            x += block.proj.forward(&attention(&qkv[0], &qkv[1], &qkv[2], d / HEAD_WIDTH, false));
            x += block.fc2.forward(&block.fc1.forward(&block.norm2.forward(&x)).gelu("none"));
        }
        self.norm.forward(&x)
    }
}

struct Attend {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
    heads: i64,
}

impl Attend {
    fn new(at: &Cursor, width: i64, from: i64) -> Self {
        let (own, out) = (at.pp("self"), at.pp("output"));
        Self {
            query: Linear::new(&own.pp("query"), width, width, true),
            key: Linear::new(&own.pp("key"), from, width, true),
            value: Linear::new(&own.pp("value"), from, width, true),
            dense: Linear::new(&out.pp("dense"), width, width, true),
            norm: LayerNorm::new(&out.pp("LayerNorm"), width, TEXT_EPS),
            heads: width / HEAD_WIDTH,
        }
    }

    /// `x` `[B, T, D]` looks at `states` `[B, S, *]`, at all of them or at those that `mask` `[B, 1, 1, S]` allows.
    fn forward(&self, x: &Tensor, states: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let (b, t, d) = x.size3().unwrap_or((0, 0, 0));
        // [B, *, D] -> [B, heads, *, D/heads]
        let split = |x: Tensor| x.view([b, -1, self.heads, d / self.heads]).transpose(1, 2);
        let (q, k, v) = (split(self.query.forward(x)), split(self.key.forward(states)), split(self.value.forward(states)));
        let seen = Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, false, None, false);
        self.norm.forward(&(self.dense.forward(&seen.transpose(1, 2).reshape([b, t, d])) + x))
    }
}

struct Layer {
    attention: Attend,
    crossattention: Attend,
    intermediate: Linear,
    output: Linear,
    norm: LayerNorm,
}

/// BERT with cross-attention to the image, at `text_encoder`.
pub(super) struct Text {
    words: Tensor,
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Text {
    pub fn new(at: &Cursor, shape: BlipShape) -> Self {
        let d = shape.text_width;
        let embeddings = at.pp("embeddings");
        let layer = |n| {
            let at = at.pp("encoder").pp("layer").pp(n);
            Layer {
                attention: Attend::new(&at.pp("attention"), d, d),
                crossattention: Attend::new(&at.pp("crossattention"), d, shape.vision_width),
                intermediate: Linear::new(&at.pp("intermediate").pp("dense"), d, shape.text_inner, true),
                output: Linear::new(&at.pp("output").pp("dense"), shape.text_inner, d, true),
                norm: LayerNorm::new(&at.pp("output").pp("LayerNorm"), d, TEXT_EPS),
            }
        };
        Self {
            words: embeddings.pp("word_embeddings").tensor("weight", &[shape.vocabulary, d], Init::Normal(0.02)),
            positions: embeddings.pp("position_embeddings").tensor("weight", &[shape.longest, d], Init::Normal(0.02)),
            norm: LayerNorm::new(&embeddings.pp("LayerNorm"), d, TEXT_EPS),
            layers: (0..shape.text_layers).map(layer).collect(),
        }
    }

    /// Token ids `[B, T]` with `mask` `[B, T]` (true for a word), and the image's states `[B, N, V]` -> `[B, T, D]`.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor, image: &Tensor) -> Tensor {
        let x = Tensor::embedding(&self.words, ids, -1, false, false) + self.positions.narrow(0, 0, ids.size()[1]);
        let mask = mask.unsqueeze(1).unsqueeze(1);
        self.layers.iter().fold(self.norm.forward(&x), |x, layer| {
            let x = layer.attention.forward(&x, &x, Some(&mask));
            let x = layer.crossattention.forward(&x, image, None);
            let inner = layer.intermediate.forward(&x).gelu("none");
            layer.norm.forward(&(layer.output.forward(&inner) + x))
        })
    }
}
