//! The student that training starts from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::Kind;
use unet::weights::{Tensors, Weights};
use unet::{RemovalSet, UNet};

use crate::error::{Error, Result};

/// Which student is trained.
#[derive(Debug, Clone)]
pub enum StudentSource {
    /// A pruned U-Net's folder.
    Pruned(PathBuf),
    /// The teacher without some layers.
    Without {
        /// The layers.
        removed: RemovalSet,
        /// What the choice is known by in checkpoints, such as the hash of the file that it stands in.
        identity: String,
        /// What the trained student's file says of the choice, as text: a plan.
        plan: String,
        /// The name of the choice, for the record; a pruned folder's is its own.
        name: String,
    },
}

impl StudentSource {
    /// The U-Net, in f32.
    pub(super) fn open(&self, model: &Path, teacher: &UNet) -> Result<UNet> {
        match self {
            Self::Pruned(dir) => {
                let student = UNet::open(dir, teacher.device(), Kind::Float)?;
                if student.config().to_json() != teacher.config().to_json() {
                    let (expected, got) =
                        ("a U-Net pruned from this teacher".into(), format!("{}, of another architecture", dir.display()));
                    return Err(Error::Config { key: "student".into(), expected, got });
                }
                Ok(student)
            }
            // In f32 the teacher's own weights will do: they are copied into the trainer.
            Self::Without { removed, .. } if teacher.kind() == Kind::Float => Ok(teacher.prune(removed)?),
            Self::Without { removed, .. } => Ok(UNet::open(model, teacher.device(), Kind::Float)?.prune(removed)?),
        }
    }

    /// What the file of the trained student says of the choice of its layers.
    pub(super) fn metadata(&self, student: &UNet) -> BTreeMap<String, String> {
        let plan = match self {
            Self::Pruned(_) => student.metadata().get(PLAN).cloned(),
            Self::Without { plan, .. } => Some(plan.clone()),
        };
        plan.map(|plan| (PLAN.to_string(), plan)).into_iter().collect()
    }

    /// The choice's name.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Pruned(dir) => unet::plan_name(dir),
            Self::Without { name, .. } => name.clone(),
        }
    }

    /// What training starts from, for checkpoints.
    pub(super) fn identity(&self) -> Result<String> {
        match self {
            Self::Pruned(dir) => Ok(unet::fingerprint(dir)?),
            Self::Without { identity, .. } => Ok(identity.clone()),
        }
    }
}

/// Key of the plan in a student's file.
const PLAN: &str = "laptop_diff.plan";

/// The same network on other weights.
pub(super) fn with_weights(unet: &UNet, weights: Tensors) -> Result<UNet> {
    Ok(UNet::from_weights(unet.config(), Weights::from_tensors(weights), unet.removed())?)
}

pub(super) fn shallow(tensors: &Tensors) -> Tensors {
    tensors.iter().map(|(key, t)| (key.clone(), t.shallow_clone())).collect()
}
