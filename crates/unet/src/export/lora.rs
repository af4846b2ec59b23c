//! Adapters (LoRA, arXiv 2106.09685) made for the original network, carried over to a pruned one.
//!
//! Their keys name the module that they change, in one of these styles, which are kept:
//! - kohya's: `lora_unet_down_blocks_1_attentions_0_..._to_q.lora_down.weight`, with diffusers' or with the original layout's names;
//! - PEFT's and diffusers': `unet.down_blocks.1.attentions.0....to_q.lora_A.weight`, also with `.processor.to_q_lora.down.weight`;
//! - dotted names of the original layout: `diffusion_model.input_blocks.4.1....to_q.lora_down.weight`.

use std::collections::BTreeMap;
use std::path::Path;

use super::ExportTarget;
use prune_core::RemovalSet;

use crate::config::UNetConfig;
use crate::error::{Error, Result};
use crate::single_file::SingleFileNames;
use crate::unet::UNet;
use crate::weights::{TensorFile, Tensors, Weights};

/// What becomes of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remapped {
    /// It stays, under this name.
    Kept(String),
    /// Its module was removed.
    Dropped,
    /// It belongs to another network (a text encoder).
    Foreign,
    /// It names no module of this architecture.
    Unknown,
}

/// Prefixes behind which dotted names stand.
const DOTTED: [&str; 5] = ["base_model.model.unet.", "base_model.model.", "model.diffusion_model.", "diffusion_model.", "unet."];
const KOHYA: &str = "lora_unet_";
/// Beginnings of keys of text encoders.
const TEXT: [&str; 5] = ["lora_te", "text_encoder", "base_model.model.text_encoder", "conditioner.", "cond_stage_model."];

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
        if let Some(rest) = key.strip_prefix(KOHYA) {
            let (module, suffix) = rest.split_once('.').map_or((rest, ""), |(m, _)| (m, &rest[m.len()..]));
            let Some(found) = self.modules.get(module) else { return Remapped::Unknown };
            return match self.place(found) {
                None => Remapped::Dropped,
                Some(name) => Remapped::Kept(format!("{KOHYA}{}{suffix}", name.replace('.', "_"))),
            };
        }
        if TEXT.iter().any(|prefix| key.starts_with(prefix)) {
            return Remapped::Foreign;
        }
        let prefix = DOTTED.iter().find(|prefix| key.starts_with(**prefix)).copied().unwrap_or("");
        self.dotted(prefix, &key[prefix.len()..])
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

/// What [`remap_lora`] made of an adapter's keys.
#[derive(Debug)]
pub struct RemappedLora {
    /// What stays, under the pruned model's names.
    pub tensors: Tensors,
    /// The file's own metadata.
    pub metadata: BTreeMap<String, String>,
    /// Keys that go with their layers.
    pub dropped: Vec<String>,
    /// How many of the kept keys are of text encoders.
    pub foreign: usize,
}

/// Carries an adapter of the whole network over to the pruned one in `target`.
///
/// # Errors
/// [`Error::Format`] where the file cannot be read, or a key names no module of this U-Net.
pub fn remap_lora(original: &UNetConfig, target: &ExportTarget, path: &Path) -> Result<RemappedLora> {
    let names = AdapterNames::new(original, target)?;
    let lora = TensorFile::open(path)?;
    let mut remapped = RemappedLora { tensors: Tensors::new(), metadata: lora.metadata().clone(), dropped: Vec::new(), foreign: 0 };
    let mut unknown = Vec::new();
    for key in lora.shapes().map(|(key, _)| key.to_string()).collect::<Vec<_>>() {
        let name = match names.remap(&key) {
            Remapped::Kept(name) => name,
            Remapped::Foreign => {
                remapped.foreign += 1;
                key.clone()
            }
            Remapped::Dropped => {
                remapped.dropped.push(key);
                continue;
            }
            Remapped::Unknown => {
                unknown.push(key);
                continue;
            }
        };
        remapped.tensors.extend(lora.tensor(&key)?.map(|t| (name, t)));
    }
    match unknown.first() {
        None => Ok(remapped),
        Some(first) => Err(Error::Format {
            path: path.into(),
            problem: format!("{} keys name no module of this U-Net, the first is `{first}`", unknown.len()),
            hint: "name the model that the LoRA was made for".into(),
        }),
    }
}
