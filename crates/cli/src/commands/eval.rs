//! `laptop-diff eval`: images of several U-Nets, same prompts and seeds, held against each other; drawn first where they are missing.
//! Images -> **eval.json** -> report.

use std::path::{Component, Path, PathBuf};

use artifact::Document;
use eval::{
    Drawing, EvalFile, Evaluation, EvaluationEvent, EvaluationOptions, ImageScores, MetricInfo, MetricOptions, MetricSpec, MetricValue,
    TEACHER, Verdict, named_metrics, own_clip_metrics,
};

use crate::common::{BadFile, BadInput, Interrupted, prepare_dir, prepare_file, stop_flag, stopped};
use crate::device::{DeviceArgs, DeviceDtype};
use crate::hub;
use crate::model::ModelArg;
use crate::model::named_dir;
use crate::sampling::{SamplingArgs, draw, positive};
use crate::table::Table;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = metrics_help())]
pub struct Args {
    /// The teacher's images (written by `generate`), as NAME=DIR. With --model they are drawn.
    #[arg(long, value_name = "NAME=DIR", required_unless_present = "model", value_parser = named_dir)]
    reference: Option<(String, PathBuf)>,
    /// Images of another U-Net, from the same prompts and seeds, as NAME=DIR; several may follow.
    #[arg(long, value_name = "NAME=DIR", num_args = 1.., value_parser = named_dir)]
    images: Vec<(String, PathBuf)>,
    #[command(flatten)]
    draw: DrawArgs,
    /// The run's own CLIP model, for its score and Fréchet distances: its folder, or a model directory with one in clip/.
    #[arg(long, required_unless_present = "metric")]
    clip: Option<PathBuf>,
    /// A published score with its weights, as NAME=FILES; see the list below. May be repeated.
    #[arg(long, value_name = "NAME=FILES")]
    metric: Vec<MetricSpec>,
    /// The folder of a CLIP tokenizer, for CLIP weights that have none beside them.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Real images, for distances to them: any folder, or scenes of the same prompts (written by `render-scenes --scene-prompts`).
    #[arg(long)]
    real: Option<PathBuf>,
    /// Two of the names, as A:B, to be compared directly; may be repeated.
    #[arg(long, value_name = "A:B", value_parser = pair)]
    compare: Vec<(String, String)>,
    /// Rows of the report's table of images.
    #[arg(long, default_value_t = 12)]
    gallery: usize,
    /// Seed of the bootstrap over prompts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images per CLIP call.
    #[arg(long, default_value_t = 64, value_parser = positive)]
    batch: usize,
    /// The file to write; per_prompt.json and image_scores.json are written beside it. Scores in the latter whose images and
    /// weights are the same are kept.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    place: DeviceArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// What `eval` draws.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Drawing (with --model)")]
struct DrawArgs {
    /// Draw the images where they are missing: the teacher is this model directory, or org/name on the hub.
    #[arg(long, conflicts_with_all = ["reference", "images"], required_unless_present = "reference")]
    model: Option<ModelArg>,
    /// A student that draws the same prompts from the same seeds, as NAME=DIR of its U-Net; several may follow.
    #[arg(long, value_name = "NAME=DIR", num_args = 1.., requires = "model", value_parser = named_dir)]
    unet: Vec<(String, PathBuf)>,
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

/// The list of metrics in the help.
fn metrics_help() -> String {
    let line = |name: &str, files: &[&str], weights: &str| format!("\n  {:<34} {weights}", format!("{name}={}", files.join(",")));
    let lines: String = named_metrics().map(|m| line(m.name.unwrap_or_default(), m.files, m.weights)).collect();
    format!(
        "Scores for --metric. CLIP is a folder in transformers' layout or a file in OpenCLIP's; files are safetensors or PyTorch's own,\n\
         here or on the hub (org/name, org/name:file). Definitions and sources: docs/metrics.md.{lines}"
    )
}

/// The two names of `A:B`.
fn pair(text: &str) -> Result<(String, String), String> {
    text.split_once(':').map(|(a, b)| (a.into(), b.into())).ok_or_else(|| format!("expected A:B, got `{text}`"))
}

/// Draws, scores and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let drawn = args.draw.folders(&args.out)?;
    let folders: Vec<&(String, PathBuf)> = args.reference.iter().chain(&args.images).chain(&drawn).collect();
    let mut evaluation = Evaluation::new(&folders[0].0, &folders[0].1);
    folders[1..].iter().try_for_each(|(name, dir)| evaluation.add_unet(name, dir))?;
    args.compare.iter().try_for_each(|(a, b)| evaluation.compare(a, b))?;
    args.real.iter().try_for_each(|dir| evaluation.set_real(dir))?;
    let (place, metrics) = (args.place.open()?, locate(&args.metric)?);
    args.draw.draw(&drawn, place)?;

    if let Some(clip) = &args.clip {
        own_clip_metrics(clip, place.device, args.batch)?.into_iter().try_for_each(|metric| evaluation.add_metric(metric))?;
    }
    let DeviceDtype { device, kind } = args.place.open_to_compare()?;
    let options = MetricOptions { tokenizer: args.tokenizer.as_deref(), device, kind, batch: args.batch };
    metrics.iter().try_for_each(|metric| evaluation.add_metric(metric.open(&options)?))?;

    let stop = stop_flag()?;
    let base = args.out.parent().unwrap_or(Path::new("")).to_path_buf();
    let options = EvaluationOptions { batch: args.batch, seed: args.seed, gallery: args.gallery, base };
    let mut kept = ImageScores::open(&args.out.with_file_name("image_scores.json"))?;
    let found = evaluation.run(&options, &mut kept, |event| match event {
        EvaluationEvent::Batch { .. } if stopped(&stop) => {
            Err(anyhow::Error::from(Interrupted("stopped; run the same command to go on".into())))
        }
        _ => Ok(()),
    })?;
    found.per_prompt.write(&args.out.with_file_name("per_prompt.json"))?;
    found.file.write(&args.out)?;
    if args.json {
        print!("{}", found.file.to_text(&args.out)?);
    } else {
        print(&found.file);
        println!("written     {}", args.out.display());
    }
    Ok(())
}

impl DrawArgs {
    /// The folder of each U-Net's images, the teacher's first; none without a model.
    fn folders(&self, out: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
        if self.model.is_none() {
            if !self.sampling.prompts_file.is_empty() || self.sampling.scene_prompts.is_some() {
                return Err(BadInput("prompts are for drawing, which needs --model; images of --reference have their own".into()).into());
            }
            return Ok(Vec::new());
        }
        let all = self.images_dir.clone().unwrap_or_else(|| out.with_file_name("images"));
        let mut folders = vec![(TEACHER.to_string(), all.join(TEACHER))];
        for (name, dir) in &self.unet {
            let plain = matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
            if !plain || name.starts_with('.') || name.contains(['/', '\\']) {
                let given = format!("--unet {name}={}", dir.display());
                return Err(BadInput(format!("{given}: the name is that of a folder for its images; expected a plain name")).into());
            }
            folders.push((name.clone(), all.join(name)));
        }
        Ok(folders)
    }

    /// Draws what is missing in `folders`, which are [`DrawArgs::folders`].
    fn draw(&self, folders: &[(String, PathBuf)], DeviceDtype { device, kind }: DeviceDtype) -> anyhow::Result<()> {
        let Some(model) = &self.model else { return Ok(()) };
        let Some(prompts) = self.sampling.prompts()? else {
            return Err(BadInput("--model: nothing to draw; name prompts with --prompts-file or --scene-prompts".into()).into());
        };
        let (sampling, named) = (self.sampling.options(self.image_seed), model.path()?.into());
        let unets = std::iter::once(None).chain(self.unet.iter().map(|(_, dir)| Some(dir.as_path())));
        for ((name, out), unet) in folders.iter().zip(unets) {
            prepare_dir(out)?;
            let drawing = Drawing::new(&named, &prompts, &sampling, out, device, kind);
            let done = draw(&Drawing { unet, batch: self.draw_batch, ..drawing })?;
            eprintln!("{name}: {} images drawn now, {} kept", done.drawn, done.kept);
        }
        Ok(())
    }
}

/// The metrics with files that are there, fetched where they are the hub's: a missing one must not come to light after hours of drawing.
fn locate(metrics: &[MetricSpec]) -> anyhow::Result<Vec<MetricSpec>> {
    let mut found = metrics.to_vec();
    for (i, metric) in found.iter_mut().enumerate() {
        if metrics[..i].iter().any(|other| other.id() == metric.id()) {
            return Err(BadInput(format!("--metric: {} is there twice", metric.id())).into());
        }
        let name = metric.name();
        for file in &mut metric.files {
            *file = hub::weights(file)?;
            if !file.exists() {
                let hint = "name a file or folder, org/name, or org/name:file of the hub";
                return Err(BadFile::new(file, format!("--metric {name}: no such file or folder"), hint).into());
            }
        }
    }
    Ok(found)
}

fn print(file: &EvalFile) {
    let labels: Vec<String> = file.metrics.iter().map(|metric| format!(">{}", metric.label)).collect();
    let mut table = Table::new(std::iter::once("name").chain(labels.iter().map(String::as_str)));
    for unet in &file.unets {
        let value = |metric: &MetricInfo| unet.metrics.iter().find(|m| m.metric == metric.id).map_or("-".into(), |m| interval(m, metric));
        table.row(std::iter::once(unet.name.clone()).chain(file.metrics.iter().map(value)));
    }
    print!("{table}");
    let mut table = Table::new(["name", "category", "metric", "decline", ""]);
    for row in file.by_category.iter().filter(|r| r.metrics.iter().any(|m| m.verdict.is_some())) {
        for m in &row.metrics {
            let label = file.metrics.iter().find(|i| i.id == m.metric).map_or(m.metric.as_str(), |i| i.label.as_str());
            let decline =
                m.decline.map_or("-".into(), |d| format!("{:.2} % [{:.2}, {:.2}]", 100.0 * d.value, 100.0 * d.low, 100.0 * d.high));
            table.row([row.unet.as_str(), &row.category, label, &decline, m.verdict.map_or("-", Verdict::words)]);
        }
    }
    if !file.by_category.is_empty() {
        print!("{table}");
    }
}

fn interval(m: &MetricValue, metric: &MetricInfo) -> String {
    let (scale, unit) = if metric.percent { (100.0, " %") } else { (1.0, "") };
    format!("{:.2} [{:.2}, {:.2}]{unit}", m.value.value * scale, m.value.low * scale, m.value.high * scale)
}
