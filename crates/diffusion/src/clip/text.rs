//! The CLIP text encoder: token ids -> the features that condition the U-Net (prompt -> tokens -> text embeddings -> U-Net).
//!
//! Shapes: `B` batch, `T` tokens, `D` width, `P` projected width.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use artifact::warn_once;
use tch::{Device, Kind, Tensor};
use unet::nn::LayerNorm;
use unet::weights::{Cursor, Init, Tensors, Weights, component_files, save_tensors};

use super::config::{ClipTextConfig, check_heads};
use super::encoder::{Encoder, EncoderShape};
use crate::error::{Error, Result};

/// What the text encoder makes of a batch of prompts.
#[derive(Debug)]
pub struct TextOutput {
    /// The state before the first layer and after each: layers + 1 tensors `[B, T, D]`, none of them normalized. SDXL takes the last but one.
    pub hidden_states: Vec<Tensor>,
    /// The last state after the final layer normalization `[B, T, D]`. SD-v1.5 takes this.
    pub last: Tensor,
    /// `last` at the end token `[B, D]`.
    pub pooled: Tensor,
    /// `pooled` through the projection `[B, P]`, for `CLIPTextModelWithProjection`.
    pub projected: Option<Tensor>,
}

/// `CLIPTextModel` or `CLIPTextModelWithProjection`.
#[derive(Debug)]
pub struct ClipTextModel {
    config: ClipTextConfig,
    token_embedding: Tensor,
    position_embedding: Tensor,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    text_projection: Option<Tensor>,
    parameters: Tensors,
}

impl ClipTextModel {
    /// Builds the encoder from `at`, which holds `text_model.*` (or, as transformers 5 writes it, that part without its
    /// prefix) and `text_projection.weight`. What does not fit is reported by [`Weights::finish`], and
    /// [`ClipTextModel::parameters`] is empty until then: see [`ClipTextModel::from_weights`].
    ///
    /// # Errors
    /// [`Error::Config`] for impossible settings.
    pub fn build(config: &ClipTextConfig, at: &Cursor) -> Result<Self> {
        let (d, p) = (config.hidden_size, config.projection_dim);
        check_heads(d, config.num_attention_heads, Path::new("text encoder"))?;
        let at = &root(at);
        let tower = if at.has(TOKENS) || !at.has(BARE_TOKENS) { at.pp("text_model") } else { at.clone() };
        let embeddings = tower.pp("embeddings");
        let shape = EncoderShape {
            width: d,
            inner: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            act: config.hidden_act,
            eps: config.layer_norm_eps,
            causal: true,
        };
        let std = (d as f64).powf(-0.5);
        Ok(Self {
            token_embedding: embeddings.pp("token_embedding").tensor("weight", &[config.vocab_size, d], Init::Normal(0.02)),
            position_embedding: embeddings.pp("position_embedding").tensor(
                "weight",
                &[config.max_position_embeddings, d],
                Init::Normal(0.01),
            ),
            encoder: Encoder::new(&tower.pp("encoder"), shape),
            final_layer_norm: LayerNorm::new(&tower.pp("final_layer_norm"), d, config.layer_norm_eps),
            text_projection: config.with_projection.then(|| at.pp("text_projection").tensor("weight", &[p, d], Init::Normal(std))),
            config: config.clone(),
            parameters: Tensors::new(),
        })
    }

    /// Builds the encoder from `weights`, all of which must be used (stored position ids are passed over).
    ///
    /// # Errors
    /// [`Error::Config`] for impossible settings, [`unet::Error::Weights`] when the weights do not fit.
    pub fn from_weights(config: &ClipTextConfig, weights: Weights) -> Result<Self> {
        weights.ignore(is_buffer);
        let root = root(&weights.root()).prefix().to_string();
        let mut model = Self::build(config, &weights.root())?;
        let (taken, _) = weights.finish()?;
        let below = |key: String| key.strip_prefix(&root).map_or(key.clone(), |rest| rest.trim_start_matches('.').to_string());
        model.parameters = taken.into_iter().map(|(key, t)| (prefixed(below(key)), t)).collect();
        Ok(model)
    }

    /// Opens an encoder's folder (`text_encoder/` or `text_encoder_2/`). The folder may hold more than that, up to a whole CLIP model: as in
    /// transformers, what a text encoder has no use for is passed over.
    ///
    /// # Errors
    /// As [`ClipTextConfig::open`] and [`ClipTextModel::from_weights`].
    pub fn open(dir: impl AsRef<Path>, device: Device, kind: Kind) -> Result<Self> {
        let config = ClipTextConfig::open(dir.as_ref())?;
        Self::open_as(&config, dir.as_ref(), device, kind)
    }

    /// [`ClipTextModel::open`] with settings that may say otherwise than the folder's whether there is a projection.
    pub(crate) fn open_as(config: &ClipTextConfig, dir: &Path, device: Device, kind: Kind) -> Result<Self> {
        let weights = Weights::open(&component_files(dir, "model")?, device, kind)?;
        let prefix = match root(&weights.root()).prefix() {
            "" => String::new(),
            prefix => format!("{prefix}."),
        };
        let is_other = |key: &str| {
            let key = key.strip_prefix(&prefix).unwrap_or(key);
            let projects = key.starts_with("text_projection") && !config.with_projection;
            projects || OTHER_PARTS.iter().any(|part| key.starts_with(part))
        };
        pass_over(&weights, dir, "a text encoder", is_other);
        Self::from_weights(config, weights)
    }

    /// An encoder with fresh parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for impossible settings.
    pub fn random(config: &ClipTextConfig, seed: u64, device: Device, kind: Kind) -> Result<Self> {
        Self::from_weights(config, Weights::random(seed, device, kind))
    }

    /// The settings.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Every parameter by its key: the very tensors that the network holds.
    pub fn parameters(&self) -> &Tensors {
        &self.parameters
    }

    /// Encodes `ids [B, T]` of type i64, each row with its begin and end tokens. They best come from the CPU: they are checked before
    /// they go where the network is, and a check on a GPU would wait for what it does.
    ///
    /// # Errors
    /// [`Error::Input`] for another shape or type, a row that is too long, or an id outside the vocabulary.
    pub fn forward(&self, ids: &Tensor) -> Result<TextOutput> {
        let longest = self.config.max_position_embeddings;
        let wrong = |expected: String, got: String| Error::Input { name: "ids".into(), expected, got };
        let (b, t) = match ids.size()[..] {
            [b, t] if b > 0 && t > 0 && t <= longest && ids.kind() == Kind::Int64 => (b, t),
            ref size => return Err(wrong(format!("[batch, 1..={longest} tokens] of i64"), format!("{size:?} of {:?}", ids.kind()))),
        };
        let (low, high) = (ids.f_min()?.int64_value(&[]), ids.f_max()?.int64_value(&[]));
        if low < 0 || high >= self.config.vocab_size {
            return Err(wrong(format!("ids from 0 to {}", self.config.vocab_size - 1), format!("{low} to {high}")));
        }

        let ids = &ids.f_to_device(self.token_embedding.device())?;
        let tokens = Tensor::f_embedding(&self.token_embedding, ids, -1, false, false)?;
        let x = tokens + self.position_embedding.f_narrow(0, 0, t)?;
        let hidden_states = self.encoder.forward(x);
        let last = self.final_layer_norm.forward(&hidden_states[hidden_states.len() - 1]);

        // The first end token of each row. The id 2 is a mistake of old configuration files; there the end token is the largest id.
        let eos = self.config.eos_token_id;
        let at = if eos == 2 { ids.f_argmax(-1, false)? } else { ids.f_eq(eos)?.f_to_kind(Kind::Int)?.f_argmax(-1, false)? };
        // [B] -> [B, 1, D]
        let at = at.f_view([b, 1, 1])?.f_expand([b, 1, self.config.hidden_size], false)?;
        let pooled = last.f_gather(1, &at, false)?.f_squeeze_dim(1)?;
        let projected = self.text_projection.as_ref().map(|w| pooled.f_linear(w, None::<&Tensor>)).transpose()?;
        Ok(TextOutput { hidden_states, last, pooled, projected })
    }

    /// The final layer normalization of a state `[B, T, D]`: what [`TextOutput::last`] is to the last of
    /// [`TextOutput::hidden_states`].
    pub fn final_layer_norm(&self, state: &Tensor) -> Tensor {
        self.final_layer_norm.forward(state)
    }

    /// Writes `dir/config.json` and `dir/model.safetensors`, stored as `kind` when it is given.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written.
    pub fn save(&self, dir: impl AsRef<Path>, kind: Option<Kind>) -> Result<()> {
        save_model(dir.as_ref(), &self.parameters, self.config.to_json(), kind)
    }
}

/// Writes a transformers model folder.
pub(super) fn save_model(dir: &Path, parameters: &Tensors, config: serde_json::Value, kind: Option<Kind>) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    save_tensors(dir.join("model.safetensors"), parameters, &metadata, kind)?;
    Ok(artifact::write_config(&dir.join("config.json"), &config)?)
}

const TOKENS: &str = "text_model.embeddings.token_embedding.weight";
/// As transformers 5 names it.
const BARE_TOKENS: &str = "embeddings.token_embedding.weight";
/// What the other parts of a CLIP model are called.
const OTHER_PARTS: [&str; 4] = ["logit_scale", "logit_bias", "vision_model.", "visual_projection."];

/// Where the encoder's names begin: behind what wrappers and other programs put before them.
fn root(at: &Cursor) -> Cursor {
    let wrapped = ["module", "text_encoder", "transformer"].into_iter().map(|prefix| at.pp(prefix));
    let found = [at.clone()].into_iter().chain(wrapped).find(|root| root.has(TOKENS) || root.has(BARE_TOKENS));
    found.unwrap_or_else(|| at.clone())
}

/// Leaves out tensors of a folder's weights that `what` has no use for, with one warning.
pub(crate) fn pass_over(weights: &Weights, dir: &Path, what: &str, is_other: impl Fn(&str) -> bool) {
    let seen = RefCell::new(Vec::new());
    weights.ignore(|key| {
        let other = is_other(key);
        if other {
            seen.borrow_mut().push(key.to_string());
        }
        other
    });
    let seen = seen.into_inner();
    if let Some(first) = seen.first() {
        let more = if seen.len() > 1 { format!(" and {} more", seen.len() - 1) } else { String::new() };
        warn_once(format!("{}: `{first}`{more} passed over: {what} has no use for it", dir.display()));
    }
}

/// Old files store the constant 0, 1, 2, .. beside the position embedding.
pub(super) fn is_buffer(key: &str) -> bool {
    key.ends_with("position_ids")
}

// Published files have `text_model.` before everything but the projection.
fn prefixed(key: String) -> String {
    if key.starts_with("text_model.") || key.starts_with("text_projection.") { key } else { format!("text_model.{key}") }
}
