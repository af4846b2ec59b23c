//! Tests of retraining: a run from the first step to the last, what comes before and beside it, several ranks, runs that are
//! killed, and all of it as one call.

mod support;

mod trainer;
mod recovery;
mod ranks;
mod durable;
mod session;
