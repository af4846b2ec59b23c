//! Pruning in steps: score, remove some, score what is left in the absence of these, remove more. A later step sees the
//! interactions with what is gone already, which one-shot scores do not; each step writes the same files as one-shot pruning.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value;

use crate::ablate::{Ablate, LossDeltas};
use crate::budget::{Budget, Constraints};
use crate::error::{AblateError, Error};
use crate::layer::{LayerId, RemovalSet};
use crate::plan::Plan;
use crate::score::{ScoreEvent, ScoreOptions, Scores, score_layers};
use crate::search::solve;
use crate::table::LayerTable;

/// A model some layers of which are gone already: losses are what further removals add to those of these layers.
#[derive(Debug)]
pub struct AfterRemoval<M> {
    model: M,
    gone: RemovalSet,
    /// LossDeltas with only these layers gone, by first and last sample.
    before: BTreeMap<(usize, usize), LossDeltas>,
}

impl<M: Ablate> AfterRemoval<M> {
    /// The model without these layers.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`].
    pub fn new(model: M, gone: RemovalSet) -> Result<Self, Error> {
        gone.iter().try_for_each(|id| model.table().require(id).map(drop))?;
        Ok(Self { model, gone, before: BTreeMap::new() })
    }

    fn with_gone(&self, removed: &RemovalSet) -> RemovalSet {
        self.gone.iter().chain(removed).cloned().collect()
    }
}

impl<M: Ablate> Ablate for AfterRemoval<M> {
    type Error = M::Error;

    fn table(&self) -> &LayerTable {
        self.model.table()
    }

    fn criteria(&self) -> Vec<String> {
        self.model.criteria()
    }

    fn num_samples(&self) -> usize {
        self.model.num_samples()
    }

    fn sample_bin(&self, index: usize) -> u32 {
        self.model.sample_bin(index)
    }

    fn evaluate(&mut self, removed: &RemovalSet, samples: Range<usize>) -> Result<LossDeltas, M::Error> {
        self.evaluate_many(std::slice::from_ref(removed), samples).map(|mut losses| losses.swap_remove(0))
    }

    fn evaluate_many(&mut self, removed: &[RemovalSet], samples: Range<usize>) -> Result<Vec<LossDeltas>, M::Error> {
        let key = (samples.start, samples.end);
        let mut sets: Vec<RemovalSet> = removed.iter().map(|set| self.with_gone(set)).collect();
        if !self.gone.is_empty() && !self.before.contains_key(&key) {
            sets.push(self.gone.clone());
        }
        let mut losses = self.model.evaluate_many(&sets, samples)?;
        if sets.len() > removed.len()
            && let Some(before) = losses.pop()
        {
            self.before.insert(key, before);
        }
        Ok(match self.before.get(&key) {
            Some(before) => losses.iter().map(|losses| losses.zip_with(before, |loss, before| loss - before)).collect(),
            None => losses,
        })
    }

    fn sets_at_once(&self) -> usize {
        self.model.sets_at_once()
    }
}

/// Settings of [`prune_in_steps`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StepOptions {
    /// The criterion by which plans are made.
    pub criterion: String,
    /// What must be gone after each step; at least one, of one cost, each more than the one before.
    pub budgets: Vec<Budget>,
    /// The constraints of all steps.
    pub constraints: Constraints,
    /// How to score in every step. The files of later steps name what was gone in the setting `removed`.
    pub score: ScoreOptions,
}

impl StepOptions {
    /// One step to each of these budgets, by this criterion, without constraints.
    pub fn new(criterion: impl Into<String>, budgets: impl IntoIterator<Item = Budget>, score: ScoreOptions) -> Self {
        Self { criterion: criterion.into(), budgets: budgets.into_iter().collect(), constraints: Constraints::none(), score }
    }

    /// The constraints of all steps.
    pub fn constraints(mut self, constraints: Constraints) -> Self {
        self.constraints = constraints;
        self
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// Scores by criterion: for layers left, what their removal adds to the loss of what was gone before this step; for layers
    /// gone before, the score by which they went. Their sum over the plan is therefore closer to its joint loss than that of
    /// one-shot scores.
    pub scores: Vec<Scores>,
    /// All that is gone after this step.
    pub plan: Plan,
}

/// Prunes in steps, each on scores measured without the layers that went before. The first step is one-shot pruning to its
/// budget.
///
/// # Errors
/// As [`crate::Scorer::run`] and [`solve`]; [`Error::UnknownCriterion`]; [`Error::OutOfRange`] for budgets that do not rise.
pub fn prune_in_steps<M: Ablate>(model: &mut M, options: &StepOptions) -> Result<Vec<Step>, AblateError<M::Error>> {
    prune_in_steps_with(model, options, Vec::new(), |_, _| Ok(()))
}

/// [`prune_in_steps`] with a callback, which gets the number of the step with each event and may end the run with an error of
/// its own. `resume` takes the scores of the steps begun so far, as an interrupted run handed them to the callback; the result
/// is the same as without interruption.
///
/// # Errors
/// As [`prune_in_steps`]; whatever the callback returns.
pub fn prune_in_steps_with<M: Ablate, E>(
    model: &mut M,
    options: &StepOptions,
    resume: Vec<Vec<Scores>>,
    mut on_event: impl FnMut(usize, ScoreEvent<'_>) -> Result<(), E>,
) -> Result<Vec<Step>, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    let lead = check(model, options)?;
    let mut steps: Vec<Step> = Vec::new();
    let mut earlier = resume.into_iter();
    for (number, budget) in options.budgets.iter().enumerate() {
        let gone = steps.last().map_or_else(RemovalSet::empty, |step| step.plan.removal_set());
        let left: Vec<LayerId> =
            model.table().layers().iter().map(|layer| layer.id.clone()).filter(|id| !gone.contains(id.as_str())).collect();
        let mut score = options.score.clone();
        if !gone.is_empty() {
            let ids = model.table().in_order(&gone)?.into_iter().map(|id| Value::from(id.as_str())).collect();
            score.settings.insert("removed".to_owned(), Value::Array(ids));
        }
        let mut given = AfterRemoval::new(&mut *model, gone.clone())?;
        let resume = earlier.next().unwrap_or_default();
        let mut scores = score_layers(&mut given, &left, &score, resume, &mut |event| on_event(number, event))?;
        if let Some(before) = steps.last() {
            take_over(&mut scores, &before.scores, &gone)?;
        }
        let mut constraints = options.constraints.clone();
        constraints.remove.extend(gone);
        let plan = solve(&scores[lead], budget, &constraints)?;
        steps.push(Step { scores, plan });
    }
    Ok(steps)
}

/// Checks the settings; the position of the criterion.
fn check<M: Ablate>(model: &M, options: &StepOptions) -> Result<usize, Error> {
    let budgets = &options.budgets;
    let required = budgets.iter().map(|budget| budget.required(model.table())).collect::<Result<Vec<_>, _>>()?;
    let rising = required.is_sorted_by(|a, b| a < b) && budgets.windows(2).all(|pair| pair[0].cost() == pair[1].cost());
    if budgets.is_empty() || !rising {
        let expected = "at least one, of one cost, each more than the one before".to_owned();
        return Err(Error::OutOfRange { key: "budgets", expected, got: format!("{required:?}") });
    }
    let position = model.criteria().iter().position(|name| *name == options.criterion);
    position.ok_or_else(|| Error::UnknownCriterion { expected: model.criteria().join(", "), got: options.criterion.clone() })
}

/// Layers that are gone keep the scores by which they went.
fn take_over(scores: &mut [Scores], before: &[Scores], gone: &RemovalSet) -> Result<(), Error> {
    for (scores, before) in scores.iter_mut().zip(before) {
        for id in gone {
            if let Some(score) = before.layer(id.as_str()) {
                scores.insert(id.clone(), score.clone())?;
            }
        }
    }
    Ok(())
}
