//! `cargo xtask reproduce-sdxl` and `reproduce-sd15`: the paper's experiment on published weights, and its rehearsals.
//!
//! `settings` is what can be chosen, `flow` the list of stages, `dry_run` what they would cost and what is missing.

mod dry_run;
mod flow;
mod settings;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::flow::{Flow, Sizes};
use self::settings::{Need, Settings};
use crate::pipeline::{self, Options, RunPaths, Stage, settings_file, write_whole};
use crate::setup::nccl;

/// A published model on which the experiment runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Experiment {
    Sdxl,
    Sd15,
}

impl Experiment {
    fn name(self) -> &'static str {
        match self {
            Experiment::Sdxl => "sdxl",
            Experiment::Sd15 => "sd15",
        }
    }
}

/// Flags of `reproduce-sdxl` and `reproduce-sd15`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub common: Options,
    /// How much of it: the published settings, some days on one GPU, or some hours.
    #[arg(long, value_enum, default_value_t = Profile::Paper)]
    profile: Profile,
    /// Run the same stages on a model with random weights: a narrow one in minutes on a CPU, or the true architecture.
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "small", conflicts_with = "profile")]
    rehearse: Option<Rehearsal>,
    /// Print every stage, what it needs and what it would take, and run none. Fails when something is missing.
    #[arg(long)]
    dry_run: bool,
    /// Processes that share one training, started by torchrun.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranks: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Profile {
    Paper,
    Day,
    Hour,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rehearsal {
    /// Full depth, a fraction of the width: minutes on a CPU.
    Small,
    /// The true architecture as far as a CPU with 24 GB gets: up to the exports, without training.
    FullSize,
    /// The true architecture with 20 steps of training: one GPU with 80 GB.
    FullSizeGpu,
}

/// Reads the settings, checks what is missing, and runs or prices the stages.
pub fn run(root: &Path, experiment: Experiment, args: &Args, verbose: bool) -> Result<()> {
    let name = experiment.name();
    let file = args.common.config.clone().unwrap_or_else(|| format!("configs/reproduce-{name}.toml").into());
    let text = fs::read_to_string(root.join(&file)).with_context(|| format!("cannot read the settings {}", file.display()))?;
    let (group, variant) = variant(args);
    let settings = settings::read(&text, &file.display().to_string(), group, variant)?;
    let default_out = match (args.rehearse, args.profile) {
        (Some(_), _) => format!("runs/rehearse-{name}-{}", variant.unwrap_or_default()),
        (None, Profile::Paper) => format!("runs/{name}"),
        (None, _) => format!("runs/{name}-{}", variant.unwrap_or_default()),
    };
    let out = args.common.out.clone().unwrap_or_else(|| default_out.into());
    let command = format!("reproduce-{name}");
    if args.dry_run {
        return dry_run::run(root, &settings, &out, args, verbose);
    }
    let missing = missing(root, &settings);
    if let Some(text) = needs_text(missing.iter().copied().filter(|need| need.how.is_some())) {
        bail!("what the experiment needs is not there:\n{text}\n`cargo xtask {command} --dry-run` tells what everything will take");
    }
    several_gpus(root, args)?;
    let train = settings_file(root, &out, "distill", &distill_settings(&settings, args.ranks)?)?;
    let stages = stages(&settings, &out, args, &train, Sizes::default(), missing);
    fs::create_dir_all(root.join(&out)).with_context(|| format!("cannot write to {}", out.display()))?;
    write_published(root, &out, &settings)?;
    pipeline::run(root, &args.common, &command, &out, stages, verbose)?;
    println!("report: {}", out.join("report.html").display());
    Ok(())
}

/// The table that is laid over the settings.
fn variant(args: &Args) -> (&'static str, Option<&'static str>) {
    match (args.rehearse, args.profile) {
        (Some(Rehearsal::Small), _) => ("rehearse", Some("small")),
        (Some(Rehearsal::FullSize), _) => ("rehearse", Some("full-size")),
        (Some(Rehearsal::FullSizeGpu), _) => ("rehearse", Some("full-size-gpu")),
        (None, Profile::Paper) => ("profile", None),
        (None, Profile::Day) => ("profile", Some("day")),
        (None, Profile::Hour) => ("profile", Some("hour")),
    }
}

fn stages<'a>(s: &'a Settings, out: &'a Path, args: &'a Args, train: &'a Path, sizes: Sizes, fetch: Vec<&'a Need>) -> Vec<Stage> {
    let model = if s.model.random.is_some() { out.join("model") } else { s.model.path.clone() };
    let at = RunPaths { model, out, device: &args.common.device };
    Flow { s, at, ranks: args.ranks, train, sizes, fetch }.stages()
}

/// One training over several GPUs goes through a library of its own.
fn several_gpus(root: &Path, args: &Args) -> Result<()> {
    if args.ranks > 1 && args.common.device != "cpu" && !nccl::library(root).exists() {
        bail!("--ranks {}: one training on several GPUs needs NCCL\n  next step: `cargo xtask nccl` compiles what is missing", args.ranks);
    }
    Ok(())
}

/// The distillation's settings with the paths of this run, which are relative to the settings' own folder, and with the same global
/// batch for any number of ranks.
fn distill_settings(s: &Settings, ranks: u32) -> Result<toml::Table> {
    let mut table = s.distill.clone();
    if let Some(data) = table.get_mut("data").and_then(toml::Value::as_table_mut) {
        data.insert("path".into(), "../cache".into());
    }
    if let Some(validation) = table.get_mut("validation").and_then(toml::Value::as_table_mut) {
        validation.insert("held_out".into(), "../heldout.safetensors".into());
    }
    if let Some(trainer) = table.get_mut("trainer").and_then(toml::Value::as_table_mut) {
        let accumulate = trainer.get("accumulate").and_then(toml::Value::as_integer).unwrap_or(1);
        if accumulate % i64::from(ranks) != 0 {
            bail!("--ranks {ranks}: distill.trainer.accumulate = {accumulate} cannot be shared among them evenly");
        }
        trainer.insert("accumulate".into(), (accumulate / i64::from(ranks)).into());
    }
    Ok(table)
}

/// What the settings say is needed and is not there.
fn missing<'a>(root: &Path, s: &'a Settings) -> Vec<&'a Need> {
    s.needs.iter().filter(|need| !root.join(&need.path).exists()).collect()
}

/// What is needed, how large, under which licence, and how to get it.
fn needs_text<'a>(needs: impl Iterator<Item = &'a Need>) -> Option<String> {
    let lines: Vec<String> = needs
        .map(|need| {
            let how = match (&need.fetch, &need.how) {
                (Some(name), _) => format!("the run fetches {name} from the hub"),
                (None, Some(how)) => how.trim().replace('\n', "\n      "),
                (None, None) => String::new(),
            };
            let files: Vec<String> =
                need.files.iter().map(|(file, gigabytes)| format!("{file} ({})", dry_run::size(1e9 * gigabytes))).collect();
            let Need { path, what, licence, .. } = need;
            format!("  {}: {what}\n      {}\n      licence: {licence}\n      {how}", path.display(), files.join(", "))
        })
        .collect();
    if lines.is_empty() { None } else { Some(lines.join("\n")) }
}

/// What others published, for the report.
fn write_published(root: &Path, out: &Path, s: &Settings) -> Result<()> {
    let path: PathBuf = root.join(out).join("published.json");
    let value = serde_json::json!({"format": "laptop-diff/published", "version": 1, "results": s.published});
    let same = fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    if same.as_ref() == Some(&value) { Ok(()) } else { write_whole(&path, &value) }
}

#[cfg(test)]
mod tests;
