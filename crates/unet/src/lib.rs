//! The Stable Diffusion U-Net family on libtorch: weights -> U-Net, and pruned model -> files.
mod error;
pub mod nn;
pub mod weights;

pub use error::{Error, Result};
