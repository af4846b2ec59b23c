//! The tensors of a mapped file under other names, in other shapes: file -> **view** -> network, or another file.
//!
//! Nothing is read. Layouts differ in names, in three matrices that stand in one, in matrices that are transposed and in 1x1 kernels,
//! and all of that is only another way to walk the same bytes.

use super::files::{Entry, TensorFile};

/// How a tensor lies in the one that the file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Whole,
    /// The first, second or third (0, 1, 2) of three equal parts along the first dimension.
    Third(usize),
    /// A matrix with rows and columns exchanged.
    Transposed,
    /// A matrix that is stored as a 1x1 kernel `[out, in, 1, 1]`.
    Matrix,
    /// A 1x1 kernel that is stored as a matrix `[out, in]`.
    Kernel,
}

/// A tensor of a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Its name there.
    pub name: String,
    /// What it is of the stored tensor.
    pub form: Form,
}

impl TensorFile {
    /// The tensors that `slices` makes of each name of the file; they share its mapped bytes. Tensors without the dimensions that a form
    /// needs are taken as they are, so that whoever loads them says which shape was expected.
    pub fn view(&self, slices: impl Fn(&str) -> Vec<Slice>) -> Self {
        let made = self.entries.iter().flat_map(|(name, e)| {
            let of_one = slices(name).into_iter().map(|slice| (slice.name, shaped(e, slice.form)));
            of_one.collect::<Vec<_>>()
        });
        self.with_entries(made.collect())
    }
}

fn shaped(e: &Entry, form: Form) -> Entry {
    let mut out = e.clone();
    let mut strides = e.strides.clone().unwrap_or_else(|| dense(&e.shape));
    match form {
        Form::Third(n) if e.shape.first().is_some_and(|rows| rows % 3 == 0) => {
            let span = |shape: &[i64]| 1 + shape.iter().zip(&strides).map(|(side, stride)| (side - 1) * stride).sum::<i64>();
            let size = (e.end - e.start).checked_div(span(&e.shape).max(1) as usize).unwrap_or(0);
            out.shape[0] /= 3;
            out.start += n * (out.shape[0] * strides[0]) as usize * size;
            out.end = out.start + span(&out.shape) as usize * size;
        }
        Form::Transposed if e.shape.len() == 2 => {
            out.shape.swap(0, 1);
            strides.swap(0, 1);
        }
        Form::Matrix if e.shape.len() == 4 && e.shape[2..] == [1, 1] => {
            out.shape.truncate(2);
            strides.truncate(2);
        }
        Form::Kernel if e.shape.len() == 2 => {
            out.shape.extend([1, 1]);
            strides.extend([1, 1]);
        }
        _ => return out,
    }
    out.strides = (strides != dense(&out.shape)).then_some(strides);
    out
}

fn dense(shape: &[i64]) -> Vec<i64> {
    (1..=shape.len()).map(|i| shape[i..].iter().product()).collect()
}
