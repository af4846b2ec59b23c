//! Surgery and files: pruned network -> model directory and back, bit for bit.

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::*;
use crate::weights::{TensorFile, component_files, hex, save_tensors};

/// Version of what the weight file's metadata say about a pruned network.
const VERSION: &str = "1";
const KEY_VERSION: &str = "laptop_diff.version";
const KEY_REMOVED: &str = "laptop_diff.removed";
const KEY_CONFIG: &str = "laptop_diff.config";
const STEM: &str = "diffusion_pytorch_model";

/// SHA-256 over the settings and the weight files of a model directory or its `unet` folder: what scores and plans are
/// made for. Loads nothing.
///
/// # Errors
/// As [`UNet::open`], up to the header of the weight files.
pub fn fingerprint(dir: impl AsRef<Path>) -> Result<String> {
    let dir = unet_folder(dir.as_ref());
    let mut hasher = Sha256::new();
    hasher.update(UNetConfig::open(&dir)?.hash());
    for file in component_files(&dir, STEM)? {
        hasher.update(TensorFile::open(file)?.sha256());
    }
    Ok(hex(&hasher.finalize()))
}

fn unet_folder(dir: &Path) -> PathBuf {
    let inner = dir.join("unet");
    if inner.join("config.json").is_file() { inner } else { dir.to_path_buf() }
}

impl UNet {
    /// Reads a model directory or its `unet` folder: a published U-Net, or one that [`UNet::save`] wrote, which may be pruned.
    ///
    /// # Errors
    /// Those of [`UNetConfig::open`], [`component_files`] and [`Weights::open`]; [`Error::Weights`] unless every key fits;
    /// [`Error::Format`] for metadata of another version or architecture.
    pub fn open(dir: impl AsRef<Path>, device: Device, kind: Kind) -> Result<Self> {
        let dir = unet_folder(dir.as_ref());
        let config = UNetConfig::open(&dir)?;
        let files = component_files(&dir, STEM)?;
        let weights = Weights::open(&files, device, kind)?;
        let metadata = weights.metadata();
        let removed = removed_in(&metadata, &config, &files[0])?;
        let mut unet = Self::from_weights(&config, weights, &removed)?;
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
        save_tensors(dir.join(format!("{STEM}.safetensors")), &self.parameters, &metadata, kind)?;
        let text = serde_json::to_string_pretty(&self.config.to_json()).expect("JSON read from text can be written");
        write_whole(&dir.join("config.json"), (text + "\n").as_bytes())
    }
}

fn removed_in(metadata: &BTreeMap<String, String>, config: &UNetConfig, path: &Path) -> Result<RemovalSet> {
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
    match metadata.get(KEY_REMOVED) {
        None => Ok(RemovalSet::empty()),
        Some(text) => serde_json::from_str(text)
            .map_err(|e| bad(format!("metadata `{KEY_REMOVED}` is no list of layers ({e})"), "write the model again")),
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(Error::io(path))?;
    file.write_all(bytes).map_err(Error::io(path))?;
    file.as_file().sync_all().map_err(Error::io(path))?;
    crate::weights::set_public_mode(file.path()).map_err(Error::io(path))?;
    file.persist(path).map_err(|e| Error::Io { path: path.into(), source: e.error })?;
    Ok(())
}
