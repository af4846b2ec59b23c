//! Plans to compare the exact one with: by score per cost, by score alone, and at random, at the same budget and under the
//! same constraints. Hand-crafted plans are lists of ids for [`Plan::from_removed`].

use crate::budget::{Budget, Constraints};
use crate::error::Error;
use crate::plan::Plan;
use crate::random::SplitMix64;
use crate::score::Scores;
use crate::search::{Instance, ResourceCosts, Selection, check_feasible};
use crate::table::LayerTable;

/// Removes layers in ascending order of score per cost until the budget is met, then puts back what turned out
/// superfluous, highest score first. Layers with a negative score go first and stay gone. Ties go by id. A layer is
/// weighed together with those that must go with it.
///
/// # Errors
/// As [`crate::solve`].
pub fn greedy(scores: &Scores, budget: &Budget, constraints: &Constraints) -> Result<Plan, Error> {
    let (instance, needed) = open(scores, budget, constraints)?;
    let selection = greedy_units(&instance, 0, needed, scores.table());
    finish("greedy", scores, budget, constraints, &selection)
}

/// Removes layers in ascending order of score, whatever they cost, until the budget is met, then puts back what turned out
/// superfluous, highest score first. Over scores of the criterion `magnitude` this is magnitude pruning.
///
/// # Errors
/// As [`crate::solve`].
pub fn lowest_first(scores: &Scores, budget: &Budget, constraints: &Constraints) -> Result<Plan, Error> {
    let (instance, needed) = open(scores, budget, constraints)?;
    let selection = in_order_of(&instance, 0, needed, scores.table(), |score, _| score);
    finish("lowest-first", scores, budget, constraints, &selection)
}

/// Removes layers in a random order until the budget is met, then puts back what turned out superfluous, in the same
/// order. Scores are not looked at, only recorded as the plan's prediction.
///
/// # Errors
/// As [`crate::solve`].
pub fn random(scores: &Scores, budget: &Budget, constraints: &Constraints, seed: u64) -> Result<Plan, Error> {
    let (instance, needed) = open(scores, budget, constraints)?;
    let selection = random_units(&instance, needed, &mut SplitMix64::new(seed, 0));
    let mut plan = finish("random", scores, budget, constraints, &selection)?;
    plan.seed = Some(seed);
    Ok(plan)
}

/// The problem over the budget's cost alone, and what must go.
fn open(scores: &Scores, budget: &Budget, constraints: &Constraints) -> Result<(Instance, u64), Error> {
    let table = scores.table();
    let exact = crate::search::exact_scores(scores)?;
    let needed = budget.required(table)?;
    Ok((open_table(table, &exact, budget, needed, constraints)?, needed))
}

fn open_table(table: &LayerTable, scores: &[i128], budget: &Budget, needed: u64, constraints: &Constraints) -> Result<Instance, Error> {
    let costs = ResourceCosts {
        layers: table.layers().iter().map(|layer| layer.cost(budget.cost())).collect(),
        shared_costs: table.shared_costs().iter().map(|shared| shared.cost(budget.cost())).collect(),
    };
    let instance = Instance::new(table, scores, &[costs], constraints, &[])?;
    check_feasible(budget.cost(), needed, instance.available[0], table.total(budget.cost()))?;
    Ok(instance)
}

fn finish(method: &str, scores: &Scores, budget: &Budget, constraints: &Constraints, selection: &Selection<'_>) -> Result<Plan, Error> {
    let table = scores.table();
    let ids = selection.layers().into_iter().map(|layer| table.layers()[layer].id.clone());
    let mut plan = Plan::from_removed(table, method, ids)?;
    plan.set_budget(budget, table)?;
    plan.set_scores(scores)?;
    plan.constraints = constraints.clone();
    Ok(plan)
}

/// The greedy selection over one resource.
pub(crate) fn greedy_units<'a>(instance: &'a Instance, resource: usize, needed: u64, table: &LayerTable) -> Selection<'a> {
    in_order_of(instance, resource, needed, table, |score, cost| score / cost)
}

/// Removes units in ascending order of a key of score and cost, each with all that it needs.
fn in_order_of<'a>(
    instance: &'a Instance,
    resource: usize,
    needed: u64,
    table: &LayerTable,
    key: impl Fn(f64, f64) -> f64,
) -> Selection<'a> {
    let mut known = vec![None; instance.units.len()];
    let mut order: Vec<(f64, i128, usize)> = (0..instance.units.len())
        .map(|unit| {
            let (score, cost) = instance.closure_sums(unit, resource, &mut known);
            (key(score as f64, cost as f64), score, unit)
        })
        .collect();
    // 0/0 sorts last in this order, as it should: such a unit brings nothing.
    order.sort_by(|a, b| {
        let by_id = || instance.first_rank(a.2, table).cmp(&instance.first_rank(b.2, table));
        a.0.total_cmp(&b.0).then_with(by_id)
    });
    let mut selection = Selection::new(instance);
    let mut taken = Vec::new();
    for (_, score, unit) in order {
        if selection.cost(resource) >= needed && score >= 0 {
            break;
        }
        let gone = selection.remove_with_needs(unit);
        taken.extend(gone.into_iter().filter(|unit| instance.units[*unit].score >= 0));
    }
    taken.sort_by(|a, b| instance.units[*b].score.cmp(&instance.units[*a].score).then(b.cmp(a)));
    put_back(&mut selection, &taken, resource, needed);
    selection
}

/// A random minimal selection that meets the budget over the first resource.
fn random_units<'a>(instance: &'a Instance, needed: u64, rng: &mut SplitMix64) -> Selection<'a> {
    let mut order: Vec<usize> = (0..instance.units.len()).collect();
    rng.shuffle(&mut order);
    let mut selection = Selection::new(instance);
    let mut taken = Vec::new();
    for unit in order {
        if selection.cost(0) >= needed {
            break;
        }
        taken.extend(selection.remove_with_needs(unit));
    }
    put_back(&mut selection, &taken, 0, needed);
    selection
}

/// Positions of the layers of a random minimal set that meets the budget, without constraints.
pub(crate) fn random_layers(table: &LayerTable, budget: &Budget, rng: &mut SplitMix64) -> Result<Vec<usize>, Error> {
    let needed = budget.required(table)?;
    let instance = open_table(table, &vec![0; table.len()], budget, needed, &Constraints::none())?;
    Ok(random_units(&instance, needed, rng).layers())
}

/// Puts back, in this order, every unit that the budget does not need, until none is left that could return.
fn put_back(selection: &mut Selection<'_>, units: &[usize], resource: usize, needed: u64) {
    let mut changed = true;
    while changed {
        changed = false;
        for unit in units.iter().filter(|unit| selection.gone()[**unit]).copied().collect::<Vec<_>>() {
            if !selection.is_free_to_return(unit) {
                continue;
            }
            selection.restore(unit);
            if selection.cost(resource) < needed {
                selection.remove(unit);
            } else {
                changed = true;
            }
        }
    }
}
