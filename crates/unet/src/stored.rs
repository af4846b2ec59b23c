//! A U-Net as it lies on disk, whatever its container: from the path that a user has to **configuration, tensors under our names,
//! metadata and markers**. Start of the flow, before anything is read into memory.
//!
//! A path may be a model directory, its `unet/` folder, an index of shards or one of them, or a single file: a U-Net alone or within a
//! whole checkpoint, with the original names or diffusers', behind any prefix that wrappers leave (`model.diffusion_model.`, `unet.`,
//! `module.`), in floating-point numbers of any width.

mod locate;
mod markers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use artifact::warn_once;
use prune_core::RemovalSet;
use tch::{Device, Kind};

use crate::config::UNetConfig;
use crate::error::{Error, Result};
use crate::single_file::{SingleFileNames, infer};
use crate::unet::{KEY_CONFIG, UNet, removed_in};
use crate::weights::{TensorFile, Weights, identify};

pub(crate) use locate::unet_folder;
use locate::{Located, config_in, locate};
use markers::is_marker;
pub use markers::{Markers, Prediction};

/// Beginning of the names of weight files in a `unet/` folder.
pub(crate) const STEM: &str = "diffusion_pytorch_model";
/// Where a U-Net stands in a whole checkpoint, beside autoencoder and text encoders.
pub(crate) const IN_CHECKPOINT: &str = "model.diffusion_model.";

/// First parts of the original names.
const ORIGINAL: [&str; 7] = [
    "input_blocks",
    "middle_block",
    "output_blocks",
    "out",
    "time_embed",
    "label_emb",
    // Where published files have the input for the guidance scale.
    "time_embedding",
];
/// First parts of diffusers' names.
const DIFFUSERS: [&str; 13] = [
    "conv_in",
    "conv_out",
    "conv_norm_out",
    "down_blocks",
    "mid_block",
    "up_blocks",
    "time_proj",
    "time_embedding",
    "add_time_proj",
    "add_embedding",
    "class_embedding",
    "encoder_hid_proj",
    "position_net",
];
/// Tensors by which a network with such names is no U-Net of images.
const NOT_A_UNET: [&str; 5] =
    ["input_hint_block.", "controlnet_cond_embedding.", "time_stack.", "temporal_transformer_blocks.", "motion_modules."];

/// The names under which the U-Net stands in its files.
#[derive(Debug)]
struct Naming {
    prefix: String,
    original: bool,
}

impl Naming {
    /// By the tensors that every U-Net has. The shortest prefix counts: averages and teachers stand behind longer ones.
    fn of(all: &BTreeSet<&str>) -> Option<Self> {
        let anchored = |name: &&str| {
            let name: &str = name;
            let original = ["input_blocks.0.0.weight", "time_embed.0.weight"].iter().find_map(|end| name.strip_suffix(end));
            let diffusers = || {
                let prefix = name.strip_suffix("time_embedding.linear_1.weight")?;
                all.contains(format!("{prefix}down_blocks.0.resnets.0.conv1.weight").as_str()).then_some(prefix)
            };
            let (prefix, original) = original.map(|prefix| (prefix, true)).or_else(|| diffusers().map(|prefix| (prefix, false)))?;
            let whole = prefix.is_empty() || prefix.ends_with('.');
            let below = || all.range(prefix..).take_while(|key| key.starts_with(prefix));
            let other = || prefix.contains("control_model") || below().any(|key| NOT_A_UNET.iter().any(|mark| key.contains(mark)));
            (whole && !other()).then(|| (prefix.to_string(), original))
        };
        let (prefix, original) = all.iter().filter_map(anchored).min_by_key(|(prefix, _)| (prefix.contains("ema"), prefix.len()))?;
        Some(Self { prefix, original })
    }

    /// The U-Net's own name of a tensor; `None` for what stands beside it.
    fn inner<'a>(&self, name: &'a str) -> Option<&'a str> {
        let inner = name.strip_prefix(self.prefix.as_str())?;
        let first = inner.split('.').next()?;
        let roots = if self.original { &ORIGINAL[..] } else { &DIFFUSERS[..] };
        roots.contains(&first).then_some(inner)
    }
}

/// A U-Net on disk: known by its headers, its tensors mapped and not read.
#[derive(Debug)]
pub struct StoredUNet {
    config: UNetConfig,
    files: Vec<TensorFile>,
    metadata: BTreeMap<String, String>,
    markers: Markers,
    beside: Vec<String>,
    naming: Naming,
}

impl StoredUNet {
    /// Opens what is at `path`: headers and configuration. A file without configuration is known by the one that this program wrote into
    /// it, by a `config.json` beside it, or by the shapes of its tensors.
    ///
    /// # Errors
    /// [`Error::Format`] for what holds no U-Net of Stable Diffusion, saying what it is where that can be told; those of
    /// [`UNetConfig::open`], [`crate::weights::component_files`] and [`TensorFile::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let located = locate(path)?;
        let opened = located.files.iter().map(|file| TensorFile::open(file)?.dequantised());
        let mut files = opened.collect::<Result<Vec<_>>>()?;
        let mut metadata = BTreeMap::new();
        for file in files.iter().rev() {
            metadata.extend(file.metadata().clone());
        }
        let names: BTreeSet<&str> = files.iter().flat_map(|file| file.shapes().map(|(name, _)| name)).collect();
        let naming = match Naming::of(&names) {
            Some(naming) => naming,
            // Whatever the files of such a folder lack is said key by key.
            None if located.folder && located.config.is_some() => Naming { prefix: String::new(), original: false },
            None => return Err(no_unet_in(&files[0])),
        };
        let markers = Markers::read(names.iter().copied(), &metadata);
        let beside: Vec<String> = names.iter().filter(|name| naming.inner(name).is_none()).map(|name| name.to_string()).collect();
        tell_of(path, &files, &naming, &beside);

        for file in &mut files {
            file.retain(|name| naming.inner(name).map(str::to_string));
        }
        let config = configuration(path, &located, &files, &naming, &metadata)?;
        if naming.original {
            let names = SingleFileNames::new(&config);
            for file in &mut files {
                // What the architecture does not know keeps its name, so that the load report shows it.
                file.retain(|key| Some(names.from_single_file(key).unwrap_or_else(|| key.to_string())));
            }
        }
        Ok(Self { config, files, metadata, markers, beside, naming })
    }

    /// The architecture.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The `__metadata__` of its files together.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What the files say of the model beside its weights.
    pub fn markers(&self) -> &Markers {
        &self.markers
    }

    /// The tensors of the files that are no part of the U-Net, by the names that they have there.
    pub fn beside(&self) -> &[String] {
        &self.beside
    }

    /// The file that holds the U-Net's tensor of this name, one of ours.
    pub(crate) fn file_of(&self, name: &str) -> Option<&TensorFile> {
        self.files.iter().find(|file| file.has(name))
    }

    /// The files again, with what stands beside the U-Net as it is, under the names of a whole checkpoint: markers alone, or all but the
    /// average of the weights (which has another shape than a pruned network) and the state of training.
    ///
    /// # Errors
    /// As [`TensorFile::open`].
    pub(crate) fn beside_files(&self, all: bool) -> Result<Vec<TensorFile>> {
        // `state_dict.` of training programs.
        let wrapper = self.naming.prefix.strip_suffix(IN_CHECKPOINT).unwrap_or_default();
        let prefix = self.naming.prefix.as_str();
        let kept = |name: &str| -> Option<String> {
            if is_marker(name) {
                return Some(name.strip_prefix(wrapper).unwrap_or(name).to_string());
            }
            let inside = if prefix.is_empty() { self.naming.inner(name).is_some() } else { name.starts_with(prefix) };
            let outer = name.strip_prefix(wrapper)?;
            let stale = ["model_ema.", "optimizer", "scaled_fp8"].iter().any(|start| outer.starts_with(start));
            (all && !inside && !stale).then(|| outer.to_string())
        };
        let reopened = self.files.iter().map(|file| {
            let mut file = TensorFile::open(file.path())?;
            file.retain(kept);
            Ok(file)
        });
        reopened.collect()
    }

    /// The network in the shapes of the files, all zeros, after every key was checked; nothing but headers is read.
    ///
    /// # Errors
    /// [`Error::Weights`] unless every key fits; as [`StoredUNet::removed`].
    pub(crate) fn outline(self) -> Result<UNet> {
        let removed = self.removed()?;
        UNet::from_weights(&self.config, Weights::headers(self.files), &removed)
    }

    /// What was removed from it, by the metadata.
    ///
    /// # Errors
    /// [`Error::Format`] for metadata of another version or architecture.
    pub fn removed(&self) -> Result<RemovalSet> {
        removed_in(&self.metadata, &self.config, self.files[0].path())
    }

    /// The type in which its first convolution is stored: f16 for 8-bit floats, which it holds exactly, and single precision for other
    /// types that it does not compute in.
    pub fn kind(&self) -> Kind {
        let kind = self.files.iter().find_map(|f| f.kind("conv_in.weight"));
        match kind {
            Some(kind @ (Kind::Half | Kind::BFloat16 | Kind::Float)) => kind,
            Some(kind) if kind.elt_size_in_bytes() == 1 => Kind::Half,
            _ => Kind::Float,
        }
    }

    /// The parameters, brought to `device` and `kind` as they are asked for.
    pub fn into_weights(self, device: Device, kind: Kind) -> Weights {
        Weights::from_files(self.files, device, kind)
    }
}

/// The architecture of a path, without opening weights where a `config.json` says it.
pub(crate) fn architecture(path: &Path) -> Result<UNetConfig> {
    let folder = path.is_dir().then(|| unet_folder(path));
    match folder.as_deref().and_then(config_in) {
        Some(config) => UNetConfig::open(config),
        None => Ok(StoredUNet::open(path)?.config),
    }
}

/// The weight files of a path.
pub(crate) fn weight_files(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(locate(path)?.files)
}

fn configuration(
    path: &Path,
    located: &Located,
    files: &[TensorFile],
    naming: &Naming,
    metadata: &BTreeMap<String, String>,
) -> Result<UNetConfig> {
    if let Some(config) = located.config.as_ref().filter(|_| located.folder) {
        return UNetConfig::open(config);
    }
    if let Some(text) = metadata.get(KEY_CONFIG) {
        return UNetConfig::parse(text, path);
    }
    let shapes = files.iter().flat_map(TensorFile::shapes).map(|(name, shape)| (name.to_string(), shape.to_vec())).collect();
    let beside = located.config.as_ref().and_then(|config| UNetConfig::open(config).ok()).filter(|config| {
        let conv_in = SingleFileNames::new(config).to_single_file("conv_in.weight").filter(|_| naming.original);
        let shape = files.iter().find_map(|file| file.shape(conv_in.as_deref().unwrap_or("conv_in.weight")));
        shape.is_some_and(|shape| shape[..2.min(shape.len())] == [config.base_channels, config.in_channels])
    });
    match beside {
        Some(config) => Ok(config),
        None => infer(&shapes, naming.original, metadata, path),
    }
}

/// What a file without U-Net is.
fn no_unet_in(file: &TensorFile) -> Error {
    let path = file.path().into();
    if let Some(known) = identify(file) {
        return Error::Format { path, problem: format!("this is {}, not a U-Net", known.what), hint: known.next.into() };
    }
    let mut names: Vec<&str> = file.shapes().map(|(name, _)| name).take(3).collect();
    names.sort_unstable();
    Error::Format {
        path,
        problem: format!(
            "no U-Net, neither with the original names (`input_blocks.0.0.weight`) nor with diffusers' (`conv_in.weight`); it has {}",
            if names.is_empty() { "no tensor".to_string() } else { format!("`{}`, ..", names.join("`, `")) }
        ),
        hint: "name a diffusers model directory, or a Stable Diffusion checkpoint of the versions 1, 2 or XL".into(),
    }
}

/// Says what is done beside loading.
fn tell_of(path: &Path, files: &[TensorFile], naming: &Naming, beside: &[String]) {
    const SHOWN: usize = 4;
    let eight = |file: &TensorFile| file.shapes().any(|(name, _)| naming.inner(name).is_some() && file.is_eight_bit(name));
    if files.iter().any(eight) {
        warn_once(format!("{}: weights stored in 8-bit numbers are read as wider ones", path.display()));
    }
    let strange: Vec<&str> = beside.iter().map(String::as_str).filter(|name| !is_marker(name)).collect();
    if naming.prefix.ends_with(IN_CHECKPOINT) || strange.is_empty() {
        return;
    }
    let more = if strange.len() > SHOWN { ", .." } else { "" };
    let shown = strange[..strange.len().min(SHOWN)].join(", ");
    warn_once(format!("{}: {} tensors that are no part of the U-Net are left aside: {shown}{more}", path.display(), strange.len()));
}
