//! A criterion, a feature loss and a metric of one's own, from outside the crates that use them. Each is named in one place, here,
//! and known by that name in files, tables and the report.
//!
//! `cargo run -p report --example own_parts -- assets/tiny-sdxl FOLDER` scores and plans by the criterion, retrains by the loss,
//! evaluates by the metric. Samples, steps and images are so few that it takes seconds; its numbers mean nothing.

use std::error::Error;
use std::ops::Range;
use std::path::{Path, PathBuf};

use artifact::Document;
use data::{CalibrationOptions, CalibrationPoints, CalibrationSet, Encoders, calibrate};
use diffusion::{DecodeParts, SamplerKind};
use distill::{Control, FeatureLoss, FeatureLossEntry, FeatureLosses, Session, SessionOptions, Settings, StudentSource};
use eval::{Drawing, Evaluation, EvaluationOptions, ImageScorer, ImageScores, Metric, MetricInfo, Prompts, SamplingOptions};
use image::RgbImage;
use prune_core::{Budget, Constraints, LayerTable, Plan, Scores, solve};
use report::{Results, RunDir, WriteOptions};
use serde_json::json;
use tch::{Device, Kind, Tensor};
use unet::scoring::{CustomLoss, ScoringOptions, score_model};
use unet::{Granularity, Inspection, ModelSource, TableSizes, UNet};

type Done<T> = Result<T, Box<dyn Error>>;

const DEVICE: Device = Device::Cpu;
const KIND: Kind = Kind::Float;
const PLAN: &str = "l1_loss-0.3";

/// The criterion: how much a layer's removal raises the mean absolute error of the U-Net's output.
fn l1_loss(unet: &UNet, points: &CalibrationSet, samples: Range<usize>) -> unet::Result<Vec<f64>> {
    let loss = || -> data::Result<Vec<f64>> {
        let of = points.batch(samples.start, samples.len(), DEVICE, KIND)?;
        let output = tch::no_grad(|| unet.forward(&of.x_t, &of.timesteps, &of.cond))?;
        let error = (output - of.target.unwrap_or(of.x_t)).abs();
        Ok(Vec::<f64>::try_from(error.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Double))?)
    };
    loss().map_err(|e| unet::Error::Criterion { id: "l1_loss".into(), reason: e.to_string() })
}

/// The feature loss: `E|f^T - f^S|`, which minds large features less than a square does.
struct AbsoluteLoss;

impl FeatureLoss for AbsoluteLoss {
    fn term(&mut self, _tap: &str, teacher: &Tensor, student: &Tensor) -> distill::Result<Tensor> {
        Ok((teacher.f_to_kind(Kind::Float)? - student.f_to_kind(Kind::Float)?).f_abs()?.f_mean(Kind::Float)?)
    }
}

fn feature_losses() -> FeatureLosses {
    let make = |_: &distill::LossConfig| Some(Box::new(AbsoluteLoss) as Box<dyn FeatureLoss>);
    FeatureLosses::builtin().with(FeatureLossEntry::new("absolute", "absolute features", "Absolute errors", make))
}

/// The metric: mean brightness, 0 to 1.
struct Brightness;

impl ImageScorer for Brightness {
    fn score(&self, images: &[RgbImage], _prompts: &[&str]) -> eval::Result<Vec<f64>> {
        let mean = |image: &RgbImage| image.as_raw().iter().map(|v| f64::from(*v)).sum::<f64>() / (255.0 * image.as_raw().len() as f64);
        Ok(images.iter().map(mean).collect())
    }
}

fn brightness() -> Metric {
    let info = MetricInfo {
        id: "brightness".into(),
        label: "brightness".into(),
        higher_is_better: true,
        percent: true,
        ratio_scale: true,
        description: "Mean of all channels, as a share of white.".into(),
    };
    Metric::per_image(info, Brightness)
}

fn main() -> Done<()> {
    let mut args = std::env::args().skip(1).map(PathBuf::from);
    let (Some(model), Some(run)) = (args.next(), args.next()) else { return Err("name a model and the folder to write".into()) };
    let results = own_parts(&model, &run)?;
    println!("{}: scored by {}, see report.html", run.display(), results.criteria[0].id());
    Ok(())
}

/// A run folder that is made by these parts.
pub fn own_parts(model: &Path, run: &Path) -> Done<Results> {
    for folder in ["plans", "scores", "distill/absolute", "work"] {
        std::fs::create_dir_all(run.join(folder))?;
    }
    let source = ModelSource::open(model)?;
    let inspection = diffusion::inspect(&source, TableSizes::own(Granularity::Branch))?;
    inspection.write(&run.join(Inspection::FILE))?;

    let scores = score(model, source.unet(), &inspection.table, run)?;
    let plan = solve(&scores, &Budget::params_ratio(0.3), &Constraints::none())?;
    plan.write(&run.join("plans").join(format!("{PLAN}.json")))?;
    distill(model, run, &plan)?;

    let (images, student) = (run.join("images"), run.join("distill/absolute/unet"));
    draw(model, None, &images.join("teacher"))?;
    draw(model, Some(&student), &images.join("absolute"))?;
    let mut evaluation = Evaluation::new("teacher", images.join("teacher"));
    evaluation.add_unet("absolute", images.join("absolute"))?;
    evaluation.add_metric(brightness())?;
    evaluation.compare("absolute", "teacher")?;
    let options = EvaluationOptions { batch: 8, seed: 0, gallery: 4, base: run.into() };
    let found = evaluation.run(&options, &mut ImageScores::open(&run.join("image_scores.json"))?, |_| Done::Ok(()))?;
    found.per_prompt.write(&run.join("per_prompt.json"))?;
    found.file.write(&run.join("eval.json"))?;

    let options = WriteOptions { headline: Some(PLAN.into()), model_cards: vec!["absolute".into()], ..WriteOptions::default() };
    Ok(report::write(&RunDir::open(run)?, &run.join("report.html"), &options)?)
}

fn score(model: &Path, unet: &Path, table: &LayerTable, run: &Path) -> Done<Scores> {
    let encoders = Encoders::open(model, DEVICE, KIND)?;
    let options = CalibrationOptions { bins: 2, seed: 1, batch: 4 };
    let points = calibrate(&encoders, &CalibrationPoints::Scenes(4), &options, &mut |_| Done::Ok(()))?;
    let unet = UNet::open(unet, DEVICE, KIND)?;
    let loss = |unet: &UNet, samples: Range<usize>| l1_loss(unet, &points, samples);
    let mut criterion = CustomLoss::new(&unet, table, "l1_loss", points.len(), loss);
    let mut options = ScoringOptions::default();
    (options.out, options.batch) = (Some(run.join("scores")), 4);
    Ok(score_model(&mut criterion, &options, &mut |_| Done::Ok(()))?.remove(0))
}

fn distill(model: &Path, run: &Path, plan: &Plan) -> Done<()> {
    let settings: Settings = serde_json::from_value(json!({
        "taps": "stages",
        "losses": {
            "task_weight": 1.0, "output_weight": 1.0, "feature_weight": 0.5,
            "feature_loss": "absolute", "norm_power": 2, "norm_scope": "sample"
        },
        "trainer": {
            "steps": 2, "batch": 4, "lr": 1e-4, "warmup": 1, "lr_schedule": "constant", "lr_end_ratio": 1.0, "beta1": 0.9, "beta2": 0.99,
            "weight_decay": 0.01, "clip_norm": 1.0, "ema_decay": 0.0, "seed": 1, "compute": "f32", "log_every": 1, "checkpoint_every": 2
        },
        "data": { "source": "scenes", "seed": 3, "count": 8, "caption_dropout": 0.1 }
    }))?;
    let student =
        StudentSource::Without { removed: plan.removal_set(), identity: "own parts".into(), plan: plan.to_json()?, name: PLAN.into() };
    let options = SessionOptions {
        model: model.into(),
        student,
        base: run.into(),
        out: run.join("distill/absolute"),
        work: run.join("work"),
        device: DEVICE,
        group: None,
        feature_losses: feature_losses(),
    };
    Session::open(settings, options)?.train(&mut |_| Done::Ok(Control::Continue))?;
    Ok(())
}

fn draw(model: &Path, unet: Option<&Path>, out: &Path) -> Done<()> {
    std::fs::create_dir_all(out)?;
    let sampling = SamplingOptions {
        negative: None,
        per_prompt: 1,
        seed: 0,
        steps: 2,
        guidance: 1.0,
        sampler: SamplerKind::Euler,
        karras: false,
        clip_skip: 0,
        size: None,
        decode: DecodeParts::default(),
    };
    let prompts = Prompts::of_texts("three texts", &["a red circle", "a blue square", "a green circle"].map(String::from));
    let drawing = Drawing {
        model: &model.into(),
        unet,
        prompts: &prompts,
        sampling: &sampling,
        batch: 4,
        out,
        latents: None,
        save_latents: None,
        offload: false,
        device: DEVICE,
        kind: KIND,
    };
    drawing.draw(|_| Done::Ok(()))?;
    Ok(())
}
