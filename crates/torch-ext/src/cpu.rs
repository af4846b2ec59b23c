//! What a program can change in libtorch on a CPU at its start, and the switches to leave it as it is.

use crate::error::{Error, Result};
use crate::{memory, mkl};

/// Where libtorch's tensors on the CPU lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Allocator {
    /// In plain `malloc` blocks of one heap, which are reused; the last few freed, 8 MB together, go to the next tensor of the very same
    /// size. Freed memory stays with the process. As [`Allocator::System`] where the C library is not glibc.
    #[default]
    Reusing,
    /// Where libtorch puts them: `posix_memalign`, with glibc's own settings.
    System,
}

/// Which kernels MKL takes, the library that computes libtorch's matrix products on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MklKernels {
    /// On AMD's processors, as on Intel's, those for what the processor says it can do.
    #[default]
    ByFeatures,
    /// MKL's own choice: on processors that are not Intel's those for what the oldest of them can do.
    Default,
}

/// What [`prepare`] changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuOptions {
    /// Memory of tensors on the CPU.
    pub allocator: Allocator,
    /// Kernels of matrix products.
    pub mkl: MklKernels,
}

impl CpuOptions {
    /// Reads `LAPTOP_DIFF_ALLOCATOR` (`reuse` or `system`) and `LAPTOP_DIFF_MKL` (`features` or `default`); one that is not set, or empty,
    /// is the first.
    ///
    /// # Errors
    /// [`Error::Variable`] for another value.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let is_off = |name: &'static str, on: &str, off: &str| match var(name).as_deref() {
            None | Some("") => Ok(false),
            Some(value) if value == on => Ok(false),
            Some(value) if value == off => Ok(true),
            Some(value) => Err(Error::Variable { name, expected: format!("{on} or {off}"), got: value.into() }),
        };
        let allocator = if is_off("LAPTOP_DIFF_ALLOCATOR", "reuse", "system")? { Allocator::System } else { Allocator::Reusing };
        let mkl = if is_off("LAPTOP_DIFF_MKL", "features", "default")? { MklKernels::Default } else { MklKernels::ByFeatures };
        Ok(Self { allocator, mkl })
    }
}

/// From now on freed memory is reused, and MKL goes by what the processor can do, as far as `options` ask for it.
///
/// To be called before there are threads: other threads than the main one have heaps of their own, and blocks of over 64 MB mapped anew
/// each time; and before the first matrix product, after which MKL has chosen. Tensors made before are released as before.
pub fn prepare(options: CpuOptions) {
    match options.allocator {
        Allocator::Reusing => memory::reuse_freed_blocks(),
        Allocator::System => {}
    }
    mkl::choose(options.mkl);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_switch_has_two_positions_and_names_them() {
        let read = |name: &'static str, value: &str| CpuOptions::from_vars(|asked| (asked == name).then(|| value.to_string()));
        assert_eq!(CpuOptions::from_vars(|_| None).unwrap(), CpuOptions::default());
        assert_eq!(read("LAPTOP_DIFF_MKL", "").unwrap(), CpuOptions::default());
        assert_eq!(read("LAPTOP_DIFF_ALLOCATOR", "reuse").unwrap(), CpuOptions::default());
        assert_eq!(read("LAPTOP_DIFF_ALLOCATOR", "system").unwrap().allocator, Allocator::System);
        assert_eq!(read("LAPTOP_DIFF_MKL", "default").unwrap().mkl, MklKernels::Default);
        let error = read("LAPTOP_DIFF_MKL", "off").unwrap_err().to_string();
        assert_eq!(error, "environment variable LAPTOP_DIFF_MKL: expected features or default, got `off`");
    }
}
