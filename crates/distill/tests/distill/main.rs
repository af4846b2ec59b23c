//! Tests of retraining: a run from the first step to the last, what comes before and beside it, several ranks, and runs that are killed.

mod support;

mod trainer;
mod recovery;
mod ranks;
mod durable;
