//! The whole method in Rust, without the command: calibrate, score, plan, prune, distill, evaluate, report.
//!
//! `cargo run -p report --example whole_method -- assets/tiny-sdxl FOLDER` writes a run folder with its report. Samples, steps and
//! images are so few that it takes seconds; its numbers mean nothing.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use artifact::Document;
use data::{CalibrationOptions, CalibrationPoints, CalibrationSet, Encoders, calibrate};
use diffusion::{DecodeParts, SamplerKind};
use distill::{Control, FeatureLosses, Session, SessionOptions, Settings, StudentSource};
use eval::{Drawing, Evaluation, EvaluationOptions, ImageScores, Prompts, SamplingOptions, own_clip_metrics};
use prune_core::audit::{DrawnSet, MeasureOptions, measure_sets};
use prune_core::{Budget, Constraints, LayerTable, Plan, solve};
use report::{Results, RunDir, WriteOptions};
use serde_json::json;
use tch::{Device, Kind};
use unet::scoring::{MAGNITUDE, OUTPUT_LOSS, ScoringOptions, UNetPasses, score};
use unet::{Granularity, Inspection, JointFile, JointRow, ModelSource, TableSizes, UNet};

type Done<T> = Result<T, Box<dyn Error>>;

const DEVICE: Device = Device::Cpu;
const KIND: Kind = Kind::Float;
/// Plans are named by what they minimise and by the share of the parameters that goes.
const PLAN: &str = "output_loss-0.3";

fn main() -> Done<()> {
    let mut args = std::env::args().skip(1).map(PathBuf::from);
    let (Some(model), Some(run)) = (args.next(), args.next()) else { return Err("name a model and the folder to write".into()) };
    let results = whole_method(&model, &run)?;
    println!("{}: {} U-Nets compared, see report.html", run.display(), results.unets.len());
    Ok(())
}

/// Every stage leaves its file in the run folder, as the commands do; the report reads them all.
pub fn whole_method(model: &Path, run: &Path) -> Done<Results> {
    for folder in ["plans", "scores", "distill/normalized", "work"] {
        std::fs::create_dir_all(run.join(folder))?;
    }
    // 1. What can be removed, and what it costs.
    let source = ModelSource::open(model)?;
    let inspection = diffusion::inspect(&source, TableSizes::own(Granularity::Branch))?;
    inspection.write(&run.join(Inspection::FILE))?;
    let table = inspection.table;

    // 2. Points to score on, and others to hold plans against.
    let (calibration, held_out) = (points(model, 1)?, points(model, 2)?);
    calibration.save(run.join("calibration.safetensors"))?;
    held_out.save(run.join("heldout.safetensors"))?;

    // 3. What each layer's removal does, alone.
    let unet = UNet::open(source.unet(), DEVICE, KIND)?;
    let mut options = ScoringOptions::default();
    options.out = Some(run.join("scores"));
    options.samples_seed = Some(calibration.seed);
    options.settings = BTreeMap::from([("timestep_bins".into(), json!(calibration.num_bins))]);
    let scores = score(&unet, &table, Some(&calibration.calibration()?), &[OUTPUT_LOSS, MAGNITUDE], &options, &mut |_| Done::Ok(()))?;

    // 4. The set that costs least among all that remove three tenths of the parameters, and what it really costs.
    let plan = solve(&scores[0], &Budget::params_ratio(0.3), &Constraints::none())?;
    let file = run.join("plans").join(format!("{PLAN}.json"));
    plan.write(&file)?;
    joint_loss(&unet, &table, &held_out, &plan, &file, run)?.write(&run.join(JointFile::FILE))?;

    // 5. The U-Net without these layers, and the same retrained under its teacher.
    let pruned = run.join("models").join(PLAN).join("unet");
    unet.prune(&plan.removal_set())?.save(&pruned, None, &BTreeMap::new())?;
    distill(model, run, &plan, &file)?;

    // 6. Images of all three from the same prompts and seeds, compared.
    let (images, student) = (run.join("images"), run.join("distill/normalized/unet"));
    let unets = [("teacher", None), (PLAN, Some(pruned.as_path())), ("normalized", Some(student.as_path()))];
    for (name, unet) in unets {
        draw(model, unet, &images.join(name))?;
    }
    evaluate(model, run, &unets.map(|(name, _)| name))?;

    // 7. All of it on one page.
    Ok(report::write(&RunDir::open(run)?, &run.join("report.html"), &WriteOptions::default())?)
}

fn points(model: &Path, seed: u64) -> Done<CalibrationSet> {
    let encoders = Encoders::open(model, DEVICE, KIND)?;
    let options = CalibrationOptions { bins: 4, seed, batch: 8 };
    calibrate(&encoders, &CalibrationPoints::Scenes(8), &options, &mut |_| Done::Ok(()))
}

fn joint_loss(unet: &UNet, table: &LayerTable, points: &CalibrationSet, plan: &Plan, file: &Path, run: &Path) -> Done<JointFile> {
    let mut passes = UNetPasses::model(unet, table, points.calibration()?, &[OUTPUT_LOSS])?;
    let set = DrawnSet { stratum: PLAN.into(), removed: plan.removal_set() };
    let measured = measure_sets(&mut passes, &[set], &MeasureOptions::new(0..points.len()))?;
    let row = |set: &prune_core::audit::MeasuredSet| -> Done<JointRow> {
        Ok(JointRow {
            plan: set.stratum.clone(),
            plan_sha256: artifact::file_sha256(file)?,
            params_ratio: plan.params_ratio,
            criterion: plan.criterion.clone(),
            predicted: plan.predicted,
            losses: set.losses.clone(),
        })
    };
    Ok(JointFile {
        fingerprint: table.fingerprint().into(),
        calibration_sha256: artifact::file_sha256(&run.join("heldout.safetensors"))?,
        samples: points.len(),
        plans: measured.iter().map(row).collect::<Done<_>>()?,
    })
}

fn distill(model: &Path, run: &Path, plan: &Plan, file: &Path) -> Done<()> {
    let settings: Settings = serde_json::from_value(json!({
        "taps": "stages",
        "losses": {
            "task_weight": 1.0, "output_weight": 1.0, "feature_weight": 1.0,
            "feature_loss": "normalized", "norm_power": 2, "norm_scope": "sample"
        },
        "trainer": {
            "steps": 4, "batch": 4, "lr": 1e-4, "warmup": 1, "lr_schedule": "cosine", "lr_end_ratio": 0.1, "beta1": 0.9, "beta2": 0.99,
            "weight_decay": 0.01, "clip_norm": 1.0, "ema_decay": 0.0, "seed": 1, "compute": "f32", "log_every": 2, "checkpoint_every": 4
        },
        "data": { "source": "scenes", "seed": 3, "count": 16, "caption_dropout": 0.1 }
    }))?;
    let student = StudentSource::Without {
        removed: plan.removal_set(),
        identity: artifact::file_sha256(file)?,
        plan: plan.to_json()?,
        name: PLAN.into(),
    };
    let options = SessionOptions {
        model: model.into(),
        student,
        base: run.into(),
        out: run.join("distill/normalized"),
        work: run.join("work"),
        device: DEVICE,
        group: None,
        feature_losses: FeatureLosses::builtin(),
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
        guidance: 2.0,
        sampler: SamplerKind::Ddim,
        karras: false,
        clip_skip: 0,
        size: None,
        decode: DecodeParts::default(),
    };
    let prompts = Prompts::of_scenes(5, 4)?;
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

fn evaluate(model: &Path, run: &Path, unets: &[&str; 3]) -> Done<()> {
    let folder = |name: &str| run.join("images").join(name);
    let mut evaluation = Evaluation::new(unets[0], folder(unets[0]));
    for name in &unets[1..] {
        evaluation.add_unet(name, folder(name))?;
    }
    for metric in own_clip_metrics(model, DEVICE, 8)? {
        evaluation.add_metric(metric)?;
    }
    evaluation.compare(unets[2], unets[1])?;
    let options = EvaluationOptions { batch: 8, seed: 0, gallery: 4, base: run.into() };
    let mut kept = ImageScores::open(&run.join("image_scores.json"))?;
    let found = evaluation.run(&options, &mut kept, |_| Done::Ok(()))?;
    found.per_prompt.write(&run.join("per_prompt.json"))?;
    Ok(found.file.write(&run.join("eval.json"))?)
}
