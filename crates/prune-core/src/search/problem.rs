//! What is left to choose once the constraints are applied: free layers in groups, the shells' extra cost, and what is
//! gone already.

use crate::budget::{Choice, Constraints};
use crate::error::Error;
use crate::layer::Cost;
use crate::score::Scores;
use crate::search::exact::Exact;
use crate::table::Tally;

/// A free layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    /// Position in the table.
    pub(super) layer: u32,
    pub(super) weight: u64,
    pub(super) score: i128,
}

/// Free layers that share a shell, or one layer without.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) items: Vec<Item>,
    /// Extra weight of removing every item, 0 where there is none.
    pub(super) shell: u64,
}

impl Group {
    /// Weight of removing every item, with the shell.
    pub(super) fn whole_weight(&self) -> u64 {
        self.items.iter().map(|item| item.weight).sum::<u64>() + self.shell
    }

    pub(super) fn whole_score(&self) -> i128 {
        self.items.iter().map(|item| item.score).sum()
    }
}

/// A covering knapsack.
///
/// Groups and the items in them stand in descending order of ids (a group stands where its smallest id belongs). The
/// search looks at them in this order and prefers to remove on ties, so of equally good sets it finds the one that
/// holds the smallest id on which they differ, whatever the order of rows in the table.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) cost: Cost,
    pub(super) groups: Vec<Group>,
    /// Positions of the layers that must go, with their weight and score.
    pub(super) forced: Vec<usize>,
    pub(super) forced_weight: u64,
    pub(super) forced_score: i128,
    /// The most weight that can go.
    pub(super) available: u64,
    /// The scores as integers.
    pub(super) exact: Exact,
    pub(super) constraints: Constraints,
}

impl Problem {
    pub(super) fn new(scores: &Scores, cost: Cost, constraints: &Constraints) -> Result<Self, Error> {
        let table = scores.table();
        let choices = constraints.resolve(table)?;
        let values = scores.values()?;
        if !values.iter().map(|value| value.abs()).sum::<f64>().is_finite() {
            return Err(Error::Overflow { what: format!("the scores of `{}`", scores.criterion()) });
        }
        let exact = Exact::new(&values).map_err(|vanishes| Error::ScoreSpread {
            small_layer: table.layers()[vanishes.small].id.clone(),
            small: values[vanishes.small],
            large_layer: table.layers()[vanishes.large].id.clone(),
            large: values[vanishes.large],
        })?;
        let item = |layer: usize| Item { layer: layer as u32, weight: table.layers()[layer].cost(cost), score: exact.integers[layer] };

        let mut gone = Tally::new(table, cost);
        let forced: Vec<usize> = (0..table.len()).filter(|layer| choices[*layer] == Choice::Remove).collect();
        forced.iter().for_each(|layer| gone.remove(*layer));
        let mut most = Tally::new(table, cost);
        (0..table.len()).filter(|layer| choices[*layer] != Choice::Keep).for_each(|layer| most.remove(layer));

        let mut groups = Vec::new();
        for (shell, shell_parts) in table.shells().iter().enumerate() {
            let members = table.shell_members(shell);
            let free = |layer: &usize| choices[*layer] == Choice::Free;
            let mut items: Vec<Item> = members.iter().copied().filter(free).map(item).collect();
            let stays = members.iter().any(|layer| choices[*layer] == Choice::Keep);
            let mut extra = if stays { 0 } else { shell_parts.cost(cost) };
            if let [only] = &mut items[..] {
                only.weight += std::mem::take(&mut extra);
            }
            groups.push(Group { items, shell: extra });
        }
        let alone = |layer: &usize| choices[*layer] == Choice::Free && table.shell_position(*layer).is_none();
        groups.extend((0..table.len()).filter(alone).map(|layer| Group { items: vec![item(layer)], shell: 0 }));

        groups.retain(|group| !group.items.is_empty());
        let id = |layer: usize| &table.layers()[layer].id;
        for group in &mut groups {
            group.items.sort_by(|a, b| id(b.layer as usize).cmp(id(a.layer as usize)));
        }
        // The place of a group does not depend on the constraints, so members that are not free count as well.
        let place = |group: &Group| {
            let layer = group.items[0].layer as usize;
            let members = table.shell_position(layer).map_or(&[][..], |shell| table.shell_members(shell));
            members.iter().chain([&layer]).map(|layer| id(*layer)).min()
        };
        groups.sort_by_cached_key(|group| std::cmp::Reverse(place(group)));
        Ok(Self {
            cost,
            groups,
            forced_weight: gone.removed(),
            forced_score: forced.iter().map(|layer| exact.integers[*layer]).sum(),
            available: most.removed(),
            forced,
            exact,
            constraints: constraints.clone(),
        })
    }

    /// The error for a budget that nothing meets.
    pub(super) fn check_feasible(&self, needed: u64, total: u64) -> Result<(), Error> {
        check_feasible(self.cost, needed, self.available, total)
    }
}

/// [`Error::Infeasible`] where more is needed than can go.
pub(crate) fn check_feasible(cost: Cost, needed: u64, available: u64, total: u64) -> Result<(), Error> {
    if needed <= available {
        return Ok(());
    }
    Err(Error::Infeasible { cost, needed, available, largest_ratio: if total == 0 { 0.0 } else { available as f64 / total as f64 } })
}
