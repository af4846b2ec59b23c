//! The C++ part's functions (cpp/). Those that return text return null, or a message that [`check`] takes over.

use std::ffi::{CStr, c_char, c_int, c_void};

unsafe extern "C" {
    pub fn tx_free(text: *mut c_char);
    pub fn tx_join(
        host: *const c_char,
        port: u16,
        serve: c_int,
        rank: c_int,
        world: c_int,
        prefix: *const c_char,
        timeout_ms: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub fn tx_open_nccl(group: *mut c_void, path: *const c_char, device: c_int) -> *mut c_char;
    pub fn tx_leave(group: *mut c_void);
    pub fn tx_all_reduce(group: *mut c_void, tensor: *const c_void) -> *mut c_char;
    pub fn tx_broadcast(group: *mut c_void, tensor: *const c_void, root: c_int) -> *mut c_char;
    pub fn tx_all_gather(group: *mut c_void, whole: *const c_void, part: *const c_void) -> *mut c_char;
    pub fn tx_barrier(group: *mut c_void) -> *mut c_char;
    pub fn tx_wait(group: *mut c_void, key: *const c_char) -> *mut c_char;
    pub fn tx_set(group: *mut c_void, key: *const c_char, data: *const u8, n: usize) -> *mut c_char;
    pub fn tx_get(group: *mut c_void, key: *const c_char, data: *mut *mut u8, n: *mut usize) -> *mut c_char;
    pub fn tx_buckets_new(
        group: *mut c_void,
        params: *const *const c_void,
        n: usize,
        bucket_bytes: i64,
        number: u64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub fn tx_buckets_drop(buckets: *mut c_void);
    pub fn tx_buckets_begin(buckets: *mut c_void);
    pub fn tx_buckets_arm(buckets: *mut c_void);
    pub fn tx_buckets_finish(buckets: *mut c_void, out: *mut *mut c_void) -> *mut c_char;
    pub fn tx_buckets_count(buckets: *mut c_void, all: *mut i64, early: *mut i64);
    pub fn tx_adamw(
        params: *mut c_void,
        m: *mut c_void,
        v: *mut c_void,
        begins: *const i64,
        grads: *const *mut c_void,
        n: usize,
        alignment: i64,
        updates: f64,
        divisor: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    pub fn tx_open_cuda(tf32: c_int, deterministic: c_int) -> *mut c_char;
    pub fn tx_allows_tf32() -> c_int;
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    pub fn tx_use_plain_allocator();
}

/// The message behind a returned pointer, released.
pub fn check(text: *mut c_char) -> Result<(), String> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: they return null or a NUL-terminated string from malloc, which nobody else holds.
    unsafe {
        let message = CStr::from_ptr(text).to_string_lossy().trim().to_string();
        tx_free(text);
        Err(message)
    }
}
