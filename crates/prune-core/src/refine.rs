//! Refinement of a plan on the true joint loss, at the same budget: the sum of scores is only an approximation, and near its
//! optimum there are sets that lose less together. Fourth arrow of the flow: plan and model -> better plan.
//!
//! Four ways, all of them bounded by a number of evaluations (samples times sets) and, where asked for, by time:
//! - swaps: around the present set the loss is measured with each layer alone moved to the other side; pairs of layers that
//!   this local model would swap are measured, the best becomes the present set;
//! - beam: the same over several sets at once (as Skrr, arXiv 2502.08690, does for interactions of blocks);
//! - evolution: random swaps, selected on growing numbers of samples (EvoPress, arXiv 2410.14649);
//! - interactions: the exact search over scores and measured pairs of layers, whose plans are measured before one is taken.
//!
//! Many sets are compared on few samples, the better half on twice as many, and so on (successive halving, Jamieson and
//! Talwalkar 2016, arXiv 1502.07943). What comes out is compared with the start on one half of the samples that the search has
//! not seen; the start is kept unless another set does better there. The other half tells what both lose.

pub(crate) mod descent;
mod document;
pub(crate) mod moves;
mod paired;

use std::ops::Range;

use crate::ablate::Ablate;
use crate::audit::JointLoss;
use crate::budget::Limit;
use crate::error::{AblateError, Error};
use crate::layer::RemovalSet;
use crate::ledger::{Ledger, Means};
use crate::plan::Plan;
use crate::refine::descent::{Candidate, Search};
use crate::refine::moves::Field;
use crate::score::check_samples;
use crate::search::{Problem, SearchOptions};

pub use crate::ledger::{JointSearchEvent, SetLoss};
pub use crate::pairs::{interactions, strongest_pairs};
pub use crate::steps::{AfterRemoval, Step, StepOptions, prune_in_steps, prune_in_steps_with};
pub use document::{Decision, RefineOutcome, RefineRecord, RefineStep};

/// How [`refine`] looks for better sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum RefineMethod {
    /// From one set to the next better one.
    Swaps {
        /// Moves that are measured per step, at least 1; some tens.
        candidates: usize,
    },
    /// The same over the best sets known.
    Beam {
        /// Number of sets kept, at least 1.
        width: usize,
        /// Moves that are measured per set and step, at least 1.
        candidates: usize,
    },
    /// Random changes of the best set known.
    Evolution {
        /// Random sets per generation, at least 1; some tens.
        offspring: usize,
    },
    /// The exact search over scores and measured interactions, again and again.
    Interactions {
        /// Pairs of the present plan's layers that are measured per step, at least 1; some tens.
        pairs: usize,
    },
}

impl RefineMethod {
    /// The method of this name, with so many candidates (sets, or pairs) per step and, for a beam, its width.
    pub fn named(name: &str, candidates: usize, width: usize) -> Option<Self> {
        match name {
            "swaps" => Some(RefineMethod::Swaps { candidates }),
            "beam" => Some(RefineMethod::Beam { width, candidates }),
            "evolution" => Some(RefineMethod::Evolution { offspring: candidates }),
            "interactions" => Some(RefineMethod::Interactions { pairs: candidates }),
            _ => None,
        }
    }

    /// The name of the plans that it makes: `swaps`, `beam`, `evolution` or `interactions`.
    pub fn name(self) -> &'static str {
        match self {
            RefineMethod::Swaps { .. } => "swaps",
            RefineMethod::Beam { .. } => "beam",
            RefineMethod::Evolution { .. } => "evolution",
            RefineMethod::Interactions { .. } => "interactions",
        }
    }

    pub(crate) fn smallest_setting(self) -> usize {
        match self {
            RefineMethod::Swaps { candidates } => candidates,
            RefineMethod::Beam { width, candidates } => width.min(candidates),
            RefineMethod::Evolution { offspring } => offspring,
            RefineMethod::Interactions { pairs } => pairs,
        }
    }
}

/// Settings of [`refine`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RefineOptions<'a> {
    /// The criterion of the model that is to become small; usually the one behind the scores.
    pub criterion: String,
    /// How to search.
    pub method: RefineMethod,
    /// The samples that the search uses.
    pub samples: Range<usize>,
    /// The samples on which its result must stand, none of `samples`, at least 2. The first half decides between the start and the
    /// best sets of the search; the second half, which decides nothing, tells what they lose.
    pub held_out: Range<usize>,
    /// Samples on which many sets are compared first; then twice as many, and so on. At least 1.
    pub first_samples: usize,
    /// Evaluations allowed, the held-out ones included: samples times sets. A model that resumes needs about half as many
    /// whole forward passes.
    pub max_forwards: u64,
    /// Samples per call of the model, at least 1.
    pub batch: usize,
    /// Seed of the evolution.
    pub seed: u64,
    /// Time, a flag to end the search early, a callback to follow it. Whatever ends the search, the best of what it found is
    /// compared with the start; to that the flag does not apply, and of the time as much is kept as it will take.
    pub search: SearchOptions<'a>,
}

impl<'a> RefineOptions<'a> {
    /// A search on `samples` that must stand on `held_out`: swaps of 32 candidates, 16 samples first, 100,000 evaluations, 16
    /// samples per call, seed 0.
    pub fn new(criterion: impl Into<String>, samples: Range<usize>, held_out: Range<usize>) -> Self {
        Self {
            criterion: criterion.into(),
            method: RefineMethod::Swaps { candidates: 32 },
            samples,
            held_out,
            first_samples: 16,
            max_forwards: 100_000,
            batch: 16,
            seed: 0,
            search: SearchOptions::new(),
        }
    }

    /// Time, a flag to end the search early, a callback to follow it.
    pub fn search(mut self, search: SearchOptions<'a>) -> Self {
        self.search = search;
        self
    }

    /// How to search.
    pub fn method(mut self, method: RefineMethod) -> Self {
        self.method = method;
        self
    }

    /// Samples on which many sets are compared first.
    pub fn first_samples(mut self, samples: usize) -> Self {
        self.first_samples = samples;
        self
    }

    /// Evaluations allowed, the held-out ones included.
    pub fn max_forwards(mut self, forwards: u64) -> Self {
        self.max_forwards = forwards;
        self
    }

    /// Samples per call of the model.
    pub fn batch(mut self, batch: usize) -> Self {
        self.batch = batch;
        self
    }

    /// Seed of the evolution.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// What [`refine_with`] tells its callback.
pub type RefineEvent<'a> = JointSearchEvent<'a, RefineRecord>;

/// A refined plan.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Refined {
    /// The better plan, for the same limits; the start itself where none was found.
    pub plan: Plan,
    /// How it was found.
    pub record: RefineRecord,
}

/// The best sets of the search; these are compared with the start on held-out samples. Several, because the best on one half of
/// the samples is seldom the best on the other.
const FINALISTS: usize = 5;

/// Looks for a set with a lower joint loss than the start's, within the same limits and the problem's constraints.
///
/// The measured loss of the result on the held-out samples that decide is never above the start's, and what is reported as
/// [`RefineOutcome::held_out`] comes from other samples.
///
/// # Errors
/// [`Error::UnfitStart`], and those of [`Plan::check`], for a start that does not meet limits or constraints;
/// [`Error::UnknownCriterion`]; [`Error::SampleRange`]; [`Error::OutOfRange`] for settings below 1, samples that are held
/// out as well or fewer than 2, or fewer evaluations than the start and the comparisons need; those of [`crate::audit::measure_sets`] and
/// [`Problem::solve`].
pub fn refine<M: Ablate>(
    model: &mut M,
    problem: &Problem<'_>,
    limits: &[Limit],
    start: &Plan,
    options: &RefineOptions<'_>,
) -> Result<Refined, AblateError<M::Error>> {
    refine_with(model, problem, limits, start, options, None, |_| Ok(()))
}

/// [`refine()`] with a callback, which sees every batch and all that is measured and may end the run with an error of its own.
/// `resume` takes what an interrupted run handed to the callback; its measurements are not repeated, and the result is the
/// same as without interruption.
///
/// # Errors
/// As [`refine()`]; [`Error::ResumeMismatch`]; whatever the callback returns.
pub fn refine_with<M: Ablate, E>(
    model: &mut M,
    problem: &Problem<'_>,
    limits: &[Limit],
    start: &Plan,
    options: &RefineOptions<'_>,
    resume: Option<RefineRecord>,
    mut on_event: impl FnMut(RefineEvent<'_>) -> Result<(), E>,
) -> Result<Refined, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    let criterion = check(model, problem, options)?;
    let (instance, _) = problem.instance()?;
    let field = Field::new(problem, &instance, problem.ranges(limits)?);
    let gone = field.start(start, problem)?;
    let record = RefineRecord::new(problem.table(), options, start.removal_set());
    let earlier = resume.map_or(Ok(Vec::new()), |earlier| earlier.checked_for(&record, problem.table()))?;
    let means = Means { criterion, samples: options.samples.clone(), batch: options.batch, max_forwards: options.max_forwards };
    let mut ledger = Ledger::new(model, means, &options.search, record, earlier, &mut on_event);
    let halves = Halves::of(&options.held_out);
    let reserved = (1 + FINALISTS) as u64 * halves.decide.len() as u64 + 2 * halves.report.len() as u64;
    ledger.reserve(reserved);
    let first = start.removal_set();
    if !ledger.measure(std::slice::from_ref(&first), ledger.len())? {
        let least = reserved + options.samples.len() as u64;
        if least <= options.max_forwards {
            return Err(Error::Stopped.into());
        }
        return Err(Error::OutOfRange {
            key: "max_forwards",
            expected: format!("at least {least}"),
            got: options.max_forwards.to_string(),
        }
        .into());
    }
    let start_loss = ledger.loss(&first, ledger.len());
    let candidate = Candidate { loss: start_loss, set: first.clone(), gone };
    let mut search = Search { problem, limits, field: &field, ledger, first_samples: options.first_samples };
    search.run(candidate, options.method, options.seed)?;
    let mut ledger = search.ledger;
    let outcome = final_choice(&mut ledger, &field, &first, &halves)?;
    let plan = if outcome.removed == first { start.clone() } else { plan(problem, limits, start, &outcome.removed, options.method)? };
    let mut record = ledger.record;
    record.outcome = Some(outcome);
    Ok(Refined { plan, record })
}

/// The held-out samples that decide, and those that tell what was decided on is worth.
struct Halves {
    decide: Range<usize>,
    report: Range<usize>,
}

impl Halves {
    fn of(held_out: &Range<usize>) -> Self {
        let middle = held_out.start + held_out.len() / 2;
        Self { decide: held_out.start..middle, report: middle..held_out.end }
    }
}

/// Checks the settings; the column of the criterion.
fn check<M: Ablate>(model: &M, problem: &Problem<'_>, options: &RefineOptions<'_>) -> Result<usize, Error> {
    check_run(
        model,
        problem,
        &options.criterion,
        (&options.samples, &options.held_out),
        options.batch,
        &[
            ("first_samples", options.first_samples, 1),
            ("method", options.method.smallest_setting(), 1),
            ("held_out", options.held_out.len(), 2),
        ],
    )
}

/// Checks what all searches on joint losses are given; the column of the criterion. `least` are settings with what they must be.
pub(crate) fn check_run<M: Ablate>(
    model: &M,
    problem: &Problem<'_>,
    criterion: &str,
    (samples, held_out): (&Range<usize>, &Range<usize>),
    batch: usize,
    least: &[(&'static str, usize, usize)],
) -> Result<usize, Error> {
    problem.table().check_same(model.table())?;
    check_samples(model, samples, batch)?;
    check_samples(model, held_out, batch)?;
    if samples.start < held_out.end && held_out.start < samples.end {
        let (expected, got) = (format!("no sample of {samples:?}"), format!("{held_out:?}"));
        return Err(Error::OutOfRange { key: "held_out", expected, got });
    }
    if let Some((key, got, least)) = least.iter().find(|(_, got, least)| got < least) {
        return Err(Error::OutOfRange { key, expected: format!("at least {least}"), got: got.to_string() });
    }
    let column = model.criteria().iter().position(|name| *name == criterion);
    column.ok_or_else(|| Error::UnknownCriterion { expected: model.criteria().join(", "), got: criterion.to_owned() })
}

/// The best among the start and the best sets that the search has found, on the samples that decide; what it is worth, on the others.
fn final_choice<M: Ablate, E>(
    ledger: &mut Ledger<'_, M, RefineRecord, E>,
    field: &Field<'_>,
    start: &RemovalSet,
    halves: &Halves,
) -> Result<RefineOutcome, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    let better = ledger.ranking(ledger.len()).into_iter().take_while(|set| set != start).filter(|set| field.allowed(set).is_some());
    let finalists: Vec<RemovalSet> = std::iter::once(start.clone()).chain(better.take(FINALISTS)).collect();
    let losses = ledger.held_out(&finalists, halves.decide.clone())?;
    let deciding = losses.iter().map(|losses| JointLoss::of(losses)).collect::<Result<Vec<_>, Error>>()?;
    // Of equals the first counts: a start that is as good is kept.
    let best = (1..finalists.len()).fold(0, |best, other| if deciding[other].mean < deciding[best].mean { other } else { best });
    let told = if best == 0 { vec![start.clone()] } else { vec![start.clone(), finalists[best].clone()] };
    let losses = ledger.held_out(&told, halves.report.clone())?;
    let (before, after) = (&losses[0], &losses[losses.len() - 1]);
    let change: Vec<f64> = after.iter().zip(before).map(|(chosen, start)| chosen - start).collect();
    Ok(RefineOutcome {
        removed: finalists[best].clone(),
        start_search: JointLoss::of(ledger.losses(start))?,
        search: JointLoss::of(ledger.losses(&finalists[best]))?,
        decision: Some(Decision { samples: halves.decide.clone(), start: deciding[0], chosen: deciding[best] }),
        start_held_out: JointLoss::of(before)?,
        held_out: JointLoss::of(after)?,
        held_out_change: Some(JointLoss::of(&change)?),
    })
}

/// The plan that removes this set, for the limits and the budget of the start.
fn plan(problem: &Problem<'_>, limits: &[Limit], start: &Plan, removed: &RemovalSet, method: RefineMethod) -> Result<Plan, Error> {
    let table = problem.table();
    let mut plan = Plan::from_removed(table, method.name(), removed.iter().cloned())?;
    plan.set_scores(problem.scores)?;
    plan.constraints = problem.constraints.clone();
    let layers: Vec<usize> = plan.removed.iter().filter_map(|id| table.position(id.as_str())).collect();
    plan.limits = problem.plan_limits(limits, &layers)?;
    plan.budget = start.budget.clone();
    plan.check(table)?;
    Ok(plan)
}
