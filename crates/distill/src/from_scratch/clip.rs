//! Contrastive training of the image tower with two text towers: the scorer's own, which also becomes the second text encoder
//! of the model, and the narrower first text encoder.

use data::{PairSource, neighbor_batch};
use diffusion::{ClipConfig, ClipModel, ClipPreprocess, ClipTextConfig, ClipTextModel, Tokenizer};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use unet::nn::Linear;
use unet::weights::{Cursor, Tensors, Weights};

use crate::error::{Error, Result};
use crate::train::{StepLoss, Task};
use unet::Compute;

/// Settings of the contrastive task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipTaskConfig {
    /// Weight of the first text encoder's loss; the scorer's own has weight 1.
    pub first_encoder: f64,
    /// Pairs in a group of near misses ([`PairSource::neighbors`]); a batch is made of whole groups. With 1 the contrast is between
    /// random pairs, which never teaches where things stand.
    pub neighbors: u64,
}

impl ClipTaskConfig {
    /// Checks the settings for batches of `batch` pairs.
    ///
    /// # Errors
    /// [`Error::Config`] when a batch is not made of whole groups.
    pub fn check(&self, batch: u64) -> Result<()> {
        if self.neighbors > 0 && batch.is_multiple_of(self.neighbors) {
            return Ok(());
        }
        let expected = format!("a divisor of the batch of {batch} pairs");
        Err(Error::Config { key: "clip.task.neighbors".into(), expected, got: self.neighbors.to_string() })
    }
}

/// Trains the towers with the symmetric contrastive loss of CLIP (arXiv 2103.00020, figure 3); equal captions in a batch are
/// all right answers, since the renderer repeats itself.
pub struct ClipTask<'a> {
    /// Architecture of the scorer.
    pub clip: &'a ClipConfig,
    /// Architecture of the first text encoder.
    pub first: &'a ClipTextConfig,
    /// Tokenizer of the scorer.
    pub tokenizer: &'a Tokenizer,
    /// Tokenizer of the first text encoder (the two pad differently).
    pub first_tokenizer: &'a Tokenizer,
    /// Captioned images.
    pub source: &'a dyn PairSource,
    /// Settings.
    pub config: ClipTaskConfig,
    /// The image tower's input normalization.
    pub preprocess: &'a ClipPreprocess,
    /// Pairs per step.
    pub batch: u64,
    /// Where to compute.
    pub device: Device,
    /// Number type to compute in.
    pub compute: Compute,
}

/// The networks that [`ClipTask`] trains together, below the prefixes `clip`, `first` and `first_projection`.
pub(crate) struct Towers {
    clip: ClipModel,
    first: ClipTextModel,
    first_projection: Linear,
}

impl Towers {
    fn build(clip: &ClipConfig, first: &ClipTextConfig, at: &Cursor) -> Result<Self> {
        Ok(Self {
            clip: ClipModel::build(clip, &at.pp("clip"))?,
            first: ClipTextModel::build(first, &at.pp("first"))?,
            first_projection: Linear::new(&at.pp("first_projection"), first.hidden_size, clip.projection_dim, false),
        })
    }
}

impl ClipTask<'_> {
    /// Fresh parameters of all towers.
    ///
    /// # Errors
    /// When an architecture is refused.
    pub fn initial(&self, seed: u64) -> Result<Tensors> {
        let weights = Weights::random(seed, self.device, Kind::Float);
        Towers::build(self.clip, self.first, &weights.root())?;
        let mut tensors = weights.finish()?.0;
        let scale = Tensor::from(self.clip.logit_scale_init_value as f32).to_device(self.device);
        tensors.insert("clip.logit_scale".into(), scale);
        Ok(tensors)
    }
}

/// The tensors below `prefix`, without it.
pub fn below(tensors: &Tensors, prefix: &str) -> Tensors {
    let dotted = format!("{prefix}.");
    tensors.iter().filter_map(|(k, t)| Some((k.strip_prefix(&dotted)?.to_string(), t.shallow_clone()))).collect()
}

impl Task for ClipTask<'_> {
    fn loss(&mut self, params: &Tensors, step: u64) -> Result<StepLoss> {
        let groups = self.batch / self.config.neighbors;
        let groups: Vec<u64> = (step * groups..(step + 1) * groups).collect();
        let (x, captions) = neighbor_batch(self.source, &groups, self.config.neighbors, self.device)?;
        let weights = Weights::from_tensors(super::cast(params, self.compute));
        let towers = Towers::build(self.clip, self.first, &weights.root())?;
        weights.finish()?;

        let x = self.preprocess.normalize(&((x + 1.0) * 0.5))?;
        let texts: Vec<&str> = captions.iter().map(String::as_str).collect();
        let ids = unpadded(self.tokenizer.encode(&texts)?, self.tokenizer.eos());
        let first_ids = unpadded(self.first_tokenizer.encode(&texts)?, self.first_tokenizer.eos());
        let target = same_caption(&captions).to_device(self.device);

        let unit = |t: Tensor| {
            let t = t.to_kind(Kind::Float);
            &t / t.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float).sqrt()
        };
        let images = unit(towers.clip.image_features(&x.to_kind(self.compute.kind()))?);
        let scale = towers.clip.logit_scale().to_kind(Kind::Float).clamp_max(100f64.ln()).exp();
        let second = unit(towers.clip.text_features(&ids)?);
        let first = unit(towers.first_projection.forward(&towers.first.forward(&first_ids)?.pooled));

        let contrast = |texts: &Tensor| {
            let logits = texts.matmul(&images.tr()) * &scale;
            let rows = -(&target * logits.log_softmax(1, Kind::Float)).sum(Kind::Float);
            let columns = -(&target * logits.tr().log_softmax(1, Kind::Float)).sum(Kind::Float);
            (rows + columns) / (2.0 * self.batch as f64)
        };
        let own = contrast(&second);
        let other = contrast(&first) * self.config.first_encoder;
        let total = &own + &other;
        Ok(StepLoss { total, terms: vec![("scorer".into(), own.detach()), ("first_encoder".into(), other.detach())] })
    }
}

/// `ids [B, T]` up to the last end token of all rows: the towers are causal, so what follows changes nothing before it.
pub(super) fn unpadded(ids: Tensor, eos: i64) -> Tensor {
    let ends = ids.eq(eos).to_kind(Kind::Int).argmax(-1, false);
    let longest = ends.max().int64_value(&[]) + 1;
    ids.narrow(1, 0, longest)
}

/// `[B, B]`: each row spreads 1 over the pairs with the same caption.
fn same_caption(captions: &[String]) -> Tensor {
    let n = captions.len();
    let mut rows = vec![0f32; n * n];
    for (i, a) in captions.iter().enumerate() {
        let same: Vec<usize> = (0..n).filter(|&j| captions[j] == *a).collect();
        for &j in &same {
            rows[i * n + j] = 1.0 / same.len() as f32;
        }
    }
    Tensor::from_slice(&rows).view([n as i64, n as i64])
}
