//! Pruned networks for programs that know nothing of removed branches. Last arrow of the flow: pruned model -> **files that other
//! programs load**.
//!
//! Other programs build a network from a few numbers: how many BasicTransformerBlocks stand in each Transformer2D, and what the mid
//! block is. So a pruned network moves into a *target*, the smallest such network that holds everything it kept. Kept blocks move up
//! into the target's first places; what the target has and the pruned network lacks is padded with zeros: a branch whose weights are
//! all zero adds nothing, so the output stays the same and only the saving is lost. [`ExportTarget::padding`] counts it beforehand.
//!
//! Sources: `UNet2DConditionModel` of diffusers 0.42; `model_detection` and `supported_models` of ComfyUI.

mod format;
mod lora;
mod portable;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::config::{Part, StageKind, Transformer, UNetConfig};
use crate::error::{Error, Result};
use crate::layout::{Granularity, Layout, TableOptions, layer_table_with};
use crate::unet::UNet;
use crate::weights::{Tensors, Weights};
use prune_core::RemovalSet;

pub use format::{Beside, ExportFormat, ExportOptions, Exported, Portability, export, portability};
pub use lora::{AdapterNames, Remapped, RemappedLora, remap_lora};
pub use portable::{best_portable, portable_constraints};

/// Who is to load the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Anyone: the original's own shape, every removed weight zero. Saves nothing.
    Neutral,
    /// diffusers, from a `config.json` with nested depths.
    Diffusers,
    /// ComfyUI and its like, from the names in a single file.
    ComfyUi,
}

impl Program {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Program::Neutral => "any program",
            Program::Diffusers => "diffusers",
            Program::ComfyUi => "ComfyUI",
        }
    }
}

/// The depths behind each down ResNet by which ComfyUI recognises a network with pooled text: SDXL, SSD-1B, Segmind-Vega, KOALA-700M,
/// KOALA-1B and the SDXL refiner. Those of the mid and up blocks are free.
const COMFYUI_DEPTHS: [&[usize]; 6] =
    [&[0, 0, 2, 2, 10, 10], &[0, 0, 2, 2, 4, 4], &[0, 0, 1, 1, 2, 2], &[0, 2, 5], &[0, 2, 6], &[0, 0, 4, 4, 4, 4, 0, 0]];

/// Key under which this program's configurations hold a depth of the mid block that its neighbour does not share; diffusers cannot
/// say that and ignores keys with an underscore.
pub(crate) const MID_DEPTH: &str = "_mid_transformer_layers";

/// Something that the target holds although it was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Padding {
    /// Key prefix in the target.
    pub at: String,
    /// Parameters that are zero there.
    pub params: u64,
    /// Why the target cannot do without.
    pub reason: &'static str,
}

/// The network into which a pruned one moves.
#[derive(Debug, Clone)]
pub struct ExportTarget {
    /// Its architecture.
    pub config: UNetConfig,
    /// Transformer2Ds that it lacks although `config` names them, where the format can say so.
    pub removed: RemovalSet,
    /// What comes back, in the order of names.
    pub padding: Vec<Padding>,
    /// Prefixes that are called otherwise in the target, without trailing dots.
    moved: BTreeMap<String, String>,
    /// Prefixes, each ending in a dot, of what was removed from the original.
    gone: Vec<String>,
}

impl ExportTarget {
    /// The target of `config` without `removed`.
    ///
    /// # Errors
    /// [`Error::Layer`] for an id that names nothing removable; [`Error::Portable`] where no target exists.
    pub fn new(config: &UNetConfig, removed: &RemovalSet, program: Program) -> Result<Self> {
        let layout = Layout::new(config);
        let flags = layout.flags(removed)?;
        let gone = layout.gone_prefixes(&flags);
        let mut target = Self { config: config.clone(), removed: RemovalSet::empty(), padding: Vec::new(), moved: BTreeMap::new(), gone };
        if program != Program::Neutral {
            target.reshape(&Kept::new(config, &layout, &flags), program)?;
        }
        target.count_padding(config, &layout, &flags)?;
        Ok(target)
    }

    /// Parameters that come back as zeros.
    pub fn padded_params(&self) -> u64 {
        self.padding.iter().map(|p| p.params).sum()
    }

    /// The target's name of a key of the original network; `None` for what was removed. Keys of other files that follow the same module
    /// names (adapters) are renamed alike.
    pub fn rename(&self, key: &str) -> Option<String> {
        if self.gone.iter().any(|prefix| key.starts_with(prefix.as_str())) {
            return None;
        }
        let mut end = key.len();
        loop {
            if let Some(to) = self.moved.get(&key[..end]) {
                return Some(format!("{to}{}", &key[end..]));
            }
            match key[..end].rfind('.') {
                Some(dot) => end = dot,
                None => return Some(key.to_string()),
            }
        }
    }

    /// The pruned network in its target. It shares the kept tensors; the padding takes no memory until it is written.
    ///
    /// # Errors
    /// [`Error::Weights`] when `unet` is not the network that this target was made for.
    pub fn build(&self, unet: &UNet) -> Result<UNet> {
        let renamed = unet.parameters().iter().filter_map(|(key, t)| Some((self.rename(key)?, t.shallow_clone())));
        let tensors: Tensors = renamed.collect();
        UNet::from_weights(&self.config, Weights::padded(tensors), &self.removed)
    }

    /// Sets depths, the mid block and the new places of the kept blocks.
    fn reshape(&mut self, kept: &Kept, program: Program) -> Result<()> {
        let mut depths = kept.depths();
        let mut mid = kept.mid_type.clone();
        if kept.mid_attention.as_ref().is_some_and(|id| depths[id] == 0) && kept.mid_resnets.len() < 2 {
            // Without its attention the mid block may be one ResNet, or nothing.
            depths.remove(kept.mid_attention.as_deref().unwrap_or_default());
            mid = if kept.mid_resnets.is_empty() { Value::Null } else { json!("UNetMidBlock2D") };
            if let Some(only) = kept.mid_resnets.first().filter(|id| *id != "mid_block.resnets.0") {
                self.moved.insert(only.clone(), "mid_block.resnets.0".into());
            }
        } else if kept.mid_attention.is_none() && kept.mid_resnets.is_empty() {
            mid = Value::Null;
        }
        match program {
            Program::ComfyUi => self.fit_comfyui(kept, &mut depths)?,
            _ => kept.share_mid_depth(&mut depths),
        }
        for (id, blocks) in &kept.blocks {
            for (to, from) in blocks.iter().enumerate().filter(|(to, from)| to != *from) {
                self.moved.insert(format!("{id}.transformer_blocks.{from}"), format!("{id}.transformer_blocks.{to}"));
            }
        }
        self.config = kept.config(&depths, mid)?;
        Ok(())
    }

    /// Depths on the way down must be one of the known lists; a Transformer2D elsewhere may be absent.
    fn fit_comfyui(&mut self, kept: &Kept, depths: &mut BTreeMap<String, usize>) -> Result<()> {
        if kept.original.time.guidance.is_some() {
            let reason = "it gives the network no guidance scale (time_cond_proj_dim)".to_string();
            return Err(Error::Portable { program: "ComfyUI", reason });
        }
        if kept.pooled {
            let has: Vec<usize> = kept.down.iter().map(|id| id.as_ref().map_or(0, |id| depths[id])).collect();
            let attends: Vec<bool> = kept.down.iter().map(Option::is_some).collect();
            let fits = |list: &&[usize]| {
                list.len() == has.len() && list.iter().zip(&has).zip(&attends).all(|((l, h), a)| l >= h && (*l > 0) == *a)
            };
            // Each list is above the next one of its length everywhere, so the least sum is the cheapest target.
            let list = COMFYUI_DEPTHS.into_iter().filter(fits).min_by_key(|list| list.iter().sum::<usize>());
            let list = list.ok_or_else(|| Error::Portable {
                program: "ComfyUI",
                reason: format!("it knows a network with pooled text by its depths on the way down, and {has:?} fits none that it knows"),
            })?;
            for (id, depth) in kept.down.iter().zip(list).filter_map(|(id, depth)| Some((id.clone()?, *depth))) {
                depths.insert(id, depth);
            }
        }
        if let Some(bare) = transformers(kept.original).find(|t| t.depth == 0) {
            return Err(Error::Portable { program: "ComfyUI", reason: format!("`{}` has projections and no blocks", bare.id) });
        }
        for (id, depth) in depths.iter_mut().filter(|(_, depth)| **depth == 0) {
            // Both ResNets are there, so a transformer is expected between them.
            let needed = Some(id) == kept.mid_attention.as_ref();
            *depth = 1;
            if !needed {
                self.removed.insert(id.as_str());
            }
        }
        Ok(())
    }

    fn count_padding(&mut self, original: &UNetConfig, layout: &Layout, flags: &[bool]) -> Result<()> {
        let kept_shared: Vec<&str> = {
            let gone: Vec<&str> = layout.gone_shared_costs(flags).collect();
            transformers(original).map(|t| t.id.as_str()).filter(|id| !gone.contains(id)).collect()
        };
        let present: Vec<String> =
            layout.branches().iter().zip(flags).filter(|(_, off)| !**off).filter_map(|(b, _)| self.rename(&b.id)).collect();
        let options = TableOptions {
            latent_h: 64,
            latent_w: 64,
            tokens: 77,
            granularity: Granularity::Branch,
            removed: self.removed.clone(),
            model: "target".into(),
            fingerprint: "target".into(),
        };
        let table = layer_table_with(&self.config, &options)?;
        let mut padding = Vec::new();
        for layer in table.layers().iter().filter(|layer| !present.iter().any(|id| id == layer.id.as_str())) {
            let id = layer.id.as_str();
            let reason = match id.split_once(".transformer_blocks.") {
                None => "a ResNet has no off switch",
                Some(_) => {
                    let block = id.rsplit_once('.').map_or(id, |(block, _)| block);
                    let partly = present.iter().any(|other| other.rsplit_once('.').is_some_and(|(other, _)| other == block));
                    if partly { "its block is kept in part" } else { "the depth cannot be smaller here" }
                }
            };
            padding.push(Padding { at: id.to_string(), params: layer.params, reason });
        }
        // Shells come back with a Transformer2D of depth 0 or of zeros; those that were never removed are no padding.
        for t in transformers(&self.config) {
            if !kept_shared.contains(&t.id.as_str()) && !self.removed.contains(t.id.as_str()) {
                let c = t.channels as u64;
                padding.push(Padding {
                    at: t.id.clone(),
                    params: 2 * c + 2 * (c * c + c),
                    reason: "norm and projections stay at any depth",
                });
            }
        }
        padding.sort_by(|a, b| a.at.cmp(&b.at));
        self.padding = padding;
        Ok(())
    }
}

fn transformers(config: &UNetConfig) -> impl Iterator<Item = &Transformer> {
    config.stages.iter().flat_map(|s| &s.parts).filter_map(|p| match p {
        Part::Transformer(t) => Some(t),
        Part::Resnet(_) => None,
    })
}

/// What a removal leaves of a configuration, in the words of export targets.
struct Kept<'a> {
    original: &'a UNetConfig,
    /// By Transformer2D: its kept blocks, ascending.
    blocks: BTreeMap<String, Vec<usize>>,
    /// The Transformer2D behind each ResNet on the way down.
    down: Vec<Option<String>>,
    mid_attention: Option<String>,
    mid_resnets: Vec<String>,
    mid_type: Value,
    pooled: bool,
}

impl<'a> Kept<'a> {
    fn new(original: &'a UNetConfig, layout: &Layout, flags: &[bool]) -> Self {
        let stays = |id: &str| layout.group(id).is_some_and(|range| flags[range].iter().any(|off| !off));
        let blocks = transformers(original).map(|t| {
            let kept = (0..t.depth).filter(|i| stays(&format!("{}.transformer_blocks.{i}", t.id)));
            (t.id.clone(), kept.collect())
        });
        let mid = original.stages.iter().find(|s| s.kind == StageKind::Mid);
        let mid_parts = || mid.iter().flat_map(|s| &s.parts);
        let mut down: Vec<Option<String>> = Vec::new();
        for part in original.stages.iter().filter(|s| s.kind == StageKind::Down).flat_map(|s| &s.parts) {
            match (part, down.last_mut()) {
                (Part::Transformer(t), Some(last)) => *last = Some(t.id.clone()),
                _ => down.push(None),
            }
        }
        let attention = mid_parts().find(|p| matches!(p, Part::Transformer(_))).map(|p| p.id().to_string());
        Self {
            original,
            blocks: blocks.collect(),
            down,
            mid_resnets: mid_parts().filter(|p| matches!(p, Part::Resnet(_)) && stays(p.id())).map(|p| p.id().to_string()).collect(),
            mid_type: match (mid, &attention) {
                (None, _) => Value::Null,
                (Some(_), Some(_)) => json!("UNetMidBlock2DCrossAttn"),
                (Some(_), None) => json!("UNetMidBlock2D"),
            },
            mid_attention: attention,
            pooled: original.added.is_some(),
        }
    }

    fn depths(&self) -> BTreeMap<String, usize> {
        self.blocks.iter().map(|(id, kept)| (id.clone(), kept.len())).collect()
    }

    /// The Transformer2D whose depth diffusers gives the mid block as well.
    fn mid_partner(&self) -> Option<String> {
        let last = self.original.stages.iter().rfind(|s| s.kind == StageKind::Down)?;
        last.parts.iter().find(|p| matches!(p, Part::Transformer(_))).map(|p| p.id().to_string())
    }

    /// The larger of two depths that must be one.
    fn share_mid_depth(&self, depths: &mut BTreeMap<String, usize>) {
        let (Some(mid), Some(partner)) = (&self.mid_attention, self.mid_partner()) else { return };
        if let Some(depth) = depths.get(mid).copied() {
            let depth = depth.max(depths[&partner]);
            depths.insert(mid.clone(), depth);
            depths.insert(partner, depth);
        }
    }

    /// The configuration with these depths.
    fn config(&self, depths: &BTreeMap<String, usize>, mid: Value) -> Result<UNetConfig> {
        let compact = |list: Vec<usize>| if list.iter().all(|d| *d == list[0]) { json!(list[0]) } else { json!(list) };
        let of = |kind: StageKind| -> Vec<Value> {
            let stages = self.original.stages.iter().filter(|s| s.kind == kind);
            let list = |s: &crate::config::Stage| -> Vec<usize> { s.parts.iter().filter_map(|p| depths.get(p.id()).copied()).collect() };
            stages.map(|s| Some(list(s)).filter(|l| !l.is_empty()).map_or(json!(1), compact)).collect()
        };
        let (mut down, up) = (of(StageKind::Down), of(StageKind::Up));
        let mid_depth = self.mid_attention.as_ref().and_then(|id| depths.get(id));
        let mut json = self.original.to_json();
        if let Some(mid_depth) = mid_depth {
            match self.mid_partner() {
                None => *down.last_mut().expect("one level at least") = json!(mid_depth),
                Some(partner) if depths[&partner] != *mid_depth => json[MID_DEPTH] = json!(mid_depth),
                Some(_) => {}
            }
        }
        json["transformer_layers_per_block"] = json!(down);
        json["reverse_transformer_layers_per_block"] = json!(up);
        json["mid_block_type"] = mid;
        UNetConfig::parse(&json.to_string(), "the target's configuration")
    }
}
