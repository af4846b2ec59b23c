//! Validation during distillation: the joint output loss on held-out points, and images of fixed prompts and seeds with the
//! teacher's above the student's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::CalibrationSet;
use diffusion::images::{encode_png, write_png};
use diffusion::{DecodeParts, GenerateOptions, Pipeline, SamplerKind};
use image::RgbImage;
use image::imageops::replace;
use serde::{Deserialize, Serialize};
use tch::Kind;
use unet::UNet;
use unet::weights::{Tensors, Weights};

use crate::error::{Error, Result};
use crate::lora::Lora;
use crate::train::{EventWriter, Validation};

/// The table `[validation]` of the settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationSettings {
    /// Steps between two validations.
    pub every: u64,
    /// Prompts of the images.
    #[serde(default)]
    pub prompts: Vec<String>,
    /// Seed of the first image; the next ones count up.
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
    /// Points and images computed at once.
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

impl ValidationSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first setting out of range.
    pub fn check(&self) -> Result<()> {
        for (key, value) in [("every", self.every), ("steps", self.steps as u64), ("batch", self.batch as u64)] {
            if value == 0 {
                return Err(Error::Config { key: format!("validation.{key}"), expected: "at least 1".into(), got: "0".into() });
            }
        }
        if self.prompts.is_empty() && self.held_out.is_none() {
            let (key, expected) = ("validation".into(), "prompts, held_out or both".into());
            return Err(Error::Config { key, expected, got: "neither".into() });
        }
        Ok(())
    }
}

/// One line of `validation.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationRow {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean over the held-out points of the squared difference of the outputs of student and teacher.
    pub joint_output_loss: Option<f64>,
    /// Its standard error.
    pub standard_error: Option<f64>,
    /// The image, relative to the run's folder.
    #[serde(alias = "pictures")]
    pub images: Option<String>,
}

/// Validates one student.
pub(super) struct Validator<'a> {
    settings: &'a ValidationSettings,
    pipeline: &'a Pipeline,
    student: &'a UNet,
    lora: Option<&'a Lora>,
    out: &'a Path,
    held_out: Option<CalibrationSet>,
    rows: Vec<ValidationRow>,
    of_teacher: Option<Vec<RgbImage>>,
}

impl<'a> Validator<'a> {
    /// Opens what the settings name, relative to `base`, for a run in `out` that goes on at the step `resumed`, if it does.
    pub fn open(
        settings: &'a ValidationSettings,
        base: &Path,
        pipeline: &'a Pipeline,
        (student, lora): (&'a UNet, Option<&'a Lora>),
        out: &'a Path,
        resumed: Option<u64>,
    ) -> Result<Self> {
        let held_out = settings.held_out.as_ref().map(|path| CalibrationSet::open(base.join(path))).transpose()?;
        // Lines of steps that were lost with the process are written again.
        let text = std::fs::read_to_string(out.join(LOG)).unwrap_or_default();
        let rows = text.lines().filter_map(|line| serde_json::from_str::<ValidationRow>(line).ok());
        let rows = rows.filter(|row| resumed.is_some_and(|step| row.step <= step)).collect();
        Ok(Self { settings, pipeline, student, lora, out, held_out, rows, of_teacher: None })
    }

    fn draw(&self, unet: &UNet) -> Result<Vec<RgbImage>> {
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
        Ok(self.pipeline.generate(unet, &options, &mut |_| ())?.images)
    }

    /// Mean and standard error over the points.
    fn joint_output_loss(&self, set: &CalibrationSet, student: &UNet) -> Result<(f64, f64)> {
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
/// Pixels between two images.
const GAP: u32 = 2;

impl Validation for Validator<'_> {
    fn every(&self) -> u64 {
        self.settings.every
    }

    fn is_done(&self, step: u64) -> bool {
        self.rows.iter().any(|row| row.step == step)
    }

    fn validate(&mut self, step: u64, weights: Tensors, events: &mut EventWriter) -> Result<()> {
        let student = self.student_with(weights)?;
        let mut row = ValidationRow { step, joint_output_loss: None, standard_error: None, images: None };
        if let Some(set) = &self.held_out {
            let (loss, error) = self.joint_output_loss(set, &student)?;
            (row.joint_output_loss, row.standard_error) = (Some(loss), Some(error));
            events.scalars(step, &[("validation/joint_output_loss", loss)])?;
        }
        if !self.settings.prompts.is_empty() {
            row.images = Some(self.save_images(step, &student, events)?);
        }
        tracing::info!(step, joint_output_loss = row.joint_output_loss, "validation");
        self.rows.push(row);
        let lines: Vec<String> = self.rows.iter().map(|row| serde_json::to_string(row).expect("a plain struct is JSON")).collect();
        Ok(artifact::write_bytes(&self.out.join(LOG), (lines.join("\n") + "\n").as_bytes())?)
    }
}

impl Validator<'_> {
    /// The student on the trained weights, in the type that the teacher computes in.
    fn student_with(&self, weights: Tensors) -> Result<UNet> {
        let kind = self.pipeline.unet().kind();
        let weights = match self.lora {
            Some(lora) => lora.merge(&weights)?,
            None => weights,
        };
        let weights = weights.into_iter().map(|(name, t)| (name, t.detach().to_kind(kind))).collect();
        Ok(UNet::from_weights(self.student.config(), Weights::from_tensors(weights), self.student.removed())?)
    }

    /// Draws the prompts, writes them below the teacher's, and returns the file's name in the run's folder.
    fn save_images(&mut self, step: u64, student: &UNet, events: &mut EventWriter) -> Result<String> {
        if self.of_teacher.is_none() {
            self.of_teacher = Some(self.draw(self.pipeline.unet())?);
        }
        let grid = grid(&[self.of_teacher.as_deref().unwrap_or_default(), &self.draw(student)?]);
        let name = format!("validation/step-{step:08}.png");
        let folder = self.out.join("validation");
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let text = BTreeMap::from([
            ("step".to_string(), step.to_string()),
            ("rows".to_string(), "teacher, student".to_string()),
            ("prompts".to_string(), serde_json::to_string(&self.settings.prompts).expect("strings are JSON")),
        ]);
        write_png(self.out.join(&name), &grid, &text)?;
        events.image(step, "validation/teacher above student", grid.dimensions(), &encode_png(&grid, &text)?)?;
        Ok(name)
    }
}

/// Rows of images of one size.
fn grid(rows: &[&[RgbImage]]) -> RgbImage {
    let (w, h) = rows.first().and_then(|row| row.first()).map_or((1, 1), RgbImage::dimensions);
    let columns = rows.iter().map(|row| row.len()).max().unwrap_or(1) as u32;
    let side = |n: u32, size: u32| n * size + n.saturating_sub(1) * GAP;
    let mut out = RgbImage::from_pixel(side(columns, w), side(rows.len() as u32, h), image::Rgb([255; 3]));
    for (y, row) in (0..).zip(rows) {
        for (x, image) in (0..).zip(row.iter()) {
            replace(&mut out, image, x * i64::from(w + GAP), y * i64::from(h + GAP));
        }
    }
    out
}
