//! Training from nothing, with the same loop as distillation: first the autoencoder, then the CLIP towers, then the first text encoder by grounding, then the U-Net.

mod settings;
mod session;
mod vae;
mod clip;
mod grounding;
mod denoiser;
mod unet_stage;

pub use clip::{ClipTask, ClipTaskConfig, below};
pub use denoiser::{DenoiserTask, DenoiserTaskConfig, initial_unet};
pub use grounding::{GroundingTask, GroundingTaskConfig};
pub use session::ScratchSession;
pub use settings::{FirstTextEncoder, Phase, ScratchData, ScratchSettings, Section, UnetSection};
pub use vae::{VaeTask, VaeTaskConfig};

use unet::weights::Tensors;

use unet::Compute;

/// The parameters in the type to compute in, connected to those given. The trainer gives them in that type already; what adapters were merged
/// into, or parameters that are not trained, come in another.
pub(crate) fn cast(params: &Tensors, compute: Compute) -> Tensors {
    params.iter().map(|(name, t)| (name.clone(), t.to_kind(compute.kind()))).collect()
}
