//! CUDA devices for tests on machines without a GPU.
//!
//! Stands beside the data flow. `laptop-diff` opens `libtorch_cuda.so` at run time if the loader finds one; with [`folder`] on
//! `LD_LIBRARY_PATH` it finds the one that this package compiles. Its devices compute with the CPU's kernels, but as on a GPU an operation
//! refuses tensors of two devices, host code that touches device memory ends the process, and new memory holds no numbers. So
//! a test sees whether every tensor of a command is where it must be. It says nothing about speed or about how a GPU rounds.

use std::path::Path;

/// Number of devices, 1 if unset.
pub const DEVICES: &str = "CUDA_STANDIN_DEVICES";

/// Bytes of all devices together, without end if unset.
pub const MEMORY: &str = "CUDA_STANDIN_MEMORY";

/// A file that the process writes at its end: calls of each operation, copies between host and devices, and the peak of their memory.
pub const REPORT: &str = "CUDA_STANDIN_REPORT";

/// The folder that holds the library.
pub fn folder() -> &'static Path {
    Path::new(env!("CUDA_STANDIN_FOLDER"))
}
