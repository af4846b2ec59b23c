//! From diffusers' lists to the parts of the network in the order of the forward pass, with every skip given a name.

use crate::error::Result;

use super::fields::{Depth, Fields};
use crate::export::MID_DEPTH;

/// Where a stage stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageKind {
    /// Towards smaller images; leaves skips.
    Down,
    /// The bottom.
    Mid,
    /// Towards larger images; takes the skips, last one first.
    Up,
}

/// A ResNet block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resnet {
    /// Checkpoint key prefix, and the layer id of its main path.
    pub id: String,
    /// Channels in, those of the skip included.
    pub c_in: i64,
    /// Channels out; a 1x1 `conv_shortcut` exists when they differ from `c_in`.
    pub c_out: i64,
    /// The skip that is appended to the input's channels, named by the part that left it.
    pub takes: Option<String>,
    /// Whether the output is left as a skip.
    pub leaves: bool,
}

/// A Transformer2D: norm, proj_in, BasicTransformerBlocks, proj_out, around a residual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transformer {
    /// Checkpoint key prefix.
    pub id: String,
    /// Channels, equal to the width of its tokens.
    pub channels: i64,
    /// Attention heads.
    pub heads: i64,
    /// Width of the text features.
    pub context: i64,
    /// Number of BasicTransformerBlocks.
    pub depth: usize,
    /// Whether the output is left as a skip.
    pub leaves: bool,
}

/// The stride-2 convolution at the end of a down stage, or the doubling and convolution at the end of an up stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampler {
    /// Checkpoint key prefix.
    pub id: String,
    /// Channels in and out.
    pub channels: i64,
    /// For an up stage, the skip whose height and width the output must have.
    pub like: Option<String>,
}

/// One step inside a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A ResNet block.
    Resnet(Resnet),
    /// A Transformer2D.
    Transformer(Transformer),
}

impl Part {
    /// Checkpoint key prefix.
    pub fn id(&self) -> &str {
        match self {
            Part::Resnet(r) => &r.id,
            Part::Transformer(t) => &t.id,
        }
    }

    /// Whether the output is left as a skip.
    pub fn leaves(&self) -> bool {
        match self {
            Part::Resnet(r) => r.leaves,
            Part::Transformer(t) => t.leaves,
        }
    }

    pub(super) fn normalized_widths(&self) -> Vec<i64> {
        match self {
            Part::Resnet(r) => vec![r.c_in, r.c_out],
            Part::Transformer(t) => vec![t.channels],
        }
    }
}

/// One down, mid or up block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Checkpoint key prefix, such as `down_blocks.1`.
    pub name: String,
    /// Where it stands.
    pub kind: StageKind,
    /// How often the sample was halved before its parts run.
    pub level: usize,
    /// ResNets and transformers in the order of the forward pass.
    pub parts: Vec<Part>,
    /// The change of size at its end.
    pub sampler: Option<Sampler>,
}

/// The skips not yet taken, with their channels, last one last.
type Skips = Vec<(String, i64)>;

pub(super) fn stages(f: &Fields, channels: &[i64]) -> Result<Vec<Stage>> {
    let levels = channels.len();
    let down_types = f.block_types("down_block_types", levels)?;
    let up_types = f.block_types("up_block_types", levels)?;
    let layers = f.counts("layers_per_block", levels)?;
    let heads = f.per_level(heads_key(f), levels)?;
    let context = f.per_level("cross_attention_dim", levels)?;
    let (depths, up_depths) = depths(f, levels)?;

    let transformer = |id: String, level: usize, depth: usize, leaves: bool| -> Result<Part> {
        let (channels, heads) = (channels[level], heads[level]);
        if channels % heads != 0 {
            return Err(f.error(heads_key(f), &format!("a number of heads that divides {channels} channels"), &heads.to_string()));
        }
        Ok(Part::Transformer(Transformer { id, channels, heads, context: context[level], depth, leaves }))
    };

    let mut out = Vec::with_capacity(2 * levels + 1);
    let mut skips: Skips = vec![("conv_in".into(), channels[0])];
    let mut width = channels[0];
    for level in 0..levels {
        let name = format!("down_blocks.{level}");
        let attends = attends(f, "down_block_types", &down_types[level], "DownBlock2D", "CrossAttnDownBlock2D")?;
        let mut parts = Vec::new();
        for i in 0..layers[level] as usize {
            let resnet = Resnet { id: format!("{name}.resnets.{i}"), c_in: width, c_out: channels[level], takes: None, leaves: !attends };
            parts.push(Part::Resnet(resnet));
            width = channels[level];
            if attends {
                let depth = depth_of(f, "transformer_layers_per_block", &depths[level], i)?;
                parts.push(transformer(format!("{name}.attentions.{i}"), level, depth, true)?);
            }
        }
        skips.extend(parts.iter().filter(|p| p.leaves()).map(|p| (p.id().to_string(), width)));
        let sampler = (level + 1 < levels).then(|| Sampler { id: format!("{name}.downsamplers.0"), channels: width, like: None });
        skips.extend(sampler.iter().map(|s| (s.id.clone(), width)));
        out.push(Stage { name, kind: StageKind::Down, level, parts, sampler });
    }

    let last = levels - 1;
    if let Some(attends) = mid_attends(f)? {
        let resnet =
            |i: usize| Part::Resnet(Resnet { id: format!("mid_block.resnets.{i}"), c_in: width, c_out: width, takes: None, leaves: false });
        let mut parts = vec![resnet(0)];
        if attends {
            let depth = match f.own_count(MID_DEPTH)? {
                Some(depth) => depth,
                None => depth_of(f, "transformer_layers_per_block", &depths[last], 0)?,
            };
            parts.push(transformer("mid_block.attentions.0".into(), last, depth, false)?);
            parts.push(resnet(1));
        }
        out.push(Stage { name: "mid_block".into(), kind: StageKind::Mid, level: last, parts, sampler: None });
    }

    for i in 0..levels {
        let level = last - i;
        let name = format!("up_blocks.{i}");
        let attends = attends(f, "up_block_types", &up_types[i], "UpBlock2D", "CrossAttnUpBlock2D")?;
        let mut parts = Vec::new();
        for j in 0..=layers[level] as usize {
            // Down stages leave one skip per layer and one per sampler, and `conv_in` one: as many as are taken here.
            let (skip, skip_channels) = skips.pop().expect("down and up stages have matching numbers of layers");
            let resnet = Resnet {
                id: format!("{name}.resnets.{j}"),
                c_in: width + skip_channels,
                c_out: channels[level],
                takes: Some(skip),
                leaves: false,
            };
            parts.push(Part::Resnet(resnet));
            width = channels[level];
            if attends {
                let depth = depth_of(f, "transformer_layers_per_block", &up_depths[i], j)?;
                parts.push(transformer(format!("{name}.attentions.{j}"), level, depth, false)?);
            }
        }
        let sampler =
            skips.last().map(|(like, _)| Sampler { id: format!("{name}.upsamplers.0"), channels: width, like: Some(like.clone()) });
        out.push(Stage { name, kind: StageKind::Up, level, parts, sampler });
    }
    Ok(out)
}

/// The one width of text features that all transformers take.
pub(super) fn text_width(f: &Fields, stages: &[Stage], levels: usize) -> Result<i64> {
    let mut widths = stages.iter().flat_map(|s| &s.parts).filter_map(|p| match p {
        Part::Transformer(t) => Some(t.context),
        Part::Resnet(_) => None,
    });
    let Some(first) = widths.next() else { return Ok(f.per_level("cross_attention_dim", levels)?[0]) };
    match widths.find(|w| *w != first) {
        None => Ok(first),
        Some(other) => Err(f.error("cross_attention_dim", "one width for all levels with attention", &format!("{first} and {other}"))),
    }
}

// diffusers reads a number of heads from `attention_head_dim` unless the properly named setting is given.
fn heads_key(f: &Fields) -> &'static str {
    match f.is_set("num_attention_heads") {
        true => "num_attention_heads",
        false => "attention_head_dim",
    }
}

fn attends(f: &Fields, key: &str, got: &str, plain: &str, cross: &str) -> Result<bool> {
    match got {
        t if t == plain => Ok(false),
        t if t == cross => Ok(true),
        other => Err(f.error(key, &format!("\"{plain}\" or \"{cross}\""), other)),
    }
}

/// `None` without a mid block, otherwise whether it has a transformer. Absent means with one, null means none.
fn mid_attends(f: &Fields) -> Result<Option<bool>> {
    let key = "mid_block_type";
    if f.is_null(key) {
        return Ok(None);
    }
    match f.text(key)?.as_deref() {
        None | Some("UNetMidBlock2DCrossAttn") => Ok(Some(true)),
        Some("UNetMidBlock2D") => Ok(Some(false)),
        Some(other) => Err(f.error(key, "\"UNetMidBlock2DCrossAttn\", \"UNetMidBlock2D\" or null", other)),
    }
}

fn depths(f: &Fields, levels: usize) -> Result<(Vec<Depth>, Vec<Depth>)> {
    let key = "transformer_layers_per_block";
    let down = f.depths(key, levels)?.unwrap_or_else(|| vec![Depth::Same(1); levels]);
    let up = match f.depths("reverse_transformer_layers_per_block", levels)? {
        Some(up) => up,
        None if down.iter().any(|d| matches!(d, Depth::Each(_))) => {
            return Err(f.error(
                "reverse_transformer_layers_per_block",
                "a list, because transformer_layers_per_block is nested",
                "nothing",
            ));
        }
        None => down.iter().rev().cloned().collect(),
    };
    Ok((down, up))
}

// A list may be longer than the stage: the mid block takes the first number of the last level's list.
fn depth_of(f: &Fields, key: &str, depth: &Depth, i: usize) -> Result<usize> {
    match depth {
        Depth::Same(d) => Ok(*d),
        Depth::Each(list) => {
            list.get(i).copied().ok_or_else(|| f.error(key, &format!("at least {} depths for the stage", i + 1), &list.len().to_string()))
        }
    }
}
