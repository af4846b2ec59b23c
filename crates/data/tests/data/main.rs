//! Tests of the data crate, in the order of the data flow: samples for training, calibration sets.

mod samples;
mod calibration;
mod support;
