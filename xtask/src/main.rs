//! `cargo xtask`: set-up, tests, checks and the end-to-end pipelines.
//!
//! It stands outside the data flow weights -> scores -> plan -> pruned model -> distillation -> evaluation -> report:
//! it links no libtorch and no crate of this workspace, builds the binary `laptop-diff`, calls one subcommand per stage
//! and passes files between them. Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage, 130 interrupted.

mod proc;
mod setup;
mod wheels;

mod check;
mod nccl;
mod peers;
mod check_report;
mod tidy;

mod hashes;
mod stages;

mod pipeline;
mod place;
mod reproduce;
mod reproduce_tiny;
mod study;
mod train_tiny;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, tests, checks and the end-to-end pipelines of laptop-diff.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    /// Say more about decisions, for example which libtorch was considered and why it was not used.
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put libtorch into .libtorch: a link to one that you have, or a download. Does nothing when it is there.
    Setup,
    /// Run all tests, the ones that need no libtorch first.
    Test {
        /// Show what passing tests print.
        #[arg(long)]
        nocapture: bool,
        /// Run only tests whose name contains this.
        filter: Option<String>,
    },
    /// Check formatting, house rules, lints and documentation.
    Check,
    /// Run `check`, then `test`: all that the continuous integration runs.
    Validate,
    /// Check the house rules that no compiler knows (dependency edges, file headers, forbidden words).
    Tidy,
    /// Load every export format in real diffusers and compare (installs torch and diffusers for Python once, 3 GB).
    CheckExports {
        /// A Python that has torch, diffusers and safetensors already.
        #[arg(long)]
        python: Option<std::path::PathBuf>,
    },
    /// Train on two ranks that the real torchrun starts, one of which is killed (installs what `check-exports` does).
    CheckTorchrun {
        /// A Python that has torch already; torchrun stands beside it.
        #[arg(long)]
        python: Option<std::path::PathBuf>,
    },
    /// Compile the library through which one training uses several GPUs (downloads headers of CUDA and NCCL once, 200 MB).
    Nccl,
    /// Open a report in a headless browser: no console message, no request, nothing wider than a phone, keyboard and slider work
    /// (installs Debian's package chromium where there is none).
    CheckReport {
        /// A report.html; without it the sample page is made.
        report: Option<std::path::PathBuf>,
        /// Where the screenshots go.
        #[arg(long, default_value = "target/report-check")]
        out: std::path::PathBuf,
    },
    /// The main job on the embedded model: score, plan, prune, distill, evaluate, report.
    ReproduceTiny(stages::Options),
    /// The paper's experiment on SDXL: weights and data, scores, plans, students, published metrics, report.
    ReproduceSdxl(reproduce::Args),
    /// The same on Stable Diffusion 1.5.
    ReproduceSd15(reproduce::Args),
    /// The whole study on the embedded model: ways to choose layers, ratios, plain and normalized features, seeds.
    StudyTiny(stages::Options),
    /// Rebuild the embedded model assets/tiny-sdxl from nothing, with a fixed seed.
    TrainTiny(stages::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let root = proc::root();
    let result = match cli.command {
        Command::Setup => setup::setup(&root, cli.verbose),
        Command::Test { nocapture, filter } => check::test(&root, nocapture, filter.as_deref(), cli.verbose),
        Command::Check => check::check(&root, cli.verbose),
        Command::Validate => check::check(&root, cli.verbose).and_then(|()| check::test(&root, false, None, cli.verbose)),
        Command::Tidy => tidy::tidy(&root),
        Command::CheckExports { python } => peers::run(&root, peers::Peer::Exports, python, cli.verbose),
        Command::CheckTorchrun { python } => peers::run(&root, peers::Peer::Torchrun, python, cli.verbose),
        Command::Nccl => nccl::run(&root, cli.verbose),
        Command::CheckReport { report, out } => check_report::run(&root, report, &out, cli.verbose),
        Command::ReproduceTiny(args) => reproduce_tiny::run(&root, &args, cli.verbose),
        Command::ReproduceSdxl(args) => reproduce::run(&root, reproduce::Experiment::Sdxl, &args, cli.verbose),
        Command::ReproduceSd15(args) => reproduce::run(&root, reproduce::Experiment::Sd15, &args, cli.verbose),
        Command::StudyTiny(args) => study::run(&root, &args, cli.verbose),
        Command::TrainTiny(args) => train_tiny::run(&root, &args, cli.verbose),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<proc::Interrupted>() => {
            eprintln!("{error}");
            ExitCode::from(proc::INTERRUPTED_CODE)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
