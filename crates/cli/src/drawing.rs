//! Drawing pictures of many prompts: what there is to say about how, and the loop that keeps what is there already.
//! Model -> **pictures** -> evaluation. `generate` and `eval` share it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::{Prompt, held_out_prompts, read_prompts};
use diffusion::picture::{read_png_text, write_png};
use diffusion::{DecodeParts, GenerateOptions, Generated, OffloadedPipeline, Pipeline, Progress, SamplerKind};
use sha2::{Digest, Sha256};
use tch::Tensor;
use unet::weights::{TensorFile, Tensors, hex, save_tensors};

use crate::common::{BadFile, BadInput, Interrupted, file_hash, stop_flag, stopped};
use crate::device::{Place, kind_name};
use crate::image_source::with_flags;
use crate::model::Model;
use crate::pictures::{Entry, Manifest, Settings, file_name};
use crate::progress;

/// What is drawn, and how; the same for every U-Net that is compared.
#[derive(Debug, Clone, clap::Args)]
pub struct How {
    /// Files of prompts: text with one a line, .tsv with the columns Prompt and Category, or .json as the HPSv2 benchmark ships it.
    #[arg(long, num_args = 1..)]
    pub prompts_file: Vec<PathBuf>,
    /// This many held-out prompts of the scene grammar.
    #[arg(long)]
    pub scene_prompts: Option<usize>,
    /// Seed of the choice of scene prompts.
    #[arg(long, default_value_t = 0, requires = "scene_prompts")]
    pub prompt_seed: u64,
    /// What not to show.
    #[arg(long)]
    pub negative: Option<String>,
    /// Pictures per prompt, each from a seed of its own.
    #[arg(long, default_value_t = 1)]
    pub per_prompt: usize,
    /// Sampling steps.
    #[arg(long, default_value_t = 20)]
    pub steps: usize,
    /// Classifier-free guidance scale; 1 switches guidance off.
    #[arg(long, default_value_t = 3.0)]
    pub cfg: f64,
    /// ddim, euler, euler-ancestral, dpmpp-2m or lcm.
    #[arg(long, default_value = "ddim")]
    pub sampler: SamplerKind,
    /// Karras' noise levels for euler and dpmpp-2m, even where the model's scheduler does not ask for them.
    #[arg(long)]
    pub karras: bool,
    /// Last layers of the text encoders to leave out for the prompt.
    #[arg(long, default_value_t = 0)]
    pub clip_skip: usize,
    /// Height and width in pixels [default: the model's own].
    #[arg(long)]
    pub size: Option<i64>,
    /// Decode pictures larger than those of training in overlapping tiles: less memory, pictures a little different.
    #[arg(long)]
    pub vae_tiling: bool,
    /// Decode one picture at a time: less memory, the same pictures.
    #[arg(long)]
    pub vae_slicing: bool,
}

/// One U-Net's pictures.
#[derive(Debug)]
pub struct Drawing<'a> {
    /// A model directory.
    pub model: &'a Path,
    /// A U-Net that takes the place of the model's own.
    pub unet: Option<&'a Path>,
    /// How.
    pub how: &'a How,
    /// Seed of the first picture.
    pub seed: u64,
    /// Pictures computed at once.
    pub batch: usize,
    /// The folder to write.
    pub out: &'a Path,
    /// A file with the noise to start from.
    pub latents: Option<&'a Path>,
    /// A file to write final latents to.
    pub save_latents: Option<&'a Path>,
    /// One part of the model in memory at a time.
    pub offload: bool,
    /// Where and in what.
    pub place: Place,
}

/// What [`Drawing::draw`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// Pictures drawn now.
    pub drawn: usize,
    /// Pictures that were there already.
    pub kept: usize,
    /// Height and width.
    pub size: [i64; 2],
}

/// The model, all of it in memory or one part after the other.
enum Painter<'a> {
    Resident(Box<Pipeline>),
    Offloaded(&'a OffloadedPipeline),
}

impl Painter<'_> {
    fn generate(&self, options: &GenerateOptions, progress: &mut dyn FnMut(Progress)) -> diffusion::Result<Generated> {
        match self {
            Painter::Resident(p) => p.generate(p.unet(), options, progress),
            Painter::Offloaded(p) => p.generate(options, progress),
        }
    }
}

impl How {
    /// Refuses numbers that mean nothing.
    ///
    /// # Errors
    /// [`BadInput`] that names the flag.
    pub fn check(&self) -> anyhow::Result<()> {
        for (flag, value) in [("--per-prompt", self.per_prompt), ("--steps", self.steps)] {
            if value == 0 {
                return Err(BadInput(format!("{flag} 0: expected at least 1")).into());
            }
        }
        Ok(())
    }

    /// Where the prompts come from in one phrase, and the prompts; nothing where none were named.
    ///
    /// # Errors
    /// [`data::Error::Format`] for a file without prompts.
    pub fn prompts(&self) -> anyhow::Result<Option<(String, Vec<Prompt>)>> {
        if !self.prompts_file.is_empty() {
            let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let names: Vec<String> = self.prompts_file.iter().map(name).collect();
            let all = self.prompts_file.iter().map(|path| read_prompts(path)).collect::<data::Result<Vec<_>>>()?;
            let files = if names.len() == 1 { "the file" } else { "the files" };
            return Ok(Some((format!("{files} {}", names.join(", ")), all.concat())));
        }
        match self.scene_prompts {
            Some(0) => Err(BadInput("--scene-prompts 0: expected at least 1".into()).into()),
            Some(n) => {
                let specs = held_out_prompts(self.prompt_seed, n).map_err(|e| with_flags(e.into()))?;
                let source = format!("held-out captions of rendered scenes, seed {}", self.prompt_seed);
                Ok(Some((source, specs.iter().map(|s| Prompt { text: s.caption(), category: None }).collect())))
            }
            None => Ok(None),
        }
    }
}

impl Drawing<'_> {
    /// Draws what is missing and writes `images.json` last: a folder without it is not complete.
    ///
    /// # Errors
    /// [`Interrupted`] after a signal, when whole batches are kept; those of loading, drawing and writing.
    pub fn draw(&self, source: String, prompts: &[Prompt]) -> anyhow::Result<Drawn> {
        let how = self.how;
        let model = Model::open(self.model)?;
        let noise = self.latents.map(read_latents).transpose()?;
        let Place { device, kind } = self.place;
        // Without weights: nothing is loaded where nothing is missing.
        let parts = OffloadedPipeline::open(self.model, self.unet, device, kind)?;
        let (height, width) = how.size.map(|n| (n, n)).or(parts.native_size()).unwrap_or((512, 512));
        let settings = Settings {
            model: model.name(),
            unet: unet::fingerprint(parts.dir().unet())?,
            prompt_source: source,
            negative: how.negative.clone().unwrap_or_default(),
            per_prompt: how.per_prompt,
            seed: self.seed,
            sampler: how.sampler.name().into(),
            karras: how.karras,
            clip_skip: how.clip_skip,
            vae_tiling: how.vae_tiling,
            compute: kind_name(kind).into(),
            steps: how.steps,
            guidance: how.cfg,
            size: [height, width],
            latents: self.latents.map(file_hash).transpose()?,
        };
        let all = prompts.iter().flat_map(|p| std::iter::repeat_n(p, how.per_prompt)).enumerate();
        let entries: Vec<Entry> = all
            .map(|(i, p)| Entry {
                file: file_name(i),
                prompt: p.text.clone(),
                seed: self.seed.wrapping_add(i as u64),
                category: p.category.clone(),
            })
            .collect();
        let options = |which: &[usize]| -> anyhow::Result<GenerateOptions> {
            Ok(GenerateOptions {
                prompts: which.iter().map(|&i| entries[i].prompt.clone()).collect(),
                negative: how.negative.clone(),
                steps: how.steps,
                guidance: how.cfg,
                sampler: how.sampler,
                karras: how.karras,
                clip_skip: how.clip_skip,
                seeds: which.iter().map(|&i| entries[i].seed).collect(),
                height,
                width,
                batch: self.batch,
                latents: noise.as_ref().map(|t| pick(t, which, entries.len())).transpose()?,
                decode: DecodeParts { sliced: how.vae_slicing, tiled: how.vae_tiling },
            })
        };

        let keys: Vec<String> = entries.iter().enumerate().map(|(i, e)| key(&settings, e, noise.is_some().then_some(i))).collect();
        let there = |i: usize| self.save_latents.is_none() && has_key(&self.out.join(&entries[i].file), &keys[i]);
        let missing: Vec<bool> = (0..entries.len()).map(|i| !there(i)).collect();
        // Batches are cut from all pictures alike, and one with a gap is computed whole: the last bits of a picture depend on how many
        // are computed with it, and a run that goes on shall give the pictures of one that was never stopped.
        let batches = (0..entries.len()).step_by(self.batch).map(|first| first..(first + self.batch).min(entries.len()));
        let batches: Vec<Vec<usize>> = batches.filter(|b| b.clone().any(|i| missing[i])).map(Iterator::collect).collect();
        // Batch by batch, so that finished pictures are safe; with --offload in one go, since each call loads everything.
        let rounds = if self.offload && !batches.is_empty() { vec![batches.concat()] } else { batches };
        let todo: usize = rounds.iter().map(Vec::len).sum();
        let (stop, bar) = (stop_flag()?, progress::bar("pictures", (todo * how.steps) as u64));
        let painter = match (rounds.is_empty(), self.offload) {
            (false, false) => Painter::Resident(Box::new(Pipeline::open(self.model, self.unet, device, kind)?)),
            _ => Painter::Offloaded(&parts),
        };
        let (mut latents, mut before) = (Vec::new(), 0);
        for round in &rounds {
            if stopped(&stop) {
                return Err(Interrupted("stopped; run the same command to go on".into()).into());
            }
            let start = std::time::Instant::now();
            let made = painter.generate(&options(round)?, &mut |p| {
                // A batch that has all its steps counts as done; with --offload, whose pictures are decoded last, never go back.
                let steps = (before + p.done) * p.steps + if p.step < p.steps { p.batch * p.step } else { 0 };
                bar.set_position(bar.position().max(steps as u64));
            })?;
            // tests/speed/compare_pipelines.py reads this.
            tracing::info!("{} pictures in {:.4} s", round.len(), start.elapsed().as_secs_f64());
            for (&i, picture) in round.iter().zip(&made.pictures).filter(|(i, _)| missing[**i]) {
                let text = BTreeMap::from([
                    (KEY.to_string(), keys[i].clone()),
                    ("prompt".to_string(), entries[i].prompt.clone()),
                    ("seed".to_string(), entries[i].seed.to_string()),
                    ("settings".to_string(), serde_json::to_string(&settings)?),
                ]);
                write_png(self.out.join(&entries[i].file), picture, &text)?;
            }
            before += round.len();
            latents.push(made.latents);
        }
        bar.finish_and_clear();
        if let Some(path) = self.save_latents {
            let tensors = Tensors::from([("latents".to_string(), Tensor::cat(&latents, 0))]);
            save_tensors(path, &tensors, &BTreeMap::new(), None)?;
        }
        Manifest::new(settings, entries).write(self.out)?;
        let drawn = missing.iter().filter(|gone| **gone).count();
        Ok(Drawn { drawn, kept: missing.len() - drawn, size: [height, width] })
    }
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
    let compute = if s.in_f32() { "" } else { &s.compute };
    hex(&Sha256::digest(format!("{parts:?}{further}{compute}")))
}

/// Whether `path` is an intact picture with this key.
fn has_key(path: &Path, key: &str) -> bool {
    path.is_file() && read_png_text(path).is_ok_and(|text| text.get(KEY).is_some_and(|k| k == key))
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
