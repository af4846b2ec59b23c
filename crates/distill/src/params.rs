//! All trainable parameters as named views of one flat f32 buffer, so that the optimizer, the moving average, clipping and
//! checkpoints are a handful of operations on one long vector instead of thousands on small ones.

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use unet::weights::Tensors;

use crate::error::Result;

/// Master weights: one flat buffer and its named, differentiable views.
#[derive(Debug)]
pub struct FlatParams {
    buffer: Tensor,
    flat: Tensor,
    views: Tensors,
}

impl FlatParams {
    /// Copies `initial` into a flat f32 buffer of `padded` elements on `device`. The order is that of the names.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] when memory runs out.
    pub fn new(initial: &Tensors, device: Device, padded: i64) -> Result<Self> {
        let buffer = Tensor::f_zeros([padded], (Kind::Float, device))?;
        let mut views = Tensors::new();
        let mut at = 0;
        for (name, t) in initial {
            let n = t.numel() as i64;
            let mut view = buffer.f_narrow(0, at, n)?.f_view(t.size().as_slice())?.detach();
            tch::no_grad(|| view.f_copy_(t).map(|_| ()))?;
            views.insert(name.clone(), view.set_requires_grad(true));
            at += n;
        }
        let flat = buffer.f_narrow(0, 0, at)?;
        Ok(Self { buffer, flat, views })
    }

    /// The named leaves that networks are built from.
    pub fn views(&self) -> &Tensors {
        &self.views
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
        let mut hash = Sha256::new();
        for (name, t) in &self.views {
            hash.update(format!("{name} {:?}\n", t.size()));
        }
        let hash = hash.finalize();
        format!("{} tensors of {} numbers, hash {}", self.views.len(), self.len(), &unet::weights::hex(&hash)[..16])
    }

    /// `flat`, shaped like the parameters: named views of another vector of the same length.
    pub fn shaped(&self, flat: &Tensor) -> Tensors {
        let mut at = 0;
        let mut out = Tensors::new();
        for (name, v) in &self.views {
            let n = v.numel() as i64;
            out.insert(name.clone(), flat.narrow(0, at, n).view(v.size().as_slice()));
            at += n;
        }
        out
    }
}
