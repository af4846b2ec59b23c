//! The Stable Diffusion U-Net family on libtorch: weights -> U-Net -> per-layer scores, and pruned model -> files.
//!
//! 1. [`UNetConfig`]: a published `config.json` as stages, parts and named skips.
//! 2. [`Layout`], [`layer_table`]: what can be removed and what it costs; no tensors.
//!    [`Inspection`], [`JointFile`]: what is said of them in files.
//! 3. [`StoredUNet`]: a U-Net on disk in any container; [`weights`], [`UNet`]: parameters in and out, the forward pass, ablation, taps, surgery.
//! 4. [`ExportTarget`], [`SingleFileNames`]: pruned networks in the shapes and names of other programs.
//! 5. [`scoring`]: scores by several criteria. [`bk_sdm_style`]: removals chosen by hand.

mod config;
mod compute;
mod layout;
mod documents;
pub mod weights;
pub mod nn;
mod embeddings;
mod blocks;
mod single_file;
mod export;
mod unet;
mod source;
mod stored;
pub mod scoring;
mod baselines;
mod error;

pub use baselines::{PlanMethod, Published, bk_sdm_base, bk_sdm_plan, bk_sdm_small, bk_sdm_style, bk_sdm_tiny};
pub use compute::Compute;
pub use config::{AddedConfig, Part, Resnet, Sampler, Stage, StageKind, TimeConfig, Transformer, UNetConfig};
pub use documents::{Inspection, JointFile, JointRow, ResourceFile, Totals, plan_name};
pub use error::{Error, Result};
pub use export::{
    AdapterNames, Beside, ExportFormat, ExportOptions, ExportTarget, Exported, Padding, Portability, Program, Remapped, RemappedLora,
    best_portable, export, portability, portable_constraints, remap_lora,
};
pub use layout::{
    ActivationCosts, Branch, BranchKind, Granularity, Layout, TableOptions, activation_costs, layer_table, layer_table_with, scoring_passes,
};
pub use prune_core::{LayerId, LayerTable, RemovalSet};
pub use single_file::SingleFileNames;
pub use source::{ModelSource, TableSizes, model_name};
pub use stored::{Markers, Prediction, StoredUNet};
pub use unet::{
    AddedConditioning, Checkpointed, Conditioning, Forward, ForwardOptions, LayerwiseInputs, Neighborhood, TapSet, UNet, architecture,
    fingerprint, stored_kind, weight_files,
};
