//! Tests across crates, in the order of the data flow. What one crate does alone is tested there; the command line is tested
//! in `crates/cli/tests`.

// What the committed settings say.
mod settings;
// Images and captions -> words -> text encoders.
mod captions;
// The whole model in assets/: is it as good as the pipelines assume?
mod embedded_model;
// On the embedded model: weights -> scores -> plan -> pruned U-Net.
mod flow;
// On a fixture of SDXL's shape: the same, for many plans.
mod plans;
// Pruned U-Net -> student: searched, hand-crafted and random ones by the same code.
mod students;
