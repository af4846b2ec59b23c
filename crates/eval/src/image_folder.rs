//! Folders of images with a file that says how they were made: what drawing and the renderer of scenes write and an evaluation reads.
//! Generation -> **images** -> evaluation.

use std::path::{Path, PathBuf};

use artifact::{Document, file_sha256, sha256};
use data::{SCENES_FILE, image_file_name};
use image::RgbImage;
use rayon::prelude::*;
use scenes::SceneRecord;
use serde::{Deserialize, Serialize};
use unet::Compute;

use crate::error::{Error, Result};

/// Name of the file that says how generated images were made.
pub const IMAGES_FILE: &str = "images.json";

/// How generated images were made; the same for all of a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSettings {
    /// Name of the model directory.
    pub model: String,
    /// Fingerprint of the U-Net that drew them.
    pub unet: String,
    /// Where the prompts come from, as a short description.
    pub prompt_source: String,
    /// The negative prompt: what guidance leads away from.
    pub negative: String,
    /// Images per prompt.
    pub per_prompt: usize,
    /// Seed of the first image; image `i` has this plus `i`.
    pub seed: u64,
    /// Sampler.
    pub sampler: String,
    /// Whether Karras' noise levels were asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub karras: bool,
    /// Last layers of the text encoders that were left out for the prompt.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub clip_skip: usize,
    /// Whether large images were decoded in tiles.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vae_tiling: bool,
    /// Number type of the networks.
    #[serde(default = "single", skip_serializing_if = "is_f32")]
    pub compute: String,
    /// Sampling steps.
    pub steps: usize,
    /// Classifier-free guidance scale.
    pub guidance: f64,
    /// Height and width.
    pub size: [i64; 2],
    /// SHA-256 of the file with the initial noise, where it was given.
    pub latents: Option<String>,
}

impl ImageSettings {
    /// The sampler and what was asked of it and of the text encoders, as a short description.
    pub fn sampling(&self) -> String {
        let skipped = format!(", {} layers of the text encoders skipped", self.clip_skip);
        let compute = format!(", in {}", self.compute);
        let options = [
            (self.karras, ", Karras' noise levels"),
            (self.clip_skip > 0, skipped.as_str()),
            (self.vae_tiling, ", decoded in tiles"),
            (!self.in_f32(), compute.as_str()),
        ];
        let said: String = options.into_iter().filter(|(on, _)| *on).map(|(_, text)| text).collect();
        format!("{}{said}", self.sampler)
    }

    /// Whether the networks computed in f32, as all did once.
    pub(crate) fn in_f32(&self) -> bool {
        is_f32(&self.compute)
    }

    /// All that images which are compared must have in common.
    fn protocol(&self) -> String {
        let [sampling, negative] = [&self.sampling(), &self.negative];
        format!("{sampling} with {} steps, guidance {}, {:?} pixels, negative `{negative}`", self.steps, self.guidance, self.size)
    }
}

fn single() -> String {
    Compute::F32.name().into()
}

fn is_f32(name: &String) -> bool {
    *name == single()
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// One image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageEntry {
    /// File name inside the folder.
    pub file: String,
    /// What it should show.
    pub prompt: String,
    /// Seed of its initial noise.
    pub seed: u64,
    /// The group of prompts that it belongs to, where the prompts have groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
}

/// `images.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesFile {
    /// How the images were made.
    pub settings: ImageSettings,
    /// The images, prompt by prompt.
    pub images: Vec<ImageEntry>,
}

impl Document for ImagesFile {
    const FORMAT: &'static str = "laptop-diff/images";
    const VERSION: u32 = 1;
    const HINT: &'static str = "name a folder that `generate` wrote";
}

/// A folder of images with their prompts, whoever wrote it.
#[derive(Debug, Clone)]
pub struct ImageFolder {
    /// The folder.
    pub dir: PathBuf,
    /// The images, prompt by prompt.
    pub images: Vec<ImageEntry>,
    /// How they were made, where they were generated and not rendered.
    pub settings: Option<ImageSettings>,
}

impl ImageFolder {
    /// Reads the list of generated images or of rendered scenes in `dir`.
    ///
    /// # Errors
    /// [`Error::Artifact`] when neither is there or intact, [`Error::Format`] for damaged scenes.
    pub fn open(dir: &Path) -> Result<Self> {
        if dir.join(SCENES_FILE).is_file() && !dir.join(IMAGES_FILE).is_file() {
            return Self::scenes(dir);
        }
        let file = ImagesFile::read(&dir.join(IMAGES_FILE))?;
        Ok(Self { dir: dir.into(), images: file.images, settings: Some(file.settings) })
    }

    fn scenes(dir: &Path) -> Result<Self> {
        let path = dir.join(SCENES_FILE);
        let bad = |problem: String, hint: &str| Error::Format { path: path.clone(), problem, hint: hint.into() };
        let text = std::fs::read_to_string(&path).map_err(|e| bad(e.to_string(), "name a folder that `render-scenes` wrote"))?;
        let image = |(at, line): (usize, &str)| {
            let record: SceneRecord = serde_json::from_str(line)
                .map_err(|e| bad(format!("line {}: no scene ({e})", at + 1), "let `render-scenes` write the folder again"))?;
            Ok(ImageEntry { file: image_file_name(at), prompt: record.caption, seed: record.index, category: None })
        };
        Ok(Self { dir: dir.into(), images: text.lines().enumerate().map(image).collect::<Result<_>>()?, settings: None })
    }

    /// The prompt of each image, in order.
    pub fn prompts(&self) -> impl Iterator<Item = &str> {
        self.images.iter().map(|image| image.prompt.as_str())
    }

    /// Reads all images, in parallel.
    ///
    /// # Errors
    /// [`Error::Diffusion`] when one is missing or damaged, [`Error::Format`] for one of another size.
    pub fn read(&self) -> Result<Vec<RgbImage>> {
        let images = self.images.par_iter().map(|image| Ok(diffusion::images::read_image(self.dir.join(&image.file))?));
        let images = images.collect::<Result<Vec<_>>>()?;
        self.check_sizes(&images)?;
        Ok(images)
    }

    /// All images of a folder have one size: what its list says, or the first one's.
    fn check_sizes(&self, images: &[RgbImage]) -> Result<()> {
        let stated = self.settings.as_ref().map(|s| (s.size[1] as u32, s.size[0] as u32));
        let Some(size) = stated.or(images.first().map(RgbImage::dimensions)) else { return Ok(()) };
        let Some(n) = images.iter().position(|image| image.dimensions() != size) else { return Ok(()) };
        let ((width, height), (w, h)) = (images[n].dimensions(), size);
        let problem = format!("{width} x {height} pixels, the folder's other images have {w} x {h}");
        let hint = "delete it and let `generate` draw it again".into();
        Err(Error::Format { path: self.dir.join(&self.images[n].file), problem, hint })
    }

    /// A hash of each image's file and prompt, in order: what a score of it is valid for.
    ///
    /// # Errors
    /// [`Error::Artifact`] when one cannot be read.
    pub fn hashes(&self) -> Result<Vec<String>> {
        let hash = |image: &ImageEntry| Ok(sha256(format!("{} {}", file_sha256(&self.dir.join(&image.file))?, image.prompt)));
        self.images.par_iter().map(hash).collect()
    }

    /// Refuses images that were not made like those of `self`, the reference: prompts, seeds, sampling.
    ///
    /// # Errors
    /// [`Error::OtherProtocol`] with the first difference.
    pub fn check_same_protocol(&self, other: &ImageFolder) -> Result<()> {
        let differs = |what: &str, expected: String, got: String| {
            Err(Error::OtherProtocol { dir: other.dir.clone(), what: what.into(), expected, got })
        };
        if other.images.len() != self.images.len() {
            return differs("images", self.images.len().to_string(), other.images.len().to_string());
        }
        for (i, (a, b)) in self.images.iter().zip(&other.images).enumerate() {
            if a.prompt != b.prompt {
                return differs(&format!("prompt of image {i}"), format!("`{}`", a.prompt), format!("`{}`", b.prompt));
            }
            if a.seed != b.seed {
                return differs(&format!("seed of image {i}"), a.seed.to_string(), b.seed.to_string());
            }
        }
        let (Some(a), Some(b)) = (&self.settings, &other.settings) else {
            return differs("settings", "generated images".into(), "rendered scenes".into());
        };
        if a.protocol() != b.protocol() || a.latents != b.latents {
            return differs("settings", a.protocol(), b.protocol());
        }
        Ok(())
    }
}
