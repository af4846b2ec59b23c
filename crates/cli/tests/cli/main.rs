//! Tests of the `laptop-diff` binary, in the order of the data flow: what it says, the whole flow on a small random model, what
//! it does with bad input, and how it goes on after a stop.

mod support;

mod help;
mod config_alone;
mod containers;
mod device;
mod calibrate;
mod cache;
mod tables;
mod evaluation;
mod flow;
mod generate;
mod formats;
mod one_file;
mod limits;
mod ranks;
mod refine;
mod compare;
mod data;
mod metrics;
mod bad_files;
mod bad_settings;
mod interrupt;
mod rehearsal;
