//! Compiles the allocator against the headers of the libtorch that torch-sys links.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    // Set by torch-sys, whose `links` key is "tch".
    let lib = PathBuf::from(env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names the folder of libtorch"));
    let include = lib.parent().expect("libtorch's lib folder has a parent").join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .file("cpp/allocator.cpp")
        .flag("-isystem")
        .flag(include.to_str().expect("a path in UTF-8"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .compile("host_shim");
}
