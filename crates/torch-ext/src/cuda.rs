//! libtorch's CUDA library, opened at the start of a program that links the CPU library alone, and how its kernels compute.

use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::ffi;

/// How kernels on a GPU compute. The defaults are what the numbers of a CPU are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GpuOptions {
    /// Convolutions and matrix products of f32 round what they multiply to TF32's 10 bits: faster, and libtorch's own default for
    /// convolutions.
    pub tf32: bool,
    /// Only kernels that give the same bits each time; slower, and an error where libtorch has none.
    pub deterministic: bool,
}

static OPENED: OnceLock<std::result::Result<(), String>> = OnceLock::new();

/// Opens `libtorch_cuda.so`, which registers CUDA with the libtorch that is loaded already; the first call decides.
///
/// To be called before the first tensor and the first seed: a seed that was set earlier leaves CUDA out of reach for the whole process.
///
/// # Errors
/// [`Error::Cuda`] when the loader does not find it, which every later call repeats.
pub fn open_cuda(options: GpuOptions) -> Result<()> {
    let opened = OPENED.get_or_init(|| {
        // SAFETY: the library's initialisers only register CUDA with the libtorch that is loaded; it is never closed.
        ffi::check(unsafe { ffi::tx_open_cuda(options.tf32.into(), options.deterministic.into()) })
    });
    opened.clone().map_err(|message| Error::Cuda { message })
}

/// Whether CUDA is there: [`Error::Cuda`] where [`open_cuda`] was not called or failed.
///
/// # Errors
/// As said.
pub fn cuda_opened() -> Result<()> {
    let not_yet = || Err("it was not opened at the program's start".to_string());
    OPENED.get().cloned().unwrap_or_else(not_yet).map_err(|message| Error::Cuda { message })
}

/// Whether convolutions of f32 on a GPU take TF32: part of what a number from a GPU was computed in.
pub fn allows_tf32() -> bool {
    // SAFETY: reads a flag.
    unsafe { ffi::tx_allows_tf32() != 0 }
}
