//! Folders of pictures with their manifest: what `generate` and `render-scenes` write and `eval` reads.
//! Generation -> **pictures** -> evaluation.

use std::path::{Path, PathBuf};

use image::RgbImage;
use prune_core::file::write_json;
use rayon::prelude::*;
use scenes::SceneRecord;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Kind;
use unet::weights::hex;

use crate::common::{BadFile, file_hash, read_versioned};
use crate::device::kind_name;

/// Manifest of generated pictures.
pub const IMAGES: &str = "images.json";
/// Manifest of rendered scenes, one JSON object a line.
pub const SCENES: &str = "scenes.jsonl";

/// How generated pictures were made; the same for all of a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of the model directory.
    pub model: String,
    /// Fingerprint of the U-Net that drew them.
    pub unet: String,
    /// Where the prompts come from, in one phrase.
    pub prompt_source: String,
    /// The text that guidance leads away from.
    pub negative: String,
    /// Pictures per prompt.
    pub per_prompt: usize,
    /// Seed of the first picture; picture `i` has this plus `i`.
    pub seed: u64,
    /// Sampler.
    pub sampler: String,
    /// Whether Karras' noise levels were asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub karras: bool,
    /// Last layers of the text encoders that were left out for the prompt.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub clip_skip: usize,
    /// Whether large pictures were decoded in tiles.
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

impl Settings {
    /// The sampler and what was asked of it and of the text encoders, in one phrase.
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
    pub fn in_f32(&self) -> bool {
        is_f32(&self.compute)
    }
}

fn single() -> String {
    kind_name(Kind::Float).into()
}

fn is_f32(name: &String) -> bool {
    *name == single()
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// One picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// File name inside the folder.
    pub file: String,
    /// What it should show.
    pub prompt: String,
    /// Seed of its initial noise.
    pub seed: u64,
    /// The group of prompts that it belongs to, where the file of prompts has groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
}

/// `images.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    version: u32,
    /// How the pictures were made.
    pub settings: Settings,
    /// The pictures, prompt by prompt.
    pub images: Vec<Entry>,
}

const FORMAT: &str = "laptop-diff/images";
const VERSION: u32 = 1;

impl Manifest {
    /// Puts a manifest together.
    pub fn new(settings: Settings, images: Vec<Entry>) -> Self {
        Self { format: FORMAT.into(), version: VERSION, settings, images }
    }

    /// Writes `dir/images.json`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        Ok(write_json(&dir.join(IMAGES), self)?)
    }

    /// Reads `dir/images.json`.
    ///
    /// # Errors
    /// [`BadFile`] when it is missing, damaged or of another format.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        read_versioned(&dir.join(IMAGES), FORMAT, VERSION, "name a folder that `generate` wrote")
    }
}

fn read_text(path: &Path, hint: &str) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(path).map_err(|e| BadFile::new(path, e.to_string(), hint))?)
}

/// A folder of pictures with their prompts, whoever wrote it.
#[derive(Debug)]
pub struct Folder {
    /// The folder.
    pub dir: PathBuf,
    /// The prompt of each picture, in order.
    pub prompts: Vec<String>,
    /// The seed of each picture, where it was generated.
    pub seeds: Vec<u64>,
    /// File names, in order.
    pub files: Vec<String>,
    /// The group of each prompt, in order, where there are groups.
    pub categories: Vec<Option<String>>,
    /// How they were made, where they were generated.
    pub settings: Option<Settings>,
}

impl Folder {
    /// Reads the manifest of generated pictures or of rendered scenes.
    ///
    /// # Errors
    /// [`BadFile`] when neither is there or intact.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        if dir.join(SCENES).is_file() && !dir.join(IMAGES).is_file() {
            return Self::scenes(dir);
        }
        let manifest = Manifest::read(dir)?;
        Ok(Self {
            dir: dir.into(),
            prompts: manifest.images.iter().map(|e| e.prompt.clone()).collect(),
            seeds: manifest.images.iter().map(|e| e.seed).collect(),
            files: manifest.images.iter().map(|e| e.file.clone()).collect(),
            categories: manifest.images.iter().map(|e| e.category.clone()).collect(),
            settings: Some(manifest.settings),
        })
    }

    fn scenes(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(SCENES);
        let text = read_text(&path, "name a folder that `render-scenes` wrote")?;
        let mut folder =
            Self { dir: dir.into(), prompts: Vec::new(), seeds: Vec::new(), files: Vec::new(), categories: Vec::new(), settings: None };
        for (at, line) in text.lines().enumerate() {
            let record: SceneRecord = serde_json::from_str(line).map_err(|e| {
                BadFile::new(&path, format!("line {}: no scene ({e})", at + 1), "let `render-scenes` write the folder again")
            })?;
            folder.prompts.push(record.caption);
            folder.seeds.push(record.index);
            folder.files.push(file_name(at));
            folder.categories.push(None);
        }
        Ok(folder)
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Reads all pictures, in parallel.
    ///
    /// # Errors
    /// When one is missing or damaged.
    pub fn pictures(&self) -> anyhow::Result<Vec<RgbImage>> {
        self.files.par_iter().map(|file| Ok(diffusion::picture::read_picture(self.dir.join(file))?)).collect()
    }

    /// A hash of each picture's file and prompt, in order: what a score of it is valid for.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn hashes(&self) -> anyhow::Result<Vec<String>> {
        let pairs = self.files.par_iter().zip(&self.prompts);
        pairs.map(|(file, prompt)| Ok(hex(&Sha256::digest(format!("{} {prompt}", file_hash(&self.dir.join(file))?))))).collect()
    }
}

/// The name of picture number `at` of a folder.
pub fn file_name(at: usize) -> String {
    format!("{at:05}.png")
}
