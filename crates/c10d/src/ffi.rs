//! The shim's functions (cpp/shim.cpp). Each returns null, or a message that [`check`] takes over.

use std::ffi::{CStr, c_char, c_int, c_void};

unsafe extern "C" {
    pub fn ld_free(text: *mut c_char);
    pub fn ld_join(
        host: *const c_char,
        port: u16,
        serve: c_int,
        rank: c_int,
        world: c_int,
        prefix: *const c_char,
        timeout_ms: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub fn ld_open_nccl(group: *mut c_void, path: *const c_char, device: c_int) -> *mut c_char;
    pub fn ld_leave(group: *mut c_void);
    pub fn ld_all_reduce(group: *mut c_void, tensor: *const c_void) -> *mut c_char;
    pub fn ld_broadcast(group: *mut c_void, tensor: *const c_void, root: c_int) -> *mut c_char;
    pub fn ld_all_gather(group: *mut c_void, whole: *const c_void, part: *const c_void) -> *mut c_char;
    pub fn ld_barrier(group: *mut c_void) -> *mut c_char;
    pub fn ld_set(group: *mut c_void, key: *const c_char, data: *const u8, n: usize) -> *mut c_char;
    pub fn ld_get(group: *mut c_void, key: *const c_char, data: *mut *mut u8, n: *mut usize) -> *mut c_char;
    pub fn ld_buckets_new(
        group: *mut c_void,
        params: *const *const c_void,
        n: usize,
        bucket_bytes: i64,
        number: u64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub fn ld_buckets_drop(buckets: *mut c_void);
    pub fn ld_buckets_begin(buckets: *mut c_void);
    pub fn ld_buckets_arm(buckets: *mut c_void);
    pub fn ld_buckets_finish(buckets: *mut c_void, out: *mut *mut c_void) -> *mut c_char;
    pub fn ld_buckets_count(buckets: *mut c_void, all: *mut i64, early: *mut i64);
}

/// The message behind a returned pointer, released.
pub fn check(text: *mut c_char) -> Result<(), String> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns null or a NUL-terminated string from malloc, which nobody else holds.
    unsafe {
        let message = CStr::from_ptr(text).to_string_lossy().trim().to_string();
        ld_free(text);
        Err(message)
    }
}
