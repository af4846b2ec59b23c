//! Compiles the libraries against the headers of the libtorch that torch-sys links. Programs open them at run time; nothing links them.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    let torch_ext = "../../crates/torch-ext/cpp";
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-changed={torch_ext}/guarded.hpp");
    // Set by torch-sys, whose `links` key is "tch".
    let lib = PathBuf::from(env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names the folder of libtorch"));
    let include = lib.parent().expect("libtorch's lib folder has a parent").join("include");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names the folder for results"));
    library(&include, &[], Path::new("cpp/standin.cpp"), &out.join("libtorch_cuda.so"));
    let gloo = format!("-I{torch_ext}/stubs");
    let flags = [&format!("-I{torch_ext}"), &gloo, "-DUSE_DISTRIBUTED", "-DUSE_C10D_GLOO"];
    library(&include, &flags, Path::new("cpp/nccl.cpp"), &out.join("libc10d_nccl.so"));
    println!("cargo:rustc-env=CUDA_STANDIN_FOLDER={}", out.display());
}

fn library(include: &Path, flags: &[&str], source: &Path, library: &Path) {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(1).pic(true).define("_GLIBCXX_USE_CXX11_ABI", "1");
    let mut compiler = build.get_compiler().to_command();
    for folder in [include, &include.join("torch/csrc/api/include")] {
        compiler.arg("-isystem").arg(folder);
    }
    compiler.args(flags).arg("-shared").arg(source).arg("-o").arg(library);
    let status = compiler.status().expect("a C++ compiler starts");
    assert!(status.success(), "{compiler:?}: {status}");
}
