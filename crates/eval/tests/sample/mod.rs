//! A made-up but plausible results set for tests of the files and the page. Its numbers mean nothing and appear nowhere else.

use std::collections::BTreeMap;
use std::path::Path;

use eval::{
    Audit, AuditPoint, AuditStats, BinTable, Bootstrap, CategoryRow, CellCheck, Command, CriterionScores, DistillRun, FeatureLoss,
    Footprint, FrontCurve, Gallery, GalleryCell, GalleryRow, Hardware, KindAccuracy, LatencyRow, LayerRow, LossPoint, Measured, MetricInfo,
    ModelInfo, PartSlope, PeakMemory, PerPrompt, PictureTimes, PlanRow, Protocol, Provenance, Results, Role, ScoreRow, SetGroup, StageTime,
    Timings, UNetResult, Versioned, accuracy_by_kind, assess, check_picture, compare, metric_value,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scenes::{Scene, Split, render};

const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 500, level: 0.95, seed: 7 };
const PROMPTS: usize = 48;
const RATIOS: [f64; 3] = [0.3, 0.5, 0.6];

/// Transformer depths of the levels; `[0, 1, 2]` is the embedded model's form, `[0, 2, 10]` SDXL's.
pub fn results(depths: [usize; 3], run_dir: &Path) -> Results {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let layers = layers(depths);
    let total: u64 = layers.iter().map(|l| l.params).sum::<u64>() * 108 / 100;
    let total_macs: u64 = layers.iter().map(|l| l.macs).sum::<u64>() * 112 / 100;
    let criteria = criteria(&layers, &mut rng);
    let plans = plans(&layers, &criteria, total, &mut rng);
    let distillations = [FeatureLoss::Plain, FeatureLoss::Normalized].map(|f| distillation(f, &mut rng)).into();
    let (unets, comparisons) = quality(total, total_macs, &mut rng);
    let by_category = by_category(&unets);
    let mut results = Results {
        format: Results::FORMAT.into(),
        version: Results::VERSION,
        title: "LAPTOP-Diff on tiny-sdxl: a sample with made-up numbers".into(),
        model: ModelInfo {
            name: "tiny-sdxl".into(),
            family: "SDXL".into(),
            prediction_type: "v_prediction".into(),
            params: total,
            macs: total_macs,
            latent: [16, 16],
            picture: [64, 64],
            unet_sha256: "5e".repeat(32),
        },
        audits: audits(&criteria, &mut rng),
        front: Some(FrontCurve { criterion: criteria[0].criterion.clone(), points: front(&layers, &criteria[0]) }),
        layers,
        criteria,
        plans,
        headline_plan: Some("output-loss-0.5".into()),
        distillations,
        protocol: Some(Protocol {
            prompts: PROMPTS,
            pictures_per_prompt: 1,
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
            seeds: BTreeMap::from([("calibration".into(), 1), ("distillation".into(), 2), ("pictures".into(), 1000)]),
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
    let rows = [("teacher", 1.93, 1.0), ("output-loss-0.5", 1.22, 1.58)].map(|(unet, s, speedup)| LatencyRow {
        unet: unet.into(),
        batch: 1,
        n: 3,
        median_s: s,
        q1_s: 0.98 * s,
        q3_s: 1.03 * s,
        speedup,
    });
    timings.picture = Some(PictureTimes { sampler: "ddim".into(), steps: 25, guidance: 3.0, size: [64, 64], rows: rows.into() });
    let peak = |mib: u64| Some(PeakMemory { resident_bytes: mib << 20, before_bytes: 90 << 20, device_bytes: None });
    timings.footprints = [("teacher", 2_000_000, 171), ("output-loss-0.5", 1_000_000, 152)]
        .map(|(unet, params, mib)| Footprint {
            unet: unet.into(),
            params,
            macs: 100 * params,
            latent: [16, 16],
            unet_file_bytes: 2 * params,
            model_file_bytes: Some(2 * params + (3 << 20)),
            call: peak(mib),
            picture: peak(mib + 30),
        })
        .into();
    timings
}

fn layers(depths: [usize; 3]) -> Vec<LayerRow> {
    let widths = [32u64, 64, 128];
    let mut layers = Vec::new();
    let mut push = |id: String, kind: &str, params: u64, side: u64| {
        layers.push(LayerRow { id, kind: kind.into(), params, macs: params * side * side });
    };
    let mut unit = |stage: &str, i: usize, c: u64, depth: usize, side: u64| {
        push(format!("{stage}.resnets.{i}"), "resnet", 18 * c * c + 130 * c, side);
        for k in 0..depth {
            let block = format!("{stage}.attentions.{i}.transformer_blocks.{k}");
            push(format!("{block}.attn1"), "attn1", 4 * c * c + 3 * c, side);
            push(format!("{block}.attn2"), "attn2", 2 * c * c + 448 * c + 3 * c, side);
            push(format!("{block}.ff"), "ff", 12 * c * c + 11 * c, side);
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
    layers
}

fn criteria(layers: &[LayerRow], rng: &mut ChaCha8Rng) -> Vec<CriterionScores> {
    let truth: Vec<f64> = layers.iter().map(|_| 10f64.powf(rng.random_range(-3.4..-0.8))).collect();
    let kinds = [
        ("output-loss", "output loss"),
        ("task-loss", "task loss change"),
        ("clip-score", "CLIP score change"),
        ("magnitude", "magnitude"),
        ("taylor", "Taylor"),
    ];
    kinds
        .into_iter()
        .enumerate()
        .map(|(k, (criterion, label))| {
            let sampled = criterion != "magnitude";
            let value = |t: f64, rng: &mut ChaCha8Rng| match k {
                0 => t,
                1 | 2 => 0.5 * t - 0.01 + rng.random_range(-0.02..0.02),
                3 => rng.random_range(0.01..0.05),
                _ => t.sqrt() * rng.random_range(0.3..3.0),
            };
            let means: Vec<f64> = truth.iter().map(|t| value(*t, rng)).collect();
            let score = |(layer, mean): (&LayerRow, &f64)| ScoreRow {
                layer: layer.id.clone(),
                mean: *mean,
                se: sampled.then(|| 0.04 * mean.abs() + 1e-4),
            };
            let row = |mean: &f64| -> Vec<Option<f64>> {
                (0..5).map(|b| (b != 4 || k != 0 || *mean > 1e-3).then(|| mean * (2.2 - 0.4 * f64::from(b)))).collect()
            };
            CriterionScores {
                criterion: criterion.into(),
                label: label.into(),
                description: format!("The {label} when only this layer is removed."),
                samples: if sampled { 256 } else { 0 },
                scores: layers.iter().zip(&means).map(score).collect(),
                bins: (k == 0).then(|| BinTable {
                    bins: [[1, 200], [201, 400], [401, 600], [601, 800], [801, 1000]].into(),
                    means: means.iter().map(row).collect(),
                    ses: means.iter().map(|mean| row(mean).iter().map(|v: &Option<f64>| v.map(|v| 0.1 * v.abs())).collect()).collect(),
                }),
            }
        })
        .collect()
}

fn audits(criteria: &[CriterionScores], rng: &mut ChaCha8Rng) -> Vec<Audit> {
    criteria
        .iter()
        .filter(|c| c.criterion != "magnitude")
        .map(|c| {
            let negative = c.criterion == "task-loss";
            let points: Vec<AuditPoint> = RATIOS
                .into_iter()
                .flat_map(|ratio| [ratio; 12])
                .map(|ratio| {
                    let predicted = ratio * rng.random_range(0.6..1.6) - if negative { 0.4 } else { 0.0 };
                    let measured = predicted * rng.random_range(0.8..1.5);
                    AuditPoint {
                        group: SetGroup::Ratio(ratio),
                        layers: (ratio * 50.0) as usize,
                        predicted,
                        measured,
                        measured_se: Some(0.02),
                    }
                })
                .collect();
            let stat = |ratio: Option<f64>| AuditStats {
                group: ratio.map(SetGroup::Ratio),
                n: 12,
                pearson: Some(0.93),
                spearman: Some(0.91),
                slope: Some(1.12),
            };
            let stats = [None].into_iter().chain(RATIOS.map(Some)).map(stat).collect();
            let part = |(part, share, slope): (&str, f64, f64)| PartSlope { part: part.into(), share, slope, se: 0.04 };
            let parts = [("resnet", 0.4, 1.05), ("self attention", 0.2, 1.3), ("cross attention", 0.2, 1.1), ("feed forward", 0.2, 1.2)];
            Audit {
                criterion: c.criterion.clone(),
                description: "Joint value on 64 held-out samples.".into(),
                stats,
                parts: parts.map(part).to_vec(),
                points,
            }
        })
        .collect()
}

fn plans(layers: &[LayerRow], criteria: &[CriterionScores], total: u64, rng: &mut ChaCha8Rng) -> Vec<PlanRow> {
    let mut plans = Vec::new();
    for ratio in RATIOS {
        let kinds = criteria
            .iter()
            .map(|c| (c.criterion.clone(), format!("{}, exact", c.label), Some(c), "exact", None))
            .chain((0..3).map(|s| (format!("random-{s}"), "random".to_owned(), None, "random", Some(s))))
            .chain([("bk-sdm".to_owned(), "BK-SDM style".to_owned(), None, "hand-crafted", None)]);
        for (i, (name, label, criterion, method, seed)) in kinds.enumerate() {
            let mut order: Vec<usize> = (0..layers.len()).collect();
            match criterion {
                Some(c) => order.sort_by(|a, b| c.scores[*a].mean.total_cmp(&c.scores[*b].mean)),
                None => order.sort_by_key(|k| (k * 7919 + 31 * i) % 1009),
            }
            let (mut removed, mut gone) = (Vec::new(), 0);
            for k in order {
                if (gone as f64) < ratio * total as f64 {
                    removed.push(k);
                    gone += layers[k].params;
                }
            }
            removed.sort_unstable();
            let sum = |c: &CriterionScores| removed.iter().map(|k| c.scores[*k].mean).sum::<f64>();
            let predicted = sum(&criteria[0]);
            plans.push(PlanRow {
                name: format!("{name}-{ratio}"),
                label,
                criterion: criterion.map(|c| c.criterion.clone()),
                method: method.into(),
                ratio,
                seed,
                removed_macs: removed.iter().map(|k| layers[*k].macs).sum(),
                removed_params: gone,
                predicted: criterion.map(sum),
                predicted_output_loss: Some(predicted),
                measured: Some(Measured { mean: predicted * rng.random_range(1.0..1.4), se: 0.03 * predicted, samples: 128 }),
                removed: removed.into_iter().map(|k| layers[k].id.clone()).collect(),
            });
        }
    }
    plans
}

/// Layers by their score, cheapest first: not the true front, but of its shape.
fn front(layers: &[LayerRow], criterion: &CriterionScores) -> Vec<(u64, f64)> {
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by(|a, b| criterion.scores[*a].mean.total_cmp(&criterion.scores[*b].mean));
    let add = |sum: &mut (u64, f64), i: usize| {
        *sum = (sum.0 + layers[i].params, sum.1 + criterion.scores[i].mean);
        Some(*sum)
    };
    order.into_iter().scan((0, 0.0), add).collect()
}

/// The values of all prompts stand in for those of each category.
fn by_category(unets: &[UNetResult]) -> Vec<CategoryRow> {
    let rows = ["animals", "places"].into_iter().flat_map(|category| unets.iter().map(move |u| (category, u)));
    rows.map(|(category, u)| CategoryRow { category: category.into(), unet: u.name.clone(), metrics: u.metrics[..1].to_vec() }).collect()
}

fn distillation(feature_loss: FeatureLoss, rng: &mut ChaCha8Rng) -> DistillRun {
    let normalized = feature_loss == FeatureLoss::Normalized;
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
    let name = if normalized { "normalized" } else { "plain" };
    DistillRun {
        name: format!("{name}-0.5"),
        label: format!("{name} features"),
        plan: "output-loss-0.5".into(),
        feature_loss,
        steps: 1000,
        batch: 16,
        learning_rate: 3e-4,
        seed: 2,
        weight_task: 1.0,
        weight_out: 1.0,
        weight_feat: 1.0,
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
        plan: (role != Role::Teacher).then(|| "output-loss-0.5".into()),
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
    let checked: Vec<_> =
        (0..scenes.len()).map(|i| check_picture(&scenes[i].spec.caption(), &picture(&scenes[shown(i)])).unwrap()).collect();
    accuracy_by_kind(&checked, &(0..scenes.len()).collect::<Vec<_>>(), &BOOTSTRAP).unwrap()
}

fn picture(scene: &Scene) -> image::RgbImage {
    image::RgbImage::from_raw(64, 64, render(scene, 64).unwrap().into_data()).unwrap()
}

/// Renders stand in for generated pictures: the teacher's right, some of the students' of the next scene.
fn gallery(run_dir: &Path) -> Gallery {
    let dir = run_dir.join("pictures");
    std::fs::create_dir_all(&dir).unwrap();
    let rows = (0..6usize).map(|i| {
        let scene = Scene::sample(3, i as u64, Split::Train);
        let prompt = scene.spec.caption();
        let cells = UNETS.iter().enumerate().map(|(k, (name, ..))| {
            let wrong = k == 1 || (k > 1 && (i + k).is_multiple_of(4));
            let shown = picture(&Scene::sample(3, i as u64 + u64::from(wrong), Split::Train));
            let file = format!("pictures/{name}-{i}.png");
            shown.save(run_dir.join(&file)).unwrap();
            let checks: Vec<CellCheck> = check_picture(&prompt, &shown).unwrap().checks;
            GalleryCell { picture: file, checks, clip_score: Some(30.0 - k as f64) }
        });
        GalleryRow { cells: cells.collect(), prompt, seed: 1000 + i as u64 }
    });
    Gallery { unets: UNETS.map(|u| u.0.to_owned()).into(), rows: rows.collect() }
}
