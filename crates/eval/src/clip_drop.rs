//! The CLIP score of images drawn with layers removed, as a criterion of layers: through the door that is open to criteria of a caller's
//! own. U-Net and prompts -> **scores**.

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::{DecodeParts, GenerateOptions, Pipeline, SamplerKind};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use unet::UNet;

use crate::clip_score::{ClipScorer, clip_scores};
use crate::error::{Error, Result};

/// How the images are drawn; recorded in the score file.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipDropOptions {
    /// Number of prompts, from the first on.
    pub prompts: usize,
    /// Sampling steps.
    pub steps: usize,
    /// Weight of classifier-free guidance.
    pub guidance: f64,
    /// Seed of the first image; the others follow.
    pub seed: u64,
    /// The sampler.
    pub sampler: SamplerKind,
}

impl ClipDropOptions {
    /// Those that the score file `path` records.
    ///
    /// # Errors
    /// [`Error::Format`] for a setting that is missing or of another type.
    pub fn recorded(path: &Path, settings: &BTreeMap<String, Value>, seed: Option<u64>) -> Result<Self> {
        let bad_file = |problem: String| Error::Format { path: path.into(), problem, hint: "score again with this version".into() };
        let get = |key: &str| settings.get(key).ok_or_else(|| bad_file(format!("no setting `{key}`")));
        let bad = |key: &str| bad_file(format!("setting `{key}` has the wrong type"));
        let number = |key: &str| get(key)?.as_u64().ok_or_else(|| bad(key));
        Ok(Self {
            prompts: number("prompts")? as usize,
            steps: number("steps")? as usize,
            guidance: get("guidance")?.as_f64().ok_or_else(|| bad("guidance"))?,
            seed: seed.ok_or_else(|| bad("seed"))?,
            sampler: get("sampler")?.as_str().and_then(|s| s.parse().ok()).ok_or_else(|| bad("sampler"))?,
        })
    }
}

/// Pipeline, CLIP model and prompts: how bad a U-Net's images are, for [`unet::scoring::CustomLoss`].
pub struct ClipDrop {
    options: ClipDropOptions,
    pipeline: Pipeline,
    scorer: ClipScorer,
    prompts: Vec<String>,
    features: Tensor,
}

impl ClipDrop {
    /// Opens everything that images and their scores need, on the device and in the type of `unet`. `clip` is the CLIP model's folder, by
    /// default the model directory's own.
    ///
    /// # Errors
    /// When a part of the model directory or the CLIP model is missing.
    pub fn open(options: &ClipDropOptions, model: &Path, clip: Option<&Path>, prompts: &[String], unet: &UNet) -> Result<Self> {
        let pipeline = Pipeline::open(model, None, unet.device(), unet.kind())?;
        let scorer = ClipScorer::open(clip.unwrap_or(model), unet.device(), Kind::Float, 64)?;
        // Equal captions would make equal images of equal seeds only; the order of the set is kept.
        let prompts: Vec<String> = prompts.iter().take(options.prompts).cloned().collect();
        let features = scorer.prompts(&prompts.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(Self { options: options.clone(), pipeline, scorer, prompts, features })
    }

    /// Number of prompts: the samples of this criterion.
    pub fn num_samples(&self) -> usize {
        self.prompts.len()
    }

    /// What goes into the score file.
    pub fn settings(&self) -> BTreeMap<String, Value> {
        let o = &self.options;
        BTreeMap::from([
            ("prompts".to_string(), json!(self.prompts.len())),
            ("steps".to_string(), json!(o.steps)),
            ("guidance".to_string(), json!(o.guidance)),
            ("sampler".to_string(), json!(o.sampler.name())),
        ])
    }

    /// The CLIP score of every prompt's image, with a minus: smaller is better.
    ///
    /// # Errors
    /// Those of drawing, and of the CLIP model.
    pub fn losses(&self, unet: &UNet) -> Result<Vec<f64>> {
        let (height, width) = self.pipeline.native_size().unwrap_or((512, 512));
        let options = GenerateOptions {
            prompts: self.prompts.clone(),
            negative: None,
            steps: self.options.steps,
            guidance: self.options.guidance,
            sampler: self.options.sampler,
            karras: false,
            clip_skip: 0,
            seeds: (0..self.prompts.len() as u64).map(|i| self.options.seed + i).collect(),
            height,
            width,
            batch: self.prompts.len(),
            latents: None,
            decode: DecodeParts::default(),
        };
        let made = self.pipeline.generate(unet, &options, &mut |_| {})?;
        Ok(clip_scores(&self.scorer.images(&made.images)?.features, &self.features)?.into_iter().map(|score| -score).collect())
    }
}
