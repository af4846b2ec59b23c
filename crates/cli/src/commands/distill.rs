//! `laptop-diff distill`: retrains a pruned U-Net under its teacher. Pruned model -> **student** -> evaluation.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::{PossibleValue, PossibleValuesParser};
use distill::{FeatureLosses, Session, SessionOptions, Settings, StudentSource};
use unet::plan_name;

use crate::common::{BadInput, prepare_dir};
use crate::device::DeviceChoice;
use crate::model::WholeModelArgs;
use crate::ranks::Ranks;
use crate::training_display::TrainingDisplay;

/// Arguments of `distill`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("who").required(true).args(["plan", "student"]))]
pub struct Args {
    #[command(flatten)]
    pub(super) whole: WholeModelArgs,
    /// The student is the teacher without the layers of this plan.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// The student is this pruned U-Net (written by `prune`).
    #[arg(long)]
    student: Option<PathBuf>,
    /// Settings of the run; the table [distill] of configs/reproduce-tiny.toml is an example.
    #[arg(long)]
    config: PathBuf,
    /// The folder to write: unet/, log.jsonl, distill.json, and the adapters where only these are trained.
    #[arg(long)]
    out: PathBuf,
    /// Folder of checkpoints and caches; an interrupted run goes on from there [default: OUT/.work].
    #[arg(long)]
    work: Option<PathBuf>,
    /// Feature loss, instead of the settings' own.
    #[arg(long, alias = "features", value_name = "NAME", value_parser = feature_losses())]
    feature_loss: Option<String>,
    /// Optimizer steps, instead of the settings' own.
    #[arg(long)]
    steps: Option<u64>,
    /// Seed of data order, noise and timesteps, instead of the settings' own.
    #[arg(long)]
    seed: Option<u64>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

/// The feature losses by their names.
fn feature_losses() -> PossibleValuesParser {
    let entries = FeatureLosses::builtin();
    entries.entries().iter().map(|entry| PossibleValue::new(entry.name).help(entry.about)).collect::<Vec<_>>().into()
}

/// Trains and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let settings = settings(args)?;
    let ranks = Ranks::join()?;
    let student = student(args, &args.whole.model.open()?)?;
    let work = args.work.clone().unwrap_or_else(|| args.out.join(".work"));
    prepare_dir(&args.out)?;
    prepare_dir(&work)?;
    let options = SessionOptions {
        model: args.whole.named()?,
        student,
        base: args.config.parent().unwrap_or(Path::new("")).into(),
        out: args.out.clone(),
        work,
        device: ranks.device(args.device)?,
        group: ranks.group(),
        feature_losses: FeatureLosses::builtin(),
    };
    let mut display = TrainingDisplay::new(ranks.is_first())?;
    let done = Session::open(settings, options)?.train(&mut |event| -> anyhow::Result<_> { Ok(display.show(event)) })?;
    if let Some(record) = done.record {
        let speed = done.seconds_per_step.map_or(String::new(), |seconds| format!(" of {seconds:.4} s"));
        let skipped = if done.skipped > 0 { format!(" ({} skipped)", done.skipped) } else { String::new() };
        let (out, steps) = (args.out.display(), done.steps);
        let last = done.last_loss.map_or("not finite".into(), |loss| format!("{loss:.5}"));
        println!("{out}: {} parameters after {steps} steps{skipped}{speed}, last loss {last}", record.params);
    }
    Ok(())
}

/// The U-Net to train: pruned already, or to be pruned by the plan.
fn student(args: &Args, model: &unet::ModelSource) -> anyhow::Result<StudentSource> {
    match (&args.student, &args.plan) {
        (Some(dir), _) => Ok(StudentSource::Pruned(dir.clone())),
        (None, Some(path)) => {
            let plan = model.plan(path)?;
            Ok(StudentSource::Without {
                removed: plan.removal_set(),
                identity: format!("plan {}", artifact::file_sha256(path)?),
                plan: plan.to_json()?,
                name: plan_name(path),
            })
        }
        (None, None) => Err(BadInput("give --plan or --student".into()).into()),
    }
}

/// The settings file, with what the command line changes.
fn settings(args: &Args) -> anyhow::Result<Settings> {
    let mut settings: Settings = artifact::read_toml(&args.config, &Settings::RENAMED)?;
    if let Some(name) = &args.feature_loss {
        settings.losses.feature_loss.clone_from(name);
    }
    settings.trainer.steps = args.steps.unwrap_or(settings.trainer.steps);
    settings.trainer.seed = args.seed.unwrap_or(settings.trainer.seed);
    settings.check(&FeatureLosses::builtin()).with_context(|| args.config.display().to_string())?;
    Ok(settings)
}
