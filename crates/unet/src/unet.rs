//! The U-Net: built from weights, run, pruned, saved. The middle of the flow: every later stage runs or changes it.
//!
//! Shapes: `B` batch, `C` channels, `H` `W` height and width of the latents, `S` text tokens, `D` text width, `P` pooled
//! text width, `K` sizes per image.

use std::collections::BTreeMap;

use prune_core::RemovalSet;
use tch::{Device, Kind, Tensor};

use crate::blocks::{BuildContext, ForwardContext, Stage};
use crate::config::UNetConfig;
use crate::embeddings::Embeddings;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::nn::{Conv2d, GroupNorm};
use crate::weights::{Cursor, Tensors, Weights};

mod checkpoint;
mod files;
mod forward_files;
mod input;
mod layerwise;
mod resume;
mod taps;

pub use checkpoint::Checkpointed;
pub(crate) use files::{KEY_CONFIG, removed_in};
pub use files::{architecture, fingerprint, stored_kind, weight_files};
pub use input::{AddedConditioning, Conditioning};
pub use layerwise::{LayerwiseInputs, Neighborhood};
pub(crate) use resume::{Pass, SegmentRef};
pub use taps::TapSet;

/// What a forward pass does beside the prediction.
#[derive(Debug)]
pub struct ForwardOptions<'a> {
    /// Branches, blocks or Transformer2Ds to leave out this time, as if they were removed.
    pub ablated: &'a RemovalSet,
    /// Inner outputs to hand back.
    pub taps: &'a TapSet,
}

/// What a forward pass gives.
#[derive(Debug)]
pub struct Forward {
    /// The prediction, `[B, C, H, W]`.
    pub sample: Tensor,
    /// The wanted inner outputs by name; part of the autograd graph.
    pub taps: Tensors,
}

/// A U-Net, full or pruned.
#[derive(Debug)]
pub struct UNet {
    config: UNetConfig,
    layout: Layout,
    removed: RemovalSet,
    parameters: Tensors,
    metadata: BTreeMap<String, String>,
    device: Device,
    kind: Kind,
    embeddings: Embeddings,
    conv_in: Conv2d,
    stages: Vec<Stage>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet {
    /// Builds the network from the parameters below `at`, without those that go with `removed`.
    ///
    /// What the weights lack is reported by [`Weights::finish`], not here.
    ///
    /// # Errors
    /// [`Error::Layer`] for an id that names nothing removable.
    pub fn build(config: &UNetConfig, at: &Cursor, removed: &RemovalSet) -> Result<Self> {
        let layout = Layout::new(config);
        let flags = layout.flags(removed)?;
        let removed = layout.expand(removed)?;
        let build = BuildContext { config, layout: &layout, removed: &flags };
        let embeddings = Embeddings::new(config, at);
        let base = config.base_channels;
        let conv = |name: &str, c_in, c_out, kernel: i64| Conv2d::new(&at.pp(name), c_in, c_out, kernel, 1, kernel / 2);
        let conv_in = conv("conv_in", config.in_channels, base, config.conv_in_kernel);
        let stages = config.stages.iter().map(|s| Stage::new(&build, at, s)).collect();
        let conv_norm_out = GroupNorm::new(&at.pp("conv_norm_out"), config.norm_num_groups, base, config.norm_eps);
        let conv_out = conv("conv_out", base, config.out_channels, config.conv_out_kernel);
        let (device, kind) = (conv_in.weight().device(), conv_in.weight().kind());
        let (config, parameters, metadata) = (config.clone(), at.taken(), BTreeMap::new());
        Ok(Self { config, layout, removed, parameters, metadata, device, kind, embeddings, conv_in, stages, conv_norm_out, conv_out })
    }

    /// Builds the network from the whole of `weights`.
    ///
    /// # Errors
    /// As [`UNet::build`], and [`Error::Weights`] unless every key fits.
    pub fn from_weights(config: &UNetConfig, weights: Weights, removed: &RemovalSet) -> Result<Self> {
        let unet = Self::build(config, &weights.root(), removed)?;
        weights.finish()?;
        Ok(unet)
    }

    /// A network with fresh parameters; the same seed gives the same values on every device.
    ///
    /// # Errors
    /// None for a valid configuration.
    pub fn random(config: &UNetConfig, seed: u64, device: Device, kind: Kind) -> Result<Self> {
        Self::from_weights(config, Weights::random(seed, device, kind), &RemovalSet::empty())
    }

    /// The architecture, of the original where this network is pruned.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// What can be removed.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What was removed, branch by branch.
    pub fn removed(&self) -> &RemovalSet {
        &self.removed
    }

    /// The parameters by checkpoint key: the very tensors that the network computes with.
    pub fn parameters(&self) -> &Tensors {
        &self.parameters
    }

    /// Number of parameters that are left.
    pub fn num_parameters(&self) -> u64 {
        self.parameters.values().map(|t| t.numel() as u64).sum()
    }

    /// The strings that the weight file carried.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The type of the parameters.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The prediction for a noisy sample.
    ///
    /// # Shapes
    /// `sample [B, C, H, W]`, `timestep [B]` -> `[B, C, H, W]`
    ///
    /// # Errors
    /// [`Error::Input`] for an input of another shape or device, before anything runs.
    pub fn forward(&self, sample: &Tensor, timestep: &Tensor, cond: &Conditioning) -> Result<Tensor> {
        let options = ForwardOptions { ablated: &RemovalSet::empty(), taps: &TapSet::none() };
        Ok(self.forward_with(sample, timestep, cond, &options)?.sample)
    }

    /// The prediction with some branches left out, and inner outputs. The steps are those of diffusers'
    /// `UNet2DConditionModel.forward`.
    ///
    /// # Shapes
    /// As [`UNet::forward`].
    ///
    /// # Errors
    /// As [`UNet::forward`], and [`Error::Layer`] for an id that names nothing removable.
    pub fn forward_with(&self, sample: &Tensor, timestep: &Tensor, cond: &Conditioning, options: &ForwardOptions) -> Result<Forward> {
        let ablated = if options.ablated.is_empty() { Vec::new() } else { self.layout.flags(options.ablated)? };
        self.forward_ablated(sample, timestep, cond, &ablated, options.taps)
    }

    /// As [`UNet::forward_with`], with one flag per branch of the layout, or none at all.
    pub(crate) fn forward_ablated(
        &self,
        sample: &Tensor,
        timestep: &Tensor,
        cond: &Conditioning,
        ablated: &[bool],
        taps: &TapSet,
    ) -> Result<Forward> {
        self.check(sample, timestep, cond)?;

        // 0. The sample in the network's type, centred where the model wants that.
        let sample = self.centre(sample);
        // 1. Time, and for SDXL pooled text and sizes, as one vector. [B, e]
        let time = self.embed(timestep, cond);
        let text = cond.encoder_hidden_states.to_kind(self.kind);
        // 2. To the first level's channels; the first skip.
        let mut x = self.conv_in.forward(&sample);
        let skips = BTreeMap::from([("conv_in", x.shallow_clone())]);
        // 3. Down, leaving skips. 4. Mid. 5. Up, taking them.
        let mut context = ForwardContext { ablated, time: &time, text: &text, skips, wanted: taps, taps: Tensors::new() };
        for stage in &self.stages {
            x = stage.forward(x, &mut context);
        }
        // 6. To the prediction.
        let sample = self.predict(&x);
        Ok(Forward { sample, taps: context.taps })
    }

    // [B, C, H, W] -> [B, C, H, W]
    fn centre(&self, sample: &Tensor) -> Tensor {
        let x = sample.to_kind(self.kind);
        if self.config.center_input_sample { x * 2.0 - 1.0 } else { x }
    }

    // [B] -> [B, e]
    fn embed(&self, timestep: &Tensor, cond: &Conditioning) -> Tensor {
        self.embeddings.forward(timestep, cond, self.kind)
    }

    // [B, C', H, W] -> [B, C, H, W]
    fn predict(&self, x: &Tensor) -> Tensor {
        self.conv_out.forward(&self.conv_norm_out.forward(x).silu())
    }
}
