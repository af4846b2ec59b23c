//! `--device` and `--compute`: one binary for CPU and GPU, and the number type that networks compute in. The program links the CPU
//! library only; the CUDA library registers itself when it is opened.

use std::str::FromStr;

use tch::{Cuda, Device, Kind};
use torch_ext::GpuOptions;
use unet::Compute;

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// This GPU.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match s.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(n) => Ok(Self::Cuda(n)),
                None => Err(format!("expected auto, cpu, cuda or cuda:N, got `{s}`")),
            },
        }
    }
}

/// Opens CUDA where the arguments leave room for a GPU: the one place, before any tensor and any seed.
pub fn open_cuda(matches: &clap::ArgMatches, cli: &crate::commands::Cli) {
    let choice = matches.subcommand().and_then(|(_, args)| args.try_get_one::<DeviceChoice>("device").ok().flatten());
    if choice.is_some_and(|choice| *choice != DeviceChoice::Cpu) {
        // Whoever needs it is told by `DeviceChoice::open`.
        let _ = torch_ext::open_cuda(GpuOptions { tf32: cli.tf32, deterministic: cli.deterministic });
    }
}

impl DeviceChoice {
    /// The device, opened.
    pub fn open(self) -> anyhow::Result<Device> {
        if self == Self::Cpu {
            return Ok(Device::Cpu);
        }
        let library = torch_ext::cuda_opened();
        let count = if library.is_ok() && Cuda::is_available() { Cuda::device_count() as usize } else { 0 };
        match self {
            Self::Auto if count == 0 => Ok(Device::Cpu),
            Self::Auto => Ok(Device::Cuda(0)),
            Self::Cuda(n) if n < count => Ok(Device::Cuda(n)),
            Self::Cuda(n) => {
                let why = match library {
                    Err(e) => e.to_string(),
                    Ok(()) => format!("{count} CUDA devices are there"),
                };
                Err(crate::common::BadInput(format!("--device cuda:{n}: {why}; or use --device cpu")).into())
            }
            Self::Cpu => Ok(Device::Cpu),
        }
    }
}

/// The name of a number type on the command line and in files.
pub fn kind_name(kind: Kind) -> &'static str {
    Compute::of(kind).name()
}

/// Where and in what a command computes: flattened into its arguments.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct DeviceArgs {
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// The networks' number type [default: f32 on a CPU; on a GPU bf16, but f16 where layers are compared].
    #[arg(long, value_name = "f32|bf16|f16")]
    compute: Option<Compute>,
}

/// An opened device and the number type to compute in.
#[derive(Debug, Clone, Copy)]
pub struct DeviceDtype {
    /// Where.
    pub device: Device,
    /// In what.
    pub kind: Kind,
}

impl DeviceArgs {
    /// The place; on a GPU in bf16 unless told otherwise, since it has room for whatever a network of unknown origin computes. On CPUs in
    /// f32, since most of them multiply 16-bit matrices hundreds of times slower.
    pub fn open(&self) -> anyhow::Result<DeviceDtype> {
        self.open_with(Kind::BFloat16)
    }

    /// The place for differences between networks that are nearly the same: on a GPU in f16 unless told otherwise, since the rounding of
    /// bf16 adds 64 times as much to their mean square.
    pub fn open_to_compare(&self) -> anyhow::Result<DeviceDtype> {
        self.open_with(Kind::Half)
    }

    fn open_with(&self, on_gpu: Kind) -> anyhow::Result<DeviceDtype> {
        let device = self.device.open()?;
        let default = if device.is_cuda() { on_gpu } else { Kind::Float };
        Ok(DeviceDtype { device, kind: self.compute.map_or(default, Compute::kind) })
    }
}

/// Bytes of a GPU's memory that are taken, by all processes; none for a CPU, or where CUDA's own library does not tell.
pub fn memory_in_use(device: Device) -> Option<u64> {
    let Device::Cuda(number) = device else { return None };
    // Without this, libtorch has not chosen the device yet.
    Cuda::synchronize(i64::try_from(number).ok()?);
    #[cfg(unix)]
    {
        use libloading::os::unix::{Library, Symbol};
        // libtorch's CUDA library has brought it into the process.
        let library = ["libcudart.so.13", "libcudart.so.12", "libcudart.so"].iter().find_map(|name| {
            // SAFETY: a library that is loaded already; its initialisers have run.
            unsafe { Library::new(*name) }.ok()
        })?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: the signature of `cudaMemGetInfo(size_t *free, size_t *total)`; both places outlive the call.
        let status = unsafe {
            let info: Symbol<unsafe extern "C" fn(*mut usize, *mut usize) -> i32> = library.get(b"cudaMemGetInfo\0").ok()?;
            info(&mut free, &mut total)
        };
        (status == 0).then(|| total.saturating_sub(free) as u64)
    }
    #[cfg(not(unix))]
    None
}
