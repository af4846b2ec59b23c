//! The subcommands, in the order of the flow.

mod render_scenes;
mod train;

mod fetch;
mod random_model;

pub mod inspect;
mod estimate_cost;
mod calibrate;
mod cache;
mod score;
mod merge_scores;
mod plan;
mod plan_iterative;
mod audit;
mod front;
mod interactions;
mod measure_plans;
mod refine;
pub mod prune;
mod portability;
mod convert;
mod remap_lora;
mod forward;
pub mod distill;
mod generate;
mod eval;
mod bench;
mod profile_layers;
mod report;
mod compare;

use clap::{ArgAction, Parser, Subcommand};

use crate::exit_code;

/// The environment, for `--help`.
const ENVIRONMENT: &str = "\
Environment:
  LAPTOP_DIFF_ALLOCATOR  system: tensors on a CPU lie where libtorch puts them (reuse: in memory that is kept and reused)
  LAPTOP_DIFF_MKL        default: MKL chooses its kernels itself (features: those for what an AMD processor can do, too)
  LAPTOP_DIFF_TIMEOUT    seconds that the ranks of a training wait for each other (600)
  HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN
                         the Hugging Face Hub and its cache, as in huggingface_hub
  RUST_LOG               log lines, over --verbose";

/// Layer pruning and normalized distillation for Stable Diffusion U-Nets (LAPTOP-Diff, arXiv 2404.11098).
#[derive(Debug, Parser)]
#[command(name = "laptop-diff", version, propagate_version = true, after_long_help = format!("{ENVIRONMENT}\n\n{}", exit_code::HELP))]
pub struct Cli {
    /// More log lines on stderr (-v information, -vv details); RUST_LOG overrides.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// f32 on a GPU multiplies in TF32: faster, with 10 bits of what is multiplied.
    #[arg(long, global = true)]
    pub tf32: bool,
    /// On a GPU only kernels that give the same bits each time: slower.
    #[arg(long, global = true)]
    pub deterministic: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One line per subcommand: its variant and its module, which has `Args` and `run(&Args)`.
macro_rules! commands {
    ($($(#[$meta:meta])+ $name:ident($module:ident),)+) => {
        /// The subcommands.
        #[derive(Debug, Subcommand)]
        pub enum Command {
            $($(#[$meta])+ $name($module::Args),)+
        }

        /// Runs what was asked.
        pub fn run(cli: &Cli) -> anyhow::Result<()> {
            match &cli.command {
                $(Command::$name(args) => $module::run(args),)+
            }
        }
    };
}

commands! {
    /// Draw captioned scenes: the project's own data.
    RenderScenes(render_scenes),
    /// Train a small text-to-image model from nothing on rendered scenes.
    Train(train),
    /// Get weights of the Hugging Face Hub and link to them.
    Fetch(fetch),
    /// Make a model with random weights, to rehearse a run.
    RandomModel(random_model),
    /// Show what can be removed from a model and what it costs.
    Inspect(inspect),
    /// Measure how long a model's passes take on this device, without its weights.
    #[command(alias = "estimate")]
    EstimateCost(estimate_cost),
    /// Make a calibration set.
    Calibrate(calibrate),
    /// Encode images with captions once, for training.
    Cache(cache),
    /// Score every layer: what does its removal do?
    Score(score),
    /// Put scores that several processes measured together.
    MergeScores(merge_scores),
    /// Choose the layers to remove, exactly.
    Plan(plan),
    /// Choose the layers in steps, each on scores without those that are gone.
    #[command(alias = "plan-steps")]
    PlanIterative(plan_iterative),
    /// Check whether single scores add up.
    Audit(audit),
    /// Measure the plans of all budgets and keep the best: loss against parameters, MACs, latency.
    Front(front),
    /// Measure which layers of a plan lose more, or less, together than alone.
    #[command(alias = "pairs")]
    Interactions(interactions),
    /// Measure the true joint loss of plans.
    #[command(alias = "joint")]
    MeasurePlans(measure_plans),
    /// Change a plan so that its true joint loss becomes smaller.
    Refine(refine),
    /// Cut the layers of a plan out of a model.
    Prune(prune),
    /// Tell which programs can load a plan's result, and what comes back there.
    Portability(portability),
    /// Turn a whole checkpoint into a model directory, or back; a student takes the place of its U-Net with --unet.
    Convert(convert),
    /// Carry a LoRA made for the original over to a pruned model.
    RemapLora(remap_lora),
    /// Retrain a pruned U-Net under its teacher.
    Distill(distill),
    /// Draw images.
    Generate(generate),
    /// Draw and measure images: published scores, checker, distances, likeness to the teacher.
    Eval(eval),
    /// Measure what each layer costs in time on this device.
    #[command(alias = "measure")]
    ProfileLayers(profile_layers),
    /// Measure latency, memory, files and costs of U-Nets.
    #[command(alias = "speed")]
    Bench(bench),
    /// Write the report of a run directory.
    Report(report),
    /// Compare the U-Nets of several runs: which one to ship at a latency?
    Compare(compare),
    /// Run one U-Net forward pass on given inputs.
    Forward(forward),
}
