//! `laptop-diff speed`: latency of U-Net calls and of pictures, teacher and students interleaved; memory, files and costs of each.
//! Models -> **speed.json** -> report.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use artifact::Document;
use diffusion::{DecodeParts, GenerateOptions, ModelDir, Pipeline, SamplerKind};
use eval::{Footprint, Hardware, LatencyRow, PictureTimes, Subject, Timings, measure_latency, wait_for};
use indicatif::ProgressBar;
use tch::{Device, Kind, Tensor};
use unet::weights::component_files;
use unet::{AddedCond, Cond, Granularity, UNet, UNetConfig};

use super::speed_memory::{self, Task};
use crate::common::{BadInput, Interrupted, prepare_file, stop_flag, stopped};
use crate::device::{Place, PlaceArgs, kind_name};
use crate::hub::ModelArg;
use crate::model::{Model, TableSizes, named_dir};
use crate::progress;

/// Numbers per picture that SDXL is told about sizes.
const TIME_IDS: i64 = 6;

/// Arguments of `speed`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout; its own U-Net, `teacher`, is what speed-ups refer to.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Another U-Net, as NAME=DIR; several may follow.
    #[arg(long, value_name = "NAME=DIR", num_args = 1..)]
    unet: Vec<String>,
    /// The file to write.
    #[arg(long)]
    pub(super) out: PathBuf,
    /// Samples per call.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    pub(super) batch: i64,
    /// Timed calls of each U-Net.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Untimed calls before.
    #[arg(long, default_value_t = 3)]
    warmup: u64,
    /// Height and width of the latents [default: the model's own].
    #[arg(long)]
    pub(super) latent_size: Option<i64>,
    /// Timed pictures of each U-Net, from prompt to pixels, after an untimed one; 0 leaves them out, as a model without text
    /// encoders and VAE does.
    #[arg(long, default_value_t = 3)]
    picture_rounds: u64,
    /// Sampling steps of those pictures.
    #[arg(long, default_value_t = 20, value_parser = positive)]
    pub(super) steps: usize,
    /// Their classifier-free guidance scale; 1 switches guidance off.
    #[arg(long, default_value_t = 3.0)]
    pub(super) cfg: f64,
    /// Their sampler: ddim, euler, euler-ancestral, dpmpp-2m or lcm.
    #[arg(long, default_value = "ddim")]
    pub(super) sampler: SamplerKind,
    /// Their height and width in pixels [default: the model's own].
    #[arg(long)]
    pub(super) size: Option<i64>,
    /// Leave the memory out, which is measured in a fresh process for each U-Net.
    #[arg(long)]
    no_memory: bool,
    /// Do this once with the first of the U-Nets and print the peaks.
    #[arg(long, hide = true)]
    peak_of: Option<Task>,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// A number from 1.
fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("expected a number from 1, got `{text}`"))
}

/// Measures and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let named = args.unet.iter().map(|text| named_dir("--unet", text)).collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(task) = args.peak_of {
        let peak = speed_memory::measure(args, named.first().map(|(_, dir)| dir.as_path()), task)?;
        println!("{}", serde_json::to_string(&peak)?);
        return Ok(());
    }
    prepare_file(&args.out)?;
    for (i, (name, _)) in named.iter().enumerate() {
        if name == "teacher" || named[..i].iter().any(|(other, _)| other == name) {
            return Err(BadInput(format!("--unet {name}=..: this name is taken; give each U-Net its own")).into());
        }
    }
    let model = args.model.open()?;
    let place @ Place { device, kind } = args.place.open()?;
    let draws = args.picture_rounds > 0 && model.is_whole() && model.path().join("model_index.json").is_file();
    let stop = stop_flag()?;
    let mut timings = Timings::new(Hardware::detect(&format!("{}, {}", device_name(device), kind_name(kind))));
    // Memory first, while this process holds no model.
    let students = named.iter().map(|(name, dir)| (name.as_str(), Some(dir.as_path())));
    for (name, dir) in std::iter::once(("teacher", None)).chain(students) {
        let measured = footprint(args, &model, name, dir, draws, place);
        // A signal ends the other process too, whose failure is not the one to tell.
        if stopped(&stop) {
            return Err(Interrupted("stopped; nothing was written".into()).into());
        }
        timings.footprints.push(measured?);
    }
    let mut unets = Vec::new();
    for (name, dir) in named {
        unets.push((name, UNet::open(dir, device, kind)?));
    }
    let pipeline = draws.then(|| Pipeline::open(model.path(), None, device, kind)).transpose()?;
    let lone = if draws { None } else { Some(UNet::open(model.unet(), device, kind)?) };
    let teacher = pipeline.as_ref().map(Pipeline::unet).or(lone.as_ref());
    let all: Vec<(&str, &UNet)> = teacher.map(|u| ("teacher", u)).into_iter().chain(unets.iter().map(|(n, u)| (n.as_str(), u))).collect();

    let (h, w) = model.latents(args.latent_size)?;
    let bar = progress::bar("calls", (args.rounds + args.warmup) * all.len() as u64);
    let inputs: Vec<_> = all.iter().map(|(_, u)| inputs(u.config(), args.batch, (h, w), model.tokens(), device)).collect();
    let mut subjects: Vec<Subject<'_>> = all
        .iter()
        .zip(&inputs)
        .map(|((name, unet), (x, t, cond))| subject(name.to_string(), &stop, &bar, device, move || unet.forward(x, t, cond).map(drop)))
        .collect();
    timings.latency = measure_latency(&mut subjects, args.batch as u64, args.warmup as usize, args.rounds as usize)?;
    drop(subjects);
    bar.finish_and_clear();
    if let Some(pipeline) = &pipeline {
        timings.picture = Some(pictures(args, pipeline, &all, &stop)?);
    }
    if stopped(&stop) {
        return Err(Interrupted("stopped; nothing was written".into()).into());
    }
    timings.write(&args.out)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&timings)?);
    } else {
        print(&timings);
        println!("written     {}", args.out.display());
    }
    Ok(())
}

/// Latency of whole pictures.
fn pictures(args: &Args, pipeline: &Pipeline, all: &[(&str, &UNet)], stop: &AtomicBool) -> anyhow::Result<PictureTimes> {
    let options = picture_options(args, pipeline, args.steps);
    let bar = progress::bar("pictures", (args.picture_rounds + 1) * all.len() as u64);
    let mut subjects = Vec::new();
    for &(name, unet) in all {
        let (options, bar) = (&options, &bar);
        let call = Box::new(move || {
            if !stopped(stop) {
                pipeline.generate(unet, options, &mut |_| {})?;
                wait_for(pipeline.device());
                bar.inc(1);
            }
            Ok(())
        });
        subjects.push(Subject { name: name.to_string(), call });
    }
    let rows = measure_latency(&mut subjects, 1, 1, args.picture_rounds as usize)?;
    drop(subjects);
    bar.finish_and_clear();
    Ok(PictureTimes {
        sampler: args.sampler.name().into(),
        steps: args.steps as u32,
        guidance: args.cfg,
        size: [options.height as u32, options.width as u32],
        rows,
    })
}

/// One picture as it is timed.
pub fn picture_options(args: &Args, pipeline: &Pipeline, steps: usize) -> GenerateOptions {
    let (height, width) = args.size.map(|n| (n, n)).or(pipeline.native_size()).unwrap_or((512, 512));
    GenerateOptions {
        prompts: vec!["a red circle".into()],
        negative: None,
        steps,
        guidance: args.cfg,
        sampler: args.sampler,
        karras: false,
        clip_skip: 0,
        seeds: vec![0],
        height,
        width,
        batch: 1,
        latents: None,
        decode: DecodeParts { sliced: false, tiled: false },
    }
}

/// Costs, files and memory of the U-Net in `dir`, or of the model's own.
fn footprint(args: &Args, model: &Model, name: &str, dir: Option<&Path>, draws: bool, place: Place) -> anyhow::Result<Footprint> {
    let own = dir.map(Model::open).transpose()?;
    let own = own.as_ref().unwrap_or(model);
    let (h, w) = model.latents(args.latent_size)?;
    let sizes = TableSizes { latent: args.latent_size, tokens: Some(model.tokens()), granularity: Granularity::Branch };
    let table = own.table(sizes)?;
    let unet_file_bytes = size_of(&unet::weight_files(own.unet())?)?;
    let peak = |task| if args.no_memory { Ok(None) } else { speed_memory::measure_apart(args, dir, task, place) };
    let parts = if draws { Some(other_parts(&ModelDir::open(args.model.path()?, None)?)?) } else { None };
    Ok(Footprint {
        unet: name.into(),
        params: table.total_params(),
        macs: table.total_macs(),
        latent: [h as u32, w as u32],
        unet_file_bytes,
        model_file_bytes: parts.map(|n| n + unet_file_bytes),
        call: peak(Task::Call)?,
        picture: if draws { peak(Task::Picture)? } else { None },
    })
}

/// Bytes of the weights of text encoders and VAE.
fn other_parts(dir: &ModelDir) -> anyhow::Result<u64> {
    let mut files = component_files(&dir.vae(), "diffusion_pytorch_model")?;
    for (encoder, _) in dir.text_parts() {
        files.extend(component_files(&encoder, "model")?);
    }
    size_of(&files)
}

fn size_of(files: &[PathBuf]) -> anyhow::Result<u64> {
    let size = |file: &PathBuf| std::fs::metadata(file).map(|m| m.len()).map_err(|e| BadInput(format!("{}: {e}", file.display())));
    Ok(files.iter().map(size).sum::<Result<u64, _>>()?)
}

fn print(timings: &Timings) {
    let wide = timings.latency.iter().map(|r| r.unet.len()).max().unwrap_or(5).max(5);
    let table = |what: &str, rows: &[LatencyRow]| {
        println!("{what:wide$} {:>12} {:>25} {:>9}", "median", "quartiles", "speed-up");
        for row in rows {
            let ms = |s: f64| format!("{:.2} ms", 1e3 * s);
            println!("{:wide$} {:>12} {:>12} {:>12} {:>8.2}x", row.unet, ms(row.median_s), ms(row.q1_s), ms(row.q3_s), row.speedup);
        }
    };
    table("call", &timings.latency);
    if let Some(p) = &timings.picture {
        println!("\none picture of {} x {} pixels, {} steps of {}, guidance {}", p.size[0], p.size[1], p.steps, p.sampler, p.guidance);
        table("whole", &p.rows);
    }
    println!(
        "\n{:wide$} {:>10} {:>10} {:>12} {:>14} {:>14} {:>14}",
        "size", "params", "MACs", "file", "peak, call", "peak, picture", "on the GPU"
    );
    for f in &timings.footprints {
        let mb = |bytes: Option<u64>| bytes.map_or("-".into(), |n| format!("{:.1} MB", n as f64 / 1e6));
        println!(
            "{:wide$} {:>9.2}M {:>9.2}G {:>12} {:>14} {:>14} {:>14}",
            f.unet,
            f.params as f64 / 1e6,
            f.macs as f64 / 1e9,
            mb(Some(f.unet_file_bytes)),
            mb(f.call.map(|p| p.resident_bytes)),
            mb(f.picture.map(|p| p.resident_bytes)),
            mb(f.picture.or(f.call).and_then(|p| p.device_bytes)),
        );
    }
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
