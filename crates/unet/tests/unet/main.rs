//! Tests of the U-Net crate, in the order of the data flow: configuration, layout, network, surgery and files.

mod oracle;
mod support;
