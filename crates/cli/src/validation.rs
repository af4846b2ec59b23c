//! Validation during distillation: the joint output loss on held-out points, and pictures of fixed prompts and seeds with the
//! teacher's above the student's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use data::CalibrationSet;
use diffusion::picture::{encode_png, write_png};
use diffusion::{DecodeParts, GenerateOptions, Pipeline, SamplerKind};
use distill::{EventWriter, Lora};
use image::RgbImage;
use image::imageops::replace;
use serde::{Deserialize, Serialize};
use tch::Kind;
use unet::UNet;
use unet::weights::{Tensors, Weights};

use crate::common::{BadInput, prepare_dir};
use crate::training::Validation;

/// The table `[validation]` of the settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Steps between two validations.
    pub every: u64,
    /// Prompts of the pictures.
    #[serde(default)]
    pub prompts: Vec<String>,
    /// Seed of the first picture; the next ones count up.
    #[serde(default)]
    pub seed: u64,
    /// Sampling steps.
    #[serde(default = "steps")]
    pub steps: usize,
    /// Classifier-free guidance scale.
    #[serde(default = "guidance_scale")]
    pub guidance_scale: f64,
    /// Points that `calibrate` wrote, never trained on; relative to the settings file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<PathBuf>,
    /// Points and pictures computed at once.
    #[serde(default = "batch")]
    pub batch: usize,
}

fn steps() -> usize {
    20
}

fn guidance_scale() -> f64 {
    5.0
}

fn batch() -> usize {
    8
}

impl Settings {
    /// Refuses settings out of range.
    pub fn check(&self, file: &Path) -> anyhow::Result<()> {
        for (key, value) in [("every", self.every), ("steps", self.steps as u64), ("batch", self.batch as u64)] {
            if value == 0 {
                return Err(BadInput(format!("{}: validation.{key}: expected at least 1, got 0", file.display())).into());
            }
        }
        if self.prompts.is_empty() && self.held_out.is_none() {
            let problem = "validation: expected prompts, held_out or both, got neither";
            return Err(BadInput(format!("{}: {problem}", file.display())).into());
        }
        Ok(())
    }
}

/// One line of `validation.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean over the held-out points of the squared difference of the outputs of student and teacher.
    pub joint_output_loss: Option<f64>,
    /// Its standard error.
    pub standard_error: Option<f64>,
    /// The picture, relative to the run's folder.
    pub pictures: Option<String>,
}

/// Validates one student.
pub struct Validator<'a> {
    settings: &'a Settings,
    pipeline: &'a Pipeline,
    student: &'a UNet,
    lora: Option<&'a Lora>,
    held_out: Option<CalibrationSet>,
    out: &'a Path,
    rows: Vec<Row>,
    of_teacher: Option<Vec<RgbImage>>,
}

impl<'a> Validator<'a> {
    /// Opens what is needed; `from` is the step at which the run goes on.
    pub fn open(
        settings: &'a Settings,
        base: &Path,
        pipeline: &'a Pipeline,
        student: &'a UNet,
        lora: Option<&'a Lora>,
        out: &'a Path,
        from: u64,
    ) -> anyhow::Result<Self> {
        let held_out = settings.held_out.as_ref().map(|path| CalibrationSet::open(base.join(path))).transpose()?;
        // Lines of steps that were lost with the process are written again.
        let text = std::fs::read_to_string(out.join(LOG)).unwrap_or_default();
        let rows = text.lines().filter_map(|line| serde_json::from_str::<Row>(line).ok()).filter(|row| row.step <= from && from > 0);
        Ok(Self { settings, pipeline, student, lora, held_out, out, rows: rows.collect(), of_teacher: None })
    }

    fn draw(&self, unet: &UNet) -> anyhow::Result<Vec<RgbImage>> {
        let (height, width) = self.pipeline.native_size().unwrap_or((512, 512));
        let s = self.settings;
        let options = GenerateOptions {
            prompts: s.prompts.clone(),
            negative: None,
            steps: s.steps,
            guidance: s.guidance_scale,
            sampler: SamplerKind::Ddim,
            karras: false,
            clip_skip: 0,
            seeds: (0..s.prompts.len() as u64).map(|i| s.seed.wrapping_add(i)).collect(),
            height,
            width,
            batch: s.batch,
            latents: None,
            decode: DecodeParts { sliced: false, tiled: false },
        };
        Ok(self.pipeline.generate(unet, &options, &mut |_| ())?.pictures)
    }

    /// Mean and standard error over the points.
    fn joint_output_loss(&self, set: &CalibrationSet, student: &UNet) -> anyhow::Result<(f64, f64)> {
        let teacher = self.pipeline.unet();
        let mut losses: Vec<f64> = Vec::with_capacity(set.len());
        for (start, len) in set.batches(self.settings.batch) {
            let b = set.batch(start, len, teacher.device(), teacher.kind())?;
            let diff = tch::no_grad(|| -> unet::Result<_> {
                let a = teacher.forward(&b.x_t, &b.timesteps, &b.cond)?.to_kind(Kind::Double);
                Ok(a - student.forward(&b.x_t, &b.timesteps, &b.cond)?.to_kind(Kind::Double))
            })?;
            losses.extend(Vec::<f64>::try_from(diff.square().flatten(1, -1).mean_dim([1i64].as_slice(), false, Kind::Double))?);
        }
        let n = losses.len() as f64;
        let mean = losses.iter().sum::<f64>() / n;
        let variance = losses.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        Ok((mean, (variance / n).sqrt()))
    }
}

const LOG: &str = "validation.jsonl";
/// Pixels between two pictures.
const GAP: u32 = 2;

impl Validation for Validator<'_> {
    fn every(&self) -> u64 {
        self.settings.every
    }

    fn is_done(&self, step: u64) -> bool {
        self.rows.iter().any(|row| row.step == step)
    }

    fn validate(&mut self, step: u64, weights: Tensors, mut events: Option<&mut EventWriter>) -> anyhow::Result<()> {
        let kind = self.pipeline.unet().kind();
        let weights = match self.lora {
            Some(lora) => lora.merge(&weights)?,
            None => weights,
        };
        let weights = weights.into_iter().map(|(name, t)| (name, t.detach().to_kind(kind))).collect();
        let student = UNet::from_weights(self.student.config(), Weights::from_tensors(weights), self.student.removed())?;
        let mut row = Row { step, joint_output_loss: None, standard_error: None, pictures: None };
        if let Some(set) = &self.held_out {
            let (loss, error) = self.joint_output_loss(set, &student)?;
            (row.joint_output_loss, row.standard_error) = (Some(loss), Some(error));
            if let Some(events) = &mut events {
                events.scalars(step, &[("validation/joint_output_loss", loss)])?;
            }
        }
        if !self.settings.prompts.is_empty() {
            if self.of_teacher.is_none() {
                self.of_teacher = Some(self.draw(self.pipeline.unet())?);
            }
            let grid = grid(&[self.of_teacher.as_deref().unwrap_or_default(), &self.draw(&student)?]);
            let name = format!("validation/step-{step:08}.png");
            prepare_dir(&self.out.join("validation"))?;
            let text = BTreeMap::from([
                ("step".to_string(), step.to_string()),
                ("rows".to_string(), "teacher, student".to_string()),
                ("prompts".to_string(), serde_json::to_string(&self.settings.prompts)?),
            ]);
            write_png(self.out.join(&name), &grid, &text)?;
            if let Some(events) = &mut events {
                events.picture(step, "validation/teacher above student", grid.dimensions(), &encode_png(&grid, &text)?)?;
            }
            row.pictures = Some(name);
        }
        tracing::info!(step, joint_output_loss = row.joint_output_loss, "validation");
        self.rows.push(row);
        let lines: Vec<String> = self.rows.iter().map(serde_json::to_string).collect::<serde_json::Result<_>>()?;
        let path = self.out.join(LOG);
        let text = lines.join("\n") + "\n";
        prune_core::file::write_bytes(&path, text.as_bytes()).with_context(|| format!("{} cannot be written", path.display()))
    }
}

/// Rows of pictures of one size.
fn grid(rows: &[&[RgbImage]]) -> RgbImage {
    let (w, h) = rows.first().and_then(|row| row.first()).map_or((1, 1), RgbImage::dimensions);
    let columns = rows.iter().map(|row| row.len()).max().unwrap_or(1) as u32;
    let side = |n: u32, size: u32| n * size + n.saturating_sub(1) * GAP;
    let mut out = RgbImage::from_pixel(side(columns, w), side(rows.len() as u32, h), image::Rgb([255; 3]));
    for (y, row) in (0..).zip(rows) {
        for (x, picture) in (0..).zip(row.iter()) {
            replace(&mut out, picture, x * i64::from(w + GAP), y * i64::from(h + GAP));
        }
    }
    out
}
