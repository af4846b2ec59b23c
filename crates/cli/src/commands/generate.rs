//! `laptop-diff generate`: pictures of the same prompts and seeds by any U-Net. Model -> **pictures** -> evaluation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diffusion::picture::{read_png_text, write_png};
use diffusion::{DecodeParts, GenerateOptions, Generated, ModelDir, OffloadedPipeline, Pipeline, Progress, SamplerKind};
use sha2::{Digest, Sha256};
use tch::Tensor;
use unet::weights::{TensorFile, Tensors, hex, save_tensors};

use super::render_scenes::held_out_prompts;
use crate::common::{BadFile, BadInput, Interrupted, file_hash, prepare_dir, prepare_file, stop_flag, stopped};
use crate::device::{DeviceChoice, compute_kind};
use crate::model::Model;
use crate::pictures::{Entry, Manifest, Settings, file_name};
use crate::progress;
use crate::prompts::{self, Prompt};

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["prompt", "prompts_file", "scene_prompts"]))]
pub struct Args {
    /// A model directory in diffusers' layout, or org/name on the Hugging Face Hub.
    #[arg(long)]
    pub(super) model: PathBuf,
    /// A U-Net that takes the place of the model's own: a pruned or retrained one.
    #[arg(long)]
    unet: Option<PathBuf>,
    /// What to show; several prompts may follow.
    #[arg(long, num_args = 1..)]
    prompt: Vec<String>,
    /// Files of prompts: text with one a line, .tsv with the columns Prompt and Category, or .json as the HPSv2 benchmark ships it.
    #[arg(long, num_args = 1..)]
    prompts_file: Vec<PathBuf>,
    /// This many held-out prompts of the scene grammar.
    #[arg(long)]
    scene_prompts: Option<usize>,
    /// Seed of the choice of scene prompts.
    #[arg(long, default_value_t = 0, requires = "scene_prompts")]
    prompt_seed: u64,
    /// What not to show.
    #[arg(long)]
    negative: Option<String>,
    /// Seed of the first picture; picture i has this plus i.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures per prompt.
    #[arg(long, default_value_t = 1)]
    per_prompt: usize,
    /// Sampling steps.
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Classifier-free guidance scale; 1 switches guidance off.
    #[arg(long, default_value_t = 3.0)]
    cfg: f64,
    /// ddim, euler, euler-ancestral, dpmpp-2m or lcm.
    #[arg(long, default_value = "ddim")]
    sampler: SamplerKind,
    /// Karras' noise levels for euler and dpmpp-2m, even where the model's scheduler does not ask for them.
    #[arg(long)]
    karras: bool,
    /// Last layers of the text encoders to leave out for the prompt.
    #[arg(long, default_value_t = 0)]
    clip_skip: usize,
    /// Height and width in pixels [default: the model's own].
    #[arg(long)]
    size: Option<i64>,
    /// Pictures computed at once.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// The folder to write: PNG files and images.json. Pictures that are there already, made the same way, are kept.
    #[arg(long)]
    out: PathBuf,
    /// safetensors file with unit noise `latents` (N,C,h,w) to start from, one per picture. Stochastic samplers
    /// (euler-ancestral, lcm) draw their further noise from the seeds.
    #[arg(long)]
    latents: Option<PathBuf>,
    /// safetensors file to write, with the final `latents` (N,C,h,w); draws every picture anew.
    #[arg(long)]
    save_latents: Option<PathBuf>,
    /// Decode one picture at a time: less memory, the same pictures.
    #[arg(long)]
    vae_slicing: bool,
    /// Decode pictures larger than those of training in overlapping tiles: less memory, pictures a little different.
    #[arg(long)]
    vae_tiling: bool,
    /// Keep text encoders, U-Net and VAE in memory one after the other, not together. All pictures are then drawn before the
    /// first is written, and an interrupted run begins anew.
    #[arg(long)]
    offload: bool,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

/// The model, all of it in memory or one part after the other.
enum Painter {
    Resident(Box<Pipeline>),
    Offloaded(Box<OffloadedPipeline>),
}

impl Painter {
    fn dir(&self) -> &ModelDir {
        match self {
            Painter::Resident(p) => p.dir(),
            Painter::Offloaded(p) => p.dir(),
        }
    }

    fn native_size(&self) -> Option<(i64, i64)> {
        match self {
            Painter::Resident(p) => p.native_size(),
            Painter::Offloaded(p) => p.native_size(),
        }
    }

    fn generate(&self, options: &GenerateOptions, progress: &mut dyn FnMut(Progress)) -> diffusion::Result<Generated> {
        match self {
            Painter::Resident(p) => p.generate(p.unet(), options, progress),
            Painter::Offloaded(p) => p.generate(options, progress),
        }
    }
}

/// Draws and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    for (flag, value) in [("--batch", args.batch), ("--per-prompt", args.per_prompt), ("--steps", args.steps)] {
        if value == 0 {
            return Err(BadInput(format!("{flag} 0: expected at least 1")).into());
        }
    }
    let (source, prompts) = prompts(args)?;
    prepare_dir(&args.out)?;
    if let Some(path) = &args.save_latents {
        prepare_file(path)?;
    }
    let model = Model::open(&args.model)?;
    let noise = args.latents.as_deref().map(read_latents).transpose()?;
    let device = args.device.open()?;
    let (unet, kind) = (args.unet.as_deref(), compute_kind(device));
    let painter = match args.offload {
        true => Painter::Offloaded(Box::new(OffloadedPipeline::open(&args.model, unet, device, kind)?)),
        false => Painter::Resident(Box::new(Pipeline::open(&args.model, unet, device, kind)?)),
    };
    let (height, width) = args.size.map(|n| (n, n)).or(painter.native_size()).unwrap_or((512, 512));
    let settings = Settings {
        model: model.name(),
        unet: unet::fingerprint(painter.dir().unet())?,
        prompt_source: source,
        negative: args.negative.clone().unwrap_or_default(),
        per_prompt: args.per_prompt,
        seed: args.seed,
        sampler: args.sampler.name().into(),
        karras: args.karras,
        clip_skip: args.clip_skip,
        vae_tiling: args.vae_tiling,
        steps: args.steps,
        guidance: args.cfg,
        size: [height, width],
        latents: args.latents.as_deref().map(file_hash).transpose()?,
    };
    let all = prompts.iter().flat_map(|p| std::iter::repeat_n(p, args.per_prompt)).enumerate();
    let entries: Vec<Entry> = all
        .map(|(i, p)| Entry {
            file: file_name(i),
            prompt: p.text.clone(),
            seed: args.seed.wrapping_add(i as u64),
            category: p.category.clone(),
        })
        .collect();
    let options = |which: &[usize]| -> anyhow::Result<GenerateOptions> {
        Ok(GenerateOptions {
            prompts: which.iter().map(|&i| entries[i].prompt.clone()).collect(),
            negative: args.negative.clone(),
            steps: args.steps,
            guidance: args.cfg,
            sampler: args.sampler,
            karras: args.karras,
            clip_skip: args.clip_skip,
            seeds: which.iter().map(|&i| entries[i].seed).collect(),
            height,
            width,
            batch: args.batch,
            latents: noise.as_ref().map(|t| pick(t, which, entries.len())).transpose()?,
            decode: DecodeParts { sliced: args.vae_slicing, tiled: args.vae_tiling },
        })
    };

    let keys: Vec<String> = entries.iter().enumerate().map(|(i, e)| key(&settings, e, noise.is_some().then_some(i))).collect();
    let there = |i: usize| args.save_latents.is_none() && has_key(&args.out.join(&entries[i].file), &keys[i]);
    let missing: Vec<usize> = (0..entries.len()).filter(|&i| !there(i)).collect();
    let (stop, bar) = (stop_flag()?, progress::bar("pictures", entries.len() as u64 * args.steps as u64));
    let kept = entries.len() - missing.len();
    let mut latents = Vec::new();
    // Batch by batch, so that finished pictures are safe; with --offload in one go, since each call loads everything.
    let together = if args.offload { missing.len().max(1) } else { args.batch };
    for (round, part) in missing.chunks(together).enumerate() {
        if stopped(&stop) {
            return Err(Interrupted("stopped; run the same command to go on".into()).into());
        }
        let before = kept + round * together;
        let start = std::time::Instant::now();
        let made = painter.generate(&options(part)?, &mut |p| {
            // A batch that has all its steps counts as done; with --offload, whose pictures are decoded last, never go back.
            let steps = (before + p.done) * p.steps + if p.step < p.steps { p.batch * p.step } else { 0 };
            bar.set_position(bar.position().max(steps as u64));
        })?;
        // tests/speed/compare_pipelines.py reads this.
        tracing::info!("{} pictures in {:.4} s", part.len(), start.elapsed().as_secs_f64());
        for (&i, picture) in part.iter().zip(&made.pictures) {
            let text = BTreeMap::from([
                (KEY.to_string(), keys[i].clone()),
                ("prompt".to_string(), entries[i].prompt.clone()),
                ("seed".to_string(), entries[i].seed.to_string()),
                ("settings".to_string(), serde_json::to_string(&settings)?),
            ]);
            write_png(args.out.join(&entries[i].file), picture, &text)?;
        }
        latents.push(made.latents);
    }
    bar.finish_and_clear();
    if let Some(path) = &args.save_latents {
        let tensors = Tensors::from([("latents".to_string(), Tensor::cat(&latents, 0))]);
        save_tensors(path, &tensors, &BTreeMap::new(), None)?;
    }
    // The manifest comes last: a folder without it is not complete.
    let count = entries.len();
    Manifest::new(settings, entries).write(&args.out)?;
    println!("{}: {count} pictures of {height} x {width} pixels, {} drawn now, {kept} kept", args.out.display(), missing.len());
    Ok(())
}

/// Name of the PNG text entry that tells pictures made in another way apart.
const KEY: &str = "laptop-diff.key";

/// A hash of everything that decides what a picture looks like.
fn key(settings: &Settings, entry: &Entry, row: Option<usize>) -> String {
    let s = settings;
    // `row` is the place in the file of latents, which then decides and not the seed.
    let parts = (&s.unet, &s.negative, &s.sampler, s.steps, s.guidance.to_bits(), s.size, &s.latents, &entry.prompt, entry.seed, row);
    // Apart, and only when one is used, so that the pictures of earlier versions keep their keys.
    let further = (s.karras, s.clip_skip, s.vae_tiling);
    let further = if further == (false, 0, false) { String::new() } else { format!("{further:?}") };
    hex(&Sha256::digest(format!("{parts:?}{further}")))
}

/// Whether `path` is an intact picture with this key.
fn has_key(path: &Path, key: &str) -> bool {
    path.is_file() && read_png_text(path).is_ok_and(|text| text.get(KEY).is_some_and(|k| k == key))
}

/// The prompts, and where they come from in one phrase.
fn prompts(args: &Args) -> anyhow::Result<(String, Vec<Prompt>)> {
    if !args.prompts_file.is_empty() {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let names: Vec<String> = args.prompts_file.iter().map(name).collect();
        let all = args.prompts_file.iter().map(|path| prompts::read(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let files = if names.len() == 1 { "the file" } else { "the files" };
        return Ok((format!("{files} {}", names.join(", ")), all.concat()));
    }
    let plain = |text: String| Prompt { text, category: None };
    match args.scene_prompts {
        Some(0) => Err(BadInput("--scene-prompts 0: expected at least 1".into()).into()),
        Some(n) => {
            let specs = held_out_prompts(args.prompt_seed, n)?;
            let source = format!("held-out captions of rendered scenes, seed {}", args.prompt_seed);
            Ok((source, specs.iter().map(|s| plain(s.caption())).collect()))
        }
        None => Ok(("the command line".into(), args.prompt.iter().cloned().map(plain).collect())),
    }
}

fn read_latents(path: &Path) -> anyhow::Result<Tensor> {
    let file = TensorFile::open(path)?;
    let missing = || BadFile::new(path, "no tensor `latents`", "give a file with `latents` (N,C,h,w)");
    Ok(file.tensor("latents")?.ok_or_else(missing)?)
}

/// The rows of some pictures.
fn pick(noise: &Tensor, which: &[usize], total: usize) -> anyhow::Result<Tensor> {
    let rows = noise.size().first().copied().unwrap_or(0);
    if rows != total as i64 {
        return Err(BadInput(format!("--latents: expected {total} rows, one per picture, got {rows}")).into());
    }
    let index: Vec<i64> = which.iter().map(|&i| i as i64).collect();
    Ok(noise.f_index_select(0, &Tensor::from_slice(&index))?)
}
