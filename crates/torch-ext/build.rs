//! Compiles the C++ part against the headers of the libtorch that torch-sys links.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    // Set by torch-sys, whose `links` key is "tch".
    let lib = PathBuf::from(env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names the folder of libtorch"));
    let include = lib.parent().expect("libtorch's lib folder has a parent").join("include");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).define("_GLIBCXX_USE_CXX11_ABI", "1");
    // nccl.cpp needs CUDA's headers; `cargo xtask nccl` compiles it.
    build.files(["cpp/distributed.cpp", "cpp/adamw.cpp", "cpp/allocator.cpp", "cpp/cuda.cpp"]);
    build.define("USE_DISTRIBUTED", None).define("USE_C10D_GLOO", None);
    // Gloo's own headers are not part of libtorch; five of them are named by c10d's header.
    build.include("cpp/stubs");
    for folder in [include.join("torch/csrc/api/include"), include] {
        build.flag("-isystem").flag(folder.to_str().expect("a path in UTF-8"));
    }
    build.compile("torch_ext");
}
