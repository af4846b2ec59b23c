//! The dominance lists of a block whose units need each other or share several bonuses: one list for each state of the
//! frontier, the decided units that undecided ones still depend on (as in pathwidth-bounded dynamic programmes, Bodlaender
//! 1998, doi 10.1016/S0304-3975(97)00228-4). Exact; the number of lists grows with the width of the frontier, not with the
//! size of the block.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::search::front::{State, Steps, check_size};
use crate::search::instance::Instance;

/// What is known of the frontier: positions of removed units that matter still, and (behind all of these) the bonuses of
/// which every member decided so far is gone.
type Frontier = Vec<usize>;

/// Replaces the states by those after all units of the block are decided.
pub(super) fn run(instance: &Instance, units: &[usize], resource: usize, states: &mut Vec<State>, steps: &mut Steps) -> Result<(), Error> {
    let position = |unit: usize| units.iter().position(|other| *other == unit).unwrap_or(usize::MAX);
    // For each position: the positions it needs, that need it, and its bonuses.
    let at = |links: &[usize]| links.iter().map(|unit| position(*unit)).collect::<Vec<_>>();
    let needs: Vec<Vec<usize>> = units.iter().map(|unit| at(&instance.units[*unit].needs)).collect();
    let needed_by: Vec<Vec<usize>> = units.iter().map(|unit| at(&instance.units[*unit].needed_by)).collect();
    let last_use = |unit: usize| needs[unit].iter().chain(&needed_by[unit]).copied().max().unwrap_or(0);
    let span = |bonus: usize| {
        let members = at(&instance.bonuses[bonus].members);
        (members.iter().copied().min().unwrap_or(0), members.into_iter().max().unwrap_or(0))
    };

    let mut lists: BTreeMap<Frontier, Vec<State>> = BTreeMap::from([(Vec::new(), std::mem::take(states))]);
    for (here, number) in units.iter().enumerate() {
        let unit = &instance.units[*number];
        let mut next: BTreeMap<Frontier, Vec<State>> = BTreeMap::new();
        for (frontier, list) in &lists {
            let gone = |key: usize| frontier.binary_search(&key).is_ok();
            let may_stay = needed_by[here].iter().all(|other| *other > here || !gone(*other));
            let may_go = needs[here].iter().all(|other| *other > here || gone(*other));
            for goes in [false, true] {
                if !(if goes { may_go } else { may_stay }) {
                    continue;
                }
                let mut key: Frontier = frontier.iter().copied().filter(|unit| *unit >= units.len() || last_use(*unit) > here).collect();
                if goes && last_use(here) > here {
                    key.push(here);
                }
                let (mut weight, mut score) = if goes { (unit.costs[resource], unit.score) } else { (0, 0) };
                for bonus in &unit.bonuses {
                    let (first, last) = span(*bonus);
                    let name = units.len() + bonus;
                    let alive = goes && (first == here || gone(name));
                    key.retain(|key| *key != name);
                    if alive && last == here {
                        weight += instance.bonuses[*bonus].costs[resource];
                        score += instance.bonuses[*bonus].score;
                    } else if alive {
                        key.push(name);
                    }
                }
                key.sort_unstable();
                let moved = list.iter().map(|state| State {
                    score: state.score + score,
                    weight: state.weight + weight,
                    node: if goes { steps.push(state.node, *number as u32) } else { state.node },
                });
                next.entry(key).or_default().extend(moved);
            }
        }
        for list in next.values_mut() {
            undominated(list, steps);
            check_size(list.len())?;
        }
        check_size(next.values().map(Vec::len).sum())?;
        lists = next;
    }
    // With nothing undecided the frontier is empty, so one list is left.
    *states = lists.into_values().next().unwrap_or_default();
    Ok(())
}

/// Sorts by weight and drops what another state beats.
fn undominated(list: &mut Vec<State>, steps: &Steps) {
    list.sort_by(|a, b| {
        let by_value = b.weight.cmp(&a.weight).then(a.score.cmp(&b.score));
        by_value.then_with(|| steps.prefers(b.node, a.node).cmp(&steps.prefers(a.node, b.node)))
    });
    let mut best = i128::MAX;
    list.retain(|state| {
        let better = state.score < best;
        best = best.min(state.score);
        better
    });
}
