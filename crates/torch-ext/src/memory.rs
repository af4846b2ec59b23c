//! Memory for libtorch's tensors on the CPU.
//!
//! libtorch takes it from `posix_memalign`. glibc's (2.36) does not make a tensor of a freed block of the same size, because it looks for
//! room for the size *and* the alignment: the memory of a training run falls into pieces. And glibc hands large blocks back to the kernel
//! as soon as they are free, so that every large tensor begins with fresh pages.

/// From now on tensors on the CPU lie in plain `malloc` blocks of one heap, which are reused. Does nothing where the C library is not
/// glibc.
pub fn reuse_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const TOP_PAD: i32 = 128 << 20;
        // SAFETY: sets parameters of the allocator; every tensor carries the function that releases it.
        unsafe {
            // By default a block of over 32 MB, as large convolutions repack their weights into, is mapped anew each time.
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, TOP_PAD);
            crate::ffi::tx_use_plain_allocator();
        }
    }
}
