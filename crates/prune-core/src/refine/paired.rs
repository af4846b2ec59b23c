//! The exact search again and again, over scores and what pairs of the layers that go together were measured to lose beside
//! them. Unmeasured pairs look harmless, so the search runs to them; what it proposes counts only once it is measured.

use std::collections::BTreeMap;

use crate::ablate::Ablate;
use crate::error::{AblateError, Error};
use crate::layer::{LayerId, RemovalSet};
use crate::ledger::Record;
use crate::pairs::strongest_pairs;
use crate::plan::Plan;
use crate::refine::descent::{Candidate, Search};
use crate::search::Interaction;

/// Nodes of each search; it need not be exact.
const NODES: u64 = 100_000;

impl<M: Ablate, R: Record, E> Search<'_, '_, M, R, E>
where
    E: From<Error> + From<AblateError<M::Error>>,
{
    /// From plan to plan until the pairs of the last one are known.
    pub(super) fn paired(&mut self, start: &Candidate, pairs: usize) -> Result<(), E> {
        let table = self.problem.table();
        let (mut set, mut best) = (start.set.clone(), start.loss);
        let mut measured: Vec<Interaction> = Vec::new();
        loop {
            let known: Vec<Interaction> = self.problem.interactions().iter().chain(&measured).cloned().collect();
            let plan = Plan::from_removed(table, "interactions", set.iter().cloned())?;
            let open = strongest_pairs(self.problem.scores, &plan, &known, pairs)?;
            let open: Vec<RemovalSet> = open.into_iter().map(|set| set.removed).collect();
            let Some(found) = self.interactions(&open)?.filter(|found| !found.is_empty()) else { return Ok(()) };
            measured.extend(found);
            set = match self.problem.clone().with_interactions(&measured)?.solve(self.limits, NODES) {
                Ok(solution) => solution.plan.removal_set(),
                Err(Error::NoneFound { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if !self.ledger.measure(std::slice::from_ref(&set), self.ledger.len())? {
                return Ok(());
            }
            let loss = self.ledger.loss(&set, self.ledger.len());
            if let Some(gone) = self.field.allowed(&set).filter(|_| loss < best) {
                best = loss;
                self.note(&Candidate { loss, set: set.clone(), gone });
            }
        }
    }

    /// What pairs lose together beyond what their layers lose alone, all on the samples of the search.
    fn interactions(&mut self, pairs: &[RemovalSet]) -> Result<Option<Vec<Interaction>>, E> {
        let all = self.ledger.len();
        let alone: BTreeMap<&LayerId, RemovalSet> = pairs.iter().flatten().map(|id| (id, RemovalSet::single(id.clone()))).collect();
        let sets: Vec<RemovalSet> = alone.values().chain(pairs).cloned().collect();
        if !self.ledger.measure(&sets, all)? {
            return Ok(None);
        }
        let interaction = |pair: &RemovalSet| {
            let (first, second) = (pair.iter().next()?, pair.iter().nth(1)?);
            let single = |id: &LayerId| self.ledger.loss(&alone[id], all);
            let score = self.ledger.loss(pair, all) - single(first) - single(second);
            Some(Interaction { first: first.clone(), second: second.clone(), score })
        };
        Ok(Some(pairs.iter().filter_map(interaction).collect()))
    }
}
