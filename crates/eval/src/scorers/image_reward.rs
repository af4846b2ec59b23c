//! ImageReward (arXiv 2304.05977): how much people would like an image for a prompt, by BLIP with a linear head.

use std::path::Path;

use diffusion::{ClipCrop, ClipPreprocess};
use image::RgbImage;
use tch::{Device, Tensor, no_grad};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use unet::weights::{Tensors, Weights};

use super::aesthetic::Head;
use super::blip::{BlipShape, Text, Vision};
use super::{finite_values, named, paired};
use crate::error::{Error, Result};
use crate::metric::ImageScorer;

/// Mean and standard deviation of the published model's rewards on its training prompts.
const MEAN: f64 = 0.16717362830052426;
const STD: f64 = 1.0333394966054072;
/// Tokens of a prompt, with those at its ends and padding.
const TOKENS: usize = 35;

/// BERT's words: the tokenizer of `bert-base-uncased`.
#[derive(Debug)]
pub struct PromptWords {
    tokenizer: tokenizers::Tokenizer,
    first: u32,
    last: u32,
    padding: u32,
}

impl PromptWords {
    /// Reads `vocab.txt`, one word a line, of BERT's uncased English model.
    ///
    /// # Errors
    /// [`Error::Format`] when it cannot be read or lacks `[CLS]`, `[SEP]`, `[PAD]` or `[UNK]`.
    pub fn open(path: &Path) -> Result<Self> {
        let hint = || "give the vocab.txt of bert-base-uncased".to_string();
        let bad = |problem: String| Error::Format { path: path.into(), problem, hint: hint() };
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let id = |word: &str| {
            let at = text.lines().zip(0u32..).find(|(line, _)| line.trim() == word);
            at.map(|(_, id)| id).ok_or_else(|| bad(format!("no word `{word}`")))
        };
        let (first, last, padding) = (id("[CLS]")?, id("[SEP]")?, id("[PAD]")?);
        id("[UNK]")?;
        let model = WordPiece::builder().files(path.to_string_lossy().into_owned()).unk_token("[UNK]".into()).build();
        let mut tokenizer = tokenizers::Tokenizer::new(model.map_err(|e| bad(e.to_string()))?);
        tokenizer.with_normalizer(Some(BertNormalizer::default())).with_pre_tokenizer(Some(BertPreTokenizer));
        Ok(Self { tokenizer, first, last, padding })
    }

    /// Ids `[B, 35]` and a mask that is true for words; prompts that are longer are cut.
    ///
    /// # Errors
    /// [`Error::Input`] for a prompt that cannot be tokenized.
    pub fn encode(&self, prompts: &[&str]) -> Result<(Tensor, Tensor)> {
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let words = self.tokenizer.encode(*prompt, false).map_err(|e| Error::input("prompt", "a text", e.to_string()))?;
            let own = words.get_ids();
            let own = &own[..own.len().min(TOKENS - 2)];
            let row: Vec<u32> = std::iter::once(self.first).chain(own.iter().copied()).chain([self.last]).collect();
            mask.extend((0..TOKENS).map(|n| n < row.len()));
            ids.extend(row.iter().copied().chain(std::iter::repeat(self.padding)).take(TOKENS).map(i64::from));
        }
        let shape = [prompts.len() as i64, TOKENS as i64];
        Ok((Tensor::f_from_slice(&ids)?.f_view(shape)?, Tensor::f_from_slice(&mask)?.f_view(shape)?))
    }
}

/// The reward model.
pub struct ImageReward {
    vision: Vision,
    text: Text,
    head: Head,
    preprocess: ClipPreprocess,
    words: PromptWords,
    device: Device,
    batch: usize,
}

impl ImageReward {
    /// Opens the published `ImageReward.pt`, or another of its form whose heads are 64 wide; `vocabulary` is BERT's `vocab.txt`.
    ///
    /// # Errors
    /// [`Error::Unet`] when the file cannot be read or does not fit, [`Error::Format`] for the vocabulary, [`Error::Input`]
    /// for a batch of zero.
    pub fn open(path: &Path, vocabulary: &Path, device: Device, batch: usize) -> Result<Self> {
        let file = unet::weights::TensorFile::open(path)?;
        let shapes = file.shapes().map(|(key, shape)| (key.to_string(), shape.to_vec())).collect::<Vec<_>>();
        let shape = shape(&shapes).ok_or_else(|| Error::Format {
            path: path.into(),
            problem: "no ImageReward model (no `blip.visual_encoder` and `blip.text_encoder` of the usual shapes)".into(),
            hint: "name ImageReward.pt of THUDM/ImageReward".into(),
        })?;
        let weights = super::weights(path, device, used)?;
        Self::build(weights, shape, PromptWords::open(vocabulary)?, device, batch)
    }

    /// The model of tensors in memory.
    ///
    /// # Errors
    /// As [`ImageReward::open`].
    pub fn from_tensors(tensors: Tensors, words: PromptWords, batch: usize) -> Result<Self> {
        let shapes = tensors.iter().map(|(key, t)| (key.clone(), t.size())).collect::<Vec<_>>();
        let device = tensors.values().next().map_or(Device::Cpu, Tensor::device);
        let shape = shape(&shapes).ok_or_else(|| Error::input("tensors", "an ImageReward model", "other keys or shapes"))?;
        Self::build(named(tensors, used), shape, words, device, batch)
    }

    fn build(weights: Weights, shape: BlipShape, words: PromptWords, device: Device, batch: usize) -> Result<Self> {
        if batch == 0 {
            return Err(Error::input("batch", "at least 1", "0"));
        }
        let (root, blip) = (weights.root(), weights.root().pp("blip"));
        let (vision, text) = (Vision::new(&blip.pp("visual_encoder"), shape), Text::new(&blip.pp("text_encoder"), shape));
        let head = Head::new(&root.pp("mlp").pp("layers"), shape.text_width);
        weights.finish()?;
        let preprocess = ClipPreprocess { crop: ClipCrop::HalfToEven, ..ClipPreprocess::new(shape.image_size as u32) };
        Ok(Self { vision, text, head, preprocess, words, device, batch })
    }
}

impl ImageScorer for ImageReward {
    fn score(&self, images: &[RgbImage], prompts: &[&str]) -> Result<Vec<f64>> {
        paired(images.len(), prompts.len())?;
        let mut scores = Vec::with_capacity(images.len());
        for (images, prompts) in images.chunks(self.batch).zip(prompts.chunks(self.batch)) {
            let pixels = self.preprocess.pixels(&images.iter().collect::<Vec<_>>())?.f_to_device(self.device)?;
            let (ids, mask) = self.words.encode(prompts)?;
            let (ids, mask) = (ids.f_to_device(self.device)?, mask.f_to_device(self.device)?);
            let reward = no_grad(|| {
                let states = self.text.forward(&ids, &mask, &self.vision.forward(&pixels));
                (self.head.forward(&states.select(1, 0)) - MEAN) / STD
            });
            scores.extend(finite_values("an ImageReward", &reward)?);
        }
        Ok(scores)
    }
}

/// The keys that a score is made of; the published file also has the projections of BLIP's contrastive loss.
fn used(key: &str) -> Option<String> {
    let parts = ["blip.visual_encoder.", "blip.text_encoder.", "mlp."];
    (parts.iter().any(|part| key.starts_with(part)) && !key.ends_with("position_ids")).then(|| key.into())
}

fn shape(all: &[(String, Vec<i64>)]) -> Option<BlipShape> {
    let of = |key: &str| all.iter().find(|(k, _)| k == key).map(|(_, shape)| shape.as_slice());
    let layers = |prefix: &str, end: &str| (0..).take_while(|n| of(&format!("{prefix}.{n}.{end}")).is_some()).count() as i64;
    let (vision, text) = ("blip.visual_encoder", "blip.text_encoder");
    let [_, _, patch, _] = *of(&format!("{vision}.patch_embed.proj.weight"))? else { return None };
    let [_, positions, vision_width] = *of(&format!("{vision}.pos_embed"))? else { return None };
    let [vocabulary, text_width] = *of(&format!("{text}.embeddings.word_embeddings.weight"))? else { return None };
    Some(BlipShape {
        image_size: ((positions - 1) as f64).sqrt().round() as i64 * patch,
        patch,
        vision_width,
        vision_inner: *of(&format!("{vision}.blocks.0.mlp.fc1.weight"))?.first()?,
        vision_layers: layers(&format!("{vision}.blocks"), "norm1.weight"),
        vocabulary,
        longest: *of(&format!("{text}.embeddings.position_embeddings.weight"))?.first()?,
        text_width,
        text_inner: *of(&format!("{text}.encoder.layer.0.intermediate.dense.weight"))?.first()?,
        text_layers: layers(&format!("{text}.encoder.layer"), "output.dense.weight"),
    })
}
