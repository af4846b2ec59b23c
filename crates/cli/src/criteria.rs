//! Criteria that the U-Net crate does not know: random numbers, and the change of the CLIP score of generated pictures.
//! Model -> scores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use data::CalibrationSet;
use diffusion::{DecodeParts, GenerateOptions, Pipeline, SamplerKind};
use eval::{ClipScorer, clip_scores};
use prune_core::{Ablate, Gaps, LayerId, LayerTable, RemovalSet, Scores};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use unet::UNet;

use crate::common::BadFile;

/// Sum of the squared weights of a layer.
pub const MAGNITUDE: &str = "magnitude";
/// `|sum g.w|` over a layer's weights: the first-order estimate of how the task loss changes (arXiv 1906.10771, equation 8).
pub const TAYLOR: &str = "taylor";
/// Uniform random numbers.
pub const RANDOM: &str = "random";
/// Drop of the CLIP score of generated pictures with the layer removed; same prompts, same seeds.
pub const CLIP_SCORE: &str = "clip_score";

/// Scores by [`RANDOM`]: one number in 0..1 per layer, from the seed alone.
///
/// # Errors
/// None for a valid table.
pub fn random(table: &LayerTable, seed: u64) -> anyhow::Result<Scores> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<(LayerId, f64)> = table.layers().iter().map(|l| (l.id.clone(), rng.random::<f64>())).collect();
    Ok(Scores::from_values(table, RANDOM, values)?.with_settings(Some(seed), BTreeMap::new()))
}

/// How the pictures of [`CLIP_SCORE`] are made; recorded in its score file.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipSettings {
    prompts: usize,
    steps: usize,
    guidance: f64,
    seed: u64,
    sampler: SamplerKind,
}

/// The CLIP score of pictures drawn with layers removed.
pub struct ClipRun<'a> {
    settings: ClipSettings,
    pipeline: Pipeline,
    scorer: ClipScorer,
    unet: &'a UNet,
    table: &'a LayerTable,
    prompts: Vec<String>,
    features: Tensor,
    criteria: Vec<String>,
    originals: Option<Vec<f64>>,
}

impl<'a> ClipRun<'a> {
    /// Settings in one value.
    pub fn settings(prompts: usize, steps: usize, guidance: f64, seed: u64, sampler: SamplerKind) -> ClipSettings {
        ClipSettings { prompts, steps, guidance, seed, sampler }
    }

    /// The settings that a score file records.
    ///
    /// # Errors
    /// [`BadFile`] when it lacks one.
    pub fn settings_of(scores: &Scores, path: &Path) -> anyhow::Result<ClipSettings> {
        let get = |key: &str| {
            let missing = || BadFile::new(path, format!("no setting `{key}`"), "score again with this version");
            scores.settings().get(key).ok_or_else(missing)
        };
        let bad = |key: &str| BadFile::new(path, format!("setting `{key}` has the wrong type"), "score again with this version");
        let int = |key: &str| -> anyhow::Result<u64> { Ok(get(key)?.as_u64().ok_or_else(|| bad(key))?) };
        let sampler = get("sampler")?.as_str().and_then(|s| s.parse().ok()).ok_or_else(|| bad("sampler"))?;
        let guidance = get("guidance")?.as_f64().ok_or_else(|| bad("guidance"))?;
        Ok(ClipSettings {
            prompts: int("prompts")? as usize,
            steps: int("steps")? as usize,
            guidance,
            seed: scores.seed().ok_or_else(|| bad("seed"))?,
            sampler,
        })
    }

    /// Opens everything that pictures and their scores need.
    ///
    /// # Errors
    /// When a part of the model directory or the CLIP model is missing.
    pub fn open(
        settings: &ClipSettings,
        model: &Path,
        clip: Option<&Path>,
        set: &CalibrationSet,
        unet: &'a UNet,
        table: &'a LayerTable,
    ) -> anyhow::Result<Self> {
        let device = unet.device();
        let pipeline = Pipeline::open(model, None, device, unet.kind())?;
        let scorer = ClipScorer::open(clip.unwrap_or(model), device, Kind::Float, 64)?;
        // Equal captions would make equal pictures of equal seeds only; the order of the set is kept.
        let prompts: Vec<String> = set.prompts.iter().take(settings.prompts).cloned().collect();
        let features = scorer.prompts(&prompts.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(Self {
            settings: settings.clone(),
            pipeline,
            scorer,
            unet,
            table,
            prompts,
            features,
            criteria: vec![CLIP_SCORE.to_string()],
            originals: None,
        })
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// What goes into the score file.
    pub fn record(&self) -> BTreeMap<String, Value> {
        let s = &self.settings;
        BTreeMap::from([
            ("prompts".to_string(), json!(self.prompts.len())),
            ("steps".to_string(), json!(s.steps)),
            ("guidance".to_string(), json!(s.guidance)),
            ("sampler".to_string(), json!(s.sampler.name())),
        ])
    }

    fn scores(&self, unet: &UNet) -> eval::Result<Vec<f64>> {
        let (height, width) = self.pipeline.native_size().unwrap_or((512, 512));
        let options = GenerateOptions {
            prompts: self.prompts.clone(),
            negative: None,
            steps: self.settings.steps,
            guidance: self.settings.guidance,
            sampler: self.settings.sampler,
            karras: false,
            clip_skip: 0,
            seeds: (0..self.prompts.len() as u64).map(|i| self.settings.seed + i).collect(),
            height,
            width,
            batch: self.prompts.len(),
            latents: None,
            decode: DecodeParts::default(),
        };
        let made = self.pipeline.generate(unet, &options, &mut |_| {})?;
        clip_scores(&self.scorer.pictures(&made.pictures)?.features, &self.features)
    }
}

impl Ablate for ClipRun<'_> {
    type Error = eval::Error;

    fn table(&self) -> &LayerTable {
        self.table
    }

    fn criteria(&self) -> &[String] {
        &self.criteria
    }

    fn num_samples(&self) -> usize {
        self.prompts.len()
    }

    fn sample_bin(&self, _index: usize) -> u32 {
        0
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> eval::Result<Gaps> {
        if self.originals.is_none() {
            self.originals = Some(self.scores(self.unet)?);
        }
        let pruned = self.scores(&self.unet.prune(removed)?)?;
        let originals = self.originals.as_deref().unwrap_or_default();
        let drops = samples.map(|i| originals[i] - pruned[i]).collect();
        Ok(Gaps::new(1, drops).map_err(unet::Error::from)?)
    }
}
