//! The names of autoencoders and text encoders in whole checkpoints and in model directories, and how each tensor lies in the other's.
//!
//! Both layouts say the same, so each pair is written once and read in both directions. Sources: the module lists of latent-diffusion's
//! `AutoencoderKL` and OpenCLIP's text tower, and diffusers' conversion of them.

use std::collections::BTreeMap;

use unet::weights::{Form, Slice};

/// A tensor of the model directory: its name there, the name of the tensor of the checkpoint in which it lies, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub ours: String,
    pub theirs: String,
    pub form: Form,
}

/// By the name of a tensor of the checkpoint: what it is in the model directory.
pub(super) type Slices = BTreeMap<String, Vec<Slice>>;

/// All tensors of one part.
#[derive(Debug, Clone, Default)]
pub(super) struct Names(Vec<Link>);

impl Names {
    /// Which tensors of the model directory lie in the checkpoint's tensor of each name.
    pub fn by_theirs(&self) -> Slices {
        let mut out = Slices::new();
        for link in &self.0 {
            out.entry(link.theirs.clone()).or_default().push(Slice { name: link.ours.clone(), form: link.form });
        }
        out
    }

    /// Every pair.
    pub fn links(&self) -> &[Link] {
        &self.0
    }

    fn add(&mut self, ours: impl Into<String>, theirs: impl Into<String>, form: Form) {
        self.0.push(Link { ours: ours.into(), theirs: theirs.into(), form });
    }

    /// Weight and bias of a module.
    fn module(&mut self, ours: &str, theirs: &str, weight: Form) {
        self.add(format!("{ours}.weight"), format!("{theirs}.weight"), weight);
        self.add(format!("{ours}.bias"), format!("{theirs}.bias"), Form::Whole);
    }

    /// Inserts `prefix` before every name of the checkpoint.
    pub fn within(mut self, prefix: &str) -> Self {
        self.0.iter_mut().for_each(|link| link.theirs.insert_str(0, prefix));
        self
    }
}

/// An autoencoder of this many levels, with so many ResNets in each of its encoder.
pub(super) fn autoencoder(levels: usize, layers: usize) -> Names {
    let mut names = Names::default();
    for half in ["encoder", "decoder"] {
        let is_encoder = half == "encoder";
        let (down, sampler) = if is_encoder { ("down", "downsample") } else { ("up", "upsample") };
        for level in 0..levels {
            // Theirs counts both halves from the finest level, ours in the order of the forward pass.
            let ours = format!("{half}.{down}_blocks.{}", if is_encoder { level } else { levels - 1 - level });
            let theirs = format!("{half}.{down}.{level}");
            for n in 0..layers + usize::from(!is_encoder) {
                resnet(&mut names, &format!("{ours}.resnets.{n}"), &format!("{theirs}.block.{n}"));
            }
            names.module(&format!("{ours}.{sampler}rs.0.conv"), &format!("{theirs}.{sampler}.conv"), Form::Whole);
        }
        for n in 0..2 {
            resnet(&mut names, &format!("{half}.mid_block.resnets.{n}"), &format!("{half}.mid.block_{}", n + 1));
        }
        let (ours, theirs) = (format!("{half}.mid_block.attentions.0"), format!("{half}.mid.attn_1"));
        names.module(&format!("{ours}.group_norm"), &format!("{theirs}.norm"), Form::Whole);
        for (a, b) in [("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")] {
            names.module(&format!("{ours}.{a}"), &format!("{theirs}.{b}"), Form::Matrix);
        }
        for (a, b) in [("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")] {
            names.module(&format!("{half}.{a}"), &format!("{half}.{b}"), Form::Whole);
        }
    }
    for conv in ["quant_conv", "post_quant_conv"] {
        names.module(conv, conv, Form::Whole);
    }
    names
}

fn resnet(names: &mut Names, ours: &str, theirs: &str) {
    for inner in ["norm1", "conv1", "norm2", "conv2"] {
        names.module(&format!("{ours}.{inner}"), &format!("{theirs}.{inner}"), Form::Whole);
    }
    names.module(&format!("{ours}.conv_shortcut"), &format!("{theirs}.nin_shortcut"), Form::Whole);
}

/// Names around the layers of a text encoder: ours below `text_model.`, OpenCLIP's.
const AROUND: [(&str, &str); 4] = [
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm.weight", "ln_final.weight"),
    ("final_layer_norm.bias", "ln_final.bias"),
];

/// Modules of one layer: ours, OpenCLIP's.
const LAYER: [(&str, &str); 5] = [
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
];

/// Projections whose matrices OpenCLIP keeps in one, in this order.
const FUSED: [&str; 3] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];

/// A text encoder of this many layers in OpenCLIP's names (SD-v2, the second of SDXL).
pub(super) fn open_clip(layers: usize) -> Names {
    let mut names = Names::default();
    for (ours, theirs) in AROUND {
        names.add(format!("text_model.{ours}"), theirs, Form::Whole);
    }
    for n in 0..layers {
        let (ours, theirs) = (format!("text_model.encoder.layers.{n}"), format!("transformer.resblocks.{n}"));
        for (a, b) in LAYER {
            names.module(&format!("{ours}.{a}"), &format!("{theirs}.{b}"), Form::Whole);
        }
        for (third, a) in FUSED.iter().enumerate() {
            for leaf in ["weight", "bias"] {
                names.add(format!("{ours}.{a}.{leaf}"), format!("{theirs}.attn.in_proj_{leaf}"), Form::Third(third));
            }
        }
    }
    names.add("text_projection.weight", "text_projection", Form::Transposed);
    names
}

/// A text encoder of this many layers in transformers' names (SD-v1, the first of SDXL), which stand in the checkpoint below `tower`:
/// `text_model.`, or nothing in files of the first days.
pub(super) fn clip(layers: usize, tower: &str) -> Names {
    let mut names = Names::default();
    for (ours, _) in AROUND {
        names.add(format!("text_model.{ours}"), format!("{tower}{ours}"), Form::Whole);
    }
    for n in 0..layers {
        for module in LAYER.iter().map(|(ours, _)| ours).chain(&FUSED) {
            let name = format!("encoder.layers.{n}.{module}");
            names.module(&format!("text_model.{name}"), &format!("{tower}{name}"), Form::Whole);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theirs(names: &Names, ours: &str) -> (String, Form) {
        let found = names.links().iter().find(|link| link.ours == ours).unwrap_or_else(|| panic!("{ours}"));
        (found.theirs.clone(), found.form)
    }

    /// Pairs from published checkpoints, as diffusers' conversion maps them.
    #[test]
    fn published_names_are_met() {
        let vae = autoencoder(4, 2).within("first_stage_model.");
        for (ours, expected, form) in [
            ("encoder.down_blocks.2.resnets.0.conv_shortcut.weight", "encoder.down.2.block.0.nin_shortcut.weight", Form::Whole),
            ("encoder.down_blocks.0.downsamplers.0.conv.bias", "encoder.down.0.downsample.conv.bias", Form::Whole),
            ("decoder.up_blocks.0.resnets.2.norm2.weight", "decoder.up.3.block.2.norm2.weight", Form::Whole),
            ("decoder.up_blocks.2.upsamplers.0.conv.weight", "decoder.up.1.upsample.conv.weight", Form::Whole),
            ("decoder.mid_block.resnets.1.conv1.weight", "decoder.mid.block_2.conv1.weight", Form::Whole),
            ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight", Form::Matrix),
            ("encoder.mid_block.attentions.0.group_norm.bias", "encoder.mid.attn_1.norm.bias", Form::Whole),
            ("encoder.conv_norm_out.weight", "encoder.norm_out.weight", Form::Whole),
            ("post_quant_conv.bias", "post_quant_conv.bias", Form::Whole),
        ] {
            assert_eq!(theirs(&vae, ours), (format!("first_stage_model.{expected}"), form));
        }
        let big = open_clip(32);
        for (ours, expected, form) in [
            ("text_model.embeddings.position_embedding.weight", "positional_embedding", Form::Whole),
            ("text_model.encoder.layers.31.mlp.fc2.bias", "transformer.resblocks.31.mlp.c_proj.bias", Form::Whole),
            ("text_model.encoder.layers.0.self_attn.v_proj.bias", "transformer.resblocks.0.attn.in_proj_bias", Form::Third(2)),
            ("text_model.final_layer_norm.weight", "ln_final.weight", Form::Whole),
            ("text_projection.weight", "text_projection", Form::Transposed),
        ] {
            assert_eq!(theirs(&big, ours), (expected.to_string(), form));
        }
        let small = clip(12, "text_model.");
        let query = "text_model.encoder.layers.11.self_attn.q_proj.weight";
        assert_eq!(theirs(&small, query), (query.to_string(), Form::Whole));
        // 196 tensors of CLIP ViT-L/14's text tower; 516 of ViT-bigG/14's with its projection, without logit_scale.
        assert_eq!(small.links().len(), 196);
        assert_eq!(big.by_theirs().len(), 4 + 32 * 12 + 1);
    }
}
