//! Gradients of many parameters in flat buckets, summed over the ranks.

use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;

use tch::Tensor;

use super::group::ProcessGroup;
use crate::error::{Error, Result};
use crate::ffi;

/// Moves every gradient into the flat f32 vector of its bucket as soon as the backward pass has it, frees the leaf's own copy, and, with
/// a group, sums buckets over the ranks while the rest of the backward pass runs. A bucket takes no memory before its first gradient,
/// so that gradients grow into what activations leave.
///
/// In the first step the first rank notes in which order its buckets become ready; all ranks send in that order from then on.
#[derive(Debug)]
pub struct GradientBuckets {
    raw: *mut c_void,
    // Kept alive as long as the hooks may use it.
    group: Option<Rc<ProcessGroup>>,
}

impl GradientBuckets {
    /// Hooks on the leaves `params`, whose gradients lie one behind the other; a bucket is full with `bucket_bytes`.
    ///
    /// # Errors
    /// [`Error::Tensor`] when libtorch takes no hook.
    pub fn new<'a>(params: impl IntoIterator<Item = &'a Tensor>, group: Option<Rc<ProcessGroup>>, bucket_bytes: usize) -> Result<Self> {
        let list: Vec<*const c_void> = params.into_iter().map(|t| t.as_ptr().cast()).collect();
        let raw_group = group.as_ref().map_or(ptr::null_mut(), |g| g.raw());
        let number = group.as_ref().map_or(0, |g| g.use_number());
        let mut raw = ptr::null_mut();
        // SAFETY: tensors are alive and copied (by reference count) in the call; the group outlives the buckets by the Rc.
        let text = unsafe { ffi::tx_buckets_new(raw_group, list.as_ptr(), list.len(), bucket_bytes as i64, number, &mut raw) };
        ffi::check(text).map_err(Error::Tensor)?;
        Ok(Self { raw, group })
    }

    /// A new step: what the buckets hold is past.
    pub fn begin(&mut self) {
        // SAFETY: the pointer came from `tx_buckets_new`.
        unsafe { ffi::tx_buckets_begin(self.raw) }
    }

    /// The backward passes from now to [`GradientBuckets::finish`] are those of the step's last micro-batch.
    pub fn arm(&mut self) {
        // SAFETY: as above.
        unsafe { ffi::tx_buckets_arm(self.raw) }
    }

    /// The buckets, whose memory is free again once they are dropped: one behind the other they are the gradients of all parameters.
    /// Parameters that no loss reached count as zero, and with a group everything is summed.
    ///
    /// # Errors
    /// [`Error::Collective`] when another rank failed.
    ///
    /// # Shapes
    /// Together `[P]`, f32.
    pub fn finish(&mut self) -> Result<Vec<Tensor>> {
        let mut raw = vec![ptr::null_mut(); self.overlap().0];
        // SAFETY: as above; there is room for every bucket.
        let done = ffi::check(unsafe { ffi::tx_buckets_finish(self.raw, raw.as_mut_ptr()) });
        done.map_err(|message| match &self.group {
            Some(group) => group.failed("the sum of gradients")(message),
            None => Error::Tensor(message),
        })?;
        // SAFETY: tensors made for this call, which nobody else holds.
        Ok(raw.into_iter().map(|t| unsafe { Tensor::from_ptr(t.cast()) }).collect())
    }

    /// Number of buckets, and how many of them were sent before the last backward pass ended.
    pub fn overlap(&self) -> (usize, usize) {
        let (mut all, mut early) = (0, 0);
        // SAFETY: as above.
        unsafe { ffi::tx_buckets_count(self.raw, &mut all, &mut early) };
        (all as usize, early as usize)
    }
}

impl Drop for GradientBuckets {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `tx_buckets_new`; hooks that still exist hold weak references.
        unsafe { ffi::tx_buckets_drop(self.raw) }
    }
}
