//! Set-up: everything that has to be fetched or compiled before the rest can work.
//!
//! Stands before the data flow. `versions` says which, `libtorch` is what all but a few crates are built against, `wheels` downloads it,
//! `nccl` compiles what several GPUs need, `peers` installs the Python programs that results are compared with.

mod libtorch;
pub mod nccl;
mod peers;
mod versions;
mod wheels;

pub use libtorch::{active_python, run};
pub use peers::environment as peers;
pub use versions::{PEERS, TORCH};
pub use wheels::free_kb_at;
