//! How much must go, and what may not be chosen freely: the constraint side of the search.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::layer::{Cost, LayerId};
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

/// Layers that are not to be chosen freely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraints {
    /// Layers that stay.
    pub keep: BTreeSet<LayerId>,
    /// Layers that go whatever they cost.
    pub remove: BTreeSet<LayerId>,
}

/// What the search may do with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Free,
    Keep,
    Remove,
}

impl Constraints {
    /// Every layer is free.
    pub fn none() -> Self {
        Self { keep: BTreeSet::new(), remove: BTreeSet::new() }
    }

    /// The choice for each layer, by position.
    ///
    /// # Errors
    /// [`Error::UnknownLayer`], [`Error::Contradiction`].
    pub(crate) fn resolve(&self, table: &LayerTable) -> Result<Vec<Choice>, Error> {
        let mut choices = vec![Choice::Free; table.len()];
        for id in &self.keep {
            choices[table.require(id)?] = Choice::Keep;
        }
        for id in &self.remove {
            let choice = &mut choices[table.require(id)?];
            if *choice == Choice::Keep {
                return Err(Error::Contradiction { id: id.clone() });
            }
            *choice = Choice::Remove;
        }
        Ok(choices)
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
