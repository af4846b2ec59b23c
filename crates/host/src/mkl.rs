//! Which kernels MKL takes, the library that computes libtorch's matrix products on a CPU.
//!
//! MKL asks one function of its own whether the processor is Intel's; for all others it takes kernels for what the oldest of them can do,
//! which on AMD's cost a sixth of the time. PyTorch's maintainers advise to preload a library with another answer (pytorch/builder#1245);
//! the dynamic linker prefers a program's own function just as well.

use std::arch::x86_64::__cpuid;
use std::ffi::c_int;
use std::hint::black_box;
use std::sync::OnceLock;

/// Whether MKL may go by the features that the processor tells: on AMD's, too.
#[unsafe(no_mangle)]
extern "C" fn mkl_serv_intel_cpu_true() -> c_int {
    // Asking the processor takes long in a virtual machine.
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let answer = || {
        let leaf = __cpuid(0);
        let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
        vendor == b"GenuineIntel" || vendor == b"AuthenticAMD"
    };
    c_int::from(*ANSWER.get_or_init(answer))
}

/// Keeps the function in the program.
pub fn answer() {
    black_box(mkl_serv_intel_cpu_true as extern "C" fn() -> c_int);
}
