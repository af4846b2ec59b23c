//! The Stable Diffusion U-Net family on libtorch: weights -> U-Net -> per-layer scores, and pruned model -> files.
//!
//! 1. [`UNetConfig`]: a published `config.json` as stages, parts and named skips.
//! 2. [`Layout`], [`layer_table`]: what can be removed and what it costs; no tensors.
//!    [`Inspection`], [`JointFile`]: what is said of them in files.
//! 3. [`weights`], [`UNet`]: parameters in and out, the forward pass, ablation, taps, surgery.
//! 4. [`Host`], [`OriginalNames`]: pruned networks in the shapes and names of other programs.
//! 5. [`UNetAblate`], [`magnitude`], [`taylor`]: scores. [`bk_sdm_style`]: removals chosen by hand.

mod config;
mod compute;
mod layout;
mod documents;
pub mod weights;
pub mod nn;
mod embeddings;
mod blocks;
mod original;
mod export;
mod unet;
mod ablate;
mod criteria;
mod handcrafted;
mod published;
mod error;

pub use ablate::{Calibration, UNetAblate, UNetPasses};
pub use compute::Compute;
pub use config::{AddedConfig, Part, Resnet, Sampler, Stage, StageKind, TimeConfig, Transformer, UNetConfig};
pub use criteria::{magnitude, magnitude_mean, taylor};
pub use documents::{Inspection, JointFile, JointRow, ResourceFile, plan_name};
pub use error::{Error, Result};
pub use export::{AdapterNames, Host, Padding, Remapped, Target, portable_constraints};
pub use handcrafted::{bk_sdm_base, bk_sdm_small, bk_sdm_style, bk_sdm_tiny};
pub use layout::{
    ActivationCosts, Branch, BranchKind, Granularity, Layout, TableOptions, activation_costs, layer_table, layer_table_with, scoring_passes,
};
pub use original::OriginalNames;
pub use prune_core::{LayerId, RemovalSet};
pub use published::Published;
pub use unet::{
    AddedCond, Checkpointed, Cond, Forward, ForwardOptions, LayerwiseInputs, Neighborhood, TapSet, UNet, architecture, fingerprint,
    stored_kind, weight_files,
};
