//! Report: the last arrow of weights -> scores -> plan -> pruned model -> distillation -> evaluation -> report.
//!
//! 1. [`RunDir`]: the files of a run folder, each read as the type that its own crate gives it.
//! 2. [`RunDir::results`] -> [`Results`]: what they say together, with labels, the headline and the judged [`Claim`]s.
//! 3. [`render_html`], [`render_markdown`], [`render_model_card`]: the same for people; [`write()`]: all files at once.
//! 4. [`compare_runs`]: the U-Nets of several runs in one table, and which one to ship.
//!
//! Nothing is measured here, and every number comes from a file of the run.

mod error;
mod run_dir;
mod results;
mod page;
mod write;
mod choice;
mod compare;

pub use compare::{CompareOptions, ComparedUNet, RunComparison, TimeOf, compare_runs};
pub use error::{Error, Result};
pub use page::{RunReport, render_html, render_markdown, render_model_card, render_runs_html, render_runs_markdown};
pub use results::{
    AuditPoint, AuditResult, BinTable, Claim, CriterionScores, DistillRun, FrontCurve, LossPoint, Outcome, PlanRow, Provenance,
    PublishedDecline, PublishedFile, Results, ResultsSummary, Role, UNetResult, assess,
};
pub use run_dir::{Command, RunDir, RunLog, Training};
pub use write::{WriteOptions, write, write_several};
