//! The transformer that both towers share: pre-norm attention and feed-forward layers.
//!
//! Shapes: `B` batch, `T` tokens or patches, `D` width. Fresh parameters follow OpenAI's CLIP: projections into a branch
//! start at `D^-0.5`, those back to the residual stream are smaller by `(2 layers)^-0.5`.

use tch::Tensor;
use unet::nn::{LayerNorm, attention};
use unet::weights::{Cursor, Init};

use super::config::HiddenAct;

/// What a layer needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct EncoderShape {
    pub width: i64,
    pub inner: i64,
    pub layers: i64,
    pub heads: i64,
    pub act: HiddenAct,
    pub eps: f64,
    pub causal: bool,
}

// `unet::nn::Linear` with a start of its own.
#[derive(Debug)]
struct Dense {
    weight: Tensor,
    bias: Tensor,
}

impl Dense {
    fn new(at: &Cursor, d_in: i64, d_out: i64, std: f64) -> Self {
        Self { weight: at.tensor("weight", &[d_out, d_in], Init::Normal(std)), bias: at.tensor("bias", &[d_out], Init::Zeros) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }
}

#[derive(Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    q_proj: Dense,
    k_proj: Dense,
    v_proj: Dense,
    out_proj: Dense,
    layer_norm2: LayerNorm,
    fc1: Dense,
    fc2: Dense,
    shape: EncoderShape,
}

impl Layer {
    fn new(at: &Cursor, shape: EncoderShape) -> Self {
        let d = shape.width;
        let into = (d as f64).powf(-0.5);
        let back = into * (2.0 * shape.layers as f64).powf(-0.5);
        let (attn, mlp) = (at.pp("self_attn"), at.pp("mlp"));
        Self {
            layer_norm1: LayerNorm::new(&at.pp("layer_norm1"), d, shape.eps),
            q_proj: Dense::new(&attn.pp("q_proj"), d, d, into),
            k_proj: Dense::new(&attn.pp("k_proj"), d, d, into),
            v_proj: Dense::new(&attn.pp("v_proj"), d, d, into),
            out_proj: Dense::new(&attn.pp("out_proj"), d, d, back),
            layer_norm2: LayerNorm::new(&at.pp("layer_norm2"), d, shape.eps),
            fc1: Dense::new(&mlp.pp("fc1"), d, shape.inner, into * 0.5f64.sqrt()),
            fc2: Dense::new(&mlp.pp("fc2"), shape.inner, d, back),
            shape,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.layer_norm1.forward(x);
        let (q, k, v) = (self.q_proj.forward(&h), self.k_proj.forward(&h), self.v_proj.forward(&h));
        let x = x + self.out_proj.forward(&attention(&q, &k, &v, self.shape.heads, self.shape.causal));
        let h = self.fc1.forward(&self.layer_norm2.forward(&x));
        let h = match self.shape.act {
            HiddenAct::QuickGelu => &h * (&h * 1.702).sigmoid(),
            HiddenAct::Gelu => h.gelu("none"),
        };
        x + self.fc2.forward(&h)
    }
}

/// The stack of layers, at `..encoder`.
#[derive(Debug)]
pub(super) struct Encoder {
    layers: Vec<Layer>,
}

impl Encoder {
    pub fn new(at: &Cursor, shape: EncoderShape) -> Self {
        let layers = at.pp("layers");
        Self { layers: (0..shape.layers).map(|n| Layer::new(&layers.pp(n), shape)).collect() }
    }

    /// `x [B, T, D]` -> the state before the first layer and after each one, every one `[B, T, D]`.
    pub fn forward(&self, x: Tensor) -> Vec<Tensor> {
        let mut states = vec![x];
        for layer in &self.layers {
            let next = layer.forward(&states[states.len() - 1]);
            states.push(next);
        }
        states
    }
}
