//! A made-up but plausible results set for tests of the files and the page. Its numbers mean nothing and appear nowhere else.

use std::collections::BTreeMap;
use std::path::Path;

use distill::{LossConfig, TrainerConfig};
use eval::{
    Bootstrap, CategoryRow, CellCheck, Footprint, Gallery, GalleryCell, GalleryRow, Hardware, ImageTimes, KindAccuracy, LatencyRow,
    MetricInfo, PeakMemory, PerPrompt, Protocol, StageTime, Timings, accuracy_by_kind, check_image, compare, metric_value,
};
use prune_core::audit::{Audit, AuditFile, AuditStats, JointLoss, MeasuredSet, PartSlope, SetSize};
use prune_core::score::{LayerScore, ScoresParts};
use prune_core::search::PlanBudget;
use prune_core::table::{Cost, Layer, TableParts};
use prune_core::{LayerTable, Plan, Scores};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use report::{
    AuditResult, Command, CriterionScores, DistillRun, FrontCurve, LossPoint, PlanRow, Provenance, Results, Role, UNetResult, assess,
};
use scenes::{Scene, Split, render};
use serde_json::json;
use unet::Inspection;

const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 500, level: 0.95, seed: 7 };
const PROMPTS: usize = 48;
const RATIOS: [f64; 3] = [0.3, 0.5, 0.6];

/// Transformer depths of the levels; `[0, 1, 2]` is the embedded model's form, `[0, 2, 10]` SDXL's.
pub fn results(depths: [usize; 3], run_dir: &Path) -> Results {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let table = table(depths);
    let (total, total_macs) = (table.total_params(), table.total_macs());
    let criteria = criteria(&table, &mut rng);
    let plans = plans(&table, &criteria, &mut rng);
    let distillations = ["plain", "normalized"].map(|f| distillation(f, &mut rng)).into();
    let (unets, comparisons) = quality(total, total_macs, &mut rng);
    let by_category = by_category(&unets);
    let mut results = Results {
        title: "LAPTOP-Diff on tiny-sdxl: a sample with made-up numbers".into(),
        audit: Some(audit(&table, &criteria, &mut rng)),
        front: FrontCurve::of(criteria[0].scores()),
        model: Inspection {
            family: "SDXL".into(),
            prediction_type: Some("v_prediction".into()),
            num_train_timesteps: Some(1000),
            latent: [16, 16],
            image: Some([64, 64]),
            unet_sha256: "5e".repeat(32),
            table,
        },
        criteria,
        plans,
        headline_plan: Some("output_loss-0.5".into()),
        distillations,
        protocol: Some(Protocol {
            prompts: PROMPTS,
            images_per_prompt: 1,
            prompt_source: "held-out scenes".into(),
            sampler: "ddim".into(),
            steps: 25,
            guidance: 3.0,
            seed: 1000,
            size: [64, 64],
            bootstrap: BOOTSTRAP,
        }),
        metrics: metrics(),
        unets,
        by_category,
        comparisons,
        published: Vec::new(),
        gallery: Some(gallery(run_dir)),
        claims: Vec::new(),
        provenance: Provenance {
            commands: ["score", "audit", "plan", "prune", "distill", "generate", "eval", "report"]
                .map(|s| Command { stage: s.into(), line: format!("laptop-diff {s} --model assets/tiny-sdxl --out runs/tiny/{s}") })
                .into(),
            seeds: BTreeMap::from([("calibration".into(), 1), ("distillation".into(), 2), ("images".into(), 1000)]),
            config: BTreeMap::from([("distill/plain/distill.json".into(), "{\n  \"steps\": 1000\n}".into())]),
            versions: BTreeMap::from([("laptop-diff".into(), "0.1.0".into()), ("libtorch".into(), "2.11.0".into())]),
            hashes: BTreeMap::from([
                ("scores.json".into(), "ab".repeat(32)),
                ("unet/diffusion_pytorch_model.safetensors".into(), "5e".repeat(32)),
            ]),
        },
    };
    results.claims = assess(&results);
    results
}

/// Made-up times for [`results`].
pub fn timings() -> Timings {
    let latency = [("teacher", 0.0482, 1.0), ("pruned", 0.0301, 1.6), ("plain", 0.0300, 1.61), ("normalized", 0.0302, 1.6)];
    let mut timings = Timings::new(Hardware {
        platform: "linux x86_64".into(),
        cpu: "A Processor 1234 @ 2.50GHz".into(),
        logical_cpus: 2,
        torch_threads: 2,
        memory_bytes: Some(16 << 30),
        device: "cpu, f32".into(),
    });
    timings.stages = [("score", 141.0), ("audit", 96.2), ("distill plain", 201.0), ("distill normalized", 204.0), ("generate", 130.0)]
        .map(|(stage, seconds)| StageTime { stage: stage.into(), seconds, peak_rss_bytes: Some(900 << 20) })
        .into();
    timings.latency = latency
        .map(|(unet, s, speedup)| LatencyRow { unet: unet.into(), batch: 1, n: 40, median_s: s, q1_s: 0.97 * s, q3_s: 1.04 * s, speedup })
        .into();
    // Of the plan alone, whose times its students have.
    let rows = [("teacher", 1.93, 1.0), ("output_loss-0.5", 1.22, 1.58)].map(|(unet, s, speedup)| LatencyRow {
        unet: unet.into(),
        batch: 1,
        n: 3,
        median_s: s,
        q1_s: 0.98 * s,
        q3_s: 1.03 * s,
        speedup,
    });
    timings.image = Some(ImageTimes { sampler: "ddim".into(), steps: 25, guidance: 3.0, size: [64, 64], rows: rows.into() });
    let peak = |mib: u64| Some(PeakMemory { resident_bytes: mib << 20, before_bytes: 90 << 20, device_bytes: None });
    timings.footprints = [("teacher", 2_000_000, 171), ("output_loss-0.5", 1_000_000, 152)]
        .map(|(unet, params, mib)| Footprint {
            unet: unet.into(),
            params,
            macs: 100 * params,
            latent: [16, 16],
            unet_file_bytes: 2 * params,
            model_file_bytes: Some(2 * params + (3 << 20)),
            call: peak(mib),
            image: peak(mib + 30),
        })
        .into();
    timings
}

fn table(depths: [usize; 3]) -> LayerTable {
    let widths = [32u64, 64, 128];
    let mut layers = Vec::new();
    let mut push = |stage: &str, id: String, kind: &str, params: u64, side: u64| {
        layers.push(Layer { id: id.into(), kind: kind.into(), stage: stage.into(), params, macs: params * side * side });
    };
    let mut unit = |stage: &str, i: usize, c: u64, depth: usize, side: u64| {
        push(stage, format!("{stage}.resnets.{i}"), "resnet", 18 * c * c + 130 * c, side);
        for k in 0..depth {
            let block = format!("{stage}.attentions.{i}.transformer_blocks.{k}");
            push(stage, format!("{block}.attn1"), "self_attention", 4 * c * c + 3 * c, side);
            push(stage, format!("{block}.attn2"), "cross_attention", 2 * c * c + 448 * c + 3 * c, side);
            push(stage, format!("{block}.ff"), "feed_forward", 12 * c * c + 11 * c, side);
        }
    };
    for (level, c) in widths.iter().enumerate() {
        (0..2).for_each(|i| unit(&format!("down_blocks.{level}"), i, *c, depths[level], 16 >> level));
    }
    unit("mid_block", 0, 128, depths[2], 4);
    unit("mid_block", 1, 128, 0, 4);
    for (level, c) in widths.iter().rev().enumerate() {
        (0..3).for_each(|i| unit(&format!("up_blocks.{level}"), i, *c, depths[2 - level], 4 << level));
    }
    LayerTable::new(TableParts {
        model: "tiny-sdxl".into(),
        fingerprint: "a sample".into(),
        total_params: layers.iter().map(|l| l.params).sum::<u64>() * 108 / 100,
        total_macs: layers.iter().map(|l| l.macs).sum::<u64>() * 112 / 100,
        layers,
        shared_costs: Vec::new(),
    })
    .unwrap()
}

fn criteria(table: &LayerTable, rng: &mut ChaCha8Rng) -> Vec<CriterionScores> {
    let truth: Vec<f64> = table.layers().iter().map(|_| 10f64.powf(rng.random_range(-3.4..-0.8))).collect();
    ["output_loss", "task_loss_delta", "clip_score", "magnitude", "taylor"]
        .into_iter()
        .enumerate()
        .map(|(k, criterion)| {
            let value = |t: f64, rng: &mut ChaCha8Rng| match k {
                0 => t,
                1 | 2 => 0.5 * t - 0.01 + rng.random_range(-0.02..0.02),
                3 => rng.random_range(0.01..0.05),
                _ => t.sqrt() * rng.random_range(0.3..3.0),
            };
            let score = |t: &f64, rng: &mut ChaCha8Rng| {
                let mean = value(*t, rng);
                match k {
                    3 => LayerScore::single(mean),
                    // Two samples in each of five bins, but none in the last where the output hardly changes.
                    0 => {
                        let filled = if mean > 1e-3 { 5 } else { 4 };
                        let samples = (0..filled).flat_map(|b| [0.9, 1.1].map(|x| x * mean * (2.2 - 0.4 * f64::from(b))));
                        LayerScore::from_samples(samples.collect()).unwrap()
                    }
                    _ => LayerScore::from_samples(vec![0.95 * mean - 1e-4, 1.05 * mean + 1e-4]).unwrap(),
                }
            };
            let layers = table.layers().iter().zip(&truth).map(|(layer, t)| (layer.id.clone(), score(t, rng))).collect();
            let bins = match k {
                0 => vec![0, 0, 1, 1, 2, 2, 3, 3, 4, 4],
                3 => Vec::new(),
                _ => vec![0, 0],
            };
            let settings = if k == 0 { BTreeMap::from([("timestep_bins".into(), json!(5))]) } else { BTreeMap::new() };
            let parts =
                ScoresParts { table: table.clone(), criterion: criterion.into(), seed: Some(1), settings, first_sample: 0, bins, layers };
            CriterionScores::new(Scores::new(parts).unwrap(), Some(1000)).unwrap()
        })
        .collect()
}

fn audit(table: &LayerTable, criteria: &[CriterionScores], rng: &mut ChaCha8Rng) -> AuditResult {
    let random = RATIOS.into_iter().flat_map(|ratio| [SetSize::ParamsRatio(ratio); 12]);
    let sizes: Vec<SetSize> = random.chain(RATIOS.into_iter().flat_map(|ratio| [SetSize::NearOptimal(ratio); 3])).collect();
    let measured = criteria.iter().filter(|c| c.id() != "magnitude");
    let mut sets: Vec<MeasuredSet> = Vec::new();
    for (i, size) in sizes.iter().enumerate() {
        let (SetSize::ParamsRatio(ratio) | SetSize::NearOptimal(ratio)) = size else { continue };
        let removed = (0..(ratio * 12.0) as usize).map(|k| table.layers()[(k + i) % table.len()].id.clone()).collect();
        sets.push(MeasuredSet { stratum: size.stratum(), removed, losses: BTreeMap::new() });
    }
    let stats = AuditStats { sets: 12, pearson: Some(0.93), spearman: Some(0.91), slope: Some(1.12), line: None };
    let part = |share, slope| PartSlope { share, slope, standard_error: 0.04 };
    let kinds = [("resnet", 0.4, 1.05), ("self_attention", 0.2, 1.3), ("cross_attention", 0.2, 1.1), ("feed_forward", 0.2, 1.2)];
    let mut audits = Vec::new();
    for c in measured {
        let below = if c.id() == "task_loss_delta" { 0.4 } else { 0.0 };
        let mut audit = Audit {
            criterion: c.id().into(),
            against: c.id().into(),
            overall: stats.clone(),
            strata: sizes.iter().map(|size| (size.stratum(), stats.clone())).collect(),
            kinds: kinds.map(|(kind, share, slope)| (kind.to_owned(), part(share, slope))).into(),
            depths: BTreeMap::from([("1 of 4".to_owned(), part(0.6, 1.0)), ("2 of 4".to_owned(), part(0.4, 1.2))]),
            predicted: Vec::new(),
            measured: Vec::new(),
        };
        for (set, size) in sets.iter_mut().zip(&sizes) {
            let (predicted, mean) = match size {
                SetSize::ParamsRatio(ratio) => {
                    let predicted = ratio * rng.random_range(0.6..1.6) - below;
                    (predicted, predicted * rng.random_range(0.8..1.5))
                }
                SetSize::NearOptimal(ratio) => (0.3 * ratio, 0.33 * ratio),
                _ => continue,
            };
            audit.predicted.push(predicted);
            audit.measured.push(mean);
            set.losses.insert(c.id().into(), JointLoss { mean, standard_error: Some(0.02) });
        }
        audits.push(audit);
    }
    AuditResult::new(AuditFile::new(table, 3, 0..64, audits, sets)).unwrap()
}

fn plans(table: &LayerTable, criteria: &[CriterionScores], rng: &mut ChaCha8Rng) -> Vec<PlanRow> {
    let total = table.total_params();
    let mut plans = Vec::new();
    for ratio in RATIOS {
        let kinds = criteria
            .iter()
            .map(|c| (c.id().to_owned(), Some(c), "exact", None))
            .chain((0..3).map(|s| (format!("random-{s}"), None, "random", Some(s))))
            .chain([("bk-sdm".to_owned(), None, "bk-sdm", None)]);
        for (i, (name, criterion, method, seed)) in kinds.enumerate() {
            let mut order: Vec<usize> = (0..table.len()).collect();
            match criterion {
                Some(c) => order.sort_by(|a, b| c.values()[*a].total_cmp(&c.values()[*b])),
                None => order.sort_by_key(|k| (k * 7919 + 31 * i) % 1009),
            }
            let (mut removed, mut gone) = (Vec::new(), 0);
            for k in order {
                if (gone as f64) < ratio * total as f64 {
                    removed.push(table.layers()[k].id.clone());
                    gone += table.layers()[k].params;
                }
            }
            let mut plan = Plan::from_removed(table, method, removed).unwrap();
            plan.criterion = criterion.map(|c| c.id().into());
            plan.predicted = criterion.map(|c| c.scores().predicted(&plan.removal_set()).unwrap());
            plan.budget = Some(PlanBudget { cost: Cost::Params, ratio: Some(ratio), required: (ratio * total as f64) as u64 });
            plan.seed = seed;
            let mut row = PlanRow::new(format!("{name}-{ratio}"), plan, total, Some(criteria[0].scores()), None).unwrap();
            let predicted = row.predicted_output_loss.unwrap();
            row.joint = Some(JointLoss { mean: predicted * rng.random_range(1.0..1.4), standard_error: Some(0.03 * predicted) });
            plans.push(row);
        }
    }
    plans
}

/// Settings of the loss, as they stand in a settings file.
fn losses(feature_loss: &str) -> LossConfig {
    serde_json::from_value(json!({
        "task_weight": 1.0, "output_weight": 1.0, "feature_weight": 1.0, "feature_loss": feature_loss, "norm_power": 2, "norm_scope": "sample"
    }))
    .unwrap()
}

fn trainer() -> TrainerConfig {
    serde_json::from_value(json!({
        "steps": 1000, "batch": 16, "lr": 3e-4, "warmup": 0, "lr_schedule": "constant", "lr_end_ratio": 1.0, "beta1": 0.9, "beta2": 0.999,
        "weight_decay": 0.01, "clip_norm": 1.0, "ema_decay": 0.0, "seed": 2, "compute": "f32", "log_every": 25, "checkpoint_every": 1000
    }))
    .unwrap()
}

/// The values of all prompts stand in for those of each category.
fn by_category(unets: &[UNetResult]) -> Vec<CategoryRow> {
    let rows = ["animals", "places"].into_iter().flat_map(|category| unets.iter().map(move |u| (category, u)));
    rows.map(|(category, u)| CategoryRow { category: category.into(), unet: u.name.clone(), metrics: u.metrics[..1].to_vec() }).collect()
}

fn distillation(name: &str, rng: &mut ChaCha8Rng) -> DistillRun {
    let normalized = name == "normalized";
    let terms =
        ["down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"].map(String::from);
    let point = |k: u64, rng: &mut ChaCha8Rng| {
        let fade = (-(k as f64) / 12.0).exp();
        let size = |i: usize| if normalized { 0.1 } else { [0.1, 0.2, 0.4, 9.0, 6.0, 1.0, 0.3][i] };
        let terms: Vec<f64> = (0..7).map(|i| size(i) * (0.3 + fade) * rng.random_range(0.8..1.2)).collect();
        let out_kd = if normalized { 0.02 } else { 0.025 } + 0.2 * fade * rng.random_range(0.9..1.1);
        let (task, feat_kd) = (0.11 + out_kd, terms.iter().sum());
        LossPoint { step: 25 * (k + 1), total: task + out_kd + feat_kd, task, out_kd, feat_kd, terms }
    };
    DistillRun {
        name: format!("{name}-0.5"),
        label: format!("{name} features"),
        plan: "output_loss-0.5".into(),
        losses: losses(name),
        trainer: trainer(),
        terms: terms.into(),
        curve: (0..40).map(|k| point(k, rng)).collect(),
    }
}

fn metrics() -> Vec<MetricInfo> {
    let metric = |id: &str, label: &str, higher_is_better, percent| MetricInfo {
        id: id.into(),
        label: label.into(),
        higher_is_better,
        percent,
        ratio_scale: id != "psnr_teacher",
        description: format!("What {label} means, and where it comes from."),
    };
    vec![
        metric("clip_score", "CLIP score", true, false),
        metric("prompts_correct", "prompts correct", true, true),
        metric("attributes", "attributes correct", true, true),
        metric("frechet_scenes", "Fréchet distance to scenes", false, false),
        metric("psnr_teacher", "PSNR to teacher, dB", true, false),
    ]
}

/// U-Net name, label, role, and how much worse than the teacher it is made.
const UNETS: [(&str, &str, Role, f64); 4] = [
    ("teacher", "teacher", Role::Teacher, 0.0),
    ("pruned", "pruned, not retrained", Role::Pruned, 0.5),
    ("plain", "plain features", Role::Student, 0.08),
    ("normalized", "normalized features", Role::Student, 0.04),
];

fn quality(params: u64, macs: u64, rng: &mut ChaCha8Rng) -> (Vec<UNetResult>, Vec<eval::Comparison>) {
    let mut table = PerPrompt::new((0..PROMPTS).map(|i| format!("prompt {i}")).collect());
    for (name, _, _, loss) in UNETS {
        let metrics = table.values.entry(name.into()).or_default();
        let mut fill = |id: &str, f: &mut dyn FnMut() -> f64| metrics.insert(id.into(), (0..PROMPTS).map(|_| f()).collect());
        fill("clip_score", &mut || 31.0 * (1.0 - loss * rng.random_range(0.3..1.4)) + rng.random_range(-1.0..1.0));
        fill("attributes", &mut || 1.0 - loss * rng.random_range(0.0..1.0));
        fill("prompts_correct", &mut || f64::from(u8::from(rng.random_range(0.0..1.0) > 0.06 + loss)));
        if loss > 0.0 {
            fill("psnr_teacher", &mut || 10.0 + 12.0 * (0.5 - loss) + rng.random_range(-2.0..2.0));
        }
        fill("frechet_scenes", &mut || 2.0 + 10.0 * loss + rng.random_range(-0.3..0.3));
    }
    let unet = |(name, label, role, _): (&str, &str, Role, f64)| UNetResult {
        name: name.into(),
        label: label.into(),
        role,
        plan: (role != Role::Teacher).then(|| "output_loss-0.5".into()),
        distillation: (role == Role::Student).then(|| format!("{name}-0.5")),
        params: if role == Role::Teacher { params } else { params / 2 },
        macs: if role == Role::Teacher { macs } else { macs * 6 / 10 },
        metrics: metrics()
            .iter()
            .filter(|m| table.values[name].contains_key(&m.id))
            .map(|m| {
                metric_value(&table, m, name, (role != Role::Teacher && m.id != "psnr_teacher").then_some("teacher"), &BOOTSTRAP).unwrap()
            })
            .collect(),
        by_kind: by_kind(role == Role::Teacher),
    };
    let comparisons = metrics().iter().map(|m| compare(&table, m, "normalized", "plain", &BOOTSTRAP).unwrap()).collect();
    (UNETS.map(unet).into(), comparisons)
}

fn by_kind(teacher: bool) -> Vec<KindAccuracy> {
    let scenes: Vec<Scene> = (0..24).map(|i| Scene::sample(3, i, Split::Train)).collect();
    let shown = |i: usize| if teacher || !i.is_multiple_of(3) { i } else { (i + 1) % scenes.len() };
    let checked: Vec<_> = (0..scenes.len()).map(|i| check_image(&scenes[i].spec.caption(), &image(&scenes[shown(i)])).unwrap()).collect();
    accuracy_by_kind(&checked, &(0..scenes.len()).collect::<Vec<_>>(), &BOOTSTRAP).unwrap()
}

fn image(scene: &Scene) -> image::RgbImage {
    image::RgbImage::from_raw(64, 64, render(scene, 64).unwrap().into_data()).unwrap()
}

/// Renders stand in for generated images: the teacher's right, some of the students' of the next scene.
fn gallery(run_dir: &Path) -> Gallery {
    let dir = run_dir.join("images");
    std::fs::create_dir_all(&dir).unwrap();
    let rows = (0..6usize).map(|i| {
        let scene = Scene::sample(3, i as u64, Split::Train);
        let prompt = scene.spec.caption();
        let cells = UNETS.iter().enumerate().map(|(k, (name, ..))| {
            let wrong = k == 1 || (k > 1 && (i + k).is_multiple_of(4));
            let shown = image(&Scene::sample(3, i as u64 + u64::from(wrong), Split::Train));
            let file = format!("images/{name}-{i}.png");
            shown.save(run_dir.join(&file)).unwrap();
            let checks: Vec<CellCheck> = check_image(&prompt, &shown).unwrap().checks;
            GalleryCell { image: file, checks, clip_score: Some(30.0 - k as f64) }
        });
        GalleryRow { cells: cells.collect(), prompt, seed: 1000 + i as u64 }
    });
    Gallery { unets: UNETS.map(|u| u.0.to_owned()).into(), rows: rows.collect() }
}
