//! The few layer types that Stable Diffusion is made of, as plain structs of tensors built from a [`Cursor`].
//!
//! Shapes: `B` batch, `C` channels, `H` `W` height and width, `T` tokens, `D` width, `N` heads.

use tch::Tensor;

use crate::weights::{Cursor, Init};

/// `y = x W^T + b` on the last axis.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer `d_in -> d_out` with parameters `weight` and, if asked, `bias`.
    pub fn new(at: &Cursor, d_in: i64, d_out: i64, bias: bool) -> Self {
        let bound = 1.0 / (d_in as f64).sqrt();
        let weight = at.tensor("weight", &[d_out, d_in], Init::Uniform(bound));
        let bias = bias.then(|| at.tensor("bias", &[d_out], Init::Uniform(bound)));
        Self { weight, bias }
    }

    /// # Shapes
    /// `[.., d_in] -> [.., d_out]`
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }
}

/// A square 2-D convolution with bias.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    /// A `kernel` x `kernel` convolution with parameters `weight` and `bias`.
    pub fn new(at: &Cursor, c_in: i64, c_out: i64, kernel: i64, stride: i64, padding: i64) -> Self {
        let bound = 1.0 / ((c_in * kernel * kernel) as f64).sqrt();
        let weight = at.tensor("weight", &[c_out, c_in, kernel, kernel], Init::Uniform(bound));
        let bias = at.tensor("bias", &[c_out], Init::Uniform(bound));
        Self { weight, bias, stride, padding }
    }

    /// 3 x 3, stride 1, same size.
    pub fn same3(at: &Cursor, c_in: i64, c_out: i64) -> Self {
        Self::new(at, c_in, c_out, 3, 1, 1)
    }

    /// 1 x 1.
    pub fn point(at: &Cursor, c_in: i64, c_out: i64) -> Self {
        Self::new(at, c_in, c_out, 1, 1, 0)
    }

    /// The kernel, `[c_out, c_in, kernel, kernel]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// # Shapes
    /// `[B, c_in, H, W] -> [B, c_out, H', W']`
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.conv2d(&self.weight, Some(&self.bias), [self.stride, self.stride], [self.padding, self.padding], [1, 1], 1)
    }
}

/// Group normalization with affine parameters.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    /// `channels` must be divisible by `groups`; configurations are checked before this is called.
    pub fn new(at: &Cursor, groups: i64, channels: i64, eps: f64) -> Self {
        let weight = at.tensor("weight", &[channels], Init::Ones);
        let bias = at.tensor("bias", &[channels], Init::Zeros);
        Self { weight, bias, groups, eps }
    }

    /// # Shapes
    /// `[B, C, ..] -> [B, C, ..]`
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}

/// Layer normalization over the last axis with affine parameters.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
    eps: f64,
}

impl LayerNorm {
    /// Parameters `weight` and `bias` of `width`.
    pub fn new(at: &Cursor, width: i64, eps: f64) -> Self {
        let weight = at.tensor("weight", &[width], Init::Ones);
        let bias = at.tensor("bias", &[width], Init::Zeros);
        Self { weight, bias, width, eps }
    }

    /// # Shapes
    /// `[.., D] -> [.., D]`
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm([self.width], Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}

/// Multi-head scaled dot-product attention of already projected queries, keys and values.
///
/// # Shapes
/// `q [B, T, D]`, `k` and `v` `[B, S, D]` -> `[B, T, D]`; `D` is split into `num_heads`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, num_heads: i64, causal: bool) -> Tensor {
    let (b, t, d) = q.size3().unwrap_or((0, 0, 0));
    // [B, T, D] -> [B, N, T, D/N]
    let split = |x: &Tensor| x.view([b, -1, num_heads, d / num_heads]).transpose(1, 2);
    let out = Tensor::scaled_dot_product_attention(&split(q), &split(k), &split(v), None::<&Tensor>, 0.0, causal, None, false);
    // [B, N, T, D/N] -> [B, T, D]
    out.transpose(1, 2).reshape([b, t, d])
}
