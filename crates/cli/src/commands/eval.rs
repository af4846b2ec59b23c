//! `laptop-diff eval`: pictures of several U-Nets, same prompts and seeds, held against each other. Pictures -> **eval.json** -> report.

use std::path::{Path, PathBuf};

use eval::{
    Bootstrap, ClipScorer, Comparison, FrechetSample, Gallery, KindAccuracy, MetricInfo, MetricValue, Protocol, Versioned, check_picture,
    clip_scores,
};
use scenes::SceneSpec;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::eval_rows::{Subject, comparison, gallery, per_prompt, row};
use crate::common::{BadInput, file_hash, prepare_file, read_versioned};
use crate::device::DeviceChoice;
use crate::metrics::{self, ACCURACY, ALL_CORRECT, CLIP, FRECHET_SCENES, FRECHET_TEACHER, PSNR};
use crate::model::named_dir;
use crate::pictures::Folder;

/// Groups of prompts that the jackknife of a Fréchet distance leaves out in turn.
const GROUPS: usize = 20;
/// A Fréchet distance over fewer prompts says nothing.
const FEWEST_PROMPTS: usize = 4;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The teacher's pictures (written by `generate`), as NAME=DIR.
    #[arg(long, value_name = "NAME=DIR")]
    reference: String,
    /// Pictures of another U-Net, from the same prompts and seeds, as NAME=DIR; several may follow.
    #[arg(long, value_name = "NAME=DIR", num_args = 1..)]
    images: Vec<String>,
    /// The CLIP model: its folder, or a model directory with one in clip/.
    #[arg(long)]
    clip: PathBuf,
    /// Rendered scenes of the same prompts (written by `render-scenes --scene-prompts`), for a Fréchet distance to the truth.
    #[arg(long)]
    real: Option<PathBuf>,
    /// Two of the names, as A:B, to be compared directly; may be repeated.
    #[arg(long, value_name = "A:B")]
    compare: Vec<String>,
    /// Rows of the report's picture table.
    #[arg(long, default_value_t = 12)]
    gallery: usize,
    /// Seed of the bootstrap over prompts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures per CLIP call.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// The file to write; per_prompt.json is written beside it.
    #[arg(long)]
    out: PathBuf,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// `eval.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalFile {
    format: String,
    version: u32,
    /// SHA-256 of the CLIP model's weights.
    pub clip_sha256: String,
    /// How pictures were made and compared.
    pub protocol: Protocol,
    /// What was measured.
    pub metrics: Vec<MetricInfo>,
    /// The teacher first.
    pub unets: Vec<EvalRow>,
    /// Direct comparisons.
    pub comparisons: Vec<Comparison>,
    /// Pictures side by side, relative to this file's folder.
    pub gallery: Gallery,
}

/// What was found about one U-Net's pictures.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalRow {
    /// Its name.
    pub name: String,
    /// Fingerprint of the U-Net that drew them.
    pub unet: String,
    /// One entry per metric.
    pub metrics: Vec<MetricValue>,
    /// Checker accuracy by kind of attribute.
    pub by_kind: Vec<KindAccuracy>,
}

const FORMAT: &str = "laptop-diff/eval";
const VERSION: u32 = 1;

impl EvalFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`crate::common::BadFile`] when it is missing, damaged or of another format.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        read_versioned(path, FORMAT, VERSION, "let `eval` write it again")
    }
}

/// Measures and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let mut named = vec![named_dir("--reference", &args.reference)?];
    for text in &args.images {
        named.push(named_dir("--images", text)?);
    }
    for (i, (name, _)) in named.iter().enumerate() {
        if named[..i].iter().any(|(other, _)| other == name) {
            return Err(BadInput(format!("two folders are named {name}; give each its own name")).into());
        }
    }
    let pairs = args.compare.iter().map(|text| pair(text, &named)).collect::<anyhow::Result<Vec<_>>>()?;
    let folders = named.into_iter().map(|(name, dir)| Ok((name, Folder::open(&dir)?))).collect::<anyhow::Result<Vec<_>>>()?;
    let Some(settings) = folders[0].1.settings.clone() else {
        let dir = &folders[0].1.dir;
        return Err(BadInput(format!("--reference {}: rendered scenes; name pictures that `generate` wrote", dir.display())).into());
    };
    for (_, folder) in &folders[1..] {
        same_protocol(&folders[0].1, folder)?;
    }
    let real = args.real.as_deref().map(Folder::open).transpose()?;
    if let Some(real) = &real
        && real.prompts != folders[0].1.prompts
    {
        return Err(BadInput(format!(
            "--real {}: other prompts than the reference's; render them with the same --scene-prompts, --prompt-seed and --per-prompt",
            real.dir.display()
        ))
        .into());
    }

    let device = args.device.open()?;
    let scorer = ClipScorer::open(&args.clip, device, Kind::Float, args.batch)?;
    let bootstrap = Bootstrap::standard(args.seed);
    let (prompts, prompt_of) = distinct(&folders[0].1.prompts, settings.per_prompt);
    let readable = prompts.iter().all(|p| SceneSpec::parse(p).is_ok());
    if !readable {
        tracing::warn!("some prompts are outside the scene grammar; the checker is left out");
    }
    let many = prompts.len() >= FEWEST_PROMPTS;
    if !many {
        tracing::warn!("fewer than {FEWEST_PROMPTS} prompts; the Fréchet distances are left out");
    }
    let text = scorer.prompts(&folders[0].1.prompts.iter().map(String::as_str).collect::<Vec<_>>())?;
    let real = match (&real, many) {
        (Some(real), true) => Some(scorer.pictures(&real.pictures()?)?.pooled),
        _ => None,
    };
    let groups = GROUPS.min(prompts.len());
    let mut subjects: Vec<Subject> = Vec::new();
    for (name, folder) in folders {
        let pictures = folder.pictures()?;
        let towers = scorer.pictures(&pictures)?;
        let distance = |to: &Tensor| FrechetSample::measure(&towers.pooled, to, &prompt_of, groups);
        let checks = || folder.prompts.iter().zip(&pictures).map(|(p, x)| check_picture(p, x)).collect::<eval::Result<_>>();
        subjects.push(Subject {
            clip: clip_scores(&towers.features, &text)?,
            checks: readable.then(checks).transpose()?,
            to_scenes: real.as_ref().map(&distance).transpose()?,
            to_teacher: subjects.first().filter(|_| many).map(|t| distance(&t.pooled)).transpose()?,
            pooled: towers.pooled,
            name,
            folder,
            pictures,
        });
    }

    let table = per_prompt(&subjects, &prompts, &prompt_of)?;
    let others = subjects.len() > 1;
    let possible = [
        (CLIP, true),
        (ACCURACY, readable),
        (ALL_CORRECT, readable),
        (FRECHET_SCENES, real.is_some()),
        (FRECHET_TEACHER, many && others),
        (PSNR, others),
    ];
    let metrics = metrics::infos(&possible.into_iter().filter(|(_, yes)| *yes).map(|(id, _)| id).collect::<Vec<_>>());
    let unets = subjects.iter().map(|s| row(s, &subjects[0], &table, &metrics, &prompt_of, &bootstrap)).collect::<anyhow::Result<_>>()?;
    let mut comparisons = Vec::new();
    for (a, b) in pairs {
        for metric in &metrics {
            comparisons.extend(comparison(&subjects[a], &subjects[b], metric, &table, &bootstrap)?);
        }
    }
    let protocol = Protocol {
        prompts: prompts.len(),
        pictures_per_prompt: settings.per_prompt,
        prompt_source: settings.prompt_source.clone(),
        sampler: settings.sampling(),
        steps: settings.steps as u32,
        guidance: settings.guidance,
        seed: settings.seed,
        size: settings.size.map(|n| n as u32),
        bootstrap,
    };
    let clip_files = unet::weights::component_files(&clip_dir(&args.clip), "model")?;
    let base = args.out.parent().unwrap_or(Path::new(""));
    let gallery = gallery(&subjects, base, args.gallery, settings.per_prompt);
    let clip_sha256 = file_hash(&clip_files[0])?;
    let file = EvalFile { format: FORMAT.into(), version: VERSION, clip_sha256, protocol, metrics, unets, comparisons, gallery };
    table.write(&args.out.with_file_name("per_prompt.json"))?;
    prune_core::write_json_atomically(&args.out, &file)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&file)?);
    } else {
        print(&file);
        println!("written     {}", args.out.display());
    }
    Ok(())
}

fn clip_dir(dir: &Path) -> PathBuf {
    let inner = dir.join("clip");
    if inner.join("config.json").is_file() { inner } else { dir.to_path_buf() }
}

/// Positions of the two names of `A:B`.
fn pair(text: &str, named: &[(String, PathBuf)]) -> anyhow::Result<(usize, usize)> {
    let position = |name: &str| named.iter().position(|(known, _)| known == name);
    let found = text.split_once(':').and_then(|(a, b)| Some((position(a)?, position(b)?)));
    let names: Vec<&str> = named.iter().map(|(n, _)| n.as_str()).collect();
    Ok(found.ok_or_else(|| BadInput(format!("--compare {text}: expected A:B with two of {}", names.join(", "))))?)
}

/// Refuses pictures that were not made like the reference's.
fn same_protocol(reference: &Folder, other: &Folder) -> anyhow::Result<()> {
    let differs = |what: &str, expected: String, got: String| {
        let dir = other.dir.display();
        Err(BadInput(format!("--images {dir}: {what}: expected {expected}, as in the reference, got {got}; generate them alike")).into())
    };
    if other.prompts != reference.prompts {
        return differs("prompts", format!("the reference's {}", reference.len()), format!("{} others", other.len()));
    }
    if other.seeds != reference.seeds {
        return differs("seeds", format!("{:?}..", reference.seeds.first()), format!("{:?}..", other.seeds.first()));
    }
    let (Some(a), Some(b)) = (&reference.settings, &other.settings) else {
        return differs("settings", "generated pictures".into(), "rendered scenes".into());
    };
    let told = |s: &crate::pictures::Settings| {
        format!("{} with {} steps, guidance {}, {:?} pixels, negative `{}`", s.sampling(), s.steps, s.guidance, s.size, s.negative)
    };
    if told(a) != told(b) || a.latents != b.latents {
        return differs("settings", told(a), told(b));
    }
    Ok(())
}

/// The prompts without repetition, and for each picture the number of its prompt.
fn distinct(all: &[String], per_prompt: usize) -> (Vec<String>, Vec<usize>) {
    let prompts = all.iter().step_by(per_prompt.max(1)).cloned().collect();
    (prompts, (0..all.len()).map(|i| i / per_prompt.max(1)).collect())
}

fn print(file: &EvalFile) {
    let wide = file.unets.iter().map(|u| u.name.len()).max().unwrap_or(4).max(4);
    print!("{:wide$}", "name");
    for metric in &file.metrics {
        print!(" {:>28}", metric.label);
    }
    println!();
    for unet in &file.unets {
        print!("{:wide$}", unet.name);
        for metric in &file.metrics {
            let text = unet.metrics.iter().find(|m| m.metric == metric.id).map_or("-".to_string(), |m| {
                let scale = if metric.percent { 100.0 } else { 1.0 };
                let unit = if metric.percent { " %" } else { "" };
                format!("{:.2} [{:.2}, {:.2}]{unit}", m.value.value * scale, m.value.low * scale, m.value.high * scale)
            });
            print!(" {text:>28}");
        }
        println!();
    }
}
