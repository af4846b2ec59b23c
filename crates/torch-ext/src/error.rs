//! The one error type of this crate.

/// Why ranks could not work together, or a variable was not understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An environment variable of the launch is missing or no number.
    #[error("environment variable {name}: expected {expected}, got {got}; start the ranks with torchrun --no-python, or set it")]
    Launch {
        /// The variable.
        name: String,
        /// What would be accepted.
        expected: String,
        /// What was found.
        got: String,
    },
    /// An environment variable that switches something holds another word.
    #[error("environment variable {name}: expected {expected}, got `{got}`")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was found.
        got: String,
    },
    /// libtorch's CUDA library could not be opened.
    #[error("libtorch_cuda.so cannot be opened ({message}); put the lib folder of a CUDA build of torch 2.11.0 on LD_LIBRARY_PATH")]
    Cuda {
        /// The loader's message.
        message: String,
    },
    /// The ranks did not find each other.
    #[error("rank {rank} of {world} could not join the others at {address}: {message}; do all ranks run, and can they reach that address?")]
    Join {
        /// This rank.
        rank: usize,
        /// Number of ranks.
        world: usize,
        /// Where they meet.
        address: String,
        /// libtorch's message.
        message: String,
    },
    /// NCCL could not be opened.
    #[error(
        "rank {rank} cannot use NCCL on cuda:{device}: {message}; make libc10d_nccl.so with `cargo xtask nccl`, put it beside the program, and the lib folder of a CUDA build of torch 2.11.0 on LD_LIBRARY_PATH"
    )]
    Nccl {
        /// This rank.
        rank: usize,
        /// Its GPU.
        device: usize,
        /// The loader's or libtorch's message.
        message: String,
    },
    /// A collective failed, which is how a rank notices that another one died, hangs or left.
    #[error(
        "rank {rank}: {operation} with the other ranks failed: {message}; another rank stopped or hangs, see its output, and start all ranks again"
    )]
    Collective {
        /// This rank.
        rank: usize,
        /// Which operation.
        operation: &'static str,
        /// libtorch's message.
        message: String,
    },
    /// The ranks do not run the same thing.
    #[error("rank {rank} and rank {other} differ in {what}: {ours} against {theirs}; start all ranks with the same command and files")]
    Disagreement {
        /// This rank.
        rank: usize,
        /// The other one.
        other: usize,
        /// In what.
        what: String,
        /// This rank's value.
        ours: String,
        /// The other's.
        theirs: String,
    },
    /// A tensor that collectives cannot take.
    #[error("{0}")]
    Tensor(String),
}

/// Shorthand used through the crate.
pub type Result<T> = std::result::Result<T, Error>;
