//! `laptop-diff speed`: latency of one U-Net call, teacher and students interleaved. Models -> **speed.json** -> report.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use eval::{Hardware, Subject, Timings, Versioned, measure_latency, wait_for};
use indicatif::ProgressBar;
use tch::{Device, Kind, Tensor};
use unet::{AddedCond, Cond, UNet, UNetConfig};

use crate::common::{Interrupted, prepare_file, stop_flag, stopped};
use crate::device::{DeviceChoice, compute_kind};
use crate::model::{Model, named_dir};
use crate::progress;

/// Numbers per picture that SDXL is told about sizes.
const TIME_IDS: i64 = 6;

/// Arguments of `speed`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout; its own U-Net, `teacher`, is what speed-ups refer to.
    #[arg(long)]
    pub(super) model: PathBuf,
    /// Another U-Net, as NAME=DIR; several may follow.
    #[arg(long, value_name = "NAME=DIR", num_args = 1..)]
    unet: Vec<String>,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// Samples per call.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    batch: i64,
    /// Timed calls of each U-Net.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Untimed calls before.
    #[arg(long, default_value_t = 3)]
    warmup: u64,
    /// Height and width of the latents [default: the model's own].
    #[arg(long)]
    latent_size: Option<i64>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Measures and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let model = Model::open(&args.model)?;
    let named = args.unet.iter().map(|text| named_dir("--unet", text)).collect::<anyhow::Result<Vec<_>>>()?;
    let device = args.device.open()?;
    let kind = compute_kind(device);
    let mut unets = vec![("teacher".to_string(), UNet::open(model.unet(), device, kind)?)];
    for (name, dir) in named {
        unets.push((name, UNet::open(dir, device, kind)?));
    }
    let (h, w) = model.latents(args.latent_size)?;
    let stop = stop_flag()?;
    let bar = progress::bar("speed", (args.rounds + args.warmup) * unets.len() as u64);
    let inputs: Vec<_> = unets.iter().map(|(_, u)| inputs(u.config(), args.batch, (h, w), model.tokens(), device)).collect();
    let mut subjects: Vec<Subject<'_>> = unets
        .iter()
        .zip(&inputs)
        .map(|((name, unet), (x, t, cond))| subject(name.clone(), &stop, &bar, device, move || unet.forward(x, t, cond).map(drop)))
        .collect();
    let rows = measure_latency(&mut subjects, args.batch as u64, args.warmup as usize, args.rounds as usize)?;
    bar.finish_and_clear();
    if stopped(&stop) {
        return Err(Interrupted("stopped; nothing was written".into()).into());
    }
    let mut timings = Timings::new(Hardware::detect(&format!("{}, {}", device_name(device), kind_name(kind))));
    timings.latency = rows;
    timings.write(&args.out)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&timings)?);
        return Ok(());
    }
    println!("{:24} {:>10} {:>21} {:>9}", "U-Net", "median", "quartiles", "speed-up");
    for row in &timings.latency {
        let ms = |s: f64| format!("{:.2} ms", 1e3 * s);
        println!("{:24} {:>10} {:>10} {:>10} {:>8.2}x", row.unet, ms(row.median_s), ms(row.q1_s), ms(row.q3_s), row.speedup);
    }
    println!("written     {}", args.out.display());
    Ok(())
}

/// One thing to time: a forward pass until the device is done with it. The rest of a stopped run costs nothing.
pub fn subject<'a>(
    name: String,
    stop: &'a AtomicBool,
    bar: &'a ProgressBar,
    device: Device,
    forward: impl Fn() -> unet::Result<()> + 'a,
) -> Subject<'a> {
    let call = Box::new(move || {
        if !stopped(stop) {
            tch::no_grad(&forward)?;
            wait_for(device);
            bar.inc(1);
        }
        Ok(())
    });
    Subject { name, call }
}

/// Random inputs of the right shapes.
pub fn inputs(config: &UNetConfig, batch: i64, (h, w): (i64, i64), tokens: i64, device: Device) -> (Tensor, Tensor, Cond) {
    tch::manual_seed(0);
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_device(device);
    let added = config.added.as_ref().map(|a| AddedCond {
        text_embeds: random(&[batch, a.input - TIME_IDS * a.channels]),
        time_ids: Tensor::ones([batch, TIME_IDS], (Kind::Float, device)),
    });
    let x = random(&[batch, config.in_channels, h, w]);
    let t = Tensor::full([batch], 500, (Kind::Int64, device));
    (
        x,
        t,
        Cond {
            encoder_hidden_states: random(&[batch, tokens, config.text_width]),
            added,
            guidance: config.time.guidance.map(|g| random(&[batch, g])),
        },
    )
}

/// The name of a device on the command line.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(n) => format!("cuda:{n}"),
        _ => "cpu".into(),
    }
}

/// The name of a number type.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        _ => "f32",
    }
}
