//! Several processes that train together, started by torchrun or by hand with its environment variables.

use std::rc::Rc;

use tch::Device;
use torch_ext::{Launch, ProcessGroup};

use crate::common::BadInput;
use crate::device::DeviceChoice;

/// This process's place among the others; alone without the variables.
pub struct Ranks {
    launch: Option<Launch>,
    group: Option<Rc<ProcessGroup>>,
}

impl Ranks {
    /// Meets the others.
    pub fn join() -> anyhow::Result<Self> {
        let launch = Launch::from_vars(|name| std::env::var(name).ok()).map_err(|e| BadInput(e.to_string()))?;
        let group = launch.as_ref().filter(|l| l.world > 1).map(ProcessGroup::join).transpose()?.map(Rc::new);
        Ok(Self { launch, group })
    }

    /// The group of more than one.
    pub fn group(&self) -> Option<Rc<ProcessGroup>> {
        self.group.clone()
    }

    /// Whether this one writes files and shows progress.
    pub fn is_first(&self) -> bool {
        self.group.as_ref().is_none_or(|g| g.rank() == 0)
    }

    /// The device of this process; on a GPU the others are reached over NCCL from then on.
    pub fn device(&self, choice: DeviceChoice) -> anyhow::Result<Device> {
        let device = match (choice, &self.launch) {
            (DeviceChoice::Cuda(_), Some(launch)) if self.group.is_some() => DeviceChoice::Cuda(launch.local_rank).open()?,
            (DeviceChoice::Auto, Some(launch)) if self.group.is_some() && choice.open()? != Device::Cpu => {
                DeviceChoice::Cuda(launch.local_rank).open()?
            }
            _ => choice.open()?,
        };
        if let (Some(group), Device::Cuda(number)) = (&self.group, device) {
            group.open_nccl(number)?;
        }
        Ok(device)
    }
}
