//! The flags that say what is drawn and how: shared by `generate` and `eval`, so that every U-Net draws alike.

use std::path::PathBuf;

use diffusion::{DecodeParts, SamplerKind};
use eval::{DrawEvent, Drawing, Drawn, Prompts, SamplingOptions};

use crate::common::{Interrupted, stop_flag, stopped};
use crate::progress;

/// What is drawn, and how; the same for every U-Net that is compared.
#[derive(Debug, Clone, clap::Args)]
pub struct SamplingArgs {
    /// Files of prompts: text with one a line, .csv or .tsv with the columns Prompt and Category, .json (HPSv2, COCO), .jsonl.
    #[arg(long, num_args = 1..)]
    pub prompts_file: Vec<PathBuf>,
    /// This many held-out prompts of the scene grammar.
    #[arg(long, value_parser = positive)]
    pub scene_prompts: Option<usize>,
    /// Seed of the choice of scene prompts.
    #[arg(long, default_value_t = 0, requires = "scene_prompts")]
    prompt_seed: u64,
    /// What not to show.
    #[arg(long, alias = "negative")]
    negative_prompt: Option<String>,
    /// Images per prompt, each from a seed of its own.
    #[arg(long, alias = "per-prompt", default_value_t = 1, value_parser = positive)]
    num_images_per_prompt: usize,
    /// Sampling steps.
    #[arg(long, alias = "steps", default_value_t = 20, value_parser = positive)]
    num_inference_steps: usize,
    /// Classifier-free guidance scale; 1 switches guidance off.
    #[arg(long, alias = "cfg", default_value_t = 3.0)]
    guidance_scale: f64,
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
    /// Decode images larger than those of training in overlapping tiles: less memory, images a little different.
    #[arg(long)]
    vae_tiling: bool,
    /// Decode one image at a time: less memory, the same images.
    #[arg(long)]
    vae_slicing: bool,
}

impl SamplingArgs {
    /// The prompts; none where none were named.
    pub fn prompts(&self) -> eval::Result<Option<Prompts>> {
        match self.scene_prompts {
            _ if !self.prompts_file.is_empty() => Prompts::of_files(&self.prompts_file).map(Some),
            Some(n) => Prompts::of_scenes(self.prompt_seed, n).map(Some),
            None => Ok(None),
        }
    }

    /// How images are sampled; `seed` is the first one's.
    pub fn options(&self, seed: u64) -> SamplingOptions {
        SamplingOptions {
            negative: self.negative_prompt.clone(),
            per_prompt: self.num_images_per_prompt,
            seed,
            steps: self.num_inference_steps,
            guidance: self.guidance_scale,
            sampler: self.sampler,
            karras: self.karras,
            clip_skip: self.clip_skip,
            size: self.size,
            decode: DecodeParts { sliced: self.vae_slicing, tiled: self.vae_tiling },
        }
    }
}

/// A whole number from 1.
pub fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("expected a whole number from 1, got `{text}`"))
}

/// Draws with a progress bar, until a signal comes between two batches.
pub fn draw(drawing: &Drawing) -> anyhow::Result<Drawn> {
    let (stop, bar) = (stop_flag()?, progress::bar("images", 0));
    let drawn = drawing.draw(|event| -> anyhow::Result<()> {
        let (DrawEvent::Batch { done, total } | DrawEvent::Step { done, total }) = event;
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        match event {
            DrawEvent::Batch { .. } if stopped(&stop) => Err(Interrupted("stopped; run the same command to go on".into()).into()),
            _ => Ok(()),
        }
    });
    bar.finish_and_clear();
    drawn
}
