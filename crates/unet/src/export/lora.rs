//! Adapters (LoRA, arXiv 2106.09685) made for the original network, carried over to a pruned one.
//!
//! Their keys name the module that they change, in one of these styles, which are kept:
//! - kohya's: `lora_unet_down_blocks_1_attentions_0_..._to_q.lora_down.weight`, with diffusers' or with the original layout's names;
//! - PEFT's and diffusers': `unet.down_blocks.1.attentions.0....to_q.lora_A.weight`, also with `.processor.to_q_lora.down.weight`;
//! - dotted names of the original layout: `diffusion_model.input_blocks.4.1....to_q.lora_down.weight`.
//!
//! What follows the module's name does not matter (`alpha`, `dora_scale`, `hada_w1_a`, `lokr_w1`, `diff`). Keys of other networks and
//! whatever else trainers put beside (`bundle_emb.`, `clip_l.`, `lora_te1_`) go along bit for bit.

use std::collections::BTreeMap;
use std::path::Path;

use super::ExportTarget;
use prune_core::RemovalSet;

use crate::config::UNetConfig;
use crate::error::{Error, Result};
use crate::single_file::SingleFileNames;
use crate::unet::UNet;
use crate::weights::{Piece, TensorFile, Tensors, Weights, identify, save_pieces};

/// What becomes of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remapped {
    /// It stays, under this name.
    Kept(String),
    /// Its module was removed.
    Dropped,
    /// It belongs to another network (a text encoder), or to none.
    Foreign,
    /// It names no module of this architecture.
    Unknown,
}

/// Prefixes behind which dotted names stand.
const DOTTED: [&str; 5] = ["base_model.model.unet.", "base_model.model.", "model.diffusion_model.", "diffusion_model.", "unet."];
/// Prefixes behind which names with underscores stand: kohya's, and LyCORIS' own.
const UNDERSCORED: [&str; 2] = ["lora_unet_", "lycoris_"];
/// Beginnings of keys of text encoders, some of which look like a U-Net's behind a prefix.
const TEXT: [&str; 5] = ["lora_te", "text_encoder", "base_model.model.text_encoder", "conditioner.", "cond_stage_model."];
/// Beginnings of keys of diffusion transformers: a LoRA with these was made for another kind of network.
const TRANSFORMER: [&str; 4] = ["transformer.", "lora_transformer_", "diffusion_model.double_blocks.", "diffusion_model.joint_blocks."];
/// First parts of the names of a U-Net's modules, with dots in either layout.
const OF_UNET: [&str; 14] = [
    "conv_in",
    "conv_out",
    "conv_norm_out",
    "down_blocks",
    "mid_block",
    "up_blocks",
    "time_embedding",
    "add_embedding",
    "input_blocks",
    "middle_block",
    "output_blocks",
    "out",
    "time_embed",
    "label_emb",
];

/// A module's names.
struct Module {
    /// diffusers' name.
    ours: String,
    /// Whether the key used the original layout's.
    original: bool,
}

/// The names that adapters use for the modules of one architecture.
pub struct AdapterNames<'a> {
    target: &'a ExportTarget,
    /// Names in the target's original layout.
    names: SingleFileNames,
    /// By dotted name, and by name with underscores in place of dots.
    modules: BTreeMap<String, Module>,
}

impl<'a> AdapterNames<'a> {
    /// For adapters of the whole network of `original`, to be used with a pruned one in `target`. Needs no weights.
    ///
    /// # Errors
    /// None for a valid configuration.
    pub fn new(original: &UNetConfig, target: &'a ExportTarget) -> Result<Self> {
        let theirs = SingleFileNames::new(original);
        // All padding: the names of its parameters, and no memory.
        let whole = UNet::from_weights(original, Weights::padded(Tensors::new()), &RemovalSet::empty())?;
        let mut modules = BTreeMap::new();
        for key in whole.parameters().keys() {
            let parts = [(Some(key.to_string()), false), (theirs.to_single_file(key), true)];
            for (name, original) in parts {
                let Some((name, _)) = name.as_deref().and_then(|n| n.rsplit_once('.')) else { continue };
                let Some((ours, _)) = key.rsplit_once('.') else { continue };
                for name in [name.to_string(), name.replace('.', "_")] {
                    modules.entry(name).or_insert(Module { ours: ours.to_string(), original });
                }
            }
        }
        Ok(Self { target, names: SingleFileNames::new(&target.config), modules })
    }

    /// What becomes of an adapter's key.
    pub fn remap(&self, key: &str) -> Remapped {
        let underscored = UNDERSCORED.iter().find_map(|prefix| Some((*prefix, key.strip_prefix(prefix)?)));
        if let Some((prefix, rest)) = underscored {
            let (module, suffix) = rest.split_once('.').map_or((rest, ""), |(m, _)| (m, &rest[m.len()..]));
            let Some(found) = self.modules.get(module) else { return Remapped::Unknown };
            return match self.place(found) {
                None => Remapped::Dropped,
                Some(name) => Remapped::Kept(format!("{prefix}{}{suffix}", name.replace('.', "_"))),
            };
        }
        if TEXT.iter().any(|prefix| key.starts_with(prefix)) {
            return Remapped::Foreign;
        }
        let prefix = DOTTED.iter().find(|prefix| key.starts_with(**prefix)).copied().unwrap_or("");
        let rest = &key[prefix.len()..];
        match self.dotted(prefix, rest) {
            // Neither the name nor its place is a U-Net's.
            Remapped::Unknown if prefix.is_empty() && !names_unet(rest) && !TRANSFORMER.iter().any(|t| key.starts_with(t)) => {
                Remapped::Foreign
            }
            other => other,
        }
    }

    fn dotted(&self, prefix: &str, rest: &str) -> Remapped {
        // `attn1.processor.to_q_lora.down.weight` changes `attn1.to_q`.
        let old = rest.split_once(".processor.").and_then(|(at, inner)| {
            let (layer, suffix) = inner.split_once("_lora.")?;
            // `to_out_lora` is the linear layer inside `to_out`.
            let module = if layer == "to_out" { format!("{at}.to_out.0") } else { format!("{at}.{layer}") };
            Some((module, format!(".processor.{layer}_lora.{suffix}"), layer.to_string()))
        });
        if let Some((module, suffix, layer)) = old {
            let Some(found) = self.modules.get(&module) else { return Remapped::Unknown };
            let Some(name) = self.place(found) else { return Remapped::Dropped };
            let end = if layer == "to_out" { ".to_out.0".len() } else { layer.len() + 1 };
            return Remapped::Kept(format!("{prefix}{}{suffix}", &name[..name.len() - end]));
        }
        let mut end = rest.len();
        while let Some(dot) = rest[..end].rfind('.') {
            if let Some(found) = self.modules.get(&rest[..dot]) {
                return match self.place(found) {
                    None => Remapped::Dropped,
                    Some(name) => Remapped::Kept(format!("{prefix}{name}{}", &rest[dot..])),
                };
            }
            end = dot;
        }
        Remapped::Unknown
    }

    /// The module's dotted name in the target, in the layout in which it was given.
    fn place(&self, module: &Module) -> Option<String> {
        // Prefixes of removed parts end in a dot.
        let key = self.target.rename(&format!("{}.weight", module.ours))?;
        let key = if module.original { self.names.to_single_file(&key)? } else { key };
        key.strip_suffix(".weight").map(str::to_string)
    }
}

fn names_unet(key: &str) -> bool {
    OF_UNET.contains(&key.split('.').next().unwrap_or_default())
}

/// What [`remap_lora`] made of an adapter's keys.
#[derive(Debug, Default)]
pub struct RemappedLora {
    /// How many keys stay under the pruned model's names.
    pub kept: usize,
    /// Keys that go with their layers.
    pub dropped: Vec<String>,
    /// Keys of text encoders and of nothing here, carried over as they are.
    pub foreign: Vec<String>,
}

/// Carries the adapter of the whole network at `path` over to the pruned one in `target`, into the file `out`: every tensor bit for bit in
/// the type that it has, and all metadata.
///
/// # Errors
/// [`Error::Format`] where the file cannot be read, holds no tensor, or a key names no module of this U-Net; [`Error::Io`] where `out`
/// cannot be written.
pub fn remap_lora(original: &UNetConfig, target: &ExportTarget, path: &Path, out: &Path) -> Result<RemappedLora> {
    let names = AdapterNames::new(original, target)?;
    let lora = TensorFile::open(path)?;
    let (mut remapped, mut unknown, mut pieces) = (RemappedLora::default(), Vec::new(), BTreeMap::new());
    for (key, _) in lora.shapes() {
        match names.remap(key) {
            Remapped::Kept(name) => {
                remapped.kept += 1;
                pieces.insert(name, Piece::Stored(&lora, key, None));
            }
            Remapped::Foreign => {
                remapped.foreign.push(key.to_string());
                pieces.insert(key.to_string(), Piece::Stored(&lora, key, None));
            }
            Remapped::Dropped => remapped.dropped.push(key.to_string()),
            Remapped::Unknown => unknown.push(key),
        }
    }
    let bad = |problem: String, hint: &str| Error::Format { path: path.into(), problem, hint: hint.into() };
    if let Some(first) = unknown.first() {
        let of_transformer =
            TRANSFORMER.iter().any(|start| first.starts_with(start)) || identify(&lora).is_some_and(|k| k.what.contains("LoRA for"));
        let hint = if of_transformer {
            "it was made for a diffusion transformer such as Flux"
        } else {
            "name the model that the LoRA was made for"
        };
        return Err(bad(format!("{} keys name no module of this U-Net, the first is `{first}`", unknown.len()), hint));
    }
    if remapped.kept + remapped.dropped.len() == 0 {
        let what = identify(&lora).filter(|known| !known.what.contains("LoRA")).map_or("it changes nothing in a U-Net", |known| known.what);
        return Err(bad(format!("no key names a module of a U-Net: {what}"), "name a LoRA; one of text encoders alone needs no change"));
    }
    save_pieces(out, &pieces, lora.metadata())?;
    Ok(remapped)
}
