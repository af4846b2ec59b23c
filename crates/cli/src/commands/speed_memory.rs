//! The highest memory of one U-Net, measured in a process of its own: `speed` starts this program again for each.
//! Models -> **peak** -> speed.json.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use diffusion::Pipeline;
use eval::{PeakMemory, peak_rss, wait_for};
use unet::UNet;

use super::speed::{Args, inputs, picture_options};
use crate::device::{Place, kind_name, memory_in_use};
use crate::exit_code::OfProcess;

/// What the process is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Task {
    /// Load a U-Net and call it.
    Call,
    /// Load a whole model and draw a picture.
    Picture,
}

/// Calls or steps: the second one may need more than the first, further ones do not.
const TIMES: usize = 3;

/// Does `task` in this process with the U-Net `unet`, or the model's own, and gives the peaks; none where the system does not tell.
///
/// # Errors
/// Those of loading and running.
pub fn measure(args: &Args, unet: Option<&Path>, task: Task) -> anyhow::Result<Option<PeakMemory>> {
    let Place { device, kind } = args.place.open()?;
    let (before, taken) = (peak_rss(), memory_in_use(device));
    let model = args.model.open()?;
    match task {
        Task::Call => {
            let unet = UNet::open(unet.unwrap_or(model.unet()), device, kind)?;
            let (x, t, cond) = inputs(unet.config(), args.batch, model.latents(args.latent_size)?, model.tokens(), device);
            for _ in 0..TIMES {
                tch::no_grad(|| unet.forward(&x, &t, &cond).map(drop))?;
            }
        }
        Task::Picture => {
            let pipeline = Pipeline::open(args.model.path()?, unet, device, kind)?;
            let options = picture_options(args, &pipeline, args.steps.min(TIMES));
            pipeline.generate(pipeline.unet(), &options, &mut |_| {})?;
        }
    }
    wait_for(device);
    let device_bytes = memory_in_use(device).zip(taken).map(|(now, before)| now.saturating_sub(before));
    let both = peak_rss().zip(before);
    Ok(both.map(|(resident_bytes, before_bytes)| PeakMemory { resident_bytes, before_bytes, device_bytes }))
}

/// [`measure`] in a fresh process.
///
/// # Errors
/// When the process cannot be started, fails or is stopped.
pub fn measure_apart(args: &Args, unet: Option<&Path>, task: Task, place: Place) -> anyhow::Result<Option<PeakMemory>> {
    let name = match task {
        Task::Call => "call",
        Task::Picture => "picture",
    };
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let mut child = Command::new(program);
    child.args(["speed", "--peak-of", name, "--device", &super::speed::device_name(place.device), "--sampler", args.sampler.name()]);
    child.args(["--compute", kind_name(place.kind)]);
    for (flag, value) in [("--batch", args.batch.to_string()), ("--steps", args.steps.to_string()), ("--cfg", args.cfg.to_string())] {
        child.args([flag, &value]);
    }
    for (flag, value) in [("--latent-size", args.latent_size), ("--size", args.size)] {
        child.args(value.iter().flat_map(|n| [flag.to_string(), n.to_string()]));
    }
    child.arg("--model").arg(args.model.path()?).arg("--out").arg(&args.out);
    if let Some(dir) = unet {
        let mut named = std::ffi::OsString::from("other=");
        named.push(dir);
        child.arg("--unet").arg(named);
    }
    let done = child.stdin(Stdio::null()).output().context("a process to measure memory in cannot be started")?;
    if !done.status.success() {
        if let Some(error) = OfProcess::new(&done) {
            return Err(error.into());
        }
        let told = String::from_utf8_lossy(&done.stderr);
        anyhow::bail!("the process that measured memory failed ({}): {}", done.status, told.lines().last().unwrap_or("no message"));
    }
    serde_json::from_slice(&done.stdout).context("the process that measured memory gave no numbers")
}
