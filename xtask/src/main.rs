//! `cargo xtask`: set-up, tests, checks and the end-to-end pipelines.
//!
//! It stands outside the data flow weights -> scores -> plan -> pruned model -> distillation -> evaluation -> report:
//! it links no libtorch and no crate of this workspace, builds the binary `laptop-diff`, calls one subcommand per stage
//! and passes files between them. Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage, 130 interrupted.

mod proc;

mod setup;

mod checks;

mod pipeline;

mod experiments;

mod commands;

use std::process::ExitCode;

use clap::Parser;

/// Set-up, tests, checks and the end-to-end pipelines of laptop-diff.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    /// Say more about decisions, for example which libtorch was considered and why it was not used.
    #[arg(short, long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.run(&proc::root(), cli.verbose) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<pipeline::Interrupted>() => {
            eprintln!("{error}");
            ExitCode::from(pipeline::INTERRUPTED_CODE)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
