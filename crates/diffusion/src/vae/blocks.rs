//! The parts of the autoencoder: ResNets, pixel attention, and the two halves made of them.
//!
//! Shapes: `B` batch, `C` channels of a layer, `H` `W` height and width.

use tch::Tensor;
use unet::nn::{Conv2d, GroupNorm, Linear, attention};
use unet::weights::Cursor;

use super::config::VaeConfig;

const EPS: f64 = 1e-6;

// norm -> silu -> conv, twice, around a skip that is a 1x1 convolution when the widths differ.
#[derive(Debug)]
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    fn new(at: &Cursor, groups: i64, c_in: i64, c_out: i64) -> Self {
        Self {
            norm1: GroupNorm::new(&at.pp("norm1"), groups, c_in, EPS),
            conv1: Conv2d::same3(&at.pp("conv1"), c_in, c_out),
            norm2: GroupNorm::new(&at.pp("norm2"), groups, c_out, EPS),
            conv2: Conv2d::same3(&at.pp("conv2"), c_out, c_out),
            conv_shortcut: (c_in != c_out).then(|| Conv2d::point(&at.pp("conv_shortcut"), c_in, c_out)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.conv1.forward(&self.norm1.forward(x).silu());
        let h = self.conv2.forward(&self.norm2.forward(&h).silu());
        match &self.conv_shortcut {
            Some(conv) => conv.forward(x) + h,
            None => x + h,
        }
    }
}

// Single-head self-attention over all pixels.
#[derive(Debug)]
struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

// Names of the projections before diffusers 0.14 and today's; checkpoints such as SD-v1.5's still use the old ones.
pub(super) const RENAMED: [(&str, &str); 4] = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];

impl PixelAttention {
    fn new(at: &Cursor, groups: i64, channels: i64) -> Self {
        let old = !at.has("to_q.weight") && at.has("query.weight");
        let linear = |n: usize| {
            let (before, now) = RENAMED[n];
            let at = if old { at.pp(before) } else { at.pp(now) };
            Linear::new(&at, channels, channels, true)
        };
        Self {
            group_norm: GroupNorm::new(&at.pp("group_norm"), groups, channels, EPS),
            to_q: linear(0),
            to_k: linear(1),
            to_v: linear(2),
            to_out: linear(3),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        // [B, C, H, W] -> [B, H W, C]
        let h = self.group_norm.forward(x).flatten(2, 3).transpose(1, 2).contiguous();
        let h = attention(&self.to_q.forward(&h), &self.to_k.forward(&h), &self.to_v.forward(&h), 1, false);
        // [B, H W, C] -> [B, C, H, W]
        x + self.to_out.forward(&h).transpose(1, 2).reshape(x.size())
    }
}

#[derive(Debug)]
struct MidBlock {
    first: Resnet,
    attention: Option<PixelAttention>,
    second: Resnet,
}

impl MidBlock {
    fn new(at: &Cursor, config: &VaeConfig, channels: i64) -> Self {
        let groups = config.norm_num_groups;
        let resnets = at.pp("resnets");
        Self {
            first: Resnet::new(&resnets.pp(0), groups, channels, channels),
            attention: config.mid_block_add_attention.then(|| PixelAttention::new(&at.pp("attentions").pp(0), groups, channels)),
            second: Resnet::new(&resnets.pp(1), groups, channels, channels),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.first.forward(x);
        if let Some(attention) = &self.attention {
            x = attention.forward(&x);
        }
        self.second.forward(&x)
    }
}

// One level of either half: ResNets, then a change of resolution except at the last level.
#[derive(Debug)]
struct Level {
    resnets: Vec<Resnet>,
    resample: Option<Conv2d>,
}

#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<Level>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn new(at: &Cursor, config: &VaeConfig, widest: i64) -> Self {
        let groups = config.norm_num_groups;
        let mut c_in = config.block_out_channels[0];
        let conv_in = Conv2d::same3(&at.pp("conv_in"), config.in_channels, c_in);
        let last = config.block_out_channels.len() - 1;
        let mut down_blocks = Vec::new();
        for (i, &c_out) in config.block_out_channels.iter().enumerate() {
            let at = at.pp("down_blocks").pp(i);
            let mut resnets = Vec::new();
            for n in 0..config.layers_per_block {
                resnets.push(Resnet::new(&at.pp("resnets").pp(n), groups, c_in, c_out));
                c_in = c_out;
            }
            // Padding is added by hand in `forward`, on the right and at the bottom only.
            let resample = (i != last).then(|| Conv2d::new(&at.pp("downsamplers").pp(0).pp("conv"), c_out, c_out, 3, 2, 0));
            down_blocks.push(Level { resnets, resample });
        }
        Self {
            conv_in,
            down_blocks,
            mid_block: MidBlock::new(&at.pp("mid_block"), config, widest),
            conv_norm_out: GroupNorm::new(&at.pp("conv_norm_out"), groups, widest, EPS),
            conv_out: Conv2d::same3(&at.pp("conv_out"), widest, 2 * config.latent_channels),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = self.conv_in.forward(x);
        for level in &self.down_blocks {
            for resnet in &level.resnets {
                x = resnet.forward(&x);
            }
            if let Some(conv) = &level.resample {
                x = conv.forward(&x.constant_pad_nd([0, 1, 0, 1]));
            }
        }
        let x = self.mid_block.forward(&x);
        self.conv_out.forward(&self.conv_norm_out.forward(&x).silu())
    }
}

#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn new(at: &Cursor, config: &VaeConfig, widest: i64) -> Self {
        let groups = config.norm_num_groups;
        let last = config.block_out_channels.len() - 1;
        let mut c_in = widest;
        let mut up_blocks = Vec::new();
        for (i, &c_out) in config.block_out_channels.iter().rev().enumerate() {
            let at = at.pp("up_blocks").pp(i);
            let mut resnets = Vec::new();
            for n in 0..=config.layers_per_block {
                resnets.push(Resnet::new(&at.pp("resnets").pp(n), groups, c_in, c_out));
                c_in = c_out;
            }
            let resample = (i != last).then(|| Conv2d::same3(&at.pp("upsamplers").pp(0).pp("conv"), c_out, c_out));
            up_blocks.push(Level { resnets, resample });
        }
        Self {
            conv_in: Conv2d::same3(&at.pp("conv_in"), config.latent_channels, widest),
            mid_block: MidBlock::new(&at.pp("mid_block"), config, widest),
            up_blocks,
            conv_norm_out: GroupNorm::new(&at.pp("conv_norm_out"), groups, c_in, EPS),
            conv_out: Conv2d::same3(&at.pp("conv_out"), c_in, config.out_channels),
        }
    }

    pub(super) fn forward(&self, z: &Tensor) -> Tensor {
        let mut x = self.mid_block.forward(&self.conv_in.forward(z));
        for level in &self.up_blocks {
            for resnet in &level.resnets {
                x = resnet.forward(&x);
            }
            if let Some(conv) = &level.resample {
                let (h, w) = (x.size()[2], x.size()[3]);
                x = conv.forward(&x.upsample_nearest2d([2 * h, 2 * w], None, None));
            }
        }
        self.conv_out.forward(&self.conv_norm_out.forward(&x).silu())
    }
}
