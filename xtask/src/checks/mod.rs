//! Checks: everything that must hold before a change lands, and what a machine with more than that can check besides.
//!
//! Stands beside the data flow. `tidy` holds the house rules that no compiler knows, `check` runs the lints,
//! `test` the tests, `peers` compares with real Python programs, `python` checks the package for Python, `report` opens the report in a browser.

pub mod check;
pub mod peers;
pub mod python;
pub mod report;
pub mod test;
pub mod tidy;
