//! Which kernels MKL takes, the library that computes libtorch's matrix products on a CPU.
//!
//! MKL asks one function of its own whether the processor is Intel's; for all others it takes kernels for what the oldest of them can do,
//! which on AMD's cost a sixth of the time. PyTorch's maintainers advise to preload a library with another answer (pytorch/builder#1245);
//! the dynamic linker prefers a program's own function just as well. This one asks MKL's until [`choose`] says otherwise.

use crate::cpu::MklKernels;

/// Settles what MKL is answered; to be called before it asks.
pub fn choose(kernels: MklKernels) {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    interposed::choose(kernels);
    let _ = kernels;
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod interposed {
    use std::arch::x86_64::__cpuid;
    use std::ffi::{c_int, c_void};
    use std::hint::black_box;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::MklKernels;

    type Answer = extern "C" fn() -> c_int;

    static BY_FEATURES: AtomicBool = AtomicBool::new(false);

    pub fn choose(kernels: MklKernels) {
        BY_FEATURES.store(kernels == MklKernels::ByFeatures, Ordering::Relaxed);
        // Keeps the function in the program.
        black_box(mkl_serv_intel_cpu_true as Answer);
    }

    /// Whether MKL may go by the features that the processor tells.
    #[unsafe(no_mangle)]
    extern "C" fn mkl_serv_intel_cpu_true() -> c_int {
        if BY_FEATURES.load(Ordering::Relaxed) { c_int::from(is_intel_or_amd()) } else { mkls_own() }
    }

    fn is_intel_or_amd() -> bool {
        // Asking the processor takes long in a virtual machine.
        static ANSWER: OnceLock<bool> = OnceLock::new();
        *ANSWER.get_or_init(|| {
            let leaf = __cpuid(0);
            let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
            vendor == b"GenuineIntel" || vendor == b"AuthenticAMD"
        })
    }

    /// What the function answers that this one stands before.
    fn mkls_own() -> c_int {
        static FUNCTION: OnceLock<Option<Answer>> = OnceLock::new();
        let function = FUNCTION.get_or_init(|| {
            // SAFETY: a name that ends in NUL.
            let address = unsafe { libc::dlsym(libc::RTLD_NEXT, c"mkl_serv_intel_cpu_true".as_ptr()) };
            // SAFETY: MKL's function of this name has this type.
            (!address.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, Answer>(address) })
        });
        function.map_or(0, |function| function())
    }
}
