//! `cargo xtask nccl`: the library that lets one training use several GPUs, compiled here and needed only where the GPUs are.
//!
//! Stands beside the data flow. The program links no CUDA; it opens this library when ranks on GPUs meet. Compiling it takes headers of
//! CUDA and NCCL, of the versions that torch is built with, and neither a GPU nor nvcc.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::libtorch;
use super::versions::CUDA_RUNTIME;
use super::wheels::{self, Wheels};
use crate::proc;

/// NCCL's version is part of its types; the last two are not among what pip installs with torch.
const HEADERS: Wheels = Wheels {
    what: "the headers of CUDA and NCCL",
    packages: &[
        ("nvidia-nccl-cu13", "2.28.9"),
        ("nvidia-cuda-runtime", CUDA_RUNTIME),
        ("nvidia-cuda-crt", "13.0.88"),
        ("nvidia-cuda-cccl", "13.0.85"),
    ],
    bytes: 201_991_421,
    headers: "/include/",
    libraries: &[],
    offline: "run it where there is one, and put libc10d_nccl.so beside the program yourself",
};

/// Compiles `libc10d_nccl.so` into `target/nccl`.
pub fn run(root: &Path, verbose: bool) -> Result<()> {
    libtorch::run(root, verbose)?;
    let home = root.join("target/nccl");
    let include = home.join("include");
    if !include.exists() {
        let pip = wheels::find_pip()?;
        let partial = root.join("target/nccl.partial");
        eprintln!("nccl: downloading {} once, {} MB", HEADERS.what, HEADERS.bytes / 1_000_000);
        wheels::unpacked(&pip, &partial, &HEADERS, || {
            std::fs::create_dir_all(&home)?;
            std::fs::rename(partial.join("include"), &include)?;
            std::fs::remove_dir(&partial).context("cannot put the headers into target/nccl")
        })?;
    }
    let library = library(root);
    proc::run(&mut compiler(root, &include, &library))?;
    println!("{}", library.display());
    println!("pipelines find it; elsewhere, put it beside the program `laptop-diff` or on LD_LIBRARY_PATH");
    Ok(())
}

/// Where the library is made.
pub fn library(root: &Path) -> PathBuf {
    root.join("target/nccl/libc10d_nccl.so")
}

/// Puts the library, where it was made, beside a program, which looks for it there. One that is there already may be in use.
pub fn put_beside(root: &Path, program: &Path) -> Result<()> {
    let library = library(root);
    let (Ok(bytes), Some(name)) = (std::fs::read(&library), library.file_name()) else { return Ok(()) };
    let copy = program.with_file_name(name);
    if std::fs::read(&copy).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let partial = copy.with_extension("partial");
    std::fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    std::fs::rename(&partial, &copy).with_context(|| format!("cannot write {}", copy.display()))
}

fn compiler(root: &Path, include: &Path, library: &Path) -> Command {
    let torch = root.join(".libtorch/include");
    let mut command = Command::new(std::env::var_os("CXX").unwrap_or_else(|| OsString::from("c++")));
    command.args(["-std=c++17", "-O2", "-fPIC", "-shared", "-D_GLIBCXX_USE_CXX11_ABI=1", "-DUSE_DISTRIBUTED", "-DUSE_C10D_NCCL"]);
    // Headers of cuBLAS, cuSPARSE and cuSOLVER are named by libtorch's own, and nothing of them is used.
    command.arg("-I").arg(root.join("crates/torch-ext/cpp/stubs-cuda"));
    for folder in [&torch, &torch.join("torch/csrc/api/include"), &PathBuf::from(include)] {
        command.arg("-isystem").arg(folder);
    }
    command.arg("-o").arg(library).arg(root.join("crates/torch-ext/cpp/nccl.cpp"));
    command
}
