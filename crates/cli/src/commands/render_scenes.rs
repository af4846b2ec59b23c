//! `laptop-diff render-scenes`: captioned pictures from the project's own renderer, as data and as truth.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use eval::{SCENES_FILE, image_file_name};
use image::RgbImage;
use rayon::prelude::*;
use scenes::{Scene, SceneRecord, Split, held_out, render};

use crate::common::{BadInput, Interrupted, prepare_dir, stop_flag, stopped};
use crate::progress;

/// Arguments of `render-scenes`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["count", "scene_prompts"]))]
pub struct Args {
    /// Number of scenes from the stream.
    #[arg(long)]
    count: Option<u64>,
    /// Instead: scenes of this many held-out prompts, the same as those of `generate --scene-prompts`.
    #[arg(long)]
    scene_prompts: Option<usize>,
    /// Seed of the choice of prompts.
    #[arg(long, default_value_t = 0, requires = "scene_prompts")]
    prompt_seed: u64,
    /// Pictures per prompt.
    #[arg(long, default_value_t = 1, requires = "scene_prompts", value_parser = clap::value_parser!(u64).range(1..))]
    per_prompt: u64,
    /// Seed of the stream, and of all that the captions leave open.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Width and height in pixels.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Which captions to use.
    #[arg(long, value_enum, default_value_t = SplitArg::Train, conflicts_with = "scene_prompts")]
    split: SplitArg,
    /// Also write each caption beside its picture (0001.txt), as `calibrate`, `cache` and others read pictures with captions.
    #[arg(long)]
    captions: bool,
    /// The folder to write: PNG files and scenes.jsonl.
    #[arg(long)]
    out: PathBuf,
}

/// The two disjoint sets of captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitArg {
    /// The captions that models are trained on.
    Train,
    /// The captions that only evaluation uses.
    HeldOut,
}

/// Draws and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let scenes = scenes(args)?;
    // A size that the renderer refuses is reported before anything is written.
    render(&scenes[0], args.size)?;
    prepare_dir(&args.out)?;
    let stop = stop_flag()?;
    let bar = progress::bar("scenes", scenes.len() as u64);
    let records: Vec<SceneRecord> = scenes
        .par_iter()
        .enumerate()
        .map(|(at, scene)| {
            if stopped(&stop) {
                return Err(Interrupted("stopped; run the same command again".into()).into());
            }
            let record = scene.record(at as u64);
            let text = BTreeMap::from([("prompt".to_string(), record.caption.clone()), ("seed".to_string(), args.seed.to_string())]);
            let file = args.out.join(image_file_name(at));
            diffusion::picture::write_png(&file, &from_scene(render(scene, args.size)?), &text)?;
            if args.captions {
                prune_core::file::write_bytes(&file.with_extension("txt"), record.caption.as_bytes())?;
            }
            bar.inc(1);
            Ok(record)
        })
        .collect::<anyhow::Result<_>>()?;
    bar.finish_and_clear();
    let mut lines = String::new();
    for record in &records {
        lines.push_str(&serde_json::to_string(record)?);
        lines.push('\n');
    }
    // The manifest comes last: a folder without it is not complete.
    prune_core::file::write_bytes(&args.out.join(SCENES_FILE), lines.as_bytes())?;
    println!("{}: {} scenes of {} x {} pixels", args.out.display(), records.len(), args.size, args.size);
    Ok(())
}

fn scenes(args: &Args) -> anyhow::Result<Vec<Scene>> {
    let split = match args.split {
        SplitArg::Train => Split::Train,
        SplitArg::HeldOut => Split::HeldOut,
    };
    let scenes: Vec<Scene> = match (args.count, args.scene_prompts) {
        (Some(count), _) => (0..count).map(|i| Scene::sample(args.seed, i, split)).collect(),
        (None, n) => {
            let specs = held_out(args.prompt_seed, n.unwrap_or(0))?;
            let mut scenes = Vec::new();
            for spec in specs {
                for _ in 0..args.per_prompt {
                    let index = scenes.len() as u64;
                    scenes.push(Scene::from_spec(spec.clone(), args.seed, index)?);
                }
            }
            scenes
        }
    };
    if scenes.is_empty() {
        return Err(BadInput("--count and --scene-prompts: expected at least 1, got 0".into()).into());
    }
    Ok(scenes)
}

/// A rendered scene as the image type of files.
fn from_scene(picture: scenes::RgbImage) -> RgbImage {
    let (w, h) = (picture.width() as u32, picture.height() as u32);
    RgbImage::from_raw(w, h, picture.into_data()).expect("a rendered picture has as many bytes as its sides say")
}
