//! The exit codes, one per kind of failure, so that a script can tell "no plan fits" from "broken file".
//! [`HELP`] is the table.

use std::io::ErrorKind;
use std::process::ExitCode;

use crate::common::{BadFile, BadInput, Interrupted, Unwritable};
use crate::out_of_memory::OutOfMemory;

/// The table, for `--help`.
pub const HELP: &str = "\
Exit codes:
  0    done
  1    another failure
  2    wrong command line or setting
  3    an input file is missing, truncated, foreign or does not fit the model
  4    no plan fits the budget
  5    a number became NaN or infinite
  6    an output cannot be written
  7    memory ran out, on the host or on a GPU
  130  interrupted; the work so far is kept";

const FAILURE: u8 = 1;
const BAD_INPUT: u8 = 2;
const BAD_FILE: u8 = 3;
const INFEASIBLE: u8 = 4;
const NOT_FINITE: u8 = 5;
const UNWRITABLE: u8 = 6;
const OUT_OF_MEMORY: u8 = 7;
const INTERRUPTED: u8 = 130;

/// The error that another process of this program ended with.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct OfProcess {
    code: u8,
    message: String,
}

impl OfProcess {
    /// From a process that ended by itself and said why.
    pub fn new(ended: &std::process::Output) -> Option<Self> {
        let code = u8::try_from(ended.status.code()?).ok()?;
        let told = String::from_utf8_lossy(&ended.stderr);
        let message = told.lines().last()?.strip_prefix("error: ")?.to_string();
        Some(Self { code, message })
    }
}

/// The code of an error: that of the first known cause in its chain.
pub fn of(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(error.chain().find_map(code).unwrap_or(FAILURE))
}

fn code(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    fn of<E: std::error::Error + 'static>(cause: &(dyn std::error::Error + 'static), code: impl Fn(&E) -> u8) -> Option<u8> {
        cause.downcast_ref::<E>().map(code)
    }
    of(cause, |_: &BadInput| BAD_INPUT)
        .or_else(|| of(cause, |_: &scenes::ScenesError| BAD_INPUT))
        .or_else(|| of(cause, |_: &BadFile| BAD_FILE))
        .or_else(|| of(cause, |_: &Unwritable| UNWRITABLE))
        .or_else(|| of(cause, |_: &Interrupted| INTERRUPTED))
        .or_else(|| of(cause, |_: &OutOfMemory| OUT_OF_MEMORY))
        .or_else(|| of(cause, |process: &OfProcess| process.code))
        .or_else(|| of(cause, of_core))
        .or_else(|| of(cause, of_artifact))
        .or_else(|| of(cause, of_unet))
        .or_else(|| of(cause, of_diffusion))
        .or_else(|| of(cause, of_data))
        .or_else(|| of(cause, of_distill))
        .or_else(|| of(cause, of_torch_ext))
        .or_else(|| of(cause, of_eval))
        .or_else(|| of(cause, of_report))
}

// Outputs are proved writable before the work, so a file that fails later is an input, unless the system says otherwise.
fn of_io(e: &std::io::Error) -> u8 {
    match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem => UNWRITABLE,
        _ => BAD_FILE,
    }
}

fn of_artifact(e: &artifact::Error) -> u8 {
    match e {
        artifact::Error::Io { source, .. } => of_io(source),
        artifact::Error::Write { .. } | artifact::Error::Locked { .. } => UNWRITABLE,
        artifact::Error::NotFinite { .. } => NOT_FINITE,
        artifact::Error::Toml { .. } | artifact::Error::Renamed { .. } => BAD_INPUT,
        _ => BAD_FILE,
    }
}

fn of_core(e: &prune_core::Error) -> u8 {
    use prune_core::Error as E;
    match e {
        E::Infeasible { .. } | E::LimitsInfeasible { .. } | E::NoneFound { .. } => INFEASIBLE,
        E::Stopped => INTERRUPTED,
        E::NotFinite { .. } => NOT_FINITE,
        E::Io { action: "write", .. } => UNWRITABLE,
        E::Io { .. } | E::InFile { .. } | E::OtherModel { .. } | E::IncompleteScores { .. } => BAD_FILE,
        E::OutOfRange { .. }
        | E::UnknownLayer { .. }
        | E::Contradiction { .. }
        | E::UnknownCriterion { .. }
        | E::UnknownResource { .. }
        | E::ShardsDiffer { .. }
        | E::ShardsOverlap { .. }
        | E::ShardMissing { .. }
        | E::UnfitStart { .. }
        | E::EmptyBin { .. }
        | E::SampleRange { .. }
        | E::ResumeMismatch { .. } => BAD_INPUT,
        _ => FAILURE,
    }
}

fn of_unet(e: &unet::Error) -> u8 {
    match e {
        unet::Error::NotFinite { .. } => NOT_FINITE,
        unet::Error::Layer { .. } | unet::Error::Portable { .. } | unet::Error::Criterion { .. } | unet::Error::Name { .. } => BAD_INPUT,
        unet::Error::Removed { source, .. } => of_unet(source),
        unet::Error::Core(e) => of_core(e),
        unet::Error::Artifact(e) => of_artifact(e),
        unet::Error::Io { source, .. } => of_io(source),
        unet::Error::Torch(_) => FAILURE,
        _ => BAD_FILE,
    }
}

fn of_diffusion(e: &diffusion::Error) -> u8 {
    match e {
        diffusion::Error::NotFinite { .. } => NOT_FINITE,
        diffusion::Error::Unet(e) => of_unet(e),
        diffusion::Error::Artifact(e) => of_artifact(e),
        diffusion::Error::Io { source, .. } => of_io(source),
        diffusion::Error::Input { .. } => BAD_INPUT,
        diffusion::Error::Torch(_) => FAILURE,
        _ => BAD_FILE,
    }
}

fn of_data(e: &data::Error) -> u8 {
    match e {
        data::Error::Input { .. } | data::Error::OtherCache { .. } | data::Error::Scenes(_) => BAD_INPUT,
        data::Error::Artifact(e) => of_artifact(e),
        data::Error::Unet(e) => of_unet(e),
        data::Error::Diffusion(e) => of_diffusion(e),
        data::Error::Io { source, .. } => of_io(source),
        data::Error::Torch(_) => FAILURE,
        _ => BAD_FILE,
    }
}

fn of_distill(e: &distill::Error) -> u8 {
    match e {
        distill::Error::Config { .. } => BAD_INPUT,
        distill::Error::Stopped { .. } => INTERRUPTED,
        distill::Error::Artifact(e) => of_artifact(e),
        distill::Error::NotFinite { .. } | distill::Error::WeightsNotFinite { .. } | distill::Error::NotStorable { .. } => NOT_FINITE,
        distill::Error::Unet(e) => of_unet(e),
        distill::Error::Data(e) => of_data(e),
        distill::Error::Diffusion(e) => of_diffusion(e),
        distill::Error::Io { source, .. } => of_io(source),
        distill::Error::Distributed(e) => of_torch_ext(e),
        distill::Error::Torch(_) => FAILURE,
        _ => BAD_FILE,
    }
}

fn of_torch_ext(e: &torch_ext::Error) -> u8 {
    match e {
        torch_ext::Error::Launch { .. } | torch_ext::Error::Variable { .. } | torch_ext::Error::Disagreement { .. } => BAD_INPUT,
        _ => FAILURE,
    }
}

fn of_eval(e: &eval::Error) -> u8 {
    match e {
        eval::Error::NotFinite { .. } => NOT_FINITE,
        eval::Error::Unet(e) => of_unet(e),
        eval::Error::Data(e) => of_data(e),
        eval::Error::Diffusion(e) => of_diffusion(e),
        eval::Error::Io { source, .. } => of_io(source),
        eval::Error::Artifact(e) => of_artifact(e),
        eval::Error::Scenes(_) | eval::Error::Input { .. } | eval::Error::OtherProtocol { .. } => BAD_INPUT,
        eval::Error::Torch(_) => FAILURE,
        _ => BAD_FILE,
    }
}

fn of_report(e: &report::Error) -> u8 {
    match e {
        report::Error::NotFinite { .. } => NOT_FINITE,
        report::Error::Input { .. } => BAD_INPUT,
        report::Error::Core(e) => of_core(e),
        report::Error::Unet(e) => of_unet(e),
        report::Error::Artifact(e) => of_artifact(e),
        report::Error::Io { source, .. } => of_io(source),
        report::Error::Template(_) => FAILURE,
        _ => BAD_FILE,
    }
}
