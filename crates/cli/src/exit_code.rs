//! The exit codes, one per kind of failure, so that a script can tell "no plan fits" from "broken file".
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | another failure |
//! | 2 | wrong command line or setting |
//! | 3 | an input file is missing, truncated, foreign or does not fit the model |
//! | 4 | no plan fits the budget |
//! | 5 | a number became NaN or infinite |
//! | 6 | an output cannot be written |
//! | 7 | memory ran out, on the host or on a GPU |
//! | 130 | interrupted; the work so far is kept |

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
#[derive(Debug)]
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

impl std::fmt::Display for OfProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OfProcess {}

/// The code of an error: that of the first known cause in its chain.
pub fn of(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(error.chain().find_map(code).unwrap_or(FAILURE))
}

fn code(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if cause.is::<BadInput>() || cause.is::<scenes::ScenesError>() {
        Some(BAD_INPUT)
    } else if cause.is::<BadFile>() {
        Some(BAD_FILE)
    } else if cause.is::<Unwritable>() {
        Some(UNWRITABLE)
    } else if cause.is::<Interrupted>() {
        Some(INTERRUPTED)
    } else if cause.is::<OutOfMemory>() {
        Some(OUT_OF_MEMORY)
    } else if let Some(e) = cause.downcast_ref::<OfProcess>() {
        Some(e.code)
    } else if let Some(e) = cause.downcast_ref::<prune_core::Error>() {
        Some(of_core(e))
    } else if let Some(e) = cause.downcast_ref::<artifact::Error>() {
        Some(of_artifact(e))
    } else if let Some(e) = cause.downcast_ref::<unet::Error>() {
        Some(of_unet(e))
    } else if let Some(e) = cause.downcast_ref::<diffusion::Error>() {
        Some(of_diffusion(e))
    } else if let Some(e) = cause.downcast_ref::<data::Error>() {
        Some(of_data(e))
    } else if let Some(e) = cause.downcast_ref::<distill::Error>() {
        Some(of_distill(e))
    } else if let Some(e) = cause.downcast_ref::<torch_ext::Error>() {
        Some(of_torch_ext(e))
    } else {
        cause.downcast_ref::<eval::Error>().map(of_eval)
    }
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
        unet::Error::Layer { .. } | unet::Error::Portable { .. } => BAD_INPUT,
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
        data::Error::Input { .. } => BAD_INPUT,
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
        distill::Error::NotFinite { .. } => NOT_FINITE,
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
        eval::Error::Diffusion(e) => of_diffusion(e),
        eval::Error::Io { source, .. } => of_io(source),
        eval::Error::Artifact(e) => of_artifact(e),
        eval::Error::Scenes(_) | eval::Error::Input { .. } | eval::Error::OtherProtocol { .. } => BAD_INPUT,
        eval::Error::Torch(_) | eval::Error::Template(_) => FAILURE,
        _ => BAD_FILE,
    }
}
