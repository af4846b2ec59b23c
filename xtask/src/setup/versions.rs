//! The versions of what comes from elsewhere, each written once: libtorch, and the Python programs that results are compared with.
//!
//! `cargo xtask tidy` holds every other mention of torch's version in the repository against this one.

/// libtorch, torch for Python, and what the bindings of tch 0.24 are generated for: the three move together.
pub const TORCH: &str = "2.11.0";

/// NVIDIA's CUDA runtime of that torch, which its libtorch_cpu loads, and whose headers NCCL's library needs.
pub const CUDA_RUNTIME: &str = "13.0.96";

/// The peers that fixtures are computed with and exports are opened by; one without a version does not change a number.
pub const PEERS: [(&str, &str); 5] =
    [("torch", TORCH), ("diffusers", "0.42.1"), ("transformers", "5.23.0"), ("safetensors", ""), ("numpy", "")];

/// How pip is told a package and its version.
pub fn requirement((name, version): (&str, &str)) -> String {
    if version.is_empty() { name.to_owned() } else { format!("{name}=={version}") }
}
