//! Folders of rendered scenes: images, captions beside them where they are wanted, and a manifest. Renderer -> **files** -> any source.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::write_bytes;
use diffusion::images::write_png;
use image::RgbImage;
use rayon::prelude::*;
use scenes::{Scene, SceneRecord, Split, held_out, render};

use crate::error::{Error, Result};

/// Manifest of rendered scenes, one JSON object a line.
pub const SCENES_FILE: &str = "scenes.jsonl";
/// Scenes drawn together, on all cores.
const TOGETHER: usize = 64;

/// Which scenes are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SceneChoice {
    /// The first ones of the stream.
    Stream {
        /// How many.
        count: u64,
        /// Which captions occur.
        split: Split,
    },
    /// Held-out prompts, the same as [`scenes::held_out`] chooses them.
    HeldOut {
        /// How many.
        prompts: usize,
        /// Seed of their choice.
        prompt_seed: u64,
        /// Images of each.
        per_prompt: u64,
    },
}

/// How scenes are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SceneOptions {
    /// Seed of the stream, and of all that the captions leave open.
    pub seed: u64,
    /// Width and height in pixels.
    pub size: usize,
    /// Whether each caption is written beside its image (00001.txt).
    pub captions: bool,
}

/// Name of the image file number `n` of a folder.
pub fn image_file_name(n: usize) -> String {
    format!("{n:05}.png")
}

/// Draws scenes into the folder `out` and returns how many they are. `progress` hears how many are done, of how many. The manifest
/// comes last: a folder without it is not complete.
///
/// # Errors
/// [`Error::Input`] for no scene, [`Error::Scenes`] for a size that cannot be drawn, [`Error::Io`]; what `progress` fails with.
pub fn render_scenes<E: From<Error>>(
    out: &Path,
    choice: &SceneChoice,
    options: &SceneOptions,
    progress: &mut dyn FnMut(usize, usize) -> std::result::Result<(), E>,
) -> std::result::Result<usize, E> {
    let scenes = choose(choice, options.seed)?;
    // A size that the renderer refuses is reported before anything is written.
    render(&scenes[0], options.size).map_err(Error::from)?;
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    let mut records = Vec::with_capacity(scenes.len());
    for part in scenes.chunks(TOGETHER) {
        progress(records.len(), scenes.len())?;
        let first = records.len();
        let drawn: Result<Vec<SceneRecord>> = part.par_iter().enumerate().map(|(n, scene)| draw(out, first + n, scene, options)).collect();
        records.extend(drawn?);
    }
    progress(records.len(), scenes.len())?;
    Ok(write_manifest(out, &records)?)
}

fn choose(choice: &SceneChoice, seed: u64) -> Result<Vec<Scene>> {
    let (setting, scenes) = match *choice {
        SceneChoice::Stream { count, split } => ("count", (0..count).map(|i| Scene::sample(seed, i, split)).collect()),
        SceneChoice::HeldOut { prompts, prompt_seed, per_prompt } => {
            let mut scenes: Vec<Scene> = Vec::new();
            for spec in held_out(prompt_seed, prompts)? {
                for _ in 0..per_prompt {
                    let index = scenes.len() as u64;
                    scenes.push(Scene::from_spec(spec.clone(), seed, index)?);
                }
            }
            ("scene_prompts", scenes)
        }
    };
    if scenes.is_empty() {
        return Err(Error::Input { name: setting.into(), expected: "at least 1".into(), got: "0".into() });
    }
    Ok(scenes)
}

fn draw(out: &Path, number: usize, scene: &Scene, options: &SceneOptions) -> Result<SceneRecord> {
    let record = scene.record(number as u64);
    let text = BTreeMap::from([("prompt".to_string(), record.caption.clone()), ("seed".to_string(), options.seed.to_string())]);
    let file = out.join(image_file_name(number));
    let drawn = render(scene, options.size)?;
    let (width, height) = (drawn.width() as u32, drawn.height() as u32);
    let image = RgbImage::from_raw(width, height, drawn.into_data()).expect("an image has three bytes a pixel");
    write_png(&file, &image, &text)?;
    if options.captions {
        write_bytes(&file.with_extension("txt"), record.caption.as_bytes())?;
    }
    Ok(record)
}

fn write_manifest(out: &Path, records: &[SceneRecord]) -> Result<usize> {
    let line = |record| serde_json::to_string(record).expect("records are JSON") + "\n";
    let lines: String = records.iter().map(line).collect();
    write_bytes(&out.join(SCENES_FILE), lines.as_bytes())?;
    Ok(records.len())
}
