//! The front by measurement: which plan loses least together at each budget. The sums of scores name the candidates, the model
//! chooses among them. Scores and model -> **measured front** -> plans.
//!
//! The plans of the exact front race on growing numbers of common samples. One that clearly loses more than another that removes
//! at least as much is dropped (paired differences, Student's t with Bonferroni's bound over the race); where more are left than the
//! evaluations carry to the end, the least promising go (successive halving). So samples go where plans compete. Around some of the
//! winners a refinement may search on. What is left undominated on all samples is the result; what it is said to lose is
//! measured on other samples, which chose nothing.

mod document;
mod race;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::ablate::Ablate;
use crate::audit::JointLoss;
use crate::budget::Limit;
use crate::error::{AblateError, Error};
use crate::layer::RemovalSet;
use crate::ledger::{JointSearchEvent, Ledger, Means, Record};
use crate::measured_front::race::{Entry, Race, undominated};
use crate::refine::descent::{Candidate, Search};
use crate::refine::moves::Field;
use crate::refine::{RefineMethod, check_run};
use crate::search::{Instance, Problem, SearchOptions};

pub use document::{MeasuredFront, MeasuredPlan};

/// Settings of [`measured_front`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FrontOptions<'a> {
    /// The criterion of the model that counts; usually the one behind the scores.
    pub criterion: String,
    /// What budgets count: `params`, `macs`, or a further resource of the problem.
    pub resource: String,
    /// The samples that choose.
    pub samples: Range<usize>,
    /// The samples that tell what the chosen plans lose; none of `samples`.
    pub held_out: Range<usize>,
    /// Samples on which all plans are compared first; then those left on twice as many, and so on. At least 1.
    pub first_samples: usize,
    /// Evaluations allowed, samples times sets, the held-out ones included.
    pub max_forwards: u64,
    /// Samples per call of the model, at least 1.
    pub batch: usize,
    /// How to search on around winners, and around how many of them, spread over the budgets. Half of the evaluations go there.
    pub refine: Option<(RefineMethod, usize)>,
    /// Seed of an evolution.
    pub seed: u64,
    /// Time, a flag to end the search early, a callback to follow it. Whatever ends the search, what it has chosen is measured on
    /// the held-out samples; to that the flag does not apply, and of the time as much is kept as it will take.
    pub search: SearchOptions<'a>,
}

impl<'a> FrontOptions<'a> {
    /// The front over parameters: 16 samples first, 100,000 evaluations, 16 samples per call, no refinement.
    pub fn new(criterion: impl Into<String>, samples: Range<usize>, held_out: Range<usize>) -> Self {
        Self {
            criterion: criterion.into(),
            resource: "params".to_owned(),
            samples,
            held_out,
            first_samples: 16,
            max_forwards: 100_000,
            batch: 16,
            refine: None,
            seed: 0,
            search: SearchOptions::new(),
        }
    }

    /// What budgets count.
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.resource = resource.into();
        self
    }

    /// Samples on which all plans are compared first.
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

    /// Searches on around so many winners.
    pub fn refine(mut self, method: RefineMethod, winners: usize) -> Self {
        self.refine = Some((method, winners));
        self
    }

    /// Seed of an evolution.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Time, a flag to end the search early, a callback to follow it.
    pub fn search(mut self, search: SearchOptions<'a>) -> Self {
        self.search = search;
        self
    }
}

/// What [`measured_front_with`] tells its callback. The record has no plans before the end.
pub type FrontEvent<'a> = JointSearchEvent<'a, MeasuredFront>;

/// Measures the plans of the exact front and gives those that no other measured one dominates: none removes at least as much and
/// loses less, on the samples that choose. For any budget [`MeasuredFront::best`] is then a look-up.
///
/// # Errors
/// [`Error::UnknownCriterion`]; [`Error::UnknownResource`]; [`Error::SampleRange`]; [`Error::OutOfRange`] for settings below 1,
/// samples that are held out as well, or too few evaluations for one plan; [`Error::Stopped`] where the time did not suffice for
/// the first comparison; those of [`Problem::front`] and [`crate::audit::measure_sets`].
pub fn measured_front<M: Ablate>(
    model: &mut M,
    problem: &Problem<'_>,
    options: &FrontOptions<'_>,
) -> Result<MeasuredFront, AblateError<M::Error>> {
    measured_front_with(model, problem, options, None, |_| Ok(()))
}

/// [`measured_front()`] with a callback, which sees every batch and all that is measured and may end the run with an error of its
/// own. `resume` takes what an interrupted run handed to the callback; its measurements are not repeated, and the result is the
/// same as without interruption.
///
/// # Errors
/// As [`measured_front()`]; [`Error::ResumeMismatch`]; whatever the callback returns.
pub fn measured_front_with<M: Ablate, E>(
    model: &mut M,
    problem: &Problem<'_>,
    options: &FrontOptions<'_>,
    resume: Option<MeasuredFront>,
    mut on_event: impl FnMut(FrontEvent<'_>) -> Result<(), E>,
) -> Result<MeasuredFront, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    let criterion = check(model, problem, options)?;
    let resource = problem.resource(&options.resource)?;
    let (instance, _) = problem.instance()?;
    let field = Field::new(problem, &instance, Vec::new());
    let front = MeasuredFront::new(problem, options);
    let earlier = resume.map_or(Ok(Vec::new()), |earlier| earlier.checked_for(&front, problem.table()))?;
    let means = Means { criterion, samples: options.samples.clone(), batch: options.batch, max_forwards: options.max_forwards };
    let mut ledger = Ledger::new(model, means, &options.search, front, earlier, &mut on_event);

    let (finalists, candidates) = (options.finalists(), options.candidates());
    ledger.reserve(finalists as u64 * options.held_out.len() as u64);
    ledger.allow_share(if options.refine.is_some() { 2 } else { 1 });
    let cost = |set: &RemovalSet| field.select(&field.units(set)).cost(resource);
    let race = Race { first_samples: options.first_samples, finalists };
    let upto = race.run(&mut ledger, race::spread(plans(problem, options, &cost)?, candidates))?;
    if let Some((method, winners)) = options.refine.filter(|_| upto == options.samples.len()) {
        ledger = around_winners(problem, options, &instance, (method, winners), ledger, &cost)?;
    }

    let sets: Vec<RemovalSet> = winners(&ledger, upto, &cost, finalists).into_iter().map(|entry| entry.set).collect();
    let held_out = ledger.held_out(&sets, options.held_out.clone())?;
    let mut found = Vec::with_capacity(sets.len());
    for (set, held_out) in sets.into_iter().zip(&held_out) {
        found.push(MeasuredPlan {
            costs: costs(problem, &set)?,
            predicted: problem.scores.predicted(&set)?,
            loss: JointLoss::of(&ledger.losses(&set)[..upto])?,
            held_out: JointLoss::of(held_out)?,
            removed: problem.table().in_order(&set)?,
        });
    }
    let mut front = ledger.record;
    front.plans = found;
    Ok(front)
}

impl FrontOptions<'_> {
    /// Plans that a quarter of the evaluations can measure on the held-out samples.
    fn finalists(&self) -> usize {
        (self.max_forwards / 4 / self.held_out.len().max(1) as u64).max(1) as usize
    }

    /// Plans with which the race begins: each of its rounds may cost as much as the others.
    fn candidates(&self) -> usize {
        let rounds = self.samples.len().div_ceil(self.first_samples).next_power_of_two().ilog2() + 1;
        let race = self.max_forwards / if self.refine.is_some() { 8 } else { 4 } * 3;
        ((race / u64::from(rounds) / self.first_samples as u64).max(1)) as usize
    }
}

fn check<M: Ablate>(model: &M, problem: &Problem<'_>, options: &FrontOptions<'_>) -> Result<usize, Error> {
    let smallest = options.refine.map_or(1, |(method, winners)| method.smallest_setting().min(winners));
    let criterion = check_run(
        model,
        problem,
        &options.criterion,
        (&options.samples, &options.held_out),
        options.batch,
        &[("first_samples", options.first_samples, 1), ("refine", smallest, 1)],
    )?;
    let least = (options.first_samples.min(options.samples.len()) + options.held_out.len()) as u64;
    if options.max_forwards < least {
        let expected = format!("at least {least}");
        return Err(Error::OutOfRange { key: "max_forwards", expected, got: options.max_forwards.to_string() });
    }
    Ok(criterion)
}

/// The plans of the exact front, by what they remove.
fn plans(problem: &Problem<'_>, options: &FrontOptions<'_>, cost: &dyn Fn(&RemovalSet) -> u64) -> Result<Vec<Entry>, Error> {
    let front = problem.front_with(&options.resource, &options.search)?;
    let sets = (0..front.points().len()).filter_map(|point| front.removal(point)).filter(|set| !set.is_empty());
    let mut plans: Vec<Entry> = sets.map(|set| Entry { cost: cost(&set), loss: f64::INFINITY, set }).collect();
    plans.sort_by(|a, b| a.cost.cmp(&b.cost).then_with(|| a.set.cmp(&b.set)));
    plans.dedup_by(|a, b| a.set == b.set);
    Ok(plans)
}

/// At most `most` of the measured sets that no other dominates on the first samples, spread over the budgets.
fn winners<M: Ablate, R: Record, E>(ledger: &Ledger<'_, M, R, E>, upto: usize, cost: &dyn Fn(&RemovalSet) -> u64, most: usize) -> Vec<Entry>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    let entry = |set: RemovalSet| Entry { cost: cost(&set), loss: ledger.loss(&set, upto), set };
    race::spread(undominated(ledger.ranking(upto).into_iter().map(entry).collect()), most)
}

/// Searches on around some plans that are undominated so far; what it measures stands in the ledger.
fn around_winners<'m, M: Ablate, E>(
    problem: &Problem<'_>,
    options: &FrontOptions<'_>,
    instance: &Instance,
    (method, most): (RefineMethod, usize),
    mut ledger: Ledger<'m, M, MeasuredFront, E>,
    cost: &dyn Fn(&RemovalSet) -> u64,
) -> Result<Ledger<'m, M, MeasuredFront, E>, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    let starts = winners(&ledger, ledger.len(), cost, most);
    for (done, start) in starts.iter().enumerate() {
        ledger.allow_share((starts.len() - done) as u64);
        let limits = [Limit::at_least(&options.resource, start.cost)];
        let field = Field::new(problem, instance, problem.ranges(&limits)?);
        let candidate = Candidate { loss: start.loss, set: start.set.clone(), gone: field.units(&start.set) };
        let mut search = Search { problem, limits: &limits, field: &field, ledger, first_samples: options.first_samples };
        search.run(candidate, method, options.seed)?;
        ledger = search.ledger;
    }
    Ok(ledger)
}

/// What goes of every resource.
fn costs(problem: &Problem<'_>, set: &RemovalSet) -> Result<BTreeMap<String, u64>, Error> {
    let layers = problem.table().positions(set)?;
    problem.resources().iter().enumerate().map(|(at, name)| Ok((name.clone(), problem.removed(at, &layers)))).collect()
}
