//! Tests of the data crate, in the order of the data flow: sources, samples for training, calibration sets.

mod listing;
mod sources;
mod caches;
mod samples;
mod calibration;
mod support;
