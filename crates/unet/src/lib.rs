//! The Stable Diffusion U-Net family on libtorch: weights -> U-Net, and pruned model -> files.
mod blocks;
mod config;
mod embeddings;
mod error;
mod layout;
pub mod nn;
mod unet;
pub mod weights;

pub use config::{AddedConfig, Part, Resnet, Sampler, Stage, StageKind, TimeConfig, Transformer, UNetConfig};
pub use error::{Error, Result};
pub use layout::{Branch, BranchKind, Granularity, Layout, TableOptions, layer_table, layer_table_with};
pub use prune_core::{LayerId, RemovalSet};
pub use unet::{AddedCond, Cond, Forward, ForwardOptions, TapSet, UNet};
