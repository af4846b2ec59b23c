//! What [`prepare`] changes on a CPU, and that each switch leaves it out. Whatever a process has chosen it keeps, so each case is a process
//! of its own, which this program starts; and it runs in the main thread, as the command does, because glibc gives others another heap.

use std::process::Command;

use tch::{Device, Kind, Tensor};
use torch_ext::{Allocator, CpuOptions, MklKernels, prepare};

const CASE: &str = "TORCH_EXT_TEST_CASE";
const CASES: [(&str, fn()); 4] =
    [("reuse", reused_memory), ("system", system_memory), ("features", kernels_by_features), ("default", kernels_of_mkls_choice)];

fn main() {
    if let Ok(name) = std::env::var(CASE) {
        let (_, case) = CASES.iter().find(|(other, _)| *other == name).expect("a case's name");
        return case();
    }
    for (name, _) in CASES {
        let status = Command::new(std::env::current_exe().unwrap()).env(CASE, name).status().unwrap();
        assert!(status.success(), "{name}: {status}");
    }
}

fn tensors(sizes: &[i64]) -> Vec<Tensor> {
    sizes.iter().map(|&n| Tensor::ones([n], (Kind::Float, Device::Cpu))).collect()
}

/// Bytes of this process that lie in memory.
fn resident() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096.0 * pages.split(' ').nth(1).unwrap().parse::<f64>().unwrap()
}

/// Pages that the kernel has given to this process so far (proc_pid_stat(5), minflt).
fn fresh_pages() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    after_name.split_whitespace().nth(7).unwrap().parse().unwrap()
}

/// Fresh pages for a tensor after another one of at least its size was freed. As large as SD-v1.5's convolutions repack their weights:
/// 59 and 118 MB.
fn fresh_pages_of_large_tensors() -> u64 {
    let large = || drop(tensors(&[9 * 1280 * 2560]));
    large();
    let before = fresh_pages();
    large();
    drop(tensors(&[9 * 1280 * 1280]));
    fresh_pages() - before
}

fn reused_memory() {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return;
    }
    prepare(CpuOptions::default());
    // From one page to 8 MB, no two alike, so that each freed block fits one tensor only.
    let sizes: Vec<i64> = (0..40).map(|i| 1000 + 1237 * i * i).collect();
    let mut kept = tensors(&sizes);
    kept.iter().for_each(|t| assert_eq!(t.data_ptr() as usize % 64, 0));
    // Every other one is freed: no two free blocks lie side by side.
    let again: Vec<i64> = sizes.iter().step_by(2).copied().collect();
    let mut at = 0;
    kept.retain(|_| {
        at += 1;
        at % 2 == 0
    });
    let before = resident();
    let new = tensors(&again);
    let (grown, made) = (resident() - before, 4.0 * again.iter().sum::<i64>() as f64);
    assert!(grown < 0.2 * made, "{grown} bytes of fresh memory for {made}");
    let sum: f64 = kept.iter().chain(&new).map(|t| t.sum(Kind::Double).double_value(&[])).sum();
    assert_eq!(sum, sizes.iter().sum::<i64>() as f64, "nobody wrote into another's block");

    let (size, other) = (sizes[20], sizes[21]);
    let freed = tensors(&[size, other, size]).iter().map(|t| t.data_ptr()).collect::<Vec<_>>();
    assert_eq!(tensors(&[size])[0].data_ptr(), freed[2], "the block freed last, which is still in the processor's cache");

    let fresh = fresh_pages_of_large_tensors();
    assert!(fresh < 100, "{fresh} fresh pages for blocks that were there");

    assert!(Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)).data_ptr().is_null());
    let error = Tensor::f_empty([1 << 60], (Kind::Float, Device::Cpu)).unwrap_err().to_string();
    assert!(error.contains("out of memory") && error.contains("4611686018427387904 bytes"), "{error}");
}

fn system_memory() {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return;
    }
    prepare(CpuOptions { allocator: Allocator::System, mkl: MklKernels::ByFeatures });
    // Each tensor begins with pages of its own, unless the kernel gives 2 MB at once.
    let fresh = fresh_pages_of_large_tensors();
    let huge = 9 * 1280 * (2560 + 1280) * 4 / (2 << 20);
    assert!(fresh >= huge / 2, "{fresh} fresh pages: glibc kept the memory");
}

/// What MKL's function for its choice of kernels returns: 10 for AVX2, 12 and more for AVX-512.
#[cfg(target_arch = "x86_64")]
fn branch() -> libc::c_int {
    // tch is what libtorch is linked by.
    let product = Tensor::ones([64, 64], (Kind::Float, Device::Cpu));
    assert_eq!(product.matmul(&product).double_value(&[63, 63]), 64.0);
    // SAFETY: a function of no arguments that returns a number.
    unsafe {
        let address = libc::dlsym(libc::RTLD_DEFAULT, c"mkl_serv_cbwr_get_auto_branch".as_ptr());
        assert!(!address.is_null(), "libtorch without MKL");
        std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> libc::c_int>(address)()
    }
}

fn kernels_by_features() {
    #[cfg(target_arch = "x86_64")]
    {
        prepare(CpuOptions::default());
        let branch = branch();
        if is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512dq") {
            assert!(branch >= 12, "{branch}");
        } else if is_x86_feature_detected!("avx2") {
            assert!(branch >= 10, "{branch}");
        }
    }
}

fn kernels_of_mkls_choice() {
    #[cfg(target_arch = "x86_64")]
    {
        prepare(CpuOptions { allocator: Allocator::Reusing, mkl: MklKernels::Default });
        let branch = branch();
        let is_intel = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("GenuineIntel"));
        if is_intel && is_x86_feature_detected!("avx2") {
            assert!(branch >= 10, "MKL's own answer is lost: {branch}");
        } else if !is_intel {
            assert!(branch < 10, "MKL was told of another maker: {branch}");
        }
    }
}
