//! What tch lacks of libtorch, in Rust. Stands beside the flow: training uses the first two parts, the command's start the others.
//!
//! - [`Launch`], [`ProcessGroup`], [`GradientBuckets`]: libtorch's own distributed package, c10d: a rendezvous, process groups over Gloo
//!   (CPUs) and NCCL (GPUs), and buckets of gradients that are summed over the ranks while the backward pass still runs.
//! - [`AdamW`]: libtorch's fused kernel, with state that can be saved.
//! - [`prepare`]: an allocator for tensors on the CPU that reuses freed memory, and MKL's kernels for what an AMD processor can do. Each
//!   can be left out ([`CpuOptions`]), and nothing of it acts in a program that does not call `prepare`.
//! - [`open_cuda`]: CUDA in a program that links the CPU library, with f32 that is f32, and deterministic kernels on request.
//!
//! Start one process per rank, by hand or by `torchrun --no-python`, with the environment variables that torchrun sets:
//!
//! ```no_run,standalone_crate
//! use torch_ext::{Launch, ProcessGroup};
//!
//! let Some(launch) = Launch::from_vars(|name| std::env::var(name).ok())? else { return Ok(()) };
//! let group = ProcessGroup::join(&launch)?;
//! let x = tch::Tensor::from(launch.rank as f32).reshape([1]);
//! group.all_reduce(&x)?;
//! # Ok::<(), torch_ext::Error>(())
//! ```

mod error;
mod ffi;
mod distributed;
mod adamw;
mod cpu;
mod cuda;
mod memory;
mod mkl;

pub use adamw::{AdamW, AdamWConfig};
pub use cpu::{Allocator, CpuOptions, MklKernels, prepare};
pub use cuda::{GpuOptions, allows_tf32, cuda_opened, open_cuda};
pub use distributed::{GradientBuckets, Launch, ProcessGroup};
pub use error::{Error, Result};
