//! Tests of the U-Net crate, in the order of the data flow: configuration, layout, network, scores, surgery and files.

mod configuration;
mod export;
mod files;
mod baselines;
mod inputs;
mod layout;
mod weights;
mod oracle;
mod pytorch_files;
mod scores;
mod stored;
mod identify;
mod adapters;
mod support;
