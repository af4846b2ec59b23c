//! Of what is freed the next tensors are made.

use tch::{Device, Kind, Tensor};

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

fn main() {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        return;
    }
    host::prepare();
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

    // As large as SD-v1.5's convolutions repack their weights: 59 and 118 MB.
    let large = || drop(tensors(&[9 * 1280 * 2560]));
    large();
    let before = fresh_pages();
    large();
    drop(tensors(&[9 * 1280 * 1280]));
    assert!(fresh_pages() - before < 100, "{} fresh pages for blocks that were there", fresh_pages() - before);

    assert!(Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)).data_ptr().is_null());
    let error = Tensor::f_empty([1 << 60], (Kind::Float, Device::Cpu)).unwrap_err().to_string();
    assert!(error.contains("out of memory") && error.contains("4611686018427387904 bytes"), "{error}");
}
