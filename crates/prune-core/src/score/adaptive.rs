//! Scoring that spends samples where a plan depends on them: all layers get a few, then those get more that the most
//! promising change of a plan touches, until no change could be better (CLUCB, see `confidence`).

use std::collections::BTreeSet;

use crate::ablate::Ablate;
use crate::budget::{Budget, Constraints};
use crate::error::{AblateError, Error};
use crate::layer::LayerId;
use crate::score::confidence::{Certificate, HeavyTails, Level, Population, certify_at, check_delta};
use crate::score::run::{ScoreOptions, extend_scores, open_scores, samples_done};
use crate::score::{LayerScore, Scorer, Scores};

/// What [`Scorer::run_adaptively`] is to find out.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AdaptiveOptions {
    /// The criterion by which plans are made; others of the model are measured along with it.
    pub criterion: String,
    /// The budgets whose plans are wanted, at least one.
    pub budgets: Vec<Budget>,
    /// The constraints of the plans.
    pub constraints: Constraints,
    /// Samples that every layer gets, at least 2; some ten, or intervals are wide. Layers that matter then get a quarter more,
    /// and so on.
    pub first_samples: usize,
    /// Chance allowed that a plan is another than after full scoring.
    pub delta: f64,
    /// What is done where single samples carry the means, so that few samples do not tell.
    pub heavy_tails: HeavyTails,
}

impl AdaptiveOptions {
    /// The plans for these budgets by this criterion: no constraints, 16 samples first, a delta of 0.05.
    pub fn new(criterion: impl Into<String>, budgets: impl IntoIterator<Item = Budget>) -> Self {
        Self {
            criterion: criterion.into(),
            budgets: budgets.into_iter().collect(),
            constraints: Constraints::none(),
            first_samples: 16,
            delta: 0.05,
            heavy_tails: HeavyTails::TakeAll,
        }
    }

    /// What is done where single samples carry the means.
    pub fn heavy_tails(mut self, heavy_tails: HeavyTails) -> Self {
        self.heavy_tails = heavy_tails;
        self
    }

    /// The constraints of the plans.
    pub fn constraints(mut self, constraints: Constraints) -> Self {
        self.constraints = constraints;
        self
    }

    /// Samples that every layer gets.
    pub fn first_samples(mut self, samples: usize) -> Self {
        self.first_samples = samples;
        self
    }

    /// Chance allowed that a plan is another than after full scoring.
    pub fn delta(mut self, delta: f64) -> Self {
        self.delta = delta;
        self
    }
}

/// What [`Scorer::run_adaptively_with`] tells its callback.
#[derive(Debug)]
#[non_exhaustive]
pub enum AdaptiveEvent<'a> {
    /// One call of the model has come back.
    Batch {
        /// Evaluations done (layers times samples), and those of full scoring.
        evaluations: (u64, u64),
    },
    /// Some layers have got further samples: save here, everything so far is complete.
    Layers {
        /// Evaluations done, and those of full scoring.
        evaluations: (u64, u64),
        /// Layers that are getting samples in this round.
        round: usize,
        /// All scores so far, one entry per criterion; written to files they can be resumed from.
        scores: &'a [Scores],
    },
}

/// Scores of which some have more samples than others.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AdaptiveScores {
    /// One entry per criterion.
    pub scores: Vec<Scores>,
    /// One entry per budget: how sure the plan is about everything that the samples were drawn from, every look counted.
    pub certificates: Vec<Certificate>,
    /// Evaluations done, layers times samples.
    pub evaluations: u64,
    /// Evaluations of full scoring.
    pub full_evaluations: u64,
}

impl<M: Ablate> Scorer<M> {
    /// Scores every layer with as many of the samples as the plans for some budgets depend on. With a chance of `1 - delta`
    /// (under the assumptions of [`crate::score::certify`]) the plans are those of full scoring; layers whose place is clear have few samples
    /// and wide error bars.
    ///
    /// A layer gets the first samples of the range, so these must be as good as any: put the samples in random order first.
    /// [`Scorer::layers`] does not apply.
    ///
    /// # Errors
    /// As [`Scorer::run`] and [`crate::score::certify`]; [`Error::UnknownCriterion`]; [`Error::OutOfRange`] for no budgets or fewer than 2
    /// first samples.
    pub fn run_adaptively(self, adaptive: &AdaptiveOptions) -> Result<AdaptiveScores, AblateError<M::Error>> {
        self.run_adaptively_with(adaptive, |_| Ok(()))
    }

    /// [`Scorer::run_adaptively`] with a callback, which sees every batch and every round and may end the run with an error of
    /// its own.
    ///
    /// # Errors
    /// As [`Scorer::run_adaptively`]; whatever the callback returns.
    pub fn run_adaptively_with<E>(
        mut self,
        adaptive: &AdaptiveOptions,
        mut on_event: impl FnMut(AdaptiveEvent<'_>) -> Result<(), E>,
    ) -> Result<AdaptiveScores, E>
    where
        E: From<Error> + From<AblateError<M::Error>>,
    {
        score_adaptively(&mut self.model, &self.options, adaptive, self.resume, &mut on_event)
    }
}

pub(crate) fn score_adaptively<M: Ablate, E>(
    model: &mut M,
    options: &ScoreOptions,
    adaptive: &AdaptiveOptions,
    resume: Vec<Scores>,
    on_event: &mut dyn FnMut(AdaptiveEvent<'_>) -> Result<(), E>,
) -> Result<AdaptiveScores, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    let total = options.samples.len();
    let lead = check(model, adaptive, total)?;
    let earlier = open_scores(model, options, resume)?;
    let scores = open_scores(model, options, Vec::new())?;
    let mut run = Run { model, options, scores, earlier, evaluations: 0, on_event };
    let layers: Vec<LayerId> = run.model.table().layers().iter().map(|layer| layer.id.clone()).collect();
    run.extend(&layers, adaptive.first_samples.min(total))?;
    // A layer is looked at once for each number of samples.
    let counts = std::iter::successors(Some(adaptive.first_samples.min(total)), |count| (*count < total).then(|| more(*count, total)));
    let level = Level { delta: adaptive.delta, intervals: layers.len() * counts.count(), tails: adaptive.heavy_tails };
    loop {
        let open = undecided(&run.scores[lead], adaptive, level)?;
        let open: Vec<LayerId> = layers.iter().filter(|id| open.contains(*id) && samples_done(&run.scores, id) < total).cloned().collect();
        if open.is_empty() {
            break;
        }
        run.grow(&open)?;
    }
    let Run { scores, evaluations, .. } = run;
    // The samples were looked at again and again before they were found enough.
    let certificate = |budget| certify_at(&scores[lead], budget, &adaptive.constraints, level, Population::Expectation);
    let certificates = adaptive.budgets.iter().map(certificate).collect::<Result<_, Error>>()?;
    Ok(AdaptiveScores { certificates, evaluations, full_evaluations: (layers.len() * total) as u64, scores })
}

/// Checks the settings; the position of the criterion.
fn check<M: Ablate>(model: &M, adaptive: &AdaptiveOptions, total: usize) -> Result<usize, Error> {
    check_delta(adaptive.delta)?;
    for (key, got, least) in [("budgets", adaptive.budgets.len(), 1), ("first_samples", adaptive.first_samples, 2), ("samples", total, 2)] {
        if got < least {
            return Err(Error::OutOfRange { key, expected: format!("at least {least}"), got: got.to_string() });
        }
    }
    let position = model.criteria().iter().position(|name| *name == adaptive.criterion);
    position.ok_or_else(|| Error::UnknownCriterion { expected: model.criteria().join(", "), got: adaptive.criterion.clone() })
}

/// The next number of samples: a quarter more, or what a layer gets beyond its need costs more than looking more often.
fn more(count: usize, total: usize) -> usize {
    total.min(count + count.div_ceil(4))
}

/// The layers that the most promising changes of the plans touch.
fn undecided(scores: &Scores, adaptive: &AdaptiveOptions, level: Level) -> Result<BTreeSet<LayerId>, Error> {
    let mut layers = BTreeSet::new();
    for budget in &adaptive.budgets {
        let certificate = certify_at(scores, budget, &adaptive.constraints, level, Population::Samples)?;
        layers.extend(certificate.back);
        layers.extend(certificate.out);
    }
    Ok(layers)
}

struct Run<'a, M, E> {
    model: &'a mut M,
    options: &'a ScoreOptions,
    scores: Vec<Scores>,
    /// Those of an interrupted run: their samples are taken over in the order in which they would be measured.
    earlier: Vec<Scores>,
    evaluations: u64,
    on_event: &'a mut dyn FnMut(AdaptiveEvent<'_>) -> Result<(), E>,
}

impl<M: Ablate, E> Run<'_, M, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    /// Gives some layers more samples, those with as many in one go.
    fn grow(&mut self, ids: &[LayerId]) -> Result<(), E> {
        let mut counts: Vec<usize> = ids.iter().map(|id| samples_done(&self.scores, id)).collect();
        counts.sort_unstable();
        counts.dedup();
        for count in counts {
            let alike: Vec<LayerId> = ids.iter().filter(|id| samples_done(&self.scores, id) == count).cloned().collect();
            self.extend(&alike, more(count, self.options.samples.len()))?;
        }
        Ok(())
    }

    /// Gives layers that have the same number of samples more of them.
    fn extend(&mut self, ids: &[LayerId], upto: usize) -> Result<(), E> {
        let full = (self.model.table().len() * self.options.samples.len()) as u64;
        let (known, open): (Vec<&LayerId>, Vec<&LayerId>) = ids.iter().partition(|id| samples_done(&self.earlier, id) >= upto);
        for id in known {
            let done = samples_done(&self.scores, id);
            for (scores, earlier) in self.scores.iter_mut().zip(&self.earlier) {
                let losses = earlier.layer(id.as_str()).map_or(&[][..], LayerScore::samples);
                let score = LayerScore::from_samples(losses[..upto].to_vec());
                scores.insert(id.clone(), score.ok_or_else(|| Error::Overflow { what: format!("the losses of `{id}`") })?)?;
            }
            self.evaluations += (upto - done) as u64;
        }
        for chunk in open.chunks(self.model.sets_at_once().max(1)) {
            let from = samples_done(&self.scores, chunk[0]);
            let before = self.evaluations;
            let on_event = &mut *self.on_event;
            extend_scores(self.model, &mut self.scores, chunk, from..upto, self.options, &mut |done| {
                let now = before + (chunk.len() * (done - from)) as u64;
                on_event(AdaptiveEvent::Batch { evaluations: (now, full) })
            })?;
            self.evaluations += (chunk.len() * (upto - from)) as u64;
            let evaluations = (self.evaluations, full);
            (self.on_event)(AdaptiveEvent::Layers { evaluations, round: ids.len(), scores: &self.scores })?;
        }
        Ok(())
    }
}
