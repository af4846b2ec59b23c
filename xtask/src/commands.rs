//! The subcommands of `cargo xtask`, and which module does each.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;

use crate::checks::{check, peers, python, report, test, tidy};
use crate::experiments::{reproduce, reproduce_tiny, study, train_tiny};
use crate::pipeline::Options;
use crate::setup;

/// What can be asked for.
#[derive(Subcommand)]
pub enum Command {
    /// Put libtorch into .libtorch: a link to one that you have, or a download. Does nothing when it is there.
    Setup,
    /// Run all tests, the ones that need no libtorch first.
    Test(test::Options),
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
        python: Option<PathBuf>,
    },
    /// Train on two ranks that the real torchrun starts, one of which is killed (installs what `check-exports` does).
    CheckTorchrun {
        /// A Python that has torch already; torchrun stands beside it.
        #[arg(long)]
        python: Option<PathBuf>,
    },
    /// Build the package `prune-core` for Python and run its tests; without `--full` those that need NumPy alone.
    CheckPython {
        /// The tests on real networks, the types and the source distribution as well (installs what `check-exports` does).
        #[arg(long)]
        full: bool,
        /// A Python that has what is needed already.
        #[arg(long)]
        python: Option<PathBuf>,
    },
    /// Compile the library through which one training uses several GPUs (downloads headers of CUDA and NCCL once, 200 MB).
    Nccl,
    /// Open a report in a headless browser: no console message, no request, nothing wider than a phone, keyboard and slider work
    /// (installs Debian's package chromium where there is none).
    CheckReport {
        /// A report.html; without it the sample page is made.
        report: Option<PathBuf>,
        /// Where the screenshots go.
        #[arg(long, default_value = "target/report-check")]
        out: PathBuf,
    },
    /// The main job on the embedded model: score, plan, prune, distill, evaluate, report.
    ReproduceTiny(Options),
    /// The paper's experiment on SDXL: weights and data, scores, plans, students, published metrics, report.
    ReproduceSdxl(reproduce::Args),
    /// The same on Stable Diffusion 1.5.
    ReproduceSd15(reproduce::Args),
    /// The whole study on the embedded model: ways to choose layers, ratios, plain and normalized features, seeds.
    StudyTiny(Options),
    /// Rebuild the embedded model assets/tiny-sdxl from nothing, with a fixed seed.
    TrainTiny(Options),
}

impl Command {
    /// Does it, in the repository at `root`.
    pub fn run(self, root: &Path, verbose: bool) -> Result<()> {
        match self {
            Command::Setup => setup::run(root, verbose),
            Command::Test(options) => test::run(root, &options, verbose),
            Command::Check => check::check(root, verbose),
            Command::Validate => check::check(root, verbose).and_then(|()| test::run(root, &test::Options::default(), verbose)),
            Command::Tidy => tidy::tidy(root),
            Command::CheckExports { python } => peers::run(root, peers::Peer::Exports, python, verbose),
            Command::CheckTorchrun { python } => peers::run(root, peers::Peer::Torchrun, python, verbose),
            Command::CheckPython { full, python } => python::run(root, full, python),
            Command::Nccl => setup::nccl::run(root, verbose),
            Command::CheckReport { report, out } => report::run(root, report, &out, verbose),
            Command::ReproduceTiny(options) => reproduce_tiny::run(root, &options, verbose),
            Command::ReproduceSdxl(args) => reproduce::run(root, reproduce::Experiment::Sdxl, &args, verbose),
            Command::ReproduceSd15(args) => reproduce::run(root, reproduce::Experiment::Sd15, &args, verbose),
            Command::StudyTiny(options) => study::run(root, &options, verbose),
            Command::TrainTiny(options) => train_tiny::run(root, &options, verbose),
        }
    }
}
