//! Prompts -> what the U-Net is conditioned on: one text encoder (Stable Diffusion 1.x, 2.x) or two with pooled text and
//! image sizes (SDXL). Used by training, calibration and generation alike, so that all see the same features.
//!
//! Shapes: `B` prompts, `T` tokens, `D` width, `P` pooled width.

use std::path::{Path, PathBuf};

use artifact::warn_once;
use tch::{Device, Kind, Tensor};
use unet::{AddedConditioning, Conditioning};

use crate::clip::{ClipTextConfig, ClipTextModel};
use crate::error::{Error, Result};
use crate::model_dir::Family;
use crate::tokenizer::Tokenizer;

/// SDXL's six numbers in pixels: what size the image had, where it was cropped, what size is wanted (arXiv 2307.01952, section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeIds {
    /// Height and width before cropping and scaling.
    pub original_size: (i64, i64),
    /// Top and left of the crop.
    pub crop_top_left: (i64, i64),
    /// Height and width of the result.
    pub target_size: (i64, i64),
}

impl TimeIds {
    /// An image of this size that was neither cropped nor scaled.
    pub fn uncropped(height: i64, width: i64) -> Self {
        Self { original_size: (height, width), crop_top_left: (0, 0), target_size: (height, width) }
    }

    /// The middle of an image of `whole` height and width that was scaled to cover `target`. Corners count at the scale of the
    /// result.
    pub fn cropped(whole: (i64, i64), target: (i64, i64)) -> Self {
        let scale = (whole.0 as f64 / target.0 as f64).min(whole.1 as f64 / target.1 as f64);
        let cut = |all: i64, part: i64| ((all as f64 / scale - part as f64) / 2.0).round() as i64;
        Self { original_size: whole, crop_top_left: (cut(whole.0, target.0), cut(whole.1, target.1)), target_size: target }
    }

    /// The numbers in the order in which the U-Net takes them.
    pub fn to_array(self) -> [f32; 6] {
        let (o, c, t) = (self.original_size, self.crop_top_left, self.target_size);
        [o.0, o.1, c.0, c.1, t.0, t.1].map(|n| n as f32)
    }
}

/// The tokenizers and text encoders of one model.
#[derive(Debug)]
pub struct TextEncoders {
    family: Family,
    parts: Vec<(ClipTextModel, Tokenizer)>,
    device: Device,
}

impl TextEncoders {
    /// Opens the folders of each text encoder and its tokenizer, in the order of [`Family::text_parts`].
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::Io`] for a missing or damaged part; [`Error::Input`] when the parts are not the family's.
    pub fn open(family: Family, folders: &[(PathBuf, PathBuf)], device: Device, kind: Kind) -> Result<Self> {
        let open = |(n, (encoder, tokenizer)): (usize, &(PathBuf, PathBuf))| {
            Self::open_part(family, n, encoder, Tokenizer::open(tokenizer)?, device, kind)
        };
        Self::new(family, folders.iter().enumerate().map(open).collect::<Result<_>>()?, device)
    }

    /// Text encoder `n` in the folder `encoder`, with its tokenizer.
    pub(crate) fn open_part(
        family: Family,
        n: usize,
        encoder: &Path,
        tokenizer: Tokenizer,
        device: Device,
        kind: Kind,
    ) -> Result<(ClipTextModel, Tokenizer)> {
        // The pipeline's class says whether it projects, whatever model the folder was saved from.
        let config = ClipTextConfig { with_projection: family.projects(n), ..ClipTextConfig::open(encoder)? };
        let encoder = ClipTextModel::open_as(&config, encoder, device, kind)?;
        let tokenizer = tokenizer.for_encoder(encoder.config().max_position_embeddings);
        Ok((encoder, tokenizer))
    }

    /// Text encoders that are in memory, all on `device`.
    ///
    /// # Errors
    /// [`Error::Input`] when the parts are not the family's, a tokenizer has ids or lengths that its encoder does not know, or the
    /// tokenizers differ in length.
    pub fn new(family: Family, parts: Vec<(ClipTextModel, Tokenizer)>, device: Device) -> Result<Self> {
        let wrong = |expected: String, got: String| Error::Input { name: "text encoders".into(), expected, got };
        let wanted = match family {
            Family::StableDiffusion => 1,
            Family::StableDiffusionXl => 2,
        };
        if parts.len() != wanted {
            return Err(wrong(format!("{wanted} for a {}", family.class_name()), parts.len().to_string()));
        }
        if family == Family::StableDiffusionXl && !parts[1].0.config().with_projection {
            return Err(wrong("a CLIPTextModelWithProjection as text_encoder_2".into(), "one without projection".into()));
        }
        for (encoder, tokenizer) in &parts {
            let c = encoder.config();
            let lost = tokenizer.added_beyond(c.vocab_size);
            if let Some((token, id)) = lost.first() {
                warn_once(format!(
                    "the tokenizer's added token `{token}` has the id {id}, the text encoder has {} embeddings: a prompt with it is refused",
                    c.vocab_size
                ));
            }
            if tokenizer.vocab_size() - lost.len() as i64 > c.vocab_size || tokenizer.model_max_length() as i64 > c.max_position_embeddings
            {
                return Err(wrong(
                    format!("a tokenizer of at most {} ids and {} tokens", c.vocab_size, c.max_position_embeddings),
                    format!("{} ids and {} tokens", tokenizer.vocab_size(), tokenizer.model_max_length()),
                ));
            }
        }
        let lengths: Vec<usize> = parts.iter().map(|(_, tokenizer)| tokenizer.model_max_length()).collect();
        if lengths.iter().any(|length| *length != lengths[0]) {
            return Err(wrong("tokenizers of one length (model_max_length)".into(), format!("{lengths:?}")));
        }
        Ok(Self { family, parts, device })
    }

    /// Which text conditioning this is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Each encoder with its tokenizer.
    pub fn parts(&self) -> &[(ClipTextModel, Tokenizer)] {
        &self.parts
    }

    /// Encodes prompts. `size` is used by SDXL only.
    ///
    /// Stable Diffusion takes the last state after the final norm. SDXL takes the states before the last layer of both
    /// encoders side by side, and the second one's projection of the end token (arXiv 2307.01952, section 2.1).
    ///
    /// # Shapes
    /// `encoder_hidden_states [B, T, D]`; SDXL: `text_embeds [B, P]`, `time_ids [B, 6]` (f32)
    ///
    /// # Errors
    /// [`Error::Input`] for no prompt, or an added token that the text encoder has no embedding for.
    pub fn encode(&self, prompts: &[&str], size: TimeIds) -> Result<Conditioning> {
        self.encode_skipping(prompts, size, 0)
    }

    /// As [`TextEncoders::encode`], with states from `clip_skip` layers further down, as in diffusers: Stable Diffusion's still
    /// go through the final norm, and pooled text stays that of the whole encoder.
    ///
    /// # Shapes
    /// As [`TextEncoders::encode`].
    ///
    /// # Errors
    /// As [`TextEncoders::encode`]; [`Error::Input`] when an encoder has too few layers.
    pub fn encode_skipping(&self, prompts: &[&str], size: TimeIds, clip_skip: usize) -> Result<Conditioning> {
        let _no_grad = tch::no_grad_guard();
        let mut states = Vec::new();
        let mut projected = None;
        for (encoder, tokenizer) in &self.parts {
            let prompts: Vec<_> = prompts.iter().map(|prompt| tokenizer.with_all_vectors(prompt)).collect::<Result<_>>()?;
            let encoded = tokenizer.encode_batch(&prompts.iter().map(AsRef::as_ref).collect::<Vec<_>>())?;
            check_embeddings(&encoded.ids, encoder, tokenizer)?;
            for cut in &encoded.truncated {
                let rest = &cut.rest;
                tracing::warn!("prompt {}: {} tokens are too many, the model does not see: {rest}", cut.prompt, cut.tokens);
            }
            let mut out = encoder.forward(&encoded.ids)?;
            // States are one more than layers; SDXL counts from the last but one.
            let from_the_end = clip_skip + if self.family == Family::StableDiffusionXl { 2 } else { 1 };
            let Some(at) = out.hidden_states.len().checked_sub(from_the_end) else {
                return Err(Error::Input {
                    name: "clip_skip".into(),
                    expected: format!("fewer than the text encoder's {} layers", out.hidden_states.len() - 1),
                    got: clip_skip.to_string(),
                });
            };
            states.push(match self.family {
                Family::StableDiffusion if clip_skip == 0 => out.last,
                Family::StableDiffusion => encoder.final_layer_norm(&out.hidden_states[at]),
                Family::StableDiffusionXl => out.hidden_states.swap_remove(at),
            });
            projected = out.projected;
        }
        let added = match (self.family, projected) {
            (Family::StableDiffusionXl, Some(text_embeds)) => {
                let ids = Tensor::f_from_slice(&size.to_array())?.f_to_device(self.device)?;
                Some(AddedConditioning { text_embeds, time_ids: ids.f_repeat([prompts.len() as i64, 1])? })
            }
            _ => None,
        };
        Ok(Conditioning { encoder_hidden_states: Tensor::f_cat(&states, -1)?, added, guidance: None })
    }

    /// The unconditional side of guidance for `cond`: the negative prompt's features, or without one the features of the
    /// empty prompt, or zeros where an SDXL model wants that (`zeros`). No layer is skipped, as in diffusers.
    ///
    /// # Errors
    /// As [`TextEncoders::encode`].
    pub(crate) fn encode_negative(&self, negative: Option<&str>, zeros: bool, cond: &Conditioning, size: TimeIds) -> Result<Conditioning> {
        if negative.is_none() && self.family == Family::StableDiffusionXl && zeros {
            return Ok(without_text(cond));
        }
        let one = self.encode(&[negative.unwrap_or("")], size)?;
        let index = Tensor::f_zeros([cond.batch()], (Kind::Int64, self.device))?;
        Ok(one.index_select(&index))
    }
}

// A token that was added to the tokenizer without an embedding for it.
fn check_embeddings(ids: &Tensor, encoder: &ClipTextModel, tokenizer: &Tokenizer) -> Result<()> {
    let (highest, size) = (ids.f_max()?.int64_value(&[]), encoder.config().vocab_size);
    if highest < size {
        return Ok(());
    }
    let token = tokenizer.token(highest).unwrap_or_default();
    Err(Error::Input {
        name: "prompt".into(),
        expected: format!("tokens of the text encoder, which has {size} embeddings (save it together with its textual inversion)"),
        got: format!("`{token}`, whose id is {highest}"),
    })
}

// The condition without any text: zeros of the same shapes, with the same sizes.
fn without_text(cond: &Conditioning) -> Conditioning {
    Conditioning {
        encoder_hidden_states: cond.encoder_hidden_states.zeros_like(),
        added: cond
            .added
            .as_ref()
            .map(|a| AddedConditioning { text_embeds: a.text_embeds.zeros_like(), time_ids: a.time_ids.shallow_clone() }),
        guidance: None,
    }
}
