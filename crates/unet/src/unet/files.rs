//! Surgery and files: pruned network -> model directory and back, bit for bit.

use std::path::{Path, PathBuf};

use super::*;
use crate::single_file::SingleFileNames;
use crate::stored::{self, IN_CHECKPOINT, STEM, StoredUNet};
use crate::weights::{Piece, TensorFile, save_pieces, save_tensors};

/// Version of what the weight file's metadata say about a pruned network.
const VERSION: &str = "1";
const KEY_VERSION: &str = "laptop_diff.version";
const KEY_REMOVED: &str = "laptop_diff.removed";
pub(crate) const KEY_CONFIG: &str = "laptop_diff.config";

/// SHA-256 over the settings and the weight files of a model directory, its `unet` folder or a single file: what scores and
/// plans are made for. Loads nothing.
///
/// # Errors
/// As [`StoredUNet::open`].
pub fn fingerprint(path: impl AsRef<Path>) -> Result<String> {
    let mut hashes = architecture(&path)?.hash();
    for file in weight_files(path)? {
        hashes += &TensorFile::open(file)?.sha256();
    }
    Ok(artifact::sha256(hashes))
}

/// The architecture of a model directory or its `unet` folder, from its `config.json`, or as [`StoredUNet::open`] tells it.
///
/// # Errors
/// As [`UNetConfig::open`] and [`StoredUNet::open`].
pub fn architecture(path: impl AsRef<Path>) -> Result<UNetConfig> {
    stored::architecture(path.as_ref())
}

/// The weight files of a U-Net: those of a model directory or its `unet` folder, of an index of shards, or the single file itself.
///
/// # Errors
/// As [`component_files`](crate::weights::component_files).
pub fn weight_files(path: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    stored::weight_files(path.as_ref())
}

/// As [`StoredUNet::kind`].
///
/// # Errors
/// As [`StoredUNet::open`].
pub fn stored_kind(path: impl AsRef<Path>) -> Result<Kind> {
    Ok(StoredUNet::open(path)?.kind())
}

impl UNet {
    /// Reads a published U-Net, or one that [`UNet::save`] or [`UNet::save_single_file`] wrote, which may be pruned, from any container
    /// that [`StoredUNet::open`] takes.
    ///
    /// # Errors
    /// Those of [`StoredUNet::open`]; [`Error::Weights`] unless every key fits; [`Error::Format`] for metadata of another version or
    /// architecture.
    pub fn open(path: impl AsRef<Path>, device: Device, kind: Kind) -> Result<Self> {
        let stored = StoredUNet::open(path)?;
        let (config, metadata, removed) = (stored.config().clone(), stored.metadata().clone(), stored.removed()?);
        let mut unet = Self::from_weights(&config, stored.into_weights(device, kind), &removed)?;
        unet.metadata = metadata;
        Ok(unet)
    }

    /// The network without `removed` (and without what is removed already). It shares the kept tensors with this one.
    ///
    /// # Errors
    /// [`Error::Layer`] for an id that names nothing removable.
    pub fn prune(&self, removed: &RemovalSet) -> Result<Self> {
        let removed: RemovalSet = self.removed.iter().chain(removed).cloned().collect();
        let gone = self.layout.gone_prefixes(&self.layout.flags(&removed)?);
        let kept = self.parameters.iter().filter(|(key, _)| !gone.iter().any(|p| key.starts_with(p.as_str())));
        let kept = kept.map(|(key, t)| (key.clone(), t.shallow_clone())).collect();
        let mut unet = Self::from_weights(&self.config, Weights::from_tensors(kept), &removed)?;
        unet.metadata = self.metadata.clone();
        Ok(unet)
    }

    /// A copy on a device and in a type; tensors that are there already are shared.
    ///
    /// # Errors
    /// [`Error::Torch`] when the device refuses.
    pub fn to(&self, device: Device, kind: Kind) -> Result<Self> {
        let moved = |(key, t): (&String, &Tensor)| Ok((key.clone(), t.f_to_device(device)?.f_to_kind(kind)?));
        let tensors = self.parameters.iter().map(moved).collect::<Result<Tensors>>()?;
        let mut unet = Self::from_weights(&self.config, Weights::from_tensors(tensors), &self.removed)?;
        unet.metadata = self.metadata.clone();
        Ok(unet)
    }

    /// Writes `config.json`, the architecture of the original, and `diffusion_pytorch_model.safetensors`, whose metadata
    /// say what was removed, then whatever the opened file's metadata and `extra` hold (a plan, the source's hash).
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>, kind: Option<Kind>, extra: &BTreeMap<String, String>) -> Result<()> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        save_tensors(dir.join(format!("{STEM}.safetensors")), &self.parameters, &self.saved_metadata(extra), kind)?;
        Ok(artifact::write_config(&dir.join("config.json"), &self.config.to_json())?)
    }

    /// Writes a single file in the original layout, with the metadata of [`UNet::save`]. `beside` is a whole checkpoint whose other
    /// tensors (autoencoder, text encoders) go along as they are.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written; as [`TensorFile::open`] for `beside`.
    pub fn save_single_file(
        &self,
        path: impl AsRef<Path>,
        kind: Option<Kind>,
        extra: &BTreeMap<String, String>,
        beside: Option<&Path>,
    ) -> Result<()> {
        let beside = beside.map(TensorFile::open).transpose()?;
        let others = beside.iter().flat_map(|file| file.shapes().map(move |(name, _)| (name, file)));
        let others = others.filter(|(name, _)| !name.starts_with(IN_CHECKPOINT));
        let mut pieces: BTreeMap<String, Piece> = others.map(|(name, file)| (name.to_string(), Piece::Stored(file, name, None))).collect();
        let names = SingleFileNames::new(&self.config);
        for (key, t) in &self.parameters {
            let name = names.to_single_file(key).expect("the names come from the same configuration as the network");
            pieces.insert(format!("{IN_CHECKPOINT}{name}"), Piece::Tensor(t, kind.unwrap_or(t.kind())));
        }
        save_pieces(path, &pieces, &self.saved_metadata(extra))
    }

    /// The same network with other metadata.
    pub(crate) fn with_metadata(mut self, metadata: BTreeMap<String, String>) -> Self {
        self.metadata = metadata;
        self
    }

    /// The metadata of a file: those of the opened one, `extra`, and what this program must know of the network.
    pub(crate) fn saved_metadata(&self, extra: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let json = |value: &serde_json::Value| serde_json::to_string(value).expect("JSON read from text can be written");
        let mut metadata = self.metadata.clone();
        metadata.extend(extra.iter().map(|(k, v)| (k.clone(), v.clone())));
        let removed = serde_json::to_value(&self.removed).expect("names are JSON");
        // Loaders of the Python world look for `format`.
        let own = [
            ("format", "pt".to_string()),
            (KEY_VERSION, VERSION.to_string()),
            (KEY_REMOVED, json(&removed)),
            (KEY_CONFIG, json(&self.config.to_json())),
        ];
        metadata.extend(own.map(|(k, v)| (k.to_string(), v)));
        metadata
    }
}

pub(crate) fn removed_in(metadata: &BTreeMap<String, String>, config: &UNetConfig, path: &Path) -> Result<RemovalSet> {
    let bad = |problem: String, hint: &str| Error::Format { path: path.into(), problem, hint: hint.into() };
    let Some(version) = metadata.get(KEY_VERSION) else { return Ok(RemovalSet::empty()) };
    if version != VERSION {
        return Err(bad(format!("metadata `{KEY_VERSION}` is {version}, this program reads {VERSION}"), "use the program that wrote it"));
    }
    if let Some(text) = metadata.get(KEY_CONFIG) {
        let own = UNetConfig::parse(text, path)?;
        if own != *config {
            return Err(bad("the weights were saved for another config.json".into(), "restore the config.json that was written with them"));
        }
    }
    let Some(text) = metadata.get(KEY_REMOVED) else { return Ok(RemovalSet::empty()) };
    let no_list = |e: String| bad(format!("metadata `{KEY_REMOVED}` is no list of layers ({e})"), "write the model again");
    let removed = serde_json::from_str(text).map_err(|e| no_list(e.to_string()))?;
    Layout::new(config).flags(&removed).map_err(|e| no_list(e.to_string()))?;
    Ok(removed)
}
