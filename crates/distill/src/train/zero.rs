//! The optimizer's state cut among the ranks (ZeRO stage 1, arXiv 1910.02054): each keeps the moments and the moving average
//! of one part of the parameters, updates that part, and hands it to the others. The bits are those of an uncut run.

use std::rc::Rc;

use tch::Tensor;
use torch_ext::{AdamW, ProcessGroup};
use unet::weights::Tensors;

use crate::error::Result;

/// Which part of the parameters is this rank's.
#[derive(Debug)]
pub(crate) struct Shards {
    // None: everything is.
    group: Option<Rc<ProcessGroup>>,
    begin: i64,
    len: i64,
    padded: i64,
}

impl Shards {
    /// Equal parts for all ranks of `group`, padded to where the optimizer may be cut.
    pub fn new(group: Option<Rc<ProcessGroup>>, params: &Tensors) -> Self {
        let all: i64 = params.values().map(|t| t.numel() as i64).sum();
        let (rank, ranks) = group.as_ref().map_or((0, 1), |g| (g.rank() as i64, g.world() as i64));
        let unit = ranks * AdamW::ALIGNMENT;
        let padded = (all + unit - 1) / unit * unit;
        let len = padded / ranks;
        Self { group, begin: rank * len, len, padded }
    }

    /// Length of the parameters with their padding.
    pub fn padded(&self) -> i64 {
        self.padded
    }

    /// Whether there is more than one part.
    pub fn is_cut(&self) -> bool {
        self.group.is_some()
    }

    /// This rank's part of a padded vector, as a view.
    pub fn own(&self, padded: &Tensor) -> Tensor {
        padded.narrow(0, self.begin, self.len)
    }

    /// This rank's part of an unpadded vector that is there in pieces, one behind the other: where each begins in the part, and a view.
    pub fn own_parts(&self, pieces: &[Tensor]) -> Vec<(i64, Tensor)> {
        let mut at = 0;
        let mut out = Vec::new();
        for piece in pieces {
            let n = piece.numel() as i64;
            let (from, to) = (self.begin.clamp(at, at + n), (self.begin + self.len).clamp(at, at + n));
            if from < to {
                out.push((from - self.begin, piece.narrow(0, from - at, to - from)));
            }
            at += n;
        }
        out
    }

    /// Copies this rank's part of an unpadded vector, on any device, to `part`.
    pub fn take(&self, whole: &Tensor, part: &mut Tensor) -> Result<()> {
        let n = (whole.numel() as i64 - self.begin).clamp(0, self.len);
        if n > 0 {
            part.f_narrow(0, 0, n)?.f_copy_(&whole.f_narrow(0, self.begin, n)?)?;
        }
        Ok(())
    }

    /// All ranks' parts one behind the other: a new vector where the state is cut, and `part` itself where it is not.
    pub fn whole(&self, part: &Tensor) -> Result<Tensor> {
        let Some(group) = &self.group else { return Ok(part.shallow_clone()) };
        let whole = Tensor::f_empty([self.padded], (part.kind(), part.device()))?;
        group.all_gather(&whole, part)?;
        Ok(whole)
    }

    /// Hands every rank's part of `padded` to all others.
    pub fn share(&self, padded: &Tensor) -> Result<()> {
        if let Some(group) = &self.group {
            group.all_gather(padded, &self.own(padded).copy())?;
        }
        Ok(())
    }
}
