//! Words for devices, as the command line and files have them.

use tch::Device;

/// The name of a device on the command line and in files.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(n) => format!("cuda:{n}"),
        _ => "cpu".into(),
    }
}
