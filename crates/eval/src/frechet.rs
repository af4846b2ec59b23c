//! The Fréchet distance between two sets of image embeddings, with a standard error. Evaluation stage.
//!
//! Legend: N images, D width of an embedding.
//!
//! arXiv 1706.08500, equation 6, on the embeddings of this project's own CLIP tower instead of Inception's, so the numbers compare
//! with each other and with no published FID. The estimate is biased upwards by a term of order 1/N (arXiv 1911.07023), the
//! same for all models that drew the same N images; N is reported with it.

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::stats::{Estimate, is_clearly_positive};

/// Half width of a two-sided 95 % normal interval in standard errors.
const Z95: f64 = 1.959_963_984_540_054;

/// The distance between `a` `[N, D]` and `b` `[M, D]`:
/// `|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2`, computed in f64 with symmetric eigenvalues only, so that singular
/// covariances (fewer images than dimensions) need no added diagonal.
///
/// # Errors
/// [`Error::Input`] for fewer than two rows or unequal widths, [`Error::NotFinite`] for a NaN among the embeddings.
pub fn frechet_distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b) = (as_f64("a", a)?, as_f64("b", b)?);
    distance(&a, &b)
}

/// A Fréchet distance with the values that remain when one group of prompts is left out.
#[derive(Debug, Clone, PartialEq)]
pub struct FrechetSample {
    /// The distance over all images.
    pub value: f64,
    /// The distance without group g, for each g.
    pub leave_out: Vec<f64>,
    /// Number of images in each set.
    pub n: usize,
}

impl FrechetSample {
    /// Measures `a` against `b`, both `[N, D]` with row i of both belonging to prompt `prompts[i]`; whole prompts are left out
    /// together, prompt p in group `p mod groups`, so that distances of several models to one reference are paired.
    ///
    /// # Errors
    /// [`Error::Input`] for unequal numbers of rows, fewer than two groups, or a group that holds nearly everything.
    pub fn measure(a: &Tensor, b: &Tensor, prompts: &[usize], groups: usize) -> Result<Self> {
        Self::measure_by(&distance, a, b, prompts, groups)
    }

    /// The same with another distance between two sets of embeddings in f64, such as [`cmmd`](crate::cmmd).
    ///
    /// # Errors
    /// As [`FrechetSample::measure`], and those of `distance`.
    pub fn measure_by(
        distance: &dyn Fn(&Tensor, &Tensor) -> Result<f64>,
        a: &Tensor,
        b: &Tensor,
        prompts: &[usize],
        groups: usize,
    ) -> Result<Self> {
        if b.dim() != 2 || b.size()[0] as usize != prompts.len() {
            return Err(Error::input("embeddings", format!("{} rows, one per image", prompts.len()), format!("{:?}", b.size())));
        }
        Self::measure_with(distance, a, b, prompts, groups, true)
    }

    /// As [`FrechetSample::measure_by`], against a fixed set `b` `[M, D]` of any images: groups are left out of `a` alone.
    ///
    /// # Errors
    /// As [`FrechetSample::measure_by`].
    pub fn measure_against(
        distance: &dyn Fn(&Tensor, &Tensor) -> Result<f64>,
        a: &Tensor,
        b: &Tensor,
        prompts: &[usize],
        groups: usize,
    ) -> Result<Self> {
        Self::measure_with(distance, a, b, prompts, groups, false)
    }

    fn measure_with(
        distance: &dyn Fn(&Tensor, &Tensor) -> Result<f64>,
        a: &Tensor,
        b: &Tensor,
        prompts: &[usize],
        groups: usize,
        paired: bool,
    ) -> Result<Self> {
        let (a, b) = (as_f64("a", a)?, as_f64("b", b)?);
        let n = prompts.len();
        if a.size()[0] as usize != n {
            return Err(Error::input("embeddings", format!("{n} rows, one per image"), format!("{:?}", a.size())));
        }
        if groups < 2 {
            return Err(Error::input("groups", "at least 2", groups.to_string()));
        }
        let mut leave_out = Vec::with_capacity(groups);
        for group in 0..groups {
            let kept: Vec<i64> = (0..n as i64).filter(|&i| prompts[i as usize] % groups != group).collect();
            if kept.len() == n {
                continue;
            }
            let index = Tensor::from_slice(&kept);
            let other = if paired { b.f_index_select(0, &index)? } else { b.shallow_clone() };
            leave_out.push(distance(&a.f_index_select(0, &index)?, &other)?);
        }
        if leave_out.len() < 2 {
            return Err(Error::input("prompts", "at least two groups of prompts", format!("{} group", leave_out.len())));
        }
        Ok(Self { value: distance(&a, &b)?, leave_out, n })
    }

    /// The distance with its jackknife standard error and normal 95 % interval.
    pub fn estimate(&self) -> Estimate {
        jackknife(self.value, &self.leave_out)
    }

    /// How much nearer to the reference this sample is than `other`, measured over the same groups.
    ///
    /// # Errors
    /// [`Error::Input`] when the groups differ in number.
    pub fn gain_over(&self, other: &FrechetSample) -> Result<Estimate> {
        self.paired(other, |own, theirs| theirs - own)
    }

    /// The relative decline against `teacher`: `(own - teacher) / teacher`, positive for a loss. None where the teacher's distance is not
    /// clearly above zero.
    ///
    /// # Errors
    /// [`Error::Input`] when the groups differ in number.
    pub fn decline_from(&self, teacher: &FrechetSample) -> Result<Option<Estimate>> {
        // What rounding leaves of the distance of equal sets.
        if teacher.value < 1e-6 || !is_clearly_positive(teacher.value, &teacher.leave_out) {
            return Ok(None);
        }
        self.paired(teacher, |own, theirs| (own - theirs) / theirs).map(Some)
    }

    fn paired(&self, other: &FrechetSample, f: impl Fn(f64, f64) -> f64) -> Result<Estimate> {
        if self.leave_out.len() != other.leave_out.len() {
            let (expected, got) = (self.leave_out.len(), other.leave_out.len());
            return Err(Error::input("groups", format!("{expected} in both samples"), got.to_string()));
        }
        let left: Vec<f64> = self.leave_out.iter().zip(&other.leave_out).map(|(a, b)| f(*a, *b)).collect();
        Ok(jackknife(f(self.value, other.value), &left))
    }
}

/// The grouped jackknife (Efron and Tibshirani, chapter 11): se^2 = (g - 1) / g * sum (v_g - mean v)^2.
fn jackknife(value: f64, left: &[f64]) -> Estimate {
    let g = left.len() as f64;
    let mean = left.iter().sum::<f64>() / g;
    let se = ((g - 1.0) / g * left.iter().map(|v| (v - mean).powi(2)).sum::<f64>()).sqrt();
    Estimate { value, se, low: value - Z95 * se, high: value + Z95 * se }
}

fn as_f64(name: &str, x: &Tensor) -> Result<Tensor> {
    if x.dim() != 2 || x.size()[0] < 2 {
        return Err(Error::input(name, "embeddings [N, D] with at least two rows", format!("{:?}", x.size())));
    }
    let x = x.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
    if !bool::try_from(x.f_isfinite()?.f_all()?)? {
        return Err(Error::NotFinite { what: format!("embedding `{name}`"), hint: "look at the images and the CLIP weights".into() });
    }
    Ok(x)
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    if a.size()[1] != b.size()[1] || a.size()[0] < 2 || b.size()[0] < 2 {
        return Err(Error::input("embeddings", "two sets [N, D] of one width, N at least 2", format!("{:?} and {:?}", a.size(), b.size())));
    }
    let (m1, c1) = moments(a)?;
    let (m2, c2) = moments(b)?;
    let root = symmetric_sqrt(&c1)?;
    let inner = root.f_matmul(&c2)?.f_matmul(&root)?;
    // Symmetric up to rounding; eigh reads one triangle only, so make it exact. Tiny negative eigenvalues are rounding too.
    let inner = inner.f_add(&inner.f_transpose(0, 1)?)?.f_mul_scalar(0.5)?;
    let cross = inner.f_linalg_eigh("L")?.0.f_clamp_min(0.0)?.f_sqrt()?.f_sum(Kind::Double)?;
    let gap = m1.f_sub(&m2)?;
    let value = gap.f_dot(&gap)?.f_add(&c1.f_trace()?)?.f_add(&c2.f_trace()?)?.f_sub(&cross.f_mul_scalar(2.0)?)?;
    Ok(f64::try_from(&value)?.max(0.0))
}

/// Mean `[D]` and covariance `[D, D]` (divisor N - 1) of `x` `[N, D]`.
fn moments(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = x.f_mean_dim([0i64].as_slice(), false, Kind::Double)?;
    let centred = x.f_sub(&mean)?;
    let cov = centred.f_transpose(0, 1)?.f_matmul(&centred)?.f_div_scalar(x.size()[0] - 1)?;
    Ok((mean, cov))
}

/// The positive root of a symmetric positive semidefinite matrix.
fn symmetric_sqrt(c: &Tensor) -> Result<Tensor> {
    let (values, vectors) = c.f_linalg_eigh("L")?;
    let scaled = vectors.f_mul(&values.f_clamp_min(0.0)?.f_sqrt()?)?;
    Ok(scaled.f_matmul(&vectors.f_transpose(0, 1)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn fixture() -> Value {
        serde_json::from_str(include_str!("../tests/fixtures/frechet.json")).unwrap()
    }

    fn matrix(v: &Value) -> Tensor {
        let rows: Vec<Vec<f64>> = serde_json::from_value(v.clone()).unwrap();
        Tensor::from_slice2(&rows)
    }

    #[test]
    fn equals_numpy_for_full_and_for_low_rank() {
        let f = fixture();
        let (a, b, low) = (matrix(&f["a"]), matrix(&f["b"]), matrix(&f["low_rank"]));
        let close = |got: f64, want: &Value| assert!((got - want.as_f64().unwrap()).abs() < 1e-6, "{got} against {want}");
        close(frechet_distance(&a, &b).unwrap(), &f["a_to_b"]);
        close(frechet_distance(&b, &a).unwrap(), &f["a_to_b"]);
        close(frechet_distance(&a, &low).unwrap(), &f["a_to_low_rank"]);
        // Exactly zero in theory; what is left is the square root of rounding.
        assert!(frechet_distance(&a, &a).unwrap() < 1e-6);
    }

    #[test]
    fn jackknife_equals_numpy() {
        let f = fixture();
        let prompts: Vec<usize> = (0..40).collect();
        let sample = FrechetSample::measure(&matrix(&f["a"]), &matrix(&f["b"]), &prompts, 8).unwrap();
        let want: Vec<f64> = serde_json::from_value(f["leave_out"].clone()).unwrap();
        assert_eq!(sample.leave_out.len(), want.len());
        assert!(sample.leave_out.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6));
        let got = sample.estimate();
        assert!((got.se - f["se"].as_f64().unwrap()).abs() < 1e-6, "{got:?}");
        let same = sample.gain_over(&sample).unwrap();
        assert_eq!((same.value, same.se), (0.0, 0.0));
        assert_eq!(sample.decline_from(&FrechetSample { value: 0.0, ..sample.clone() }).unwrap(), None);
        let equal = FrechetSample { value: 3e-8, leave_out: vec![2e-8; sample.leave_out.len()], n: sample.n };
        assert_eq!(sample.decline_from(&equal).unwrap(), None, "equal sets but for rounding");
        assert_eq!(sample.decline_from(&sample).unwrap().unwrap().value, 0.0);
    }

    #[test]
    fn a_shift_is_its_squared_length() {
        let a = matrix(&fixture()["a"]);
        let shifted = a.f_add_scalar(0.5).unwrap();
        assert!((frechet_distance(&a, &shifted).unwrap() - 7.0 * 0.25).abs() < 1e-6);
    }

    #[test]
    fn bad_embeddings_are_errors() {
        let a = matrix(&fixture()["a"]);
        assert!(matches!(frechet_distance(&a, &a.narrow(1, 0, 3)), Err(Error::Input { .. })));
        assert!(matches!(frechet_distance(&a.narrow(0, 0, 1), &a), Err(Error::Input { .. })));
        assert!(matches!(frechet_distance(&(&a / 0.0), &a), Err(Error::NotFinite { .. })));
        assert!(FrechetSample::measure(&a, &a, &[0; 40], 4).is_err());
    }
}
