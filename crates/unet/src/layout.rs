//! What can be removed from a U-Net, what each removal saves and which parameters go. No tensor appears here: costs and
//! plans need the configuration alone. Flow: configuration -> **layer table** -> scores and plans; removal set -> surgery.
//!
//! Every residual branch is one item: the main path of a ResNet, and `attn1`, `attn2` and `ff` of a BasicTransformerBlock.
//! Removing it replaces the branch's output by zero. A ResNet that changes the number of channels keeps its
//! `conv_shortcut`. A Transformer2D all of whose branches are gone is the identity, so its norm and projections go too.
//!
//! Letters of the closed forms: `i`, `o` channels in and out, `c` channels, `e` time width, `x` text width, `t` text
//! tokens, `n` positions (height times width).

use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;

use artifact::nearest;
use prune_core::table::{Layer, LayerTable, SharedCost, TableParts};
use prune_core::{LayerId, RemovalSet};

use self::costs::{Costs, branch_costs, fixed_costs, level_sizes, resnet_costs, shell_costs, shortcut_costs};
use crate::config::{Part, Transformer, UNetConfig};
use crate::error::{Error, Result};

mod costs;

/// What a branch computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BranchKind {
    /// The main path of a ResNet block.
    Resnet,
    /// `attn1`.
    SelfAttention,
    /// `attn2`.
    CrossAttention,
    /// `ff`.
    FeedForward,
}

impl BranchKind {
    /// The name used in tables and reports.
    pub fn name(self) -> &'static str {
        match self {
            BranchKind::Resnet => "resnet",
            BranchKind::SelfAttention => "self_attention",
            BranchKind::CrossAttention => "cross_attention",
            BranchKind::FeedForward => "feed_forward",
        }
    }
}

/// What one item of a layer table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// Every residual branch.
    Branch,
    /// ResNets, and whole BasicTransformerBlocks: the unit that other programs can load.
    Block,
    /// ResNets, and whole Transformer2Ds.
    Transformer2d,
}

impl FromStr for Granularity {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "branch" => Ok(Self::Branch),
            "block" => Ok(Self::Block),
            "transformer2d" => Ok(Self::Transformer2d),
            other => Err(format!("expected branch, block or transformer2d, got `{other}`")),
        }
    }
}

/// One removable residual branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// Checkpoint key prefix.
    pub id: String,
    /// What it computes.
    pub kind: BranchKind,
    /// The stage it sits in.
    pub stage: String,
    /// Prefixes of the parameters that go with it, its own normalization among them.
    pub owns: Vec<String>,
}

/// The removable branches of a configuration in the order of the forward pass, and the groups that stand for several.
#[derive(Debug, Clone)]
pub struct Layout {
    branches: Vec<Branch>,
    /// Branch ids, BasicTransformerBlock prefixes and Transformer2D prefixes, with the branches that each stands for.
    groups: BTreeMap<String, Range<usize>>,
    /// Transformer2D prefixes that hold at least one branch.
    transformers: Vec<String>,
}

impl Layout {
    /// Walks the configuration.
    pub fn new(config: &UNetConfig) -> Self {
        let mut layout = Self { branches: Vec::new(), groups: BTreeMap::new(), transformers: Vec::new() };
        for stage in &config.stages {
            for part in &stage.parts {
                match part {
                    Part::Resnet(r) => {
                        let owned = ["norm1", "conv1", "time_emb_proj", "norm2", "conv2"];
                        layout.push(r.id.clone(), BranchKind::Resnet, &stage.name, &r.id, &owned);
                    }
                    Part::Transformer(t) => layout.push_transformer(t, &stage.name),
                }
            }
        }
        layout
    }

    fn push(&mut self, id: String, kind: BranchKind, stage: &str, at: &str, owns: &[&str]) {
        let position = self.branches.len();
        self.groups.insert(id.clone(), position..position + 1);
        let owns = owns.iter().map(|o| format!("{at}.{o}")).collect();
        self.branches.push(Branch { id, kind, stage: stage.to_string(), owns });
    }

    fn push_transformer(&mut self, t: &Transformer, stage: &str) {
        let first = self.branches.len();
        for i in 0..t.depth {
            let block = format!("{}.transformer_blocks.{i}", t.id);
            let start = self.branches.len();
            self.push(format!("{block}.attn1"), BranchKind::SelfAttention, stage, &block, &["norm1", "attn1"]);
            self.push(format!("{block}.attn2"), BranchKind::CrossAttention, stage, &block, &["norm2", "attn2"]);
            self.push(format!("{block}.ff"), BranchKind::FeedForward, stage, &block, &["norm3", "ff"]);
            self.groups.insert(block, start..self.branches.len());
        }
        if t.depth > 0 {
            self.groups.insert(t.id.clone(), first..self.branches.len());
            self.transformers.push(t.id.clone());
        }
    }

    /// The branches in the order of the forward pass.
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// The branches that an id stands for: one for a branch, several for a BasicTransformerBlock or a Transformer2D.
    pub fn group(&self, id: &str) -> Option<Range<usize>> {
        self.groups.get(id).cloned()
    }

    /// One flag per branch: whether the set removes it. Ids of whole blocks and whole Transformer2Ds stand for their branches.
    ///
    /// # Errors
    /// [`Error::Layer`] for an id that names nothing removable.
    pub fn flags(&self, removed: &RemovalSet) -> Result<Vec<bool>> {
        let mut flags = vec![false; self.branches.len()];
        for id in removed {
            let range = self.group(id.as_str()).ok_or_else(|| self.unknown(id))?;
            flags[range].fill(true);
        }
        Ok(flags)
    }

    /// The same removals, named branch by branch.
    ///
    /// # Errors
    /// As [`Layout::flags`].
    pub fn expand(&self, removed: &RemovalSet) -> Result<RemovalSet> {
        let flags = self.flags(removed)?;
        Ok(self.branches.iter().zip(flags).filter(|(_, off)| *off).map(|(b, _)| b.id.as_str()).collect())
    }

    /// The Transformer2Ds that are the identity under these flags.
    pub fn gone_shared_costs<'a>(&'a self, flags: &'a [bool]) -> impl Iterator<Item = &'a str> {
        self.transformers.iter().filter(|id| flags[self.groups[id.as_str()].clone()].iter().all(|off| *off)).map(String::as_str)
    }

    /// Prefixes, each ending in a dot, of the parameters that are absent under these flags.
    pub fn gone_prefixes(&self, flags: &[bool]) -> Vec<String> {
        let branches = self.branches.iter().zip(flags).filter(|(_, off)| **off).flat_map(|(b, _)| b.owns.iter().cloned());
        let shared_costs = self.gone_shared_costs(flags).flat_map(|id| SHARED.iter().map(move |p| format!("{id}.{p}")));
        branches.chain(shared_costs).map(|p| p + ".").collect()
    }

    /// Prefixes, each ending in a dot, of the parameters that an id owns: its branches', and for a Transformer2D its shared cost's.
    ///
    /// # Errors
    /// [`Error::Layer`] for an id that names nothing removable.
    pub fn owned_prefixes(&self, id: &LayerId) -> Result<Vec<String>> {
        let mut only = vec![false; self.branches.len()];
        only[self.group(id.as_str()).ok_or_else(|| self.unknown(id))?].fill(true);
        let shell = self.transformers.iter().any(|t| t == id.as_str());
        let branches = self.branches.iter().zip(&only).filter(|(_, on)| **on).flat_map(|(b, _)| b.owns.iter().cloned());
        let shell = SHARED.iter().filter(|_| shell).map(|p| format!("{id}.{p}"));
        Ok(branches.chain(shell).map(|p| p + ".").collect())
    }

    /// The branches of a group that are still there; none for an unknown id.
    fn left(&self, id: &str, off: &[bool]) -> Vec<&Branch> {
        let range = self.groups.get(id).cloned().unwrap_or(0..0);
        range.filter(|i| !off[*i]).map(|i| &self.branches[i]).collect()
    }

    fn unknown(&self, id: &LayerId) -> Error {
        let hint =
            nearest(id.as_str(), self.groups.keys().map(String::as_str)).map(|n| format!("; the nearest is `{n}`")).unwrap_or_default();
        Error::Layer { id: id.to_string(), reason: format!("this architecture has no such removable layer{hint}") }
    }
}

/// Parts of a Transformer2D around its blocks.
const SHARED: [&str; 3] = ["norm", "proj_in", "proj_out"];

/// What a layer table is made for.
#[derive(Debug, Clone)]
pub struct TableOptions {
    /// Height of the latents.
    pub latent_h: i64,
    /// Width of the latents.
    pub latent_w: i64,
    /// Text tokens; 77 for the published models.
    pub tokens: i64,
    /// What one item is.
    pub granularity: Granularity,
    /// What is gone already; it is neither an item nor part of the totals.
    pub removed: RemovalSet,
    /// Name of the model, for people.
    pub model: String,
    /// Hash of weights and configuration. See [`crate::fingerprint`]; [`UNetConfig::hash`] where there are no weights.
    pub fingerprint: String,
}

/// The layer table at branch granularity and 77 tokens, with the configuration's own hash as fingerprint.
///
/// # Errors
/// As [`layer_table_with`].
pub fn layer_table(config: &UNetConfig, latent_h: i64, latent_w: i64) -> Result<LayerTable> {
    layer_table_with(
        config,
        &TableOptions {
            latent_h,
            latent_w,
            tokens: 77,
            granularity: Granularity::Branch,
            removed: RemovalSet::empty(),
            model: "unet".into(),
            fingerprint: config.hash(),
        },
    )
}

/// The layer table: every item with its parameters and multiply-accumulates, every shared cost, and the totals.
///
/// Multiply-accumulates are those of convolutions and matrix products, the two products inside attention among them, for
/// one sample; twice their number are the floating-point operations.
///
/// # Errors
/// [`Error::Input`] for a size below 1, [`Error::Core`] for an architecture with nothing to remove.
pub fn layer_table_with(config: &UNetConfig, options: &TableOptions) -> Result<LayerTable> {
    Ok(walk(config, options)?.0)
}

/// What autograd keeps of a forward pass for the backward pass, in elements for one sample; parameters and inputs do not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivationCosts {
    /// Of the whole model.
    pub total: u64,
    /// What is no longer kept where a layer goes.
    pub layers: BTreeMap<LayerId, u64>,
    /// What is no longer kept on top where a shared cost goes.
    pub shared_costs: BTreeMap<LayerId, u64>,
    pieces: Vec<Piece>,
}

/// A ResNet, a transformer block, or all that is neither, in the order of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    params: u128,
    kept: u128,
    // With checkpointing: what stands before the piece, and what it keeps while it runs again.
    before: u128,
    again: u128,
}

impl ActivationCosts {
    /// The most that activations and gradients take together: the backward pass, from the last piece to the first, frees the ones and makes
    /// the others. `element` and `gradient` are the bytes of a kept element of all samples, and of one parameter's gradient.
    ///
    /// With activation checkpointing only what stands between ResNets and transformer blocks is kept; one at a time runs again, and what it
    /// keeps has gradients of as much.
    pub fn with_gradients(&self, checkpointing: bool, element: f64, gradient: f64) -> f64 {
        let params: u128 = self.pieces.iter().map(|p| p.params).sum();
        let mut most = params as f64 * gradient;
        let (mut kept, mut left) = (0, params);
        for piece in &self.pieces {
            kept += if checkpointing { piece.before } else { piece.kept };
            left -= piece.params;
            let again = if checkpointing { 2 * piece.again } else { 0 };
            most = most.max((kept + again) as f64 * element + left as f64 * gradient);
        }
        most
    }
}

/// The memory for activations in training: every item, every shared cost and the total, for attention that is computed in one pass and
/// keeps its row sums only (arXiv 2205.14135). Multiply by the size of the type and by the batch for bytes.
///
/// # Errors
/// As [`layer_table_with`].
pub fn activation_costs(config: &UNetConfig, options: &TableOptions) -> Result<ActivationCosts> {
    Ok(walk(config, options)?.1)
}

/// Every item, every shared cost and the totals.
fn walk(config: &UNetConfig, options: &TableOptions) -> Result<(LayerTable, ActivationCosts)> {
    for (name, value) in [("latent_h", options.latent_h), ("latent_w", options.latent_w), ("tokens", options.tokens)] {
        if !(1..=1 << 16).contains(&value) {
            return Err(Error::Input { name: name.into(), expected: "a size from 1 to 65536".into(), got: value.to_string() });
        }
    }
    let layout = Layout::new(config);
    let off = layout.flags(&options.removed)?;
    let sizes = level_sizes(config, options.latent_h as u128, options.latent_w as u128);
    let mut total = fixed_costs(config, &sizes);
    let (mut layers, mut shared_costs) = (Vec::new(), Vec::new());
    let around = Piece { params: total.params, kept: total.kept, before: 0, again: 0 };
    let mut activations = ActivationCosts { total: 0, layers: BTreeMap::new(), shared_costs: BTreeMap::new(), pieces: vec![around] };
    // On the way.
    let mut channels = 0u128;
    for stage in &config.stages {
        let n = sizes[stage.level];
        let mut push = |id: &str, kind: &str, costs: Costs| -> Result<()> {
            let (params, macs, kept) = costs.in_u64()?;
            activations.layers.insert(id.into(), kept);
            layers.push(Layer { id: id.into(), kind: kind.into(), stage: stage.name.clone(), params, macs });
            Ok(())
        };
        for part in &stage.parts {
            match part {
                Part::Resnet(r) => {
                    let (removed, shortcut) = (off[layout.groups[&r.id].start], shortcut_costs(r, n));
                    if r.takes.is_none() {
                        channels = r.c_in as u128;
                    }
                    let main = if removed { Costs::ZERO } else { resnet_costs(r, config, n) };
                    let all = main + shortcut;
                    let before = if removed && r.c_in == r.c_out { 0 } else { channels * n };
                    activations.pieces.push(Piece {
                        params: all.params,
                        kept: all.kept,
                        before,
                        again: if removed { 0 } else { all.kept },
                    });
                    channels = r.c_out as u128;
                    total = total + all;
                    if !removed {
                        push(&r.id, BranchKind::Resnet.name(), main)?;
                    }
                }
                Part::Transformer(t) => {
                    let own = shell_costs(t, config, n);
                    let left = layout.left(&t.id, &off);
                    if left.is_empty() && t.depth > 0 {
                        continue;
                    }
                    let costs = |b: &Branch| branch_costs(b.kind, t, n, options.tokens as u128);
                    let sum = |branches: &[&Branch]| branches.iter().fold(Costs::ZERO, |a, b| a + costs(b));
                    total = total + own + sum(&left);
                    let blocks: Vec<(String, Costs)> = (0..t.depth)
                        .map(|i| format!("{}.transformer_blocks.{i}", t.id))
                        .map(|id| (layout.left(&id, &off), id))
                        .filter(|(inside, _)| !inside.is_empty())
                        .map(|(inside, id)| (id, sum(&inside)))
                        .collect();
                    activations.pieces.push(Piece { params: own.params, kept: own.kept, before: t.channels as u128 * n, again: 0 });
                    for (_, block) in &blocks {
                        // The first and the last block run together with the shell's parts.
                        let (before, again) = (t.channels as u128 * n, (own + *block).kept);
                        activations.pieces.push(Piece { params: block.params, kept: block.kept, before, again });
                    }
                    let mut members: Vec<LayerId> = Vec::new();
                    match options.granularity {
                        Granularity::Branch => {
                            for b in &left {
                                push(&b.id, b.kind.name(), costs(b))?;
                                members.push(b.id.as_str().into());
                            }
                        }
                        Granularity::Block => {
                            for (id, block) in blocks {
                                push(&id, "transformer_block", block)?;
                                members.push(id.into());
                            }
                        }
                        Granularity::Transformer2d => {
                            if t.depth > 0 {
                                push(&t.id, "transformer2d", own + sum(&left))?;
                            }
                        }
                    }
                    if !members.is_empty() {
                        let (params, macs, kept) = own.in_u64()?;
                        activations.shared_costs.insert(t.id.as_str().into(), kept);
                        shared_costs.push(SharedCost { id: t.id.as_str().into(), members, params, macs });
                    }
                }
            }
        }
    }
    let (total_params, total_macs, total_kept) = total.in_u64()?;
    activations.total = total_kept;
    let parts = TableParts {
        model: options.model.clone(),
        fingerprint: options.fingerprint.clone(),
        total_params,
        total_macs,
        layers,
        shared_costs,
    };
    Ok((LayerTable::new(parts)?, activations))
}

/// Whole forward passes that scoring every item of `table` by ablation takes, per point, counted in multiply-accumulates: the original, and
/// each candidate from the block on in which its layer stands, with the state before it kept from the original's pass.
pub fn scoring_passes(table: &LayerTable) -> f64 {
    let layers = table.layers();
    let block = |id: &LayerId| match id.as_str().rsplit_once('.') {
        Some((block, _)) if id.as_str().contains("transformer_blocks") => block.to_string(),
        _ => id.to_string(),
    };
    let whole: u64 = layers.iter().map(|layer| layer.macs).sum();
    let mut passes = 1.0;
    let mut left = whole;
    let mut before = (String::new(), whole);
    for layer in layers {
        let block = block(&layer.id);
        if block != before.0 {
            before = (block, left);
        }
        passes += before.1 as f64 / whole.max(1) as f64;
        left -= layer.macs;
    }
    passes
}
