//! Whether images can be drawn from text with the parts of a model directory: told from the settings, before any weights are read.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use unet::UNetConfig;

use super::{Family, settings_of};
use crate::clip::ClipTextConfig;
use crate::error::{Error, Result};
use crate::vae::VaeConfig;

/// Pipelines of the families here that take more than a text: a part of the class name, and what it takes.
const MORE_THAN_TEXT: [(&str, &str); 8] = [
    ("Upscale", "it enlarges an image"),
    ("Depth2Img", "it takes a map of depths"),
    ("ImageVariation", "it takes an image in place of a prompt"),
    ("UnCLIP", "it takes the embedding of an image"),
    ("GLIGEN", "it takes boxes with words"),
    ("LDM3D", "it makes maps of depths too"),
    ("Video", "it makes videos"),
    ("Audio", "it makes sound"),
];

/// U-Nets by the channels of their input, where these are more than a latent's.
const BY_CHANNELS: [(i64, &str); 4] = [
    (9, "an inpainting model, which also takes a mask and the masked image"),
    (8, "a model that edits an image (pix2pix), which also takes that image"),
    (7, "an upscaler, which also takes the small image"),
    (5, "a model that also takes a map of depths"),
];

/// What such models are good for all the same.
const INSTEAD: &str = "scoring and pruning work, with a calibration set of tensors";

/// Channels of an image.
const COLOURS: i64 = 3;

/// SDXL's image sizes: as many numbers as the U-Net must take.
const TIME_IDS: i64 = 6;

/// Refuses a pipeline that does not draw from text alone.
pub(super) fn check_class(index: &Map<String, Value>, index_file: &Path) -> Result<()> {
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    let more = MORE_THAN_TEXT.iter().find(|(part, _)| class.starts_with("Stable") && class.contains(part));
    match more {
        Some((_, takes)) => {
            let expected = format!("a pipeline that draws from text ({INSTEAD})");
            Err(config_error(index_file, "_class_name", expected, format!("{class}: {takes}")))
        }
        None => Ok(()),
    }
}

/// What stands beside the U-Net, as far as it is there: what is not is left to whoever looks for it.
pub(super) struct Others<'a> {
    /// The model directory or checkpoint.
    pub root: &'a Path,
    pub vae: Option<VaeConfig>,
    pub encoders: Vec<Option<ClipTextConfig>>,
}

impl<'a> Others<'a> {
    /// Those of a model directory; `vae` takes the place of its own.
    pub fn in_folder(root: &'a Path, family: Family, vae: Option<VaeConfig>) -> Result<Self> {
        let settings = |part: &str| Some(root.join(part).join("config.json")).filter(|path| path.is_file());
        let vae = match vae {
            None => settings("vae").map(VaeConfig::open).transpose()?,
            given => given,
        };
        let encoders = family.text_parts().iter().map(|(encoder, _)| settings(encoder).map(ClipTextConfig::open).transpose());
        Ok(Self { root, vae, encoders: encoders.collect::<Result<_>>()? })
    }
}

/// Refuses a U-Net whose inputs or outputs are others than what autoencoder and text encoders give.
pub(super) fn check_unet(config: &UNetConfig, unet: &Path, others: &Others) -> Result<()> {
    let (file, root, encoders) = (settings_of(unet), others.root, &others.encoders);
    if let Some(vae) = &others.vae {
        for (key, channels) in [("in_channels", vae.in_channels), ("out_channels", vae.out_channels)] {
            if channels != COLOURS {
                let path = if root.is_file() { root.to_path_buf() } else { root.join("vae").join("config.json") };
                return Err(config_error(path, key, format!("{COLOURS}, those of an image, from the autoencoder"), channels.to_string()));
            }
        }
        check_channels(config, &file, vae.latent_channels, root)?;
    }
    if let (Some(added), Some(Some(second))) = (&config.added, encoders.get(1)) {
        let expected = second.projection_dim + TIME_IDS * added.channels;
        if added.input != expected {
            let five = added.input == expected - added.channels;
            let what = if five { format!(": an SDXL refiner, which draws over another model's images ({INSTEAD})") } else { String::new() };
            let wanted =
                format!("{expected}, as {TIME_IDS} sizes of {} and the pooled text of {} are", added.channels, second.projection_dim);
            return Err(config_error(&file, "projection_class_embeddings_input_dim", wanted, format!("{}{what}", added.input)));
        }
    }
    let widths: Option<Vec<i64>> = encoders.iter().map(|encoder| encoder.as_ref().map(|config| config.hidden_size)).collect();
    match widths.map(|widths| widths.iter().sum::<i64>()) {
        Some(width) if width != config.text_width => {
            let expected = format!("{width}, the width of the text encoders in {}", root.display());
            Err(config_error(&file, "cross_attention_dim", expected, config.text_width.to_string()))
        }
        _ => Ok(()),
    }
}

fn check_channels(config: &UNetConfig, file: &Path, latent: i64, root: &Path) -> Result<()> {
    for (key, channels) in [("in_channels", config.in_channels), ("out_channels", config.out_channels)] {
        if channels != latent {
            let known = BY_CHANNELS.iter().find(|(n, _)| key == "in_channels" && *n == channels);
            let what = known.map_or(String::new(), |(_, what)| format!(": {what} ({INSTEAD})"));
            let expected = format!("{latent}, the latent_channels of the autoencoder of {}", root.display());
            return Err(config_error(file, key, expected, format!("{channels}{what}")));
        }
    }
    Ok(())
}

fn config_error(path: impl Into<PathBuf>, key: &str, expected: String, got: String) -> Error {
    Error::Config { path: path.into(), key: key.into(), expected, got }
}
