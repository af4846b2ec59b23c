//! CMMD (arXiv 2401.09603): the squared maximum mean discrepancy between two sets of CLIP embeddings.

use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// Width of the Gaussian kernel and the factor that makes values readable: the reference implementation's.
const SIGMA: f64 = 10.0;
const SCALE: f64 = 1000.0;

/// The distance between `x` `[N, D]` and `y` `[M, D]`: `1000 (mean k(x,x) + mean k(y,y) - 2 mean k(x,y))` with
/// `k(a, b) = exp(-|a - b|^2 / (2 10^2))`. The published numbers use unit features of OpenAI's ViT-L/14 at 336 pixels.
///
/// As in the reference implementation the means include each point with itself, so it is never negative.
///
/// # Errors
/// [`Error::Input`] for empty or unequal shapes, [`Error::NotFinite`] for a NaN among the embeddings.
pub fn cmmd(x: &Tensor, y: &Tensor) -> Result<f64> {
    if x.dim() != 2 || y.dim() != 2 || x.size()[1] != y.size()[1] || x.size()[0] == 0 || y.size()[0] == 0 {
        return Err(Error::input("embeddings", "two sets [N, D] of one width", format!("{:?} and {:?}", x.size(), y.size())));
    }
    let (x, y) = (x.f_to_kind(Kind::Double)?, y.f_to_kind(Kind::Double)?);
    let squares = |a: &Tensor| a.f_square()?.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Double);
    let kernel = |a: &Tensor, b: &Tensor| -> Result<f64> {
        let gaps = squares(a)?.f_add(&squares(b)?.f_transpose(0, 1)?)?.f_sub(&(a.f_matmul(&b.f_transpose(0, 1)?)? * 2.0))?;
        Ok(f64::try_from((gaps * (-0.5 / (SIGMA * SIGMA))).f_exp()?.f_mean(Kind::Double)?)?)
    };
    let value = SCALE * (kernel(&x, &x)? + kernel(&y, &y)? - 2.0 * kernel(&x, &y)?);
    if !value.is_finite() {
        return Err(Error::NotFinite { what: "CMMD".into(), hint: "look at the CLIP weights and their number type".into() });
    }
    Ok(value)
}
