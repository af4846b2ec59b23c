//! Feature losses that divide by nothing: squared errors, and directions.

use tch::{Kind, Tensor};

use super::error::{SMALLEST_ALPHA, mse};
use super::feature::FeatureLoss;
use crate::error::Result;

/// `sum_i E||f_i^T - f_i^S||^2`: a few taps with large features dominate.
pub struct Plain;

impl FeatureLoss for Plain {
    fn term(&mut self, _: &str, teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
        Ok(mse(teacher, student))
    }
}

/// `sum_i E(1 - cos(f_i^T, f_i^S))` over positions, each position's channels being one vector: directions alone count (as
/// PPCL's distillation of unit vectors, arXiv 2511.16156).
pub struct Direction;

impl FeatureLoss for Direction {
    // 1 - cos at every position; channels are the second of [B, C, H, W] and the last of [B, T, C].
    fn term(&mut self, _: &str, teacher: &Tensor, student: &Tensor) -> Result<Tensor> {
        let channels = if teacher.dim() == 3 { 2 } else { 1 };
        let f = |t: &Tensor| t.to_kind(Kind::Float);
        Ok(1.0 - Tensor::cosine_similarity(&f(&teacher.detach()), &f(student), channels, SMALLEST_ALPHA).mean(Kind::Float))
    }
}
