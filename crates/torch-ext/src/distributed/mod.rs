//! Several processes that train one network: how they find each other, what they do together, and how gradients are summed.

mod launch;
mod group;
mod buckets;

pub use buckets::GradientBuckets;
pub use group::ProcessGroup;
pub use launch::Launch;
