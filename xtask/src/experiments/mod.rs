//! The experiments, each one list of stages in the order of the data flow: weights -> scores -> plan -> pruned model -> distillation ->
//! evaluation -> report.
//!
//! `reproduce_tiny` is the main job and the first to read; `reproduce` is the same on published models, `study` many of them side by side,
//! `train_tiny` makes the embedded model that they start from.

pub mod reproduce_tiny;

pub mod reproduce;
pub mod study;
pub mod train_tiny;
