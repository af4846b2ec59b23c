//! The search itself: sets race against each other on growing numbers of samples; what races are moves that a local model of
//! the loss finds promising (swaps, beam), or random ones (evolution).

use std::collections::BTreeSet;

use crate::ablate::Ablate;
use crate::budget::Limit;
use crate::error::{AblateError, Error};
use crate::layer::RemovalSet;
use crate::ledger::{Ledger, Record};
use crate::random::SplitMix64;
use crate::refine::RefineMethod;
use crate::refine::moves::{Field, Units};
use crate::search::Problem;

/// Steps of the path down the local model that are measured beside single moves.
const PATH: usize = 8;
/// Attempts at a random set that was not met before, per offspring.
const ATTEMPTS: usize = 50;

/// A set with its loss on all samples of the search.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) loss: f64,
    pub(crate) set: RemovalSet,
    pub(crate) gone: Units,
}

pub(crate) struct Search<'a, 'm, M, R, E> {
    pub(crate) problem: &'a Problem<'a>,
    /// What the sets must meet.
    pub(crate) limits: &'a [Limit],
    /// The problem and the limits in plain numbers.
    pub(crate) field: &'a Field<'a>,
    pub(crate) ledger: Ledger<'m, M, R, E>,
    /// Samples on which many sets are compared first.
    pub(crate) first_samples: usize,
}

impl<M: Ablate, R: Record, E> Search<'_, '_, M, R, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    /// Searches from a set on, by one of the methods.
    pub(crate) fn run(&mut self, start: Candidate, method: RefineMethod, seed: u64) -> Result<(), E> {
        match method {
            RefineMethod::Swaps { candidates } => self.beam(start, 1, candidates),
            RefineMethod::Beam { width, candidates } => self.beam(start, width, candidates),
            RefineMethod::Evolution { offspring } => {
                let weights: Vec<f64> = self.field.instance.units.iter().map(|unit| unit.score as f64).collect();
                self.evolve(start, offspring, &weights, &mut SplitMix64::new(seed, 0))
            }
            RefineMethod::Interactions { pairs } => self.paired(&start, pairs),
        }
    }

    /// The best `keep` of some sets on all samples, ascending in loss: the better half goes on to twice the samples, until
    /// all are used. Empty where the evaluations do not suffice.
    fn race(&mut self, sets: Vec<Units>, keep: usize) -> Result<Vec<Candidate>, E> {
        let all = self.ledger.len();
        let mut samples = self.first_samples.min(all);
        let mut running: Vec<Candidate> =
            sets.into_iter().map(|gone| Candidate { loss: f64::INFINITY, set: self.field.removal_set(&gone), gone }).collect();
        loop {
            let sets: Vec<RemovalSet> = running.iter().map(|candidate| candidate.set.clone()).collect();
            if !self.ledger.measure(&sets, samples)? {
                return Ok(Vec::new());
            }
            running.iter_mut().for_each(|candidate| candidate.loss = self.ledger.loss(&candidate.set, samples));
            sort(&mut running);
            if samples == all {
                running.truncate(keep);
                return Ok(running);
            }
            running.truncate(keep.max(running.len().div_ceil(2)));
            samples = all.min(samples * 2);
        }
    }

    /// Local search over a beam: each set is opened, that is, its moves are ranked by a model of the loss around it and the
    /// best of them race. Where no set of the beam leads on, the search goes on from the best sets not opened yet.
    fn beam(&mut self, start: Candidate, width: usize, candidates: usize) -> Result<(), E> {
        let (first, all) = (self.first_samples.min(self.ledger.len()), self.ledger.len());
        let mut best = start.loss;
        let mut beam = vec![start];
        let mut opened: BTreeSet<(RemovalSet, usize)> = BTreeSet::new();
        // The number of samples behind the local model grows where the moves that it proposes fail, around the best set only.
        let (mut samples, mut thorough) = (first, true);
        loop {
            let fresh: Vec<Candidate> = beam.iter().filter(|member| !opened.contains(&(member.set.clone(), samples))).cloned().collect();
            if fresh.is_empty() {
                if thorough && samples < all {
                    samples = all.min(samples * 2);
                    continue;
                }
                (beam, samples, thorough) = (self.unopened(&opened, width), first, false);
                if beam.is_empty() {
                    return Ok(());
                }
                continue;
            }
            let mut sets = Vec::new();
            for member in fresh {
                let Some(weights) = self.local_model(&member.gone, samples)? else { return Ok(()) };
                sets.extend(self.promising(&member.gone, &weights, candidates));
                opened.insert((member.set, samples));
            }
            sets.sort();
            sets.dedup();
            let found = if sets.is_empty() { Vec::new() } else { self.race(sets, width)? };
            for candidate in found {
                if !beam.iter().any(|member| member.set == candidate.set) {
                    beam.push(candidate);
                }
            }
            sort(&mut beam);
            beam.truncate(width);
            if beam[0].loss < best {
                self.note(&beam[0]);
                (best, thorough) = (beam[0].loss, true);
            }
        }
    }

    /// The best sets known from which the search has not gone on yet.
    fn unopened(&self, opened: &BTreeSet<(RemovalSet, usize)>, count: usize) -> Vec<Candidate> {
        let was_opened = |set: &RemovalSet| opened.range((set.clone(), 0)..).next().is_some_and(|(first, _)| first == set);
        let fresh = self.ledger.ranking(self.ledger.len()).into_iter().filter(|set| !was_opened(set));
        let candidate = |set: RemovalSet| {
            let gone = self.field.allowed(&set)?;
            Some(Candidate { loss: self.ledger.loss(&set, self.ledger.len()), set, gone })
        };
        fresh.filter_map(candidate).take(count).collect()
    }

    /// What the removal of each unit costs with this set gone: measured by moving each unit alone to the other side. `None`
    /// where the evaluations do not suffice.
    fn local_model(&mut self, gone: &Units, samples: usize) -> Result<Option<Vec<f64>>, E> {
        let here = self.field.removal_set(gone);
        let toggled: Vec<RemovalSet> = (0..gone.len()).map(|unit| self.field.removal_set(&self.field.toggled(gone, unit))).collect();
        let mut sets = toggled.clone();
        sets.push(here.clone());
        if !self.ledger.measure(&sets, samples)? {
            return Ok(None);
        }
        let loss = self.ledger.loss(&here, samples);
        let weight = |unit: usize| {
            let change = self.ledger.loss(&toggled[unit], samples) - loss;
            // What hangs together shares the change.
            (if gone[unit] { -change } else { change }) / self.field.closure(gone, unit).len() as f64
        };
        Ok(Some((0..gone.len()).map(weight).collect()))
    }

    /// The best single moves by the local model, and the sets on the steepest path down.
    fn promising(&self, gone: &Units, weights: &[f64], candidates: usize) -> Vec<Units> {
        let unknown = |units: &Units| self.ledger.losses(&self.field.removal_set(units)).len() < self.ledger.len();
        let moves = self.field.neighbours(gone, weights);
        let mut sets: Vec<Units> = moves.into_iter().map(|next| next.gone).filter(unknown).take(candidates).collect();
        let mut at = gone.clone();
        for _ in 0..PATH {
            match self.field.neighbours(&at, weights).into_iter().next() {
                Some(next) if next.change < 0.0 => at = next.gone,
                _ => break,
            }
            if unknown(&at) {
                sets.push(at.clone());
            }
        }
        sets
    }

    /// Evolution with one parent: random swaps within the limits, offspring selected in a race (EvoPress, arXiv 2410.14649).
    fn evolve(&mut self, start: Candidate, offspring: usize, weights: &[f64], rng: &mut SplitMix64) -> Result<(), E> {
        let mut parent = start;
        loop {
            let sets = self.mutants(&parent.gone, offspring, weights, rng);
            if sets.is_empty() {
                return Ok(());
            }
            let Some(best) = self.race(sets, 1)?.into_iter().next() else { return Ok(()) };
            if best.loss < parent.loss {
                self.note(&best);
                parent = best;
            }
        }
    }

    /// Distinct sets some random swaps away from the parent, none of them measured yet.
    fn mutants(&self, parent: &Units, count: usize, weights: &[f64], rng: &mut SplitMix64) -> Vec<Units> {
        let mut sets: Vec<Units> = Vec::new();
        for _ in 0..count * ATTEMPTS {
            if sets.len() == count {
                break;
            }
            // Few swaps are likelier than many, as in EvoPress.
            let swaps = 1 + rng.below(3).min(rng.below(3));
            let mut gone = parent.clone();
            for _ in 0..swaps {
                let mut pick = |side: bool| {
                    let units: Vec<usize> = (0..gone.len()).filter(|unit| gone[*unit] == side).collect();
                    (!units.is_empty()).then(|| units[rng.below(units.len() as u64) as usize])
                };
                let (back, out) = (pick(true), pick(false));
                if let Some(next) = self.field.swap(&gone, back, out, weights) {
                    gone = next.gone;
                }
            }
            if gone != *parent && !sets.contains(&gone) && self.ledger.losses(&self.field.removal_set(&gone)).is_empty() {
                sets.push(gone);
            }
        }
        sets
    }

    /// Enters a set that is better than all before into the record.
    pub(crate) fn note(&mut self, best: &Candidate) {
        self.ledger.record.note(best.loss, &best.set);
    }
}

fn sort(candidates: &mut [Candidate]) {
    candidates.sort_by(|a, b| a.loss.total_cmp(&b.loss).then_with(|| a.set.cmp(&b.set)));
}
