//! Sets race against each other on common samples. One competes only with those that remove at least as much.

use crate::ablate::Ablate;
use crate::error::{AblateError, Error};
use crate::layer::RemovalSet;
use crate::ledger::{Ledger, Record};
use crate::stats;

/// A set in the race.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// What it removes of the resource.
    pub(super) cost: u64,
    /// Its mean loss on the samples so far.
    pub(super) loss: f64,
    pub(super) set: RemovalSet,
}

pub(super) struct Race {
    pub(super) first_samples: usize,
    /// Sets that may reach the end.
    pub(super) finalists: usize,
}

/// Chance allowed in a round that some set is dropped which is the best of its budget.
const DROP: f64 = 0.05;

impl Race {
    /// Measures sets on growing numbers of samples; the number on which those left were compared last.
    ///
    /// # Errors
    /// [`Error::Stopped`] where not one could be measured.
    pub(super) fn run<M: Ablate, R: Record, E>(&self, ledger: &mut Ledger<'_, M, R, E>, mut running: Vec<Entry>) -> Result<usize, E>
    where
        E: From<Error> + From<AblateError<M::Error>>,
    {
        let all = ledger.len();
        let (mut samples, mut compared) = (self.first_samples.min(all), 0);
        loop {
            let sets: Vec<RemovalSet> = running.iter().map(|entry| entry.set.clone()).collect();
            if !ledger.measure(&sets, samples)? {
                // Out of time: some of a first round are better than nothing.
                let some = compared > 0 || !ledger.ranking(samples).is_empty();
                return if some { Ok(if compared > 0 { compared } else { samples }) } else { Err(Error::Stopped.into()) };
            }
            compared = samples;
            if samples == all {
                return Ok(all);
            }
            running.iter_mut().for_each(|entry| entry.loss = ledger.loss(&entry.set, samples));
            let next = all.min(samples * 2);
            let rounds = all.div_ceil(samples).next_power_of_two().ilog2().max(1);
            let most = ledger.left() / u64::from(rounds) / (next - samples) as u64;
            let most = if next == all { self.finalists } else { usize::MAX }.min(most as usize).max(1);
            running = promising(clear_losers_out(running, ledger, samples), most);
            samples = next;
        }
    }
}

/// Leaves out the sets that clearly lose more than the best that removes as much.
fn clear_losers_out<M: Ablate, R: Record, E>(mut sets: Vec<Entry>, ledger: &Ledger<'_, M, R, E>, samples: usize) -> Vec<Entry>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    if samples < 2 {
        return sets;
    }
    let quantile = stats::student_quantile(DROP / sets.len() as f64, samples - 1);
    let rivals = rivals(&mut sets);
    let loses = |entry: &Entry, rival: &RemovalSet| {
        let differences: Vec<f64> = ledger.losses(&entry.set)[..samples].iter().zip(ledger.losses(rival)).map(|(a, b)| a - b).collect();
        let (mean, error) = (stats::mean(&differences), stats::standard_error(&differences));
        mean.zip(error).is_some_and(|(mean, error)| mean > quantile * error)
    };
    let best: Vec<RemovalSet> = rivals.iter().map(|rival| sets[*rival].set.clone()).collect();
    sets.into_iter().zip(best).filter(|(entry, rival)| entry.set == *rival || !loses(entry, rival)).map(|(entry, _)| entry).collect()
}

/// Sorts the sets by what they remove; for each the position of the one of least loss that removes as much.
fn rivals(sets: &mut [Entry]) -> Vec<usize> {
    sets.sort_by(|a, b| a.cost.cmp(&b.cost).then(b.loss.total_cmp(&a.loss)).then_with(|| a.set.cmp(&b.set)));
    let mut best = vec![0; sets.len()];
    for at in (0..sets.len()).rev() {
        best[at] = match best.get(at + 1) {
            Some(other) if sets[*other].loss <= sets[at].loss => *other,
            _ => at,
        };
    }
    best
}

/// The sets that no other dominates: none removes at least as much and loses less, or loses as much and removes more.
pub(super) fn undominated(mut sets: Vec<Entry>) -> Vec<Entry> {
    let best = rivals(&mut sets);
    let mut kept: Vec<Entry> = sets.into_iter().enumerate().filter(|(at, _)| best[*at] == *at).map(|(_, entry)| entry).collect();
    kept.dedup_by(|a, b| a.cost == b.cost && a.loss == b.loss);
    kept
}

/// At most `most` sets: the undominated ones, spread over the budgets; then those that lose least more than their rivals.
fn promising(mut sets: Vec<Entry>, most: usize) -> Vec<Entry> {
    if sets.len() <= most {
        return sets;
    }
    let best = rivals(&mut sets);
    let behind: Vec<f64> = best.iter().enumerate().map(|(at, rival)| sets[at].loss - sets[*rival].loss).collect();
    let (first, rest): (Vec<usize>, Vec<usize>) = (0..sets.len()).partition(|at| best[*at] == *at);
    if first.len() >= most {
        return spread(first.into_iter().map(|at| sets[at].clone()).collect(), most);
    }
    // What a set is behind is held against its rival's loss, or large budgets alone would be left out.
    let scale = |at: usize| behind[at] / sets[best[at]].loss.abs().max(f64::MIN_POSITIVE);
    let mut rest: Vec<(f64, usize)> = rest.into_iter().map(|at| (scale(at), at)).collect();
    rest.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let room = most - first.len();
    let mut kept: Vec<usize> = first.into_iter().chain(rest.into_iter().take(room).map(|(_, at)| at)).collect();
    kept.sort_unstable();
    kept.into_iter().map(|at| sets[at].clone()).collect()
}

/// At most `most` of some sets that ascend in what they remove: the last one, and those nearest to even steps below it.
pub(super) fn spread(mut sets: Vec<Entry>, most: usize) -> Vec<Entry> {
    if sets.len() <= most {
        return sets;
    }
    let (Some(first), Some(last)) = (sets.first().map(|entry| entry.cost), sets.last().map(|entry| entry.cost)) else { return sets };
    let step = |at: usize| first + (u128::from(last - first) * (at as u128 + 1) / most as u128) as u64;
    let mut keep = vec![false; sets.len()];
    let mut from = 0;
    for at in 0..most {
        // The first that removes as much, or the next one that is still free; so many must be left for the later steps.
        let wanted = sets.partition_point(|entry| entry.cost < step(at)).max(from);
        let chosen = wanted.min(sets.len() - (most - at));
        keep[chosen] = true;
        from = chosen + 1;
    }
    let mut kept = keep.into_iter();
    sets.retain(|_| kept.next().unwrap_or(false));
    sets
}
