//! How the C allocator treats libtorch's tensors.

/// Keeps freed blocks of up to 32 MB for the next tensor. By default glibc hands each one back to the kernel, and a network of small
/// layers spends a tenth of its time on fresh pages. Larger blocks still go back at once.
pub fn keep_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const BLOCK: i32 = 32 << 20;
        // SAFETY: only sets parameters of the allocator; no other thread runs yet.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, BLOCK);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, 4 * BLOCK);
        }
    }
}
