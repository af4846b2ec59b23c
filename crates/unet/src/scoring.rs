//! How a removal becomes a number: the criteria, each named once, and the runs that score every layer of a U-Net. U-Net and calibration
//! set -> **per-layer scores** -> plan.
//!
//! 1. [`CRITERIA`]: what a layer's score can be.
//! 2. [`Calibration`], [`UNetPasses`]: the points, and the one [`prune_core::Ablate`] for U-Nets, whose passes share what they have in common.
//! 3. [`magnitude`], [`taylor`], [`random`]: rivals that need no ablation. [`number_noise`]: what a score must exceed to mean something.
//! 4. [`score`]: a run over some criteria, with files. [`CustomLoss`] and [`score_model`]: criteria of a caller's own. [`measure_saved`]: what whole sets lose.

mod registry;
mod calibration;
mod ablate;
mod magnitude;
mod taylor;
mod noise;
mod custom;
mod run;
mod joint;

pub use ablate::{UNetAblate, UNetPasses};
pub use calibration::Calibration;
pub use custom::CustomLoss;
pub use joint::{NamedPlans, PartialSets, measure_saved};
pub use magnitude::{magnitude, magnitude_mean, random};
pub use noise::{NUMBER_NOISE, below_noise, number_noise};
pub use registry::{CLIP_SCORE, CRITERIA, Criterion, MAGNITUDE, Needs, OUTPUT_LOSS, RANDOM, TASK_LOSS_DELTA, TAYLOR};
pub use run::{Adaptive, POINTS, ScoringEvent, ScoringOptions, score, score_model};
pub use taylor::taylor;
