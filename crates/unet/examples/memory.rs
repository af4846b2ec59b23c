//! Peak memory of this process while a U-Net is loaded or trained, as Linux counts it:
//!
//!     memory load UNET_DIR f32|f16|bf16
//!     memory train sd15|sdxl|CONFIG LATENT_SIDE BATCH plain|checkpointed
//!
//! `train` is one forward and backward pass of random weights in f32, with a loss on the prediction and on the end of every stage.

use std::error::Error;

use tch::{Device, Kind, Tensor};
use unet::{AddedConditioning, Conditioning, Forward, ForwardOptions, RemovalSet, TapSet, UNet, UNetConfig};

fn main() -> Result<(), Box<dyn Error>> {
    // As the command does it.
    torch_ext::prepare(torch_ext::CpuOptions::default());
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["load", dir, kind] => load(dir, kind),
        ["train", model, side, batch, how] => train(model, side.parse()?, batch.parse()?, how),
        _ => Err("usage: memory load UNET_DIR f32|f16|bf16, or memory train sd15|sdxl|CONFIG LATENT_SIDE BATCH plain|checkpointed".into()),
    }
}

fn load(dir: &str, kind: &str) -> Result<(), Box<dyn Error>> {
    let kind = match kind {
        "f16" => Kind::Half,
        "bf16" => Kind::BFloat16,
        "f32" => Kind::Float,
        other => return Err(format!("{other}: expected f32, f16 or bf16").into()),
    };
    let before = status("VmHWM")?;
    let start = std::time::Instant::now();
    let unet = UNet::open(dir, Device::Cpu, kind)?;
    let seconds = start.elapsed().as_secs_f64();
    let own: usize = unet.parameters().values().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum();
    let (peak, own) = (status("VmHWM")?, own as f64 / 1e9);
    println!(
        "network {own:.3} GB in {kind:?}, loaded in {seconds:.1} s; before {before:.3} GB, peak {peak:.3} GB, {:.3} x the network",
        peak / own
    );
    println!(
        "now anonymous {:.3} GB, of files {:.3} GB; read from the disk {:.3} GB",
        status("RssAnon")?,
        status("RssFile")?,
        read_bytes()?
    );
    Ok(())
}

fn train(model: &str, side: i64, batch: i64, how: &str) -> Result<(), Box<dyn Error>> {
    let config = match model {
        "sd15" => UNetConfig::sd15(),
        "sdxl" => UNetConfig::sdxl(),
        path => UNetConfig::open(path)?,
    };
    let unet = UNet::random(&config, 1, Device::Cpu, Kind::Float)?;
    for t in unet.parameters().values() {
        let _ = t.set_requires_grad(true);
    }
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let added = config.added.as_ref().map(|a| AddedConditioning {
        text_embeds: random(&[batch, a.input - 6 * a.channels]),
        time_ids: Tensor::full([batch, 6], 8 * side, (Kind::Float, Device::Cpu)),
    });
    let cond = Conditioning { encoder_hidden_states: random(&[batch, 77, config.text_width]), added, guidance: None };
    let (x, t) = (random(&[batch, config.in_channels, side, side]), Tensor::full([batch], 500.0, (Kind::Float, Device::Cpu)));
    let taps = TapSet::stages(&config);
    let loss = |out: &Forward| out.taps.values().fold(out.sample.square().mean(Kind::Float), |sum, t| sum + t.square().mean(Kind::Float));
    let (before, start) = (status("VmHWM")?, std::time::Instant::now());
    match how {
        "plain" => loss(&unet.forward_with(&x, &t, &cond, &ForwardOptions { ablated: &RemovalSet::empty(), taps: &taps })?).backward(),
        "checkpointed" => {
            let pass = unet.forward_checkpointed(&x, &t, &cond, &taps)?;
            loss(pass.forward()).backward();
            pass.backward()?;
        }
        other => return Err(format!("{other}: expected plain or checkpointed").into()),
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{how}: with weights {before:.3} GB, peak {:.3} GB, {seconds:.1} s", status("VmHWM")?);
    Ok(())
}

/// A size of this process, in GB.
fn status(key: &str) -> Result<f64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)).ok_or("no such line in /proc/self/status")?;
    let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e9)
}

/// What this process has caused to be read from disks, in GB.
fn read_bytes() -> Result<f64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("read_bytes: ")).ok_or("no read_bytes in /proc/self/io")?;
    Ok(line.trim().parse::<f64>()? / 1e9)
}
