//! All trainable parameters as named views of one flat f32 buffer, so that the optimizer, the moving average, clipping and
//! checkpoints are a handful of operations on one long vector instead of thousands on small ones.

use tch::{Device, Kind, Tensor};
use unet::weights::Tensors;

use crate::error::Result;

/// Master weights: one flat f32 buffer, and named leaves that networks are built from. The leaves are views of the buffer, or of one
/// copy of it in another number type, which is made anew in one operation per step instead of one per parameter.
#[derive(Debug)]
pub struct FlatParams {
    buffer: Tensor,
    flat: Tensor,
    // None: the leaves are views of the masters.
    copy: Option<Tensor>,
    leaves: Tensors,
}

impl FlatParams {
    /// Copies `initial` into a flat f32 buffer of `padded` elements on `device`; the leaves are of type `kind`. The order is that of the
    /// names.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] when memory runs out.
    pub fn new(initial: &Tensors, device: Device, padded: i64, kind: Kind) -> Result<Self> {
        let buffer = Tensor::f_zeros([padded], (Kind::Float, device))?;
        let all: i64 = initial.values().map(|t| t.numel() as i64).sum();
        let flat = buffer.f_narrow(0, 0, all)?;
        let copy = if kind == Kind::Float { None } else { Some(Tensor::f_zeros([all], (kind, device))?) };
        let mut leaves = Tensors::new();
        let mut at = 0;
        for (name, t) in initial {
            let n = t.numel() as i64;
            let part = |whole: &Tensor| whole.f_narrow(0, at, n)?.f_view(t.size().as_slice());
            tch::no_grad(|| part(&flat)?.f_copy_(t).map(|_| ()))?;
            leaves.insert(name.clone(), part(copy.as_ref().unwrap_or(&flat))?.detach().set_requires_grad(true));
            at += n;
        }
        Ok(Self { buffer, flat, copy, leaves })
    }

    /// Gives the leaves the masters' present values.
    ///
    /// # Errors
    /// As [`FlatParams::new`].
    pub fn refresh(&mut self) -> Result<()> {
        let Some(copy) = &mut self.copy else { return Ok(()) };
        Ok(tch::no_grad(|| copy.f_copy_(&self.flat).map(|_| ()))?)
    }

    /// The leaves, with the values of the last [`FlatParams::refresh`].
    pub fn leaves(&self) -> &Tensors {
        &self.leaves
    }

    /// All parameters, `[P]`, f32.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// `P`.
    pub fn len(&self) -> i64 {
        self.flat.numel() as i64
    }

    /// All parameters and the padding behind them.
    pub fn buffer(&self) -> &Tensor {
        &self.buffer
    }

    /// Names and shapes in one short text, to be compared between ranks.
    pub fn signature(&self) -> String {
        let lines: String = self.leaves.iter().map(|(name, t)| format!("{name} {:?}\n", t.size())).collect();
        format!("{} tensors of {} numbers, hash {}", self.leaves.len(), self.len(), &artifact::sha256(lines)[..16])
    }

    /// `flat`, shaped like the parameters: named views of another vector of the same length.
    pub fn shaped(&self, flat: &Tensor) -> Tensors {
        let mut at = 0;
        let mut out = Tensors::new();
        for (name, v) in &self.leaves {
            let n = v.numel() as i64;
            out.insert(name.clone(), flat.narrow(0, at, n).view(v.size().as_slice()));
            at += n;
        }
        out
    }
}
