//! `eval --model`: draws the pictures that are missing, by teacher and students alike, before they are measured.
//! Models -> **pictures** -> eval.json.

use std::path::{Component, Path, PathBuf};

use crate::common::{BadInput, prepare_dir};
use eval::Drawing;

use crate::device::Place;
use crate::hub::ModelArg;
use crate::model::named_dir;
use crate::sampling::{SamplingArgs, draw, positive};

/// The teacher's name where `eval` draws.
const TEACHER: &str = "teacher";

/// What `eval` draws.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Drawing (with --model)")]
pub struct DrawArgs {
    /// Draw the pictures where they are missing: the teacher is this model directory, or org/name on the hub.
    #[arg(long, conflicts_with_all = ["reference", "images"], required_unless_present = "reference")]
    pub(super) model: Option<ModelArg>,
    /// A student that draws the same prompts from the same seeds, as NAME=DIR of its U-Net; several may follow.
    #[arg(long, value_name = "NAME=DIR", num_args = 1.., requires = "model")]
    unet: Vec<String>,
    /// The folder of all images, one folder in it per U-Net; what is there and fits is kept [default: images/ beside --out].
    #[arg(long, alias = "pictures", value_name = "DIR", requires = "model")]
    images_dir: Option<PathBuf>,
    /// Seed of the first image; image i has this plus i.
    #[arg(long, alias = "picture-seed", default_value_t = 0, requires = "model")]
    image_seed: u64,
    /// Images drawn at once.
    #[arg(long, default_value_t = 8, requires = "model", value_parser = positive)]
    draw_batch: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
}

impl DrawArgs {
    /// The folder of each U-Net's pictures, the teacher's first; none without a model.
    ///
    /// # Errors
    /// [`BadInput`] for a name that is no folder's, or settings without a meaning.
    pub fn folders(&self, out: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
        if self.model.is_none() {
            if !self.sampling.prompts_file.is_empty() || self.sampling.scene_prompts.is_some() {
                return Err(BadInput("prompts are for drawing, which needs --model; pictures of --reference have their own".into()).into());
            }
            return Ok(Vec::new());
        }
        let all = self.images_dir.clone().unwrap_or_else(|| out.with_file_name("images"));
        let mut folders = vec![(TEACHER.to_string(), all.join(TEACHER))];
        for text in &self.unet {
            let (name, _) = named_dir("--unet", text)?;
            let plain = matches!(Path::new(&name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
            if !plain || name.starts_with('.') || name.contains(['/', '\\']) {
                return Err(BadInput(format!("--unet {text}: the name is that of a folder for its pictures; expected a plain name")).into());
            }
            folders.push((name.clone(), all.join(name)));
        }
        Ok(folders)
    }

    /// Draws what is missing in `folders`, which are [`DrawArgs::folders`].
    ///
    /// # Errors
    /// Those of drawing; after a signal what was drawn is kept.
    pub fn draw(&self, folders: &[(String, PathBuf)], place: Place) -> anyhow::Result<()> {
        let Some(model) = &self.model else { return Ok(()) };
        let Some(prompts) = self.sampling.prompts()? else {
            return Err(BadInput("--model: nothing to draw; name prompts with --prompts-file or --scene-prompts".into()).into());
        };
        let students = self.unet.iter().map(|text| Ok(Some(named_dir("--unet", text)?.1)));
        let unets = std::iter::once(Ok(None)).chain(students).collect::<anyhow::Result<Vec<_>>>()?;
        for ((name, out), unet) in folders.iter().zip(unets) {
            prepare_dir(out)?;
            let done = draw(&Drawing {
                model: model.path()?,
                unet: unet.as_deref(),
                prompts: &prompts,
                sampling: &self.sampling.options(self.image_seed),
                batch: self.draw_batch,
                out,
                latents: None,
                save_latents: None,
                offload: false,
                device: place.device,
                kind: place.kind,
            })?;
            eprintln!("{name}: {} images drawn now, {} kept", done.drawn, done.kept);
        }
        Ok(())
    }
}
