//! The subcommands, in the order of the flow.

mod render_scenes;
mod train;
mod train_unet;

mod fetch;
mod random_model;

pub mod inspect;
mod estimate;
mod calibrate;
mod cache;
mod score;
mod merge_scores;
mod plan;
mod plan_steps;
mod audit;
mod pairs;
pub mod joint;
mod refine;
pub mod prune;
mod portability;
mod remap_lora;
mod forward;
pub mod distill;
mod distill_data;
mod generate;
mod eval_draw;
mod eval_rows;
pub mod eval;
mod speed_memory;
mod speed;
mod measure;
mod report;
mod compare;

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};

use crate::hub;

/// Layer pruning and normalized distillation for Stable Diffusion U-Nets (LAPTOP-Diff, arXiv 2404.11098).
#[derive(Debug, Parser)]
#[command(name = "laptop-diff", version, propagate_version = true, after_long_help = crate::exit_code::HELP)]
pub struct Cli {
    /// More log lines on stderr (-v information, -vv details); RUST_LOG overrides.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Draw captioned scenes: the project's own data.
    RenderScenes(render_scenes::Args),
    /// Train a small text-to-image model from nothing on rendered scenes.
    Train(train::Args),
    /// Get weights of the Hugging Face Hub and link to them.
    Fetch(fetch::Args),
    /// Make a model with random weights, to rehearse a run.
    RandomModel(random_model::Args),
    /// Show what can be removed from a model and what it costs.
    Inspect(inspect::Args),
    /// Measure how long a model's passes take on this device, without its weights.
    Estimate(estimate::Args),
    /// Make a calibration set.
    Calibrate(calibrate::Args),
    /// Encode pictures with captions once, for training.
    Cache(cache::Args),
    /// Score every layer: what does its removal do?
    Score(score::Args),
    /// Put scores that several processes measured together.
    MergeScores(merge_scores::Args),
    /// Choose the layers to remove, exactly.
    Plan(plan::Args),
    /// Choose the layers in steps, each on scores without those that are gone.
    PlanSteps(plan_steps::Args),
    /// Check whether single scores add up.
    Audit(audit::Args),
    /// Measure which layers of a plan lose more, or less, together than alone.
    Pairs(pairs::Args),
    /// Measure the true joint loss of plans.
    Joint(joint::Args),
    /// Change a plan so that its true joint loss becomes smaller.
    Refine(refine::Args),
    /// Cut the layers of a plan out of a model.
    Prune(prune::Args),
    /// Tell which programs can load a plan's result, and what comes back there.
    Portability(portability::Args),
    /// Carry a LoRA made for the original over to a pruned model.
    RemapLora(remap_lora::Args),
    /// Retrain a pruned U-Net under its teacher.
    Distill(distill::Args),
    /// Draw pictures.
    Generate(generate::Args),
    /// Draw and measure pictures: published scores, checker, distances, likeness to the teacher.
    Eval(eval::Args),
    /// Measure what each layer costs in time on this device.
    Measure(measure::Args),
    /// Measure latency, memory, files and costs of U-Nets.
    Speed(speed::Args),
    /// Write the report of a run directory.
    Report(report::Args),
    /// Compare the U-Nets of several runs: which one to ship at a latency?
    Compare(compare::Args),
    /// Run one U-Net forward pass on given inputs.
    Forward(forward::Args),
}

impl Command {
    /// The value of `--model`.
    fn model(&mut self) -> Option<&mut PathBuf> {
        match self {
            Command::Inspect(args) => Some(&mut args.model),
            Command::Calibrate(args) => Some(&mut args.model),
            Command::Cache(args) => Some(&mut args.model),
            Command::Score(args) => Some(&mut args.model),
            Command::Plan(args) => args.model.as_mut(),
            Command::PlanSteps(args) => Some(&mut args.model),
            Command::Audit(args) => Some(&mut args.model),
            Command::Pairs(args) => Some(&mut args.model),
            Command::Joint(args) => Some(&mut args.model),
            Command::Refine(args) => Some(&mut args.model),
            Command::Prune(args) => Some(&mut args.model),
            Command::Portability(args) => Some(&mut args.model),
            Command::RemapLora(args) => Some(&mut args.model),
            Command::Distill(args) => Some(&mut args.model),
            Command::Generate(args) => Some(&mut args.model),
            Command::Eval(args) => args.model(),
            Command::Measure(args) => Some(&mut args.model),
            Command::Speed(args) => Some(&mut args.model),
            Command::Forward(args) => Some(&mut args.model),
            Command::RenderScenes(_)
            | Command::Train(_)
            | Command::Fetch(_)
            | Command::RandomModel(_)
            | Command::Estimate(_)
            | Command::MergeScores(_)
            | Command::Report(_)
            | Command::Compare(_) => None,
        }
    }
}

/// Runs what was asked.
pub fn run(mut cli: Cli) -> anyhow::Result<()> {
    if let Some(model) = cli.command.model() {
        *model = hub::model_dir(model)?;
    }
    match cli.command {
        Command::RenderScenes(args) => render_scenes::run(&args),
        Command::Train(args) => train::run(args),
        Command::Fetch(args) => fetch::run(&args),
        Command::RandomModel(args) => random_model::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Estimate(args) => estimate::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Cache(args) => cache::run(&args),
        Command::Score(args) => score::run(&args),
        Command::MergeScores(args) => merge_scores::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::PlanSteps(args) => plan_steps::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Pairs(args) => pairs::run(&args),
        Command::Joint(args) => joint::run(&args),
        Command::Refine(args) => refine::run(&args),
        Command::Prune(args) => prune::run(&args),
        Command::Portability(args) => portability::run(&args),
        Command::RemapLora(args) => remap_lora::run(&args),
        Command::Distill(args) => distill::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Measure(args) => measure::run(&args),
        Command::Speed(args) => speed::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Forward(args) => forward::run(&args),
    }
}
