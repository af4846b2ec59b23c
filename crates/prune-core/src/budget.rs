//! How much must go, and what may not be chosen freely: the constraint side of the search.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::layer::{Cost, LayerId, RemovalSet};
use crate::table::LayerTable;

/// The least cost that a plan must remove: `sum_i params(r_i) >= P` of arXiv 2404.11098.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    cost: Cost,
    amount: Amount,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Amount {
    Ratio(f64),
    Absolute(u64),
}

impl Budget {
    /// At least `ratio` times the parameters of the whole model, `ratio` in 0..=1.
    pub fn params_ratio(ratio: f64) -> Self {
        Self::ratio_of(Cost::Params, ratio)
    }

    /// At least this many parameters.
    pub fn params(amount: u64) -> Self {
        Self::amount_of(Cost::Params, amount)
    }

    /// At least `ratio` times the multiply-accumulates of the whole model, `ratio` in 0..=1.
    pub fn macs_ratio(ratio: f64) -> Self {
        Self::ratio_of(Cost::Macs, ratio)
    }

    /// At least this many multiply-accumulates.
    pub fn macs(amount: u64) -> Self {
        Self::amount_of(Cost::Macs, amount)
    }

    /// At least `ratio` times the whole model's cost of either kind.
    pub fn ratio_of(cost: Cost, ratio: f64) -> Self {
        Self { cost, amount: Amount::Ratio(ratio) }
    }

    /// At least this much of either cost.
    pub fn amount_of(cost: Cost, amount: u64) -> Self {
        Self { cost, amount: Amount::Absolute(amount) }
    }

    /// What is counted.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// The ratio asked for, where the budget was given as one.
    pub fn ratio(&self) -> Option<f64> {
        match self.amount {
            Amount::Ratio(ratio) => Some(ratio),
            Amount::Absolute(_) => None,
        }
    }

    /// The integer P for one model. A ratio means `ceil(ratio * total)`, computed without rounding from the decimal
    /// number that was written: 0.07 of 100 is 7, although the nearest `f64` lies above 0.07.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a ratio outside 0..=1 or of a cost that the table does not count. Whether the
    /// amount can be reached is the search's question.
    pub fn required(&self, table: &LayerTable) -> Result<u64, Error> {
        let ratio = match self.amount {
            Amount::Absolute(amount) => return Ok(amount),
            Amount::Ratio(ratio) => ratio,
        };
        if !(0.0..=1.0).contains(&ratio) {
            return Err(Error::OutOfRange { key: "ratio", expected: "a number from 0 to 1".to_owned(), got: ratio.to_string() });
        }
        let total = table.total(self.cost);
        if total == 0 {
            return Err(Error::OutOfRange {
                key: "ratio",
                expected: "a cost that the model's table counts".to_owned(),
                got: format!("a ratio of {}, which are 0 in this table", self.cost),
            });
        }
        Ok(ceil_of_decimal(ratio, total))
    }
}

/// `ceil(ratio * total)` for the shortest decimal that reads back as `ratio`, `0 <= ratio <= 1`.
fn ceil_of_decimal(ratio: f64, total: u64) -> u64 {
    let decimal = ratio.abs().to_string();
    let (whole, fraction) = decimal.split_once('.').unwrap_or((&decimal, ""));
    if whole != "0" {
        return total;
    }
    // At most 17 digits are significant, so the product stays below 10^17 * 2^64 < 2^128.
    let digits: u128 = fraction.trim_start_matches('0').parse().unwrap_or(0);
    let product = digits * u128::from(total);
    match 10u128.checked_pow(fraction.len() as u32) {
        // The quotient is at most `total`.
        Some(scale) => product.div_ceil(scale) as u64,
        // The ratio is below 10^-21 here, and the product below 10^37.
        None => u64::from(product > 0),
    }
}

/// Which layers are not to be chosen freely, and which hang together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraints {
    /// Layers that stay.
    pub keep: BTreeSet<LayerId>,
    /// Layers that go whatever they cost.
    pub remove: BTreeSet<LayerId>,
    /// Groups of layers that go together or stay together; groups that share a layer are one group.
    pub together: Vec<BTreeSet<LayerId>>,
    /// Layers that may go only where others go.
    pub requires: Vec<Precedence>,
}

/// `layer` may go only where `needs` goes as well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Precedence {
    /// The layer that may go only then.
    pub layer: LayerId,
    /// The layer that must go with it.
    pub needs: LayerId,
}

impl Constraints {
    /// Every layer is free.
    pub fn none() -> Self {
        Self::default()
    }

    /// These layers stay as well.
    pub fn keep(mut self, ids: impl IntoIterator<Item = impl Into<LayerId>>) -> Self {
        self.keep.extend(ids.into_iter().map(Into::into));
        self
    }

    /// These layers go as well, whatever they cost.
    pub fn remove(mut self, ids: impl IntoIterator<Item = impl Into<LayerId>>) -> Self {
        self.remove.extend(ids.into_iter().map(Into::into));
        self
    }

    /// These layers go together or stay together.
    pub fn together(mut self, ids: impl IntoIterator<Item = impl Into<LayerId>>) -> Self {
        self.together.push(ids.into_iter().map(Into::into).collect());
        self
    }

    /// `layer` may go only where `needs` goes as well.
    pub fn requires(mut self, layer: impl Into<LayerId>, needs: impl Into<LayerId>) -> Self {
        self.requires.push(Precedence { layer: layer.into(), needs: needs.into() });
        self
    }

    /// Checks that every id exists and that no layer is both pinned and forced out.
    pub(crate) fn check(&self, table: &LayerTable) -> Result<(), Error> {
        let grouped = self.together.iter().flatten();
        let linked = self.requires.iter().flat_map(|rule| [&rule.layer, &rule.needs]);
        self.keep.iter().chain(&self.remove).chain(grouped).chain(linked).try_for_each(|id| table.require(id).map(|_| ()))?;
        self.keep.intersection(&self.remove).next().map_or(Ok(()), |id| Err(Error::Contradiction { id: id.clone() }))
    }

    /// The first thing asked for that a removal set does not do, in words, and the layer it is about.
    pub(crate) fn first_broken(&self, set: &RemovalSet) -> Option<(&'static str, &LayerId)> {
        let gone = |id: &&LayerId| set.contains(id.as_str());
        let split = |group: &BTreeSet<LayerId>| group.iter().any(|id| gone(&id)) && !group.iter().all(|id| gone(&id));
        let alone = |rule: &&Precedence| gone(&&rule.layer) && !gone(&&rule.needs);
        let kept = self.keep.iter().find(gone).map(|id| ("without", id));
        kept.or_else(|| self.remove.iter().find(|id| !gone(id)).map(|id| ("with", id)))
            .or_else(|| {
                self.together.iter().find(|group| split(group)).and_then(BTreeSet::first).map(|id| ("with all or none of the group of", id))
            })
            .or_else(|| self.requires.iter().find(alone).map(|rule| ("with", &rule.needs)))
    }
}

/// How much of one resource may or must go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Name of the resource: `params`, `macs`, or one that was added to the [`crate::Problem`].
    pub resource: String,
    /// What must go at least.
    pub at_least: Option<u64>,
    /// What may go at most.
    pub at_most: Option<u64>,
}

impl Limit {
    /// At least this much must go.
    pub fn at_least(resource: impl Into<String>, amount: u64) -> Self {
        Self { resource: resource.into(), at_least: Some(amount), at_most: None }
    }

    /// At most this much may go.
    pub fn at_most(resource: impl Into<String>, amount: u64) -> Self {
        Self { resource: resource.into(), at_least: None, at_most: Some(amount) }
    }

    /// No less and no more than this may go.
    pub fn between(resource: impl Into<String>, at_least: u64, at_most: u64) -> Self {
        Self { resource: resource.into(), at_least: Some(at_least), at_most: Some(at_most) }
    }

    /// The budget as a limit.
    ///
    /// # Errors
    /// As [`Budget::required`].
    pub fn from_budget(budget: &Budget, table: &LayerTable) -> Result<Self, Error> {
        Ok(Self::at_least(budget.cost().name(), budget.required(table)?))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.at_least, self.at_most) {
            (Some(low), Some(high)) => write!(f, "{low} to {high} {}", self.resource),
            (Some(low), None) => write!(f, "at least {low} {}", self.resource),
            (None, Some(high)) => write!(f, "at most {high} {}", self.resource),
            (None, None) => write!(f, "any amount of {}", self.resource),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ceil_of_decimal;

    #[test]
    fn ratios_are_read_as_decimals() {
        assert_eq!(ceil_of_decimal(0.07, 100), 7);
        assert_eq!(ceil_of_decimal(0.1, 30), 3);
        assert_eq!(ceil_of_decimal(0.5, 859_520_964), 429_760_482);
        assert_eq!(ceil_of_decimal(0.33, 859_520_964), 283_641_919);
        assert_eq!(ceil_of_decimal(0.5, u64::MAX), 1 << 63);
        assert_eq!(ceil_of_decimal(0.123_456_789_012_345_66, u64::MAX), 2_277_375_791_072_697_792);
        assert_eq!(ceil_of_decimal(1.0, u64::MAX), u64::MAX);
        assert_eq!(ceil_of_decimal(0.0, 100), 0);
        assert_eq!(ceil_of_decimal(-0.0, 100), 0);
        assert_eq!(ceil_of_decimal(1e-300, u64::MAX), 1);
        assert_eq!(ceil_of_decimal(f64::MIN_POSITIVE / 4.0, 10), 1);
    }
}
