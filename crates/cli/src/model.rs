//! What the subcommands know of a model directory without running it: its U-Net's configuration, layer table and plans.
//! Start of the flow: weights -> layer table -> scores and plans.

use std::path::{Path, PathBuf};

use prune_core::{LayerTable, Plan, RemovalSet, Scores};
use serde_json::Value;
use unet::weights::TensorFile;
use unet::{Granularity, TableOptions, UNetConfig};

use crate::common::{BadFile, BadInput};

/// Text tokens of the published models.
const PUBLISHED_TOKENS: i64 = 77;

/// A model directory, a lone `unet/` folder, or a single file in the original layout.
#[derive(Debug)]
pub struct Model {
    path: PathBuf,
    unet: PathBuf,
    /// The U-Net's architecture.
    pub config: UNetConfig,
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

/// The names of the granularities on the command line.
pub fn parse_granularity(text: &str) -> Result<Granularity, String> {
    match text {
        "branch" => Ok(Granularity::Branch),
        "block" => Ok(Granularity::Block),
        "transformer2d" => Ok(Granularity::Transformer2d),
        other => Err(format!("expected branch, block or transformer2d, got `{other}`")),
    }
}

impl Model {
    /// Reads the configuration; no weights yet.
    ///
    /// # Errors
    /// When `path` is neither a model directory, nor a U-Net's folder, nor a file with a U-Net in the original layout.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if !path.exists() {
            return Err(unet::Error::Format {
                path: path.into(),
                problem: "does not exist".into(),
                hint: "name a model directory in diffusers' layout, its unet/ folder, or a single checkpoint file".into(),
            }
            .into());
        }
        let inner = path.join("unet");
        let unet = if inner.join("config.json").is_file() { inner } else { path.to_path_buf() };
        let config = unet::architecture(&unet)?;
        Ok(Self { path: path.to_path_buf(), unet, config })
    }

    /// The directory or file as it was named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder with the U-Net's `config.json` and weights, or the single file.
    pub fn unet(&self) -> &Path {
        &self.unet
    }

    /// Whether it is a whole directory with more than a U-Net in it.
    pub fn is_whole(&self) -> bool {
        self.path != self.unet
    }

    /// The directory's name; that of its parent where the `unet/` folder itself was named; a file's without its ending.
    pub fn name(&self) -> String {
        diffusion::model_name(&self.path)
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

    /// Text tokens of the model's first tokenizer; those of the published models where there is none.
    pub fn tokens(&self) -> i64 {
        let read = || -> Option<i64> {
            let text = std::fs::read_to_string(self.path.join("tokenizer/tokenizer_config.json")).ok()?;
            // Some published files hold 1e30 here, for "no limit".
            serde_json::from_str::<Value>(&text).ok()?.get("model_max_length")?.as_i64().filter(|n| (1..=1 << 16).contains(n))
        };
        read().unwrap_or(PUBLISHED_TOKENS)
    }

    /// What was removed from it already, as the weight file's metadata say.
    ///
    /// # Errors
    /// When the weights are missing or the metadata is damaged.
    pub fn removed(&self) -> anyhow::Result<RemovalSet> {
        let files = unet::weight_files(&self.unet)?;
        let file = TensorFile::open(&files[0])?;
        let Some(text) = file.metadata().get("laptop_diff.removed") else { return Ok(RemovalSet::empty()) };
        let bad = |e: serde_json::Error| {
            BadFile::new(&files[0], format!("metadata `laptop_diff.removed` is no list of layers ({e})"), "write the model again")
        };
        Ok(serde_json::from_str(text).map_err(bad)?)
    }

    /// The layer table of what is still there.
    ///
    /// # Errors
    /// When the weights cannot be read (their hash is the model's fingerprint), or for a size out of range.
    pub fn table(&self, sizes: TableSizes) -> anyhow::Result<LayerTable> {
        Ok(unet::layer_table_with(&self.config, &self.table_options(sizes)?)?)
    }

    /// What autograd keeps for training, by layer.
    ///
    /// # Errors
    /// As [`Model::table`].
    pub fn activations(&self, sizes: TableSizes) -> anyhow::Result<unet::ActivationCosts> {
        Ok(unet::activation_costs(&self.config, &self.table_options(sizes)?)?)
    }

    fn table_options(&self, sizes: TableSizes) -> anyhow::Result<TableOptions> {
        let (h, w) = sizes.latent.map_or(self.latent_size(), |n| (n, n));
        Ok(TableOptions {
            latent_h: h,
            latent_w: w,
            tokens: sizes.tokens.unwrap_or_else(|| self.tokens()),
            granularity: sizes.granularity,
            removed: self.removed()?,
            model: self.name(),
            fingerprint: unet::fingerprint(&self.unet)?,
        })
    }

    /// Reads scores and checks that they were made for this model.
    ///
    /// # Errors
    /// When the file holds no intact scores, or scores of another model.
    pub fn scores(&self, path: &Path) -> anyhow::Result<Scores> {
        let scores = Scores::read(path)?;
        let table = self.table(TableSizes::own(granularity(scores.table())))?;
        table.check_same(scores.table()).map_err(|e| e.in_file(path))?;
        Ok(scores)
    }

    /// The asked height and width of the latents, else the model's own.
    ///
    /// # Errors
    /// [`BadInput`] for a size below 1.
    pub fn latents(&self, asked: Option<i64>) -> anyhow::Result<(i64, i64)> {
        match asked {
            Some(n) if n < 1 => Err(BadInput(format!("--latent-size {n}: expected at least 1")).into()),
            _ => Ok(asked.map_or(self.latent_size(), |n| (n, n))),
        }
    }

    /// Reads a plan and checks it against this model, at the granularity of the plan's own ids.
    ///
    /// # Errors
    /// When the file is no intact plan, or one for another model.
    pub fn plan(&self, path: &Path) -> anyhow::Result<Plan> {
        let table = self.table(TableSizes::own(granularity_of(path)))?;
        Ok(Plan::read(path, &table)?)
    }
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

/// What the items of a plan are, seen from its ids. Whatever is wrong with the file is left to the reader that follows.
fn granularity_of(plan: &Path) -> Granularity {
    let removed = || -> Option<Vec<String>> {
        let text = std::fs::read_to_string(plan).ok()?;
        let json: Value = serde_json::from_str(&text).ok()?;
        json.get("removed")?.as_array()?.iter().map(|id| id.as_str().map(str::to_string)).collect()
    };
    let ids = removed().unwrap_or_default();
    let before_last = |id: &str, name: &str| id.rsplit('.').nth(1) == Some(name);
    if ids.iter().any(|id| before_last(id, "transformer_blocks")) {
        Granularity::Block
    } else if ids.iter().any(|id| before_last(id, "attentions")) {
        Granularity::Transformer2d
    } else {
        Granularity::Branch
    }
}

/// Splits `NAME=DIR`.
///
/// # Errors
/// [`BadInput`] when there is no name.
pub fn named_dir(flag: &str, text: &str) -> anyhow::Result<(String, PathBuf)> {
    match text.split_once('=') {
        Some((name, dir)) if !name.is_empty() && !dir.is_empty() => Ok((name.to_string(), dir.into())),
        _ => Err(BadInput(format!("{flag} {text}: expected NAME=DIR, such as teacher=pictures/teacher")).into()),
    }
}
