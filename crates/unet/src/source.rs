//! A model on disk, known without being run: its U-Net's configuration, its layer table, and the scores and plans that were made for it.
//! Start of the flow: weights -> **layer table** -> scores and plans.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use prune_core::{LayerId, LayerTable, Plan, RemovalSet, Scores};
use serde_json::Value;

use crate::config::UNetConfig;
use crate::documents::ResourceFile;
use crate::error::{Error, Result};
use crate::layout::{ActivationCosts, Granularity, TableOptions, activation_costs, layer_table_with};
use crate::stored::unet_folder;
use crate::unet::{architecture, fingerprint, weight_files};
use crate::weights::{TensorFile, is_index};

/// Text tokens of the published models.
const PUBLISHED_TOKENS: i64 = 77;
/// The most text tokens that a tokenizer is believed.
const MOST_TOKENS: i64 = 1 << 16;

/// A model directory, a lone `unet/` folder, a single file in the original layout, or a `config.json` without weights.
#[derive(Debug)]
pub struct ModelSource {
    path: PathBuf,
    unet: PathBuf,
    config: UNetConfig,
    fingerprint: OnceLock<String>,
}

/// What a layer table is made for; `None` takes the model's own value.
#[derive(Debug, Clone, Copy)]
pub struct TableSizes {
    /// Height and width of the latents.
    pub latent: Option<i64>,
    /// Text tokens.
    pub tokens: Option<i64>,
    /// What one item is.
    pub granularity: Granularity,
}

impl TableSizes {
    /// The model's own sizes.
    pub fn own(granularity: Granularity) -> Self {
        Self { latent: None, tokens: None, granularity }
    }
}

impl ModelSource {
    /// Reads the configuration; no weights yet.
    ///
    /// # Errors
    /// When `path` is neither a model directory, nor a U-Net's folder, nor a file with a U-Net in the original layout, nor a `config.json`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(Error::Format {
                path: path.into(),
                problem: "does not exist".into(),
                hint: "name a model directory in diffusers' layout, its unet/ folder, or a single checkpoint file".into(),
            });
        }
        let unet = unet_folder(path);
        let config = if is_config(path) { UNetConfig::open(path)? } else { architecture(&unet)? };
        Ok(Self { path: path.to_path_buf(), unet, config, fingerprint: OnceLock::new() })
    }

    /// The directory or file as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder with the U-Net's `config.json` and weights, or the single file.
    pub fn unet(&self) -> &Path {
        &self.unet
    }

    /// The U-Net's architecture.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// Whether it is a whole directory with more than a U-Net in it.
    pub fn is_whole(&self) -> bool {
        self.path != self.unet
    }

    /// Whether there are weights, and not a `config.json` alone.
    pub fn has_weights(&self) -> bool {
        !is_config(&self.path)
    }

    /// The directory's name; that of its parent where the `unet/` folder itself was named; a file's without its ending.
    pub fn name(&self) -> String {
        model_name(&self.path)
    }

    /// Which published family the architecture is of.
    pub fn family(&self) -> &'static str {
        match (&self.config.added, self.config.use_linear_projection) {
            (Some(_), _) => "SDXL",
            (None, true) => "SD-v2",
            (None, false) => "SD-v1",
        }
    }

    /// Height and width of the latents that the model was trained on; 64 where its configuration does not say.
    pub fn latent_size(&self) -> (i64, i64) {
        self.config.sample_size.unwrap_or((64, 64))
    }

    /// Text tokens of the model's first tokenizer, which also a `unet/` folder finds beside itself; those of the published models where
    /// there is none.
    pub fn tokens(&self) -> i64 {
        let beside = std::path::absolute(&self.path).ok().filter(|path| path.ends_with("unet"));
        let beside = beside.as_deref().and_then(Path::parent);
        let read = |model: &Path| -> Option<i64> {
            let text = std::fs::read_to_string(model.join("tokenizer/tokenizer_config.json")).ok()?;
            // Some published files hold 1e30 here, for "no limit".
            serde_json::from_str::<Value>(&text).ok()?.get("model_max_length")?.as_i64().filter(|n| (1..=MOST_TOKENS).contains(n))
        };
        read(&self.path).or_else(|| read(beside?)).unwrap_or(PUBLISHED_TOKENS)
    }

    /// What was removed from it already, as the weight file's metadata say.
    ///
    /// # Errors
    /// When the weights are missing or the metadata is damaged.
    pub fn removed(&self) -> Result<RemovalSet> {
        if !self.has_weights() {
            return Ok(RemovalSet::empty());
        }
        let files = weight_files(&self.unet)?;
        let file = TensorFile::open(&files[0])?;
        let Some(text) = file.metadata().get("laptop_diff.removed") else { return Ok(RemovalSet::empty()) };
        serde_json::from_str(text).map_err(|e| Error::Format {
            path: files[0].clone(),
            problem: format!("metadata `laptop_diff.removed` is no list of layers ({e})"),
            hint: "write the model again".into(),
        })
    }

    /// What scores and plans are made for: the hash of settings and weights, of which every byte is read once; of the settings alone where
    /// there are no weights.
    ///
    /// # Errors
    /// As [`fingerprint`](crate::fingerprint).
    pub fn fingerprint(&self) -> Result<&str> {
        if self.fingerprint.get().is_none() {
            let found = if self.has_weights() { fingerprint(&self.unet)? } else { self.config.hash() };
            // Nobody else sets it to anything else.
            let _ = self.fingerprint.set(found);
        }
        Ok(self.fingerprint.get().map_or("", String::as_str))
    }

    /// The layer table of what is still there.
    ///
    /// # Errors
    /// As [`ModelSource::fingerprint`], which the table holds; for a size out of range.
    pub fn table(&self, sizes: TableSizes) -> Result<LayerTable> {
        layer_table_with(&self.config, &self.options(sizes, self.fingerprint()?)?)
    }

    /// The same table without the weights' hash, for readers: it answers at once.
    ///
    /// # Errors
    /// As [`ModelSource::removed`]; for a size out of range.
    pub fn costs(&self, sizes: TableSizes) -> Result<LayerTable> {
        layer_table_with(&self.config, &self.options(sizes, &self.config.hash())?)
    }

    /// What autograd keeps for training, by layer.
    ///
    /// # Errors
    /// As [`ModelSource::costs`].
    pub fn activations(&self, sizes: TableSizes) -> Result<ActivationCosts> {
        activation_costs(&self.config, &self.options(sizes, &self.config.hash())?)
    }

    /// The bytes of activations that training keeps for each layer, one sample in f32, as a cost for the search: `activation_bytes`.
    ///
    /// # Errors
    /// As [`ModelSource::table`].
    pub fn activation_file(&self, sizes: TableSizes) -> Result<ResourceFile> {
        const F32: u64 = 4;
        let activations = self.activations(sizes)?;
        let (h, w) = sizes.latent.map_or(self.latent_size(), |n| (n, n));
        let tokens = sizes.tokens.unwrap_or_else(|| self.tokens());
        let bytes = |costs: &BTreeMap<LayerId, u64>| costs.iter().map(|(id, n)| (id.clone(), F32 * n)).collect();
        Ok(ResourceFile {
            name: "activation_bytes".into(),
            fingerprint: self.fingerprint()?.to_string(),
            method: format!("kept for the backward pass of one sample in f32, from the configuration, latents {h} x {w}, {tokens} tokens"),
            total: F32 * activations.total,
            layers: bytes(&activations.layers),
            shared_costs: bytes(&activations.shared_costs),
        })
    }

    fn options(&self, sizes: TableSizes, fingerprint: &str) -> Result<TableOptions> {
        let (h, w) = sizes.latent.map_or(self.latent_size(), |n| (n, n));
        Ok(TableOptions {
            latent_h: h,
            latent_w: w,
            tokens: sizes.tokens.unwrap_or_else(|| self.tokens()),
            granularity: sizes.granularity,
            removed: self.removed()?,
            model: self.name(),
            fingerprint: fingerprint.into(),
        })
    }

    /// The table for which a file was made whose multiply-accumulates are `total`. A `unet/` folder or a single file does not know how many
    /// text tokens its model has; as the total grows with them by equal steps, it tells their number.
    ///
    /// # Errors
    /// As [`ModelSource::table`].
    pub fn table_of(&self, granularity: Granularity, total: u64) -> Result<LayerTable> {
        let own = self.table(TableSizes::own(granularity))?;
        if own.total_macs() == total {
            return Ok(own);
        }
        let at = |tokens: i64| self.table(TableSizes { latent: None, tokens: Some(tokens), granularity });
        let (first, second) = (at(1)?.total_macs(), at(2)?.total_macs());
        let (more, step) = (total.checked_sub(first), second - first);
        match more.filter(|more| step > 0 && more.is_multiple_of(step)).map(|more| more / step + 1) {
            Some(tokens) if tokens <= MOST_TOKENS as u64 => at(tokens as i64),
            // Whoever reads the file says what is wrong with it.
            _ => Ok(own),
        }
    }

    /// Reads scores and checks that they were made for this model.
    ///
    /// # Errors
    /// When the file holds no intact scores, or scores of another model.
    pub fn scores(&self, path: &Path) -> Result<Scores> {
        let scores = Scores::read(path)?;
        let table = self.table_of(granularity(scores.table()), scores.table().total_macs())?;
        table.check_same(scores.table()).map_err(|e| e.in_file(path))?;
        Ok(scores)
    }

    /// Reads a plan and checks it against this model, at the granularity of the plan's own ids.
    ///
    /// # Errors
    /// When the file is no intact plan, or one for another model.
    pub fn plan(&self, path: &Path) -> Result<Plan> {
        let seen = SeenPlan::of(path);
        let table = match seen.total_macs {
            Some(total) => self.table_of(seen.granularity(), total)?,
            None => self.table(TableSizes::own(seen.granularity()))?,
        };
        Ok(Plan::read(path, &table)?)
    }
}

fn is_config(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.is_file() && name.ends_with(".json") && !is_index(&name)
}

/// The name of the model at `path`, for people: `org/name` for a snapshot in a hub's cache, else the directory's name; that of its
/// parent where the `unet/` folder itself was named; a file's without its ending.
pub fn model_name(path: &Path) -> String {
    let full = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if full.is_file() {
        return full.file_stem().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    }
    let of = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    match of(&full) {
        Some(name) if name == "unet" => full.parent().and_then(|dir| name_on_hub(dir).or_else(|| of(dir))).unwrap_or(name),
        Some(name) => name_on_hub(&full).unwrap_or(name),
        None => "model".into(),
    }
}

/// `org/name`, when `dir` is a snapshot in a hub's cache, whose own name is only a commit.
fn name_on_hub(dir: &Path) -> Option<String> {
    let snapshots = dir.parent().filter(|p| p.ends_with("snapshots"))?;
    Some(snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?.replacen("--", "/", 1))
}

/// What the items of a table are.
fn granularity(table: &LayerTable) -> Granularity {
    let has = |kind: &str| table.layers().iter().any(|l| l.kind == kind);
    match (has("transformer_block"), has("transformer2d")) {
        (true, _) => Granularity::Block,
        (_, true) => Granularity::Transformer2d,
        _ => Granularity::Branch,
    }
}

/// What a plan's file says of its table. Whatever is wrong with the file is left to the reader that follows.
#[derive(Default)]
struct SeenPlan {
    removed: Vec<String>,
    total_macs: Option<u64>,
}

impl SeenPlan {
    fn of(path: &Path) -> Self {
        let read = || -> Option<Self> {
            let json: Value = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
            let removed = json.get("removed")?.as_array()?.iter().map(|id| id.as_str().map(str::to_string)).collect::<Option<_>>()?;
            let macs = |key: &str| json.get(key)?.as_u64();
            Some(Self { removed, total_macs: macs("macs_removed").zip(macs("macs_left")).and_then(|(a, b)| a.checked_add(b)) })
        };
        read().unwrap_or_default()
    }

    fn granularity(&self) -> Granularity {
        let has = |name: &str| self.removed.iter().any(|id| id.rsplit('.').nth(1) == Some(name));
        match (has("transformer_blocks"), has("attentions")) {
            (true, _) => Granularity::Block,
            (_, true) => Granularity::Transformer2d,
            _ => Granularity::Branch,
        }
    }
}
