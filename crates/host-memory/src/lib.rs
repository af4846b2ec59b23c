//! Memory for libtorch's tensors on the CPU.
//!
//! libtorch takes it from `posix_memalign`. glibc's (2.36) does not make a tensor of a freed block of the same size, because it looks for
//! room for the size *and* the alignment: the memory of a training run falls into pieces. And glibc hands large blocks back to the kernel
//! as soon as they are free, so that every large tensor begins with fresh pages.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
unsafe extern "C" {
    fn ld_use_plain_allocator();
}

/// From now on freed blocks of up to 32 MB stay with the process for the next tensor. Call it first of all, before there are threads. Does
/// nothing where the C library is not glibc.
pub fn keep_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const BLOCK: i32 = 32 << 20;
        // SAFETY: only sets parameters of the allocator.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, BLOCK);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, 4 * BLOCK);
        }
    }
}

/// From now on tensors on the CPU lie in plain `malloc` blocks, which serve again for the same size; the last few freed, 32 MB together, go to
/// the next tensor of the very same size. For training, whose memory it cuts by a tenth; large forward passes alone are slower with it.
/// Tensors made before are released as before. Does nothing where the C library is not glibc.
pub fn reuse_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: every tensor carries the function that releases it.
    unsafe {
        ld_use_plain_allocator();
    }
}
