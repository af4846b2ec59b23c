//! Whether weights are numbers: nothing of a run that went astray is saved or written as a result.

use std::path::Path;

use tch::{Kind, Tensor};
use unet::weights::Tensors;

use super::checkpoint;
use crate::error::{Error, Result};

/// Whether no element of `x`, f32, is NaN or infinite. A sum finds it without a second tensor of its size; finite weights do not add up to
/// more than f32 holds.
pub(super) fn is_finite(x: &Tensor) -> Result<bool> {
    Ok(x.f_sum(Kind::Float)?.double_value(&[]).is_finite())
}

/// Refuses weights that a file of the type `kind` cannot hold.
pub(crate) fn check_stored<'a>(weights: impl IntoIterator<Item = (&'a String, &'a Tensor)>, kind: Kind) -> Result<()> {
    for (name, t) in weights {
        let largest = t.f_detach()?.f_abs()?.f_max()?.f_to_kind(kind)?.double_value(&[]);
        if !largest.is_finite() {
            return Err(Error::NotStorable { parameter: name.clone(), kind: unet::Compute::of(kind).name() });
        }
    }
    Ok(())
}

/// [`check_stored`] for a result that is to be saved in f16, passed through.
pub(crate) fn storable_in_f16(weights: Tensors) -> Result<Tensors> {
    check_stored(&weights, Kind::Half)?;
    Ok(weights)
}

/// The run in `dir` went astray.
pub(super) fn lost(dir: Option<&Path>, step: u64, skipped: u64, weights: bool) -> Error {
    let checkpoint = dir.and_then(checkpoint::newest_path);
    if weights { Error::WeightsNotFinite { step, checkpoint } } else { Error::NotFinite { step, skipped, checkpoint } }
}
