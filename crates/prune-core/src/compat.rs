//! The old names, until the workspace uses the new ones.
#![allow(missing_docs, clippy::missing_errors_doc)]

pub use crate::ablate::LossDeltas as Gaps;
pub use crate::audit::{
    Audit, AuditFile, AuditStats, DrawnSet, JointLoss as JointGap, JointLoss, MeasureEvent, MeasureOptions, MeasuredSet, PartSlope,
    SetSize, draw_removal_sets,
};
pub use crate::baselines::{greedy, lowest_first, random};
pub use crate::budget::Precedence;
pub use crate::error::AblateError;
pub use crate::layer::{Cost, Layer, SharedCost as Shell};
pub use crate::pairs::{interactions, strongest_pairs};
pub use crate::plan::{PlanBudget, PlanLimit};
pub use crate::refine::{RefineEvent, RefineMethod, RefineOptions, RefineOutcome, RefineRecord, RefineStep, Refined, SetLoss as SetGaps};
pub use crate::score::{
    AdaptiveEvent, AdaptiveOptions, AdaptiveScores, BinWeights, Certificate, LayerScore, Population, ScoreEvent, ScoreOptions, ScoresParts,
    Shard, certify, merge_scores, weigh_bins,
};
pub use crate::search::{FrontPoint, Interaction, Resource, Solution};
pub use crate::segmented::{PrefixCached as Resuming, Segment, Segmented as Resume};
pub use crate::stats::{LinearFit, fit_line, mean, pearson, slope_through_origin, spearman, standard_error};
pub use crate::steps::{AfterRemoval as Given, Step, StepOptions};
pub use crate::table::TableParts;

use crate::ablate::Ablate;
use crate::error::Error;
use crate::layer::LayerId;
use crate::search::Problem;
use crate::{Limit, Plan, Scores};

pub fn score_all<M: Ablate>(
    model: &mut M,
    options: &ScoreOptions,
    resume: Vec<Scores>,
    on_event: &mut dyn FnMut(ScoreEvent<'_>) -> Result<(), Error>,
) -> Result<Vec<Scores>, AblateError<M::Error>> {
    crate::Scorer::new(model).options(options.clone()).resume(resume).run_with(|event| Ok(on_event(event)?))
}

pub fn score_layers<M: Ablate>(
    model: &mut M,
    layers: &[LayerId],
    options: &ScoreOptions,
    resume: Vec<Scores>,
    on_event: &mut dyn FnMut(ScoreEvent<'_>) -> Result<(), Error>,
) -> Result<Vec<Scores>, AblateError<M::Error>> {
    crate::Scorer::new(model).options(options.clone()).layers(layers.iter().cloned()).resume(resume).run_with(|event| Ok(on_event(event)?))
}

pub fn score_adaptively<M: Ablate>(
    model: &mut M,
    options: &ScoreOptions,
    adaptive: &AdaptiveOptions,
    resume: Vec<Scores>,
    on_event: &mut dyn FnMut(AdaptiveEvent<'_>) -> Result<(), Error>,
) -> Result<AdaptiveScores, AblateError<M::Error>> {
    crate::Scorer::new(model).options(options.clone()).resume(resume).run_adaptively_with(adaptive, |event| Ok(on_event(event)?))
}

pub fn measure_sets<M: Ablate>(
    model: &mut M,
    sets: &[DrawnSet],
    options: &MeasureOptions,
    resume: Vec<MeasuredSet>,
    on_event: &mut dyn FnMut(MeasureEvent<'_>) -> Result<(), Error>,
) -> Result<Vec<MeasuredSet>, AblateError<M::Error>> {
    crate::audit::measure_sets_with(model, sets, options, resume, |event| Ok(on_event(event)?))
}

pub fn prune_in_steps<M: Ablate>(
    model: &mut M,
    options: &StepOptions,
    resume: Vec<Vec<Scores>>,
    on_event: &mut dyn FnMut(usize, ScoreEvent<'_>) -> Result<(), Error>,
) -> Result<Vec<Step>, AblateError<M::Error>> {
    crate::refine::prune_in_steps_with(model, options, resume, |step, event| Ok(on_event(step, event)?))
}

pub fn refine<M: Ablate>(
    model: &mut M,
    problem: &Problem<'_>,
    limits: &[Limit],
    start: &Plan,
    options: &RefineOptions,
    resume: Option<RefineRecord>,
    on_event: &mut dyn FnMut(RefineEvent<'_>) -> Result<(), Error>,
) -> Result<Refined, AblateError<M::Error>> {
    crate::refine::refine_with(model, problem, limits, start, options, resume, |event| Ok(on_event(event)?))
}

impl crate::LayerTable {
    pub fn shells(&self) -> &[Shell] {
        self.shared_costs()
    }
}
