//! What each part costs, in closed form: parameters, multiply-accumulates, elements kept for the backward pass. Configuration ->
//! **costs** -> layer table. The letters are those of the parent module.

use super::BranchKind;
use crate::config::{Resnet, StageKind, Transformer, UNetConfig};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy)]
pub struct Costs {
    pub params: u128,
    pub macs: u128,
    /// Elements kept for the backward pass.
    pub kept: u128,
}

impl Costs {
    pub const ZERO: Costs = Costs { params: 0, macs: 0, kept: 0 };

    pub fn kept(elements: u128) -> Self {
        Self { kept: elements, ..Self::ZERO }
    }

    pub fn in_u64(self) -> Result<(u64, u64, u64)> {
        match (self.params.try_into(), self.macs.try_into(), self.kept.try_into()) {
            (Ok(params), Ok(macs), Ok(kept)) => Ok((params, macs, kept)),
            _ => Err(Error::Input {
                name: "latent_h, latent_w and tokens".into(),
                expected: "sizes whose multiply-accumulates fit 64 bits".into(),
                got: format!("{} multiply-accumulates", self.macs),
            }),
        }
    }
}

impl std::ops::Add for Costs {
    type Output = Costs;

    fn add(self, other: Costs) -> Costs {
        Costs { params: self.params + other.params, macs: self.macs + other.macs, kept: self.kept + other.kept }
    }
}

/// Positions per level; a stride-2 convolution with padding 1 halves and rounds up.
pub fn level_sizes(config: &UNetConfig, h: u128, w: u128) -> Vec<u128> {
    let (mut h, mut w) = (h, w);
    let mut sizes = vec![h * w];
    for _ in config.stages.iter().filter(|s| s.kind == StageKind::Down && s.sampler.is_some()) {
        (h, w) = (h.div_ceil(2), w.div_ceil(2));
        sizes.push(h * w);
    }
    sizes
}

/// Biases count no multiply-accumulate.
fn conv_costs(c_in: u128, c_out: u128, kernel: u128, positions: u128) -> Costs {
    let weights = c_in * c_out * kernel * kernel;
    Costs { params: weights + c_out, macs: weights * positions, kept: 0 }
}

// 2i + 9io + o + eo + o + 2o + 9o^2 + o. Kept: what each norm, SiLU and convolution was given. The input counts where nothing
// else keeps it; a shortcut does.
pub fn resnet_costs(r: &Resnet, config: &UNetConfig, n: u128) -> Costs {
    let (i, o, e) = (r.c_in as u128, r.c_out as u128, config.time.width as u128);
    let input = if i == o { i * n } else { 0 };
    let norms = Costs { params: 2 * i + 2 * o, macs: 0, kept: input + 2 * i * n + 3 * o * n + 2 * group_norm_kept(config) };
    norms + conv_costs(i, o, 3, n) + conv_costs(e, o, 1, 1) + conv_costs(o, o, 3, n)
}

/// Mean and deviation of every group.
fn group_norm_kept(config: &UNetConfig) -> u128 {
    2 * config.norm_num_groups as u128
}

pub fn shortcut_costs(r: &Resnet, n: u128) -> Costs {
    if r.c_in == r.c_out {
        return Costs::ZERO;
    }
    let (i, o) = (r.c_in as u128, r.c_out as u128);
    conv_costs(i, o, 1, n) + Costs::kept(i * n)
}

// 1x1 convolutions and linear layers cost the same. Kept: what the norm and the two projections were given.
pub fn shell_costs(t: &Transformer, config: &UNetConfig, n: u128) -> Costs {
    let c = t.channels as u128;
    Costs { params: 2 * c, macs: 0, kept: 3 * c * n + group_norm_kept(config) } + conv_costs(c, c, 1, n) + conv_costs(c, c, 1, n)
}

// Parameters: attn1 2c + 4c^2 + c; attn2 2c + 2c^2 + 2xc + c; ff 2c + 12c^2 + 9c. Kept by all: the input, mean and deviation of
// the norm, its output. By attention: queries, keys, values, result, one sum per head and query. By ff: values and gates, the
// gates' GELU, the product.
pub fn branch_costs(kind: BranchKind, transformer: &Transformer, n: u128, t: u128) -> Costs {
    let (c, x, heads) = (transformer.channels as u128, transformer.context as u128, transformer.heads as u128);
    let norm = 2 * c * n + 2 * n;
    let (params, macs, kept) = match kind {
        BranchKind::SelfAttention => (3 * c + 4 * c * c, 4 * c * c * n + 2 * n * n * c, norm + 4 * c * n + heads * n),
        BranchKind::CrossAttention => {
            (3 * c + 2 * c * c + 2 * x * c, 2 * c * c * n + 2 * x * c * t + 2 * n * t * c, norm + 2 * c * n + 2 * c * t + heads * n)
        }
        BranchKind::FeedForward => (11 * c + 12 * c * c, 12 * c * c * n, norm + 16 * c * n),
        BranchKind::Resnet => unreachable!("a transformer holds no ResNet"),
    };
    Costs { params, macs, kept }
}

/// What is never removable, apart from shortcuts and shared costs.
pub fn fixed_costs(config: &UNetConfig, sizes: &[u128]) -> Costs {
    let (c, e, n) = (config.base_channels as u128, config.time.width as u128, sizes[0]);
    let mlp = |input: u128| conv_costs(input, e, 1, 1) + conv_costs(e, e, 1, 1) + Costs::kept(input + 2 * e);
    let mut total = conv_costs(config.in_channels as u128, c, config.conv_in_kernel as u128, n)
        + mlp(config.time.channels as u128)
        // The embedding and its SiLU, which all ResNets share; the last norm, SiLU and convolution.
        + Costs { params: 2 * c, macs: 0, kept: 2 * e + 3 * c * n + group_norm_kept(config) }
        + conv_costs(c, config.out_channels as u128, config.conv_out_kernel as u128, n);
    if let Some(added) = &config.added {
        total = total + mlp(added.input as u128);
    }
    if let Some(g) = config.time.guidance.map(|g| g as u128) {
        // Without bias; its input comes from outside.
        total = total + Costs { params: g * c, macs: g * c, kept: 0 };
    }
    if config.center_input_sample {
        // The sample as it came is an input; centred it is a tensor of its own.
        total = total + Costs::kept(config.in_channels as u128 * n);
    }
    for stage in &config.stages {
        if let Some(s) = &stage.sampler {
            let channels = s.channels as u128;
            // A convolution keeps what it is given: all positions before halving, or after doubling.
            let (level, given) = match stage.kind {
                StageKind::Down => (stage.level + 1, sizes[stage.level]),
                _ => (stage.level - 1, sizes[stage.level - 1]),
            };
            total = total + conv_costs(channels, channels, 3, sizes[level]) + Costs::kept(channels * given);
        }
    }
    total
}
