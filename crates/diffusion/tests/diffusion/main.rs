//! Tests of what surrounds the U-Net, in the order of the data flow: a model comes from a hub, words and images become tensors and back,
//! noise is taken away step by step, and all together, from a folder or from one file.

mod support;

mod hub;
mod models;
mod tokens;
mod folders;
mod images;
mod samplers;
mod pipeline;
mod checkpoint;
