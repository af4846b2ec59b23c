//! `laptop-diff eval`: pictures of several U-Nets, same prompts and seeds, held against each other; drawn first where they are missing.
//! Pictures -> **eval.json** -> report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use artifact::Document;
use eval::{Bootstrap, ClipScorer, EvalFile, ImageFolder, Protocol, Verdict, check_picture, clip_scores};
use scenes::SceneSpec;
use tch::{Kind, Tensor};

use super::eval_draw::DrawArgs;
use super::eval_rows::{Features, PictureSet, Subject, by_category, comparison, gallery, per_prompt, row};
use crate::common::{BadInput, file_hash, prepare_file, stop_flag};
use crate::device::PlaceArgs;
use crate::metrics::{self, ACCURACY, ALL_CORRECT, CLIP, FRECHET_SCENES, PSNR};
use crate::model::named_dir;
use crate::picture_scores::{PictureScores, Wanted};
use crate::scorers::{Asked, Scorer};

/// Groups of prompts that the jackknife of a Fréchet distance leaves out in turn.
const GROUPS: usize = 20;
/// A Fréchet distance over fewer prompts says nothing.
const FEWEST_PROMPTS: usize = 4;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Scores for --metric. CLIP is a folder in transformers' layout or a file in OpenCLIP's; files are safetensors or PyTorch's own,
here or on the hub (org/name, org/name:file). Definitions and sources: docs/metrics.md.
  clip-score=CLIP                    CLIP score of that model
  pickscore=CLIP                     yuvalkirstain/PickScore_v1
  hpsv2=CLIP                         xswu/HPSv2:HPS_v2_compressed.pt
  hpsv2.1=CLIP                       xswu/HPSv2:HPS_v2.1_compressed.pt
  imagereward=WEIGHTS,VOCAB.TXT      THUDM/ImageReward:ImageReward.pt and BERT's vocab.txt
  aesthetic=WEIGHTS,CLIP             sac+logos+ava1-l14-linearMSE.pth and CLIP ViT-L/14
  lpips=CLASSIFIER,WEIGHTS           torchvision's AlexNet or VGG-16, and LPIPS' alex.pth or vgg.pth
  fid=WEIGHTS, clean-fid=WEIGHTS     pt_inception-2015-12-05-6726825d.pth
  cmmd=CLIP                          CLIP ViT-L/14 at 336 pixels")]
pub struct Args {
    /// The teacher's pictures (written by `generate`), as NAME=DIR. With --model they are drawn.
    #[arg(long, value_name = "NAME=DIR", required_unless_present = "model")]
    reference: Option<String>,
    /// Pictures of another U-Net, from the same prompts and seeds, as NAME=DIR; several may follow.
    #[arg(long, value_name = "NAME=DIR", num_args = 1..)]
    images: Vec<String>,
    #[command(flatten)]
    draw: DrawArgs,
    /// The run's own CLIP model, for its score and Fréchet distances: its folder, or a model directory with one in clip/.
    #[arg(long, required_unless_present = "metric")]
    clip: Option<PathBuf>,
    /// A published score with its weights, as NAME=FILES; see the list below. May be repeated.
    #[arg(long, value_name = "NAME=FILES")]
    metric: Vec<Asked>,
    /// The folder of a CLIP tokenizer, for CLIP weights that are a single file.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Rendered scenes of the same prompts (written by `render-scenes --scene-prompts`), for distances to the truth.
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
    /// The file to write; per_prompt.json and picture_scores.json are written beside it. Scores in the latter whose pictures and
    /// weights are the same are kept.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Measures and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let mut named = args.reference.iter().map(|text| named_dir("--reference", text)).collect::<anyhow::Result<Vec<_>>>()?;
    for text in &args.images {
        named.push(named_dir("--images", text)?);
    }
    named.extend(args.draw.folders(&args.out)?);
    for (i, (name, _)) in named.iter().enumerate() {
        if named[..i].iter().any(|(other, _)| other == name) {
            return Err(BadInput(format!("two folders are named {name}; give each its own name")).into());
        }
    }
    let pairs = args.compare.iter().map(|text| pair(text, &named)).collect::<anyhow::Result<Vec<_>>>()?;
    for (i, one) in args.metric.iter().enumerate() {
        if args.metric[..i].iter().any(|other| other.id() == one.id()) {
            return Err(BadInput(format!("--metric: {} is there twice", one.id())).into());
        }
    }
    let (stop, place, mut asked) = (stop_flag()?, args.place.open()?, args.metric.clone());
    // A file that is not there must not come to light after hours of drawing.
    asked.iter_mut().try_for_each(Asked::locate)?;
    args.draw.draw(&named, place)?;
    let folders = named.into_iter().map(|(name, dir)| Ok((name, ImageFolder::open(&dir)?))).collect::<anyhow::Result<Vec<_>>>()?;
    let Some(settings) = folders[0].1.settings.clone() else {
        let dir = &folders[0].1.dir;
        return Err(BadInput(format!("--reference {}: rendered scenes; name pictures that `generate` wrote", dir.display())).into());
    };
    for (_, folder) in &folders[1..] {
        folders[0].1.check_same_protocol(folder)?;
    }
    let real = args.real.as_deref().map(ImageFolder::open).transpose()?;
    if let Some(real) = &real
        && !real.prompts().eq(folders[0].1.prompts())
    {
        return Err(BadInput(format!(
            "--real {}: other prompts than the reference's; render them with the same --scene-prompts, --prompt-seed and --per-prompt",
            real.dir.display()
        ))
        .into());
    }

    let metrics = args.place.open_to_compare()?;
    let published = asked.iter().map(|a| a.open(args.tokenizer.as_deref(), metrics, args.batch)).collect::<anyhow::Result<Vec<_>>>()?;
    let scorer = args.clip.as_deref().map(|clip| ClipScorer::open(clip, place.device, Kind::Float, args.batch)).transpose()?;
    let clip_sha256 =
        args.clip.as_deref().map(|clip| file_hash(&unet::weights::component_files(&clip_dir(clip), "model")?[0])).transpose()?;
    let bootstrap = Bootstrap::standard(args.seed);
    let (prompts, prompt_of) = distinct(&folders[0].1.prompts().map(String::from).collect::<Vec<_>>(), settings.per_prompt);
    let readable = prompts.iter().all(|p| SceneSpec::parse(p).is_ok());
    if !readable {
        tracing::warn!("some prompts are outside the scene grammar; the checker is left out");
    }
    let many = prompts.len() >= FEWEST_PROMPTS;
    if !many {
        tracing::warn!("fewer than {FEWEST_PROMPTS} prompts; the distances between sets of pictures are left out");
    }
    let texts: Vec<String> = folders[0].1.prompts().map(String::from).collect();
    let all_prompts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let text = scorer.as_ref().map(|s| s.prompts(&all_prompts)).transpose()?;
    let others = folders.len() > 1;
    let real_pictures = real.as_ref().filter(|_| many).map(ImageFolder::read).transpose()?;
    let groups = GROUPS.min(prompts.len());
    let mut sets = Vec::new();
    if many {
        let own = scorer.as_ref().map(|s| PictureSet::new("frechet", FRECHET_SCENES, Features::Pooled(s), real_pictures.as_deref()));
        sets.extend(own.transpose()?);
        for metric in &published {
            let real = format!("{}_real", metric.id);
            let features = match &metric.scorer {
                Scorer::Inception(net) => Features::Inception(net),
                Scorer::Clip(clip) => Features::Cmmd(clip),
                Scorer::Single(_) | Scorer::Pair(_) => continue,
            };
            sets.push(PictureSet::new(&metric.id, &real, features, real_pictures.as_deref())?);
        }
    }
    let mut kept = PictureScores::open(&args.out.with_file_name("picture_scores.json"))?;
    let mut subjects: Vec<Subject> = Vec::new();
    let mut hashes: Vec<Vec<String>> = Vec::new();
    for (name, folder) in folders {
        let start = std::time::Instant::now();
        let pictures = folder.read()?;
        // tests/speed/compare_scorers.py reads this.
        tracing::info!("{} pictures of {name} read in {:.4} s", pictures.len(), start.elapsed().as_secs_f64());
        let own = folder.hashes()?;
        let mut scores = BTreeMap::new();
        let some = |places: &[usize]| places.iter().map(|&i| pictures[i].clone()).collect::<Vec<_>>();
        if let (Some(scorer), Some(text), Some(weights_sha256)) = (&scorer, &text, &clip_sha256) {
            let wanted = Wanted { unet: &name, metric: CLIP, weights_sha256, pictures: &own };
            let compute = |places: &[usize]| {
                let rows: Vec<i64> = places.iter().map(|&i| i as i64).collect();
                let text = text.f_index_select(0, &Tensor::from_slice(&rows))?;
                Ok(clip_scores(&scorer.pictures(&some(places))?.features, &text)?)
            };
            scores.insert(CLIP.to_string(), kept.get(wanted, args.batch, &stop, compute)?);
        }
        for metric in &published {
            let wanted = Wanted { unet: &name, metric: &metric.id, weights_sha256: &metric.sha256, pictures: &own };
            let values = match (&metric.scorer, subjects.first()) {
                (Scorer::Single(network), _) => kept.get(wanted, args.batch, &stop, |places| {
                    let prompts: Vec<&str> = places.iter().map(|&i| all_prompts[i]).collect();
                    Ok(network.score(&some(places), &prompts)?)
                })?,
                (Scorer::Pair(network), Some(teacher)) => {
                    let both: Vec<String> = own.iter().zip(&hashes[0]).map(|(own, theirs)| format!("{own} {theirs}")).collect();
                    kept.get(Wanted { pictures: &both, ..wanted }, args.batch, &stop, |places| {
                        let theirs: Vec<_> = places.iter().map(|&i| teacher.pictures[i].clone()).collect();
                        Ok(network.distances(&some(places), &theirs)?)
                    })?
                }
                (Scorer::Pair(_) | Scorer::Inception(_) | Scorer::Clip(_), _) => continue,
            };
            scores.insert(metric.id.clone(), values);
        }
        let mut distances = BTreeMap::new();
        for set in &mut sets {
            set.measure(&pictures, &prompt_of, groups, &mut distances)?;
        }
        let checks = || folder.prompts().zip(&pictures).map(|(p, x)| check_picture(p, x)).collect::<eval::Result<_>>();
        subjects.push(Subject { scores, checks: readable.then(checks).transpose()?, distances, name, folder, pictures });
        hashes.push(own);
    }

    let table = per_prompt(&subjects, &prompts, &prompt_of)?;
    let possible = [(ACCURACY, readable), (ALL_CORRECT, readable), (PSNR, others)];
    let mut wanted: Vec<String> = possible.into_iter().filter(|(_, yes)| *yes).map(|(id, _)| id.to_string()).collect();
    let found = |s: &Subject| s.scores.keys().chain(s.distances.keys()).cloned().collect::<Vec<_>>();
    wanted.extend(subjects.iter().flat_map(found));
    let metrics = metrics::infos(&wanted);
    let unets = subjects.iter().map(|s| row(s, &subjects[0], &table, &metrics, &prompt_of, &bootstrap)).collect::<anyhow::Result<_>>()?;
    let categories: Vec<Option<String>> =
        subjects[0].folder.images.iter().step_by(settings.per_prompt.max(1)).map(|e| e.category.clone()).collect();
    let by_category = by_category(&subjects, &categories, &table, &metrics, &bootstrap)?;
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
    let base = args.out.parent().unwrap_or(Path::new(""));
    let gallery = gallery(&subjects, base, args.gallery, settings.per_prompt);
    let weights_sha256 = published.iter().map(|m| (m.id.clone(), m.sha256.clone())).collect();
    let file = EvalFile { clip_sha256, weights_sha256, protocol, metrics, unets, by_category, comparisons, gallery };
    table.write(&args.out.with_file_name("per_prompt.json"))?;
    file.write(&args.out)?;
    if args.json {
        print!("{}", file.to_text(&args.out)?);
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
    for row in file.by_category.iter().filter(|r| r.metrics.iter().any(|m| m.verdict.is_some())) {
        for m in &row.metrics {
            let label = file.metrics.iter().find(|i| i.id == m.metric).map_or(m.metric.as_str(), |i| i.label.as_str());
            let decline =
                m.decline.map_or("-".into(), |d| format!("{:.2} % [{:.2}, {:.2}]", 100.0 * d.value, 100.0 * d.low, 100.0 * d.high));
            println!("{:wide$} {:20} {label:20} decline {decline}, {}", row.unet, row.category, m.verdict.map_or("-", verdict));
        }
    }
}

/// What an interval says, in words.
fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::NotShown => "no significant difference",
    }
}
