//! What the crate promises, in the order of the data flow.

mod support;

mod files;
mod scoring;

mod adaptive;
mod segmented;
mod shards;

mod knapsack;
mod limits;

mod measured_front;
mod refine;
mod steps;
