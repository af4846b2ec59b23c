//! Plans to compare the exact one with: greedy and random, at the same budget and under the same constraints. Magnitude
//! and Taylor need no function here: they are other [`Scores`], chosen from by [`crate::solve`]; hand-crafted plans
//! are lists of ids for [`Plan::from_removed`].

use crate::budget::{Budget, Choice, Constraints};
use crate::error::Error;
use crate::plan::Plan;
use crate::random::SplitMix64;
use crate::score::Scores;
use crate::search::check_feasible;
use crate::table::{LayerTable, Tally};

/// Removes layers in ascending order of score per cost until the budget is met, then puts back what turned out
/// superfluous, highest score first. Layers with a negative score go first and stay gone. Ties go by id.
///
/// # Errors
/// As [`crate::solve`], except for the limits of exact sums.
pub fn greedy(scores: &Scores, budget: &Budget, constraints: &Constraints) -> Result<Plan, Error> {
    let removed = greedy_layers(scores, budget, constraints)?;
    finish("greedy", scores, budget, constraints, &removed)
}

/// Removes layers in a random order until the budget is met, then puts back what turned out superfluous, in the same
/// order. Scores are not looked at, only recorded as the plan's prediction.
///
/// # Errors
/// As [`crate::solve`], except for the limits of exact sums.
pub fn random(scores: &Scores, budget: &Budget, constraints: &Constraints, seed: u64) -> Result<Plan, Error> {
    let table = scores.table();
    let choices = constraints.resolve(table)?;
    let needed = budget.required(table)?;
    let mut rng = SplitMix64::new(seed, 0);
    let removed = random_layers(table, &choices, budget, needed, &mut rng)?;
    let mut plan = finish("random", scores, budget, constraints, &removed)?;
    plan.seed = Some(seed);
    Ok(plan)
}

fn finish(method: &str, scores: &Scores, budget: &Budget, constraints: &Constraints, removed: &[usize]) -> Result<Plan, Error> {
    let table = scores.table();
    let ids = removed.iter().map(|layer| table.layers()[*layer].id.clone());
    let mut plan = Plan::from_removed(table, method, ids)?;
    plan.set_budget(budget, table)?;
    plan.set_scores(scores)?;
    plan.constraints = constraints.clone();
    Ok(plan)
}

/// Positions of the layers of the greedy plan.
pub(crate) fn greedy_layers(scores: &Scores, budget: &Budget, constraints: &Constraints) -> Result<Vec<usize>, Error> {
    let table = scores.table();
    let choices = constraints.resolve(table)?;
    let values = scores.values()?;
    let needed = budget.required(table)?;
    let mut tally = start(table, &choices, budget, needed)?;
    let rate = |layer: usize| values[layer] / table.layers()[layer].cost(budget.cost()) as f64;
    let mut order: Vec<usize> = (0..table.len()).filter(|layer| choices[*layer] == Choice::Free).collect();
    // 0/0 sorts last in this order, as it should: such a layer brings nothing.
    order.sort_by(|a, b| {
        let by_rate = rate(*a).total_cmp(&rate(*b));
        by_rate.then_with(|| table.layers()[*a].id.cmp(&table.layers()[*b].id))
    });
    let mut taken = Vec::new();
    for layer in order {
        if tally.removed() >= needed && values[layer] >= 0.0 {
            break;
        }
        tally.remove(layer);
        if values[layer] >= 0.0 {
            taken.push(layer);
        }
    }
    taken.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(b.cmp(a)));
    put_back(&mut tally, &taken, needed);
    Ok((0..table.len()).filter(|layer| tally.is_removed(*layer)).collect())
}

/// Positions of a random minimal set that meets the budget.
pub(crate) fn random_layers(
    table: &LayerTable,
    choices: &[Choice],
    budget: &Budget,
    needed: u64,
    rng: &mut SplitMix64,
) -> Result<Vec<usize>, Error> {
    let mut tally = start(table, choices, budget, needed)?;
    let mut order: Vec<usize> = (0..table.len()).filter(|layer| choices[*layer] == Choice::Free).collect();
    rng.shuffle(&mut order);
    let enough = order.iter().take_while(|layer| {
        let lacking = tally.removed() < needed;
        if lacking {
            tally.remove(**layer);
        }
        lacking
    });
    let enough = enough.count();
    put_back(&mut tally, &order[..enough], needed);
    Ok((0..table.len()).filter(|layer| tally.is_removed(*layer)).collect())
}

/// The forced layers removed, if the budget can be met at all.
fn start<'a>(table: &'a LayerTable, choices: &[Choice], budget: &Budget, needed: u64) -> Result<Tally<'a>, Error> {
    let mut most = Tally::new(table, budget.cost());
    let mut tally = Tally::new(table, budget.cost());
    for (layer, choice) in choices.iter().enumerate() {
        if *choice != Choice::Keep {
            most.remove(layer);
        }
        if *choice == Choice::Remove {
            tally.remove(layer);
        }
    }
    check_feasible(budget.cost(), needed, most.removed(), table.total(budget.cost()))?;
    Ok(tally)
}

/// Puts back, in this order, every layer that the budget does not need.
fn put_back(tally: &mut Tally<'_>, layers: &[usize], needed: u64) {
    for layer in layers {
        tally.restore(*layer);
        if tally.removed() < needed {
            tally.remove(*layer);
        }
    }
}
