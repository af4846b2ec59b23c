//! The `laptop-diff` command: thin, files in, files out. Each subcommand is one arrow of the flow
//! weights -> scores -> plan -> pruned model -> distillation -> evaluation -> report.

mod commands;

mod model;
mod one_of;
mod scoring;
mod image_source;
mod sampling;

mod ranks;
mod training_display;

mod common;
mod device;
mod exit_code;
mod hub;
mod out_of_memory;
mod progress;
mod table;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

fn main() -> ExitCode {
    // Before there are threads and matrix products.
    match torch_ext::CpuOptions::from_vars(|name| std::env::var(name).ok()) {
        Ok(options) => torch_ext::prepare(options),
        Err(error) => {
            eprintln!("error: {error}");
            return exit_code::of(&error.into());
        }
    }
    let matches = commands::Cli::command().get_matches();
    let cli = commands::Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    device::open_cuda(&matches, &cli);
    common::start_logging(cli.verbose);
    out_of_memory::hold_panics();
    match out_of_memory::attempt(|| commands::run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", common::describe(&error));
            exit_code::of(&error)
        }
    }
}
