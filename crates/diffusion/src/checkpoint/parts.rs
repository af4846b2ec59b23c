//! Where the parts of a Stable Diffusion stand in a whole checkpoint: file -> **autoencoder, text encoders** under the names of a model
//! directory.
//!
//! Source: the prefixes of latent-diffusion (SD-v1), Stability's stablediffusion (SD-v2) and generative-models (SDXL).

use unet::UNetConfig;
use unet::weights::{Form, Slice, TensorFile};

use super::names::{self, Names, Slices};
use super::shapes::{self, Untold};
use crate::clip::{ClipTextConfig, HiddenAct};
use crate::error::{Error, Result};
use crate::model_dir::Family;
use crate::vae::modern;

/// The autoencoder's place; a file with an autoencoder alone has no prefix.
const AUTOENCODER: [&str; 3] = ["first_stage_model.", "vae.", ""];
/// The end token pads, or, where OpenCLIP's encoders follow, the first id (`!`).
pub(super) const PAD: [&str; 2] = ["<|endoftext|>", "!"];

/// A generation of Stable Diffusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
    Xl,
}

/// The names of a text encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextLayout {
    /// transformers' names.
    Clip,
    /// OpenCLIP's names. SD-v2 leaves the last of `layers` out, and so do model directories.
    OpenClip { without_last: bool },
}

/// One text encoder in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextPlace {
    pub prefix: &'static str,
    pub layout: TextLayout,
}

impl Version {
    /// The version whose text encoders stand beside the U-Net of `config`.
    ///
    /// # Errors
    /// [`Error::Format`] for a U-Net alone, and for models that are no text-to-image model of these versions.
    pub fn of(file: &TensorFile, config: &UNetConfig) -> Result<Self> {
        let bad = |problem: &str, hint: &str| Err(Error::Format { path: file.path().into(), problem: problem.into(), hint: hint.into() });
        let has = |version: Version| version.text(file).iter().all(|place| place.is_in(file));
        let candidates = if config.added.is_some() { &[Version::Xl][..] } else { &[Version::V1, Version::V2][..] };
        if let Some(version) = candidates.iter().copied().find(|version| has(*version)) {
            return Ok(version);
        }
        match (config.added.is_some(), has(Version::V2)) {
            (true, true) if config.text_width == 1280 => {
                bad("the SDXL refiner, which goes on with images of the base model and draws none", "name the base model's checkpoint")
            }
            (true, true) => bad("a U-Net with pooled text beside one text encoder, so not SDXL", "name an SDXL checkpoint"),
            _ => bad(
                "a U-Net without the text encoders of its version beside it",
                "name the whole checkpoint or the model directory that it was made from with --model, and this file with --unet",
            ),
        }
    }

    /// Its text encoders in `file`, in the order in which their features are joined.
    pub fn text(self, file: &TensorFile) -> Vec<TextPlace> {
        let mut places = self.text_places();
        // The same model as generative-models saves it.
        let again = "conditioner.embedders.0.model.";
        places.iter_mut().filter(|place| self == Version::V2 && !place.is_in(file)).for_each(|place| place.prefix = again);
        places
    }

    /// The version of a model directory.
    pub fn of_config(config: &UNetConfig) -> Self {
        match (config.added.is_some(), config.use_linear_projection) {
            (true, _) => Version::Xl,
            (false, true) => Version::V2,
            (false, false) => Version::V1,
        }
    }

    /// Where its text encoders are written.
    pub fn text_places(self) -> Vec<TextPlace> {
        let place = |prefix, layout| TextPlace { prefix, layout };
        match self {
            Version::V1 => vec![place("cond_stage_model.transformer.", TextLayout::Clip)],
            Version::V2 => vec![place("cond_stage_model.model.", TextLayout::OpenClip { without_last: true })],
            Version::Xl => vec![
                place("conditioner.embedders.0.transformer.", TextLayout::Clip),
                place("conditioner.embedders.1.model.", TextLayout::OpenClip { without_last: false }),
            ],
        }
    }

    pub fn family(self) -> Family {
        match self {
            Version::V1 | Version::V2 => Family::StableDiffusion,
            Version::Xl => Family::StableDiffusionXl,
        }
    }

    /// What its autoencoder's shapes do not tell.
    pub fn untold(self, config: &UNetConfig) -> Untold {
        let scaling_factor = if self == Version::Xl { 0.13025 } else { 0.18215 };
        // Eight pixels a latent.
        Untold { scaling_factor, sample_size: config.sample_size.map_or(512, |(h, _)| 8 * h) }
    }
}

impl TextPlace {
    fn is_in(self, file: &TensorFile) -> bool {
        match self.layout {
            TextLayout::Clip => self.tower(file).is_some(),
            TextLayout::OpenClip { .. } => file.has(&format!("{}token_embedding.weight", self.prefix)),
        }
    }

    /// What stands before transformers' names: `text_model.`, or nothing in files of the first days.
    fn tower(self, file: &TensorFile) -> Option<&'static str> {
        ["text_model.", ""].into_iter().find(|tower| file.has(&format!("{}{tower}embeddings.token_embedding.weight", self.prefix)))
    }

    /// The pairs of names for so many layers of the model directory's encoder.
    pub fn names(self, layers: usize, tower: &str) -> Names {
        match self.layout {
            TextLayout::Clip => names::clip(layers, tower),
            TextLayout::OpenClip { .. } => names::open_clip(layers),
        }
        .within(self.prefix)
    }

    /// Layers that the checkpoint has.
    fn layers(self, file: &TensorFile) -> usize {
        let (at, leaf) = match self.layout {
            TextLayout::Clip => (format!("{}encoder.layers", self.tower(file).unwrap_or_default()), "layer_norm1.weight"),
            TextLayout::OpenClip { .. } => ("transformer.resblocks".to_string(), "ln_1.weight"),
        };
        (0..).take_while(|n| file.has(&format!("{}{at}.{n}.{leaf}", self.prefix))).count()
    }

    /// What its tensors are under the names of its folder in a model directory. SD-v2's projection, which nothing uses, is none of them.
    pub fn slices(self, file: &TensorFile) -> Slices {
        let all = self.layers(file);
        let without_last = self.layout == TextLayout::OpenClip { without_last: true };
        let layers = if without_last { all.saturating_sub(1) } else { all };
        let mut slices = self.names(layers, self.tower(file).unwrap_or_default()).by_theirs();
        slices.retain(|theirs, _| file.has(theirs) && !(without_last && theirs.ends_with("text_projection")));
        slices
    }

    /// Its tensors under those names.
    pub fn tensors(self, file: &TensorFile) -> TensorFile {
        under(&self.slices(file), file)
    }

    /// Its settings; `tensors` are those of [`TextPlace::tensors`].
    ///
    /// # Errors
    /// [`Error::Format`] when they cannot be told.
    pub fn config(self, tensors: &TensorFile) -> Result<ClipTextConfig> {
        match self.layout {
            TextLayout::Clip => shapes::text_encoder(tensors, HiddenAct::QuickGelu, 1),
            TextLayout::OpenClip { .. } => shapes::text_encoder(tensors, HiddenAct::Gelu, 0),
        }
    }

    /// The token with which its tokenizer pads.
    pub fn pad(self) -> &'static str {
        PAD[usize::from(self.layout != TextLayout::Clip)]
    }
}

/// The tensors of the file that `slices` names.
pub(super) fn under(slices: &Slices, file: &TensorFile) -> TensorFile {
    file.view(|key| slices.get(key).cloned().unwrap_or_default())
}

/// What the autoencoder's tensors are under the names of its folder in a model directory; `None` where the file holds none. Its names may be
/// those of either layout.
pub(super) fn autoencoder(file: &TensorFile) -> Option<Slices> {
    AUTOENCODER.into_iter().find_map(|prefix| {
        let block = |level: usize, n: usize| format!("{prefix}encoder.down.{level}.block.{n}.conv1.weight");
        if file.has(&block(0, 0)) {
            let levels = (0..).take_while(|level| file.has(&block(*level, 0))).count();
            let layers = (0..).take_while(|n| file.has(&block(0, *n))).count();
            let mut slices = names::autoencoder(levels, layers).within(prefix).by_theirs();
            slices.retain(|theirs, _| file.has(theirs));
            return Some(slices);
        }
        let ours = file.has(&format!("{prefix}encoder.down_blocks.0.resnets.0.conv1.weight"));
        let name = |key: &str| Some((key.to_string(), vec![Slice { name: modern(key.strip_prefix(prefix)?), form: Form::Whole }]));
        ours.then(|| file.shapes().filter_map(|(key, _)| name(key)).collect())
    })
}

/// Says that there is none.
pub(super) fn no_autoencoder(file: &TensorFile) -> Error {
    Error::Format {
        path: file.path().into(),
        problem: "holds no autoencoder (no `first_stage_model.`)".into(),
        hint: "name one with --vae: a file, or a folder in diffusers' layout".into(),
    }
}
