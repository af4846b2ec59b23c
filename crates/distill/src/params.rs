//! All trainable parameters as named views of one flat f32 buffer, so that the optimizer, the moving average, clipping and
//! checkpoints are a handful of operations on one long vector instead of thousands on small ones.

use tch::{Device, Kind, Tensor};
use unet::weights::Tensors;

use crate::error::Result;

/// Master weights: one flat buffer and its named, differentiable views.
#[derive(Debug)]
pub struct FlatParams {
    flat: Tensor,
    views: Tensors,
}

impl FlatParams {
    /// Copies `initial` into a flat f32 buffer on `device`. The order is that of the names.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] when memory runs out.
    pub fn new(initial: &Tensors, device: Device) -> Result<Self> {
        let pieces: Vec<Tensor> = initial.values().map(|t| t.detach().to_device(device).to_kind(Kind::Float).reshape([-1])).collect();
        let flat = Tensor::f_cat(&pieces, 0)?;
        let mut views = Tensors::new();
        let mut at = 0;
        for (name, t) in initial {
            let n = t.numel() as i64;
            let view = flat.f_narrow(0, at, n)?.f_view(t.size().as_slice())?.detach();
            views.insert(name.clone(), view.set_requires_grad(true));
            at += n;
        }
        Ok(Self { flat, views })
    }

    /// The named leaves that networks are built from.
    pub fn views(&self) -> &Tensors {
        &self.views
    }

    /// The flat buffer, `[P]`, f32.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// The gradients of the views as one vector `[P]`, and clears them. A parameter that the loss did not reach counts as zero.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] when memory runs out.
    pub fn take_grads(&mut self) -> Result<Tensor> {
        let mut pieces = Vec::with_capacity(self.views.len());
        for v in self.views.values_mut() {
            let g = v.grad();
            pieces.push(if g.defined() { g.reshape([-1]) } else { Tensor::zeros([v.numel() as i64], (Kind::Float, v.device())) });
        }
        let grads = Tensor::f_cat(&pieces, 0)?;
        drop(pieces);
        for v in self.views.values_mut() {
            v.zero_grad();
        }
        Ok(grads)
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
