//! What libtorch lacks on a CPU. A program calls [`prepare`] first of all.

mod memory;
#[cfg(target_arch = "x86_64")]
mod mkl;

/// From now on freed memory serves again, and MKL goes by what the processor can do.
///
/// To be called before there are threads: other threads than the main one have heaps of their own, and blocks of over 64 MB mapped anew
/// each time. Tensors made before are released as before.
pub fn prepare() {
    memory::reuse_freed_blocks();
    #[cfg(target_arch = "x86_64")]
    mkl::answer();
}
