//! The original layout of single files (CompVis' latent-diffusion and Stability's sgm): most fine-tunes are published in it, and
//! ComfyUI-like programs read nothing else. First arrow of the flow (weights -> U-Net), and the last (pruned model -> files).
//!
//! The layout numbers `input_blocks`, `middle_block` and `output_blocks` through, where diffusers names levels and parts. Both say the
//! same of one architecture, so the names are made by walking the stages of the [`UNetConfig`].
//! Source: the module lists of `UNetModel` in latent-diffusion, and diffusers' conversion script for such files.

mod infer;

use std::collections::BTreeMap;

use crate::config::{Part, StageKind, UNetConfig};

pub(crate) use infer::infer;

/// Inner names of a ResNet: ours, theirs.
const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

/// What takes the embedded guidance scale.
const GUIDANCE: &str = "time_embedding.cond_proj";

/// Names outside the blocks: ours, theirs.
const AROUND: [(&str, &str); 8] = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    // Not of the original; published single files keep diffusers' name.
    ("time_embedding.cond_proj", GUIDANCE),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
];

/// The two names of every module of an architecture.
#[derive(Debug, Clone)]
pub struct SingleFileNames {
    /// Prefix in diffusers' layout to prefix in the original one.
    ours: BTreeMap<String, String>,
    theirs: BTreeMap<String, String>,
}

impl SingleFileNames {
    /// Walks the configuration.
    pub fn new(config: &UNetConfig) -> Self {
        let mut pairs: Vec<(String, String)> = AROUND.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        let mut resnet = |id: &str, at: &str| RESNET.iter().for_each(|(a, b)| pairs.push((format!("{id}.{a}"), format!("{at}.{b}"))));
        let (mut whole, mut inputs, mut outputs) = (Vec::new(), 1, 0);
        for stage in &config.stages {
            // Index inside the present block of parts.
            let mut inside = 0;
            let (list, counter) = match stage.kind {
                StageKind::Down => ("input_blocks", Some(&mut inputs)),
                StageKind::Mid => ("middle_block", None),
                StageKind::Up => ("output_blocks", Some(&mut outputs)),
            };
            let Some(next) = counter else {
                for (i, part) in stage.parts.iter().enumerate() {
                    match part {
                        Part::Resnet(r) => resnet(&r.id, &format!("{list}.{i}")),
                        Part::Transformer(t) => whole.push((t.id.clone(), format!("{list}.{i}"))),
                    }
                }
                continue;
            };
            for part in &stage.parts {
                match part {
                    Part::Resnet(r) => {
                        resnet(&r.id, &format!("{list}.{next}.0"));
                        (*next, inside) = (*next + 1, 1);
                    }
                    Part::Transformer(t) => {
                        whole.push((t.id.clone(), format!("{list}.{}.1", *next - 1)));
                        inside = 2;
                    }
                }
            }
            if let Some(sampler) = &stage.sampler {
                let ours = format!("{}.conv", sampler.id);
                if stage.kind == StageKind::Down {
                    whole.push((ours, format!("{list}.{next}.0.op")));
                    *next += 1;
                } else {
                    // It closes the last block, behind its ResNet and, if there is one, its transformer.
                    whole.push((ours, format!("{list}.{}.{inside}.conv", *next - 1)));
                }
            }
        }
        pairs.extend(whole);
        Self { theirs: pairs.iter().map(|(a, b)| (b.clone(), a.clone())).collect(), ours: pairs.into_iter().collect() }
    }

    /// The original name of one of our keys; `None` for a key of no module of the architecture.
    pub fn to_single_file(&self, key: &str) -> Option<String> {
        rename(&self.ours, key)
    }

    /// Our key for an original name without the `model.diffusion_model.` of whole checkpoints.
    pub fn from_single_file(&self, key: &str) -> Option<String> {
        rename(&self.theirs, key)
    }
}

/// Replaces the longest prefix of whole name parts that the table knows.
fn rename(table: &BTreeMap<String, String>, key: &str) -> Option<String> {
    let mut end = key.len();
    while let Some(dot) = key[..end].rfind('.') {
        if let Some(other) = table.get(&key[..dot]) {
            return Some(format!("{other}{}", &key[dot..]));
        }
        end = dot;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs from published checkpoints, as diffusers' conversion maps them.
    #[test]
    fn published_names_are_met() {
        let cases: [(UNetConfig, &[(&str, &str)]); 2] = [
            (
                UNetConfig::sd15(),
                &[
                    ("down_blocks.0.resnets.1.conv2.bias", "input_blocks.2.0.out_layers.3.bias"),
                    ("down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
                    ("down_blocks.1.attentions.0.proj_in.weight", "input_blocks.4.1.proj_in.weight"),
                    ("down_blocks.3.resnets.1.norm1.weight", "input_blocks.11.0.in_layers.0.weight"),
                    (
                        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
                        "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
                    ),
                    ("mid_block.resnets.1.conv1.weight", "middle_block.2.in_layers.2.weight"),
                    ("up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.1.conv.bias"),
                    ("up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"),
                    ("up_blocks.3.resnets.2.conv_shortcut.weight", "output_blocks.11.0.skip_connection.weight"),
                    ("up_blocks.3.attentions.2.norm.bias", "output_blocks.11.1.norm.bias"),
                    ("time_embedding.linear_2.weight", "time_embed.2.weight"),
                ],
            ),
            (
                UNetConfig::sdxl(),
                &[
                    ("add_embedding.linear_1.weight", "label_emb.0.0.weight"),
                    (
                        "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2.bias",
                        "input_blocks.8.1.transformer_blocks.9.ff.net.2.bias",
                    ),
                    ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.2.conv.weight"),
                    ("up_blocks.2.resnets.0.time_emb_proj.weight", "output_blocks.6.0.emb_layers.1.weight"),
                    ("conv_norm_out.weight", "out.0.weight"),
                ],
            ),
        ];
        for (config, pairs) in cases {
            let names = SingleFileNames::new(&config);
            for (ours, theirs) in pairs {
                assert_eq!(names.to_single_file(ours).as_deref(), Some(*theirs));
                assert_eq!(names.from_single_file(theirs).as_deref(), Some(*ours));
            }
            assert_eq!(names.from_single_file("input_blocks.77.0.op.weight"), None);
            assert_eq!(names.to_single_file("conv"), None);
        }
    }
}
