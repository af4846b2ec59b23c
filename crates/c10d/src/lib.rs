//! libtorch's own distributed package, c10d, for programs that use tch: a rendezvous, process groups over Gloo (CPUs) and NCCL
//! (GPUs), and buckets of gradients that are summed over the ranks while the backward pass still runs.
//!
//! Start one process per rank, by hand or by `torchrun --no-python`, with the environment variables that torchrun sets:
//!
//! ```no_run,standalone_crate
//! use c10d::{Launch, ProcessGroup};
//!
//! let Some(launch) = Launch::from_vars(|name| std::env::var(name).ok())? else { return Ok(()) };
//! let group = ProcessGroup::join(&launch)?;
//! let x = tch::Tensor::from(launch.rank as f32).reshape([1]);
//! group.all_reduce(&x)?;
//! # Ok::<(), c10d::Error>(())
//! ```

mod buckets;
mod error;
mod ffi;
mod group;
mod launch;

pub use buckets::GradientBuckets;
pub use error::{Error, Result};
pub use group::ProcessGroup;
pub use launch::Launch;
