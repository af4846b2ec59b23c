//! `laptop-diff bench`: latency of U-Net calls and of images, teacher and students interleaved; memory, files and costs of each.
//! Models -> **speed.json** -> report.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use artifact::Document;
use diffusion::{ModelDir, SamplerKind};
use eval::{Bench, BenchEvent, Footprint, Hardware, ImageBench, LatencyRow, PeakMemory, PeakTask, TEACHER, Timings, device_name};
use unet::{Granularity, ModelSource, TableSizes};

use crate::common::{BadInput, Interrupted, prepare_file, stop_flag, stopped};
use crate::device::{DeviceArgs, kind_name, memory_in_use};
use crate::exit_code::OfProcess;
use crate::model::{ModelArg, latents, named_dir};
use crate::progress;
use crate::sampling::positive;
use crate::table::Table;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout; its own U-Net, `teacher`, is what speed-ups refer to.
    #[arg(long)]
    model: ModelArg,
    /// Another U-Net, as NAME=DIR; several may follow.
    #[arg(long, value_name = "NAME=DIR", num_args = 1.., value_parser = named_dir)]
    unet: Vec<(String, PathBuf)>,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// Samples per call.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    batch: i64,
    /// Timed calls of each U-Net.
    #[arg(long, default_value_t = 20, value_parser = positive)]
    rounds: usize,
    /// Untimed calls before.
    #[arg(long, default_value_t = 3)]
    warmup: usize,
    /// Height and width of the latents [default: the model's own].
    #[arg(long)]
    latent_size: Option<i64>,
    /// Timed images of each U-Net, from prompt to pixels, after an untimed one; 0 leaves them out, as a model without text
    /// encoders and VAE does.
    #[arg(long, alias = "picture-rounds", default_value_t = 3)]
    image_rounds: usize,
    /// Sampling steps of those images.
    #[arg(long, alias = "steps", default_value_t = 20, value_parser = positive)]
    num_inference_steps: usize,
    /// Their classifier-free guidance scale; 1 switches guidance off.
    #[arg(long, alias = "cfg", default_value_t = 3.0)]
    guidance_scale: f64,
    /// Their sampler: ddim, euler, euler-ancestral, dpmpp-2m or lcm.
    #[arg(long, default_value = "ddim")]
    sampler: SamplerKind,
    /// Their height and width in pixels [default: the model's own].
    #[arg(long)]
    size: Option<i64>,
    /// Leave the memory out, which is measured in a fresh process for each U-Net.
    #[arg(long)]
    no_memory: bool,
    /// Do this once with the first of the U-Nets and print the peaks.
    #[arg(long, hide = true, value_parser = ["call", "image"])]
    peak_of: Option<String>,
    #[command(flatten)]
    place: DeviceArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Measures and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let named = &args.unet;
    let model = args.model.open()?;
    let bench = args.bench(&model)?;
    if let Some(task) = &args.peak_of {
        let task = if task == "call" { PeakTask::Call } else { PeakTask::Image };
        let peak = bench.peak(named.first().map(|(_, dir)| dir.as_path()), task, memory_in_use)?;
        println!("{}", serde_json::to_string(&peak)?);
        return Ok(());
    }
    prepare_file(&args.out)?;
    for (i, (name, _)) in named.iter().enumerate() {
        if name == TEACHER || named[..i].iter().any(|(other, _)| other == name) {
            return Err(BadInput(format!("--unet {name}=..: this name is taken; give each U-Net its own")).into());
        }
    }
    let stop = stop_flag()?;
    let check = || if stopped(&stop) { Err(anyhow::Error::from(Interrupted("stopped; nothing was written".into()))) } else { Ok(()) };
    let mut timings =
        Timings::new(Hardware::detect(&format!("{}, {}", device_name(bench.device), unet::Compute::of(bench.kind).recorded(bench.device))));
    // Memory first, while this process holds no model.
    let students = named.iter().map(|(name, dir)| (name.as_str(), Some(dir.as_path())));
    for (name, dir) in std::iter::once((TEACHER, None)).chain(students) {
        let measured = args.footprint(&bench, &model, name, dir);
        // A signal ends the other process too, whose failure is not the one to tell.
        check()?;
        timings.footprints.push(measured?);
    }
    let bar = progress::bar("calls", 0);
    (timings.latency, timings.image) = bench.latency(named, |event| {
        let (BenchEvent::Call { done, total } | BenchEvent::Image { done, total }) = event;
        bar.set_prefix(if matches!(event, BenchEvent::Call { .. }) { "calls" } else { "images" });
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        check()
    })?;
    bar.finish_and_clear();
    timings.write(&args.out)?;
    if args.json {
        print!("{}", timings.to_text(&args.out)?);
    } else {
        print(&timings);
        println!("written     {}", args.out.display());
    }
    Ok(())
}

impl Args {
    /// What is measured, where and in what.
    fn bench<'a>(&self, model: &'a ModelSource) -> anyhow::Result<Bench<'a>> {
        let place = self.place.open()?;
        let images = ImageBench {
            rounds: self.image_rounds,
            steps: self.num_inference_steps,
            guidance: self.guidance_scale,
            sampler: self.sampler,
            size: self.size,
        };
        let whole = || model.path().join("model_index.json").is_file() || ModelDir::open(model.path(), None).is_ok();
        let draws = self.image_rounds > 0 && whole();
        Ok(Bench {
            model: model.path(),
            unet: model.unet(),
            latent: latents(model, self.latent_size)?,
            tokens: model.tokens(),
            batch: self.batch,
            rounds: self.rounds,
            warmup: self.warmup,
            images: draws.then_some(images),
            device: place.device,
            kind: place.kind,
        })
    }

    /// Costs, files and memory of the U-Net in `dir`, or of the model's own.
    fn footprint(&self, bench: &Bench, model: &ModelSource, name: &str, dir: Option<&Path>) -> anyhow::Result<Footprint> {
        let own = dir.map(ModelSource::open).transpose()?;
        let own = own.as_ref().unwrap_or(model);
        let table = own.table(TableSizes { latent: self.latent_size, tokens: Some(bench.tokens), granularity: Granularity::Branch })?;
        let peak = |task, wanted| if wanted && !self.no_memory { self.peak_apart(bench, dir, task) } else { Ok(None) };
        let peaks = [peak("call", true)?, peak("image", bench.images.is_some())?];
        Ok(bench.footprint(name, own.unet(), &table, peaks)?)
    }

    /// The peaks of a [`PeakTask`] in a fresh process.
    fn peak_apart(&self, bench: &Bench, unet: Option<&Path>, task: &str) -> anyhow::Result<Option<PeakMemory>> {
        let program = std::env::current_exe().context("this program's own file is not known")?;
        let mut child = Command::new(program);
        child.args(["bench", "--peak-of", task, "--device", &device_name(bench.device), "--compute", kind_name(bench.kind)]);
        let (steps, guidance) = (self.num_inference_steps.to_string(), self.guidance_scale.to_string());
        child.args(["--num-inference-steps", &steps, "--guidance-scale", &guidance, "--sampler", self.sampler.name()]);
        child.args(["--batch", &self.batch.to_string()]);
        for (flag, value) in [("--latent-size", self.latent_size), ("--size", self.size)] {
            child.args(value.iter().flat_map(|n| [flag.to_string(), n.to_string()]));
        }
        child.arg("--model").arg(bench.model).arg("--out").arg(&self.out);
        if let Some(dir) = unet {
            let mut named = std::ffi::OsString::from("other=");
            named.push(dir);
            child.arg("--unet").arg(named);
        }
        let done = child.stdin(Stdio::null()).output().context("a process to measure memory in cannot be started")?;
        if !done.status.success() {
            let told = String::from_utf8_lossy(&done.stderr).lines().last().unwrap_or("no message").to_string();
            let failed = || anyhow::anyhow!("the process that measured memory failed ({}): {told}", done.status);
            return Err(OfProcess::new(&done).map_or_else(failed, Into::into));
        }
        serde_json::from_slice(&done.stdout).context("the process that measured memory gave no numbers")
    }
}

fn print(timings: &Timings) {
    println!("{}", latencies("call", &timings.latency));
    if let Some(p) = &timings.image {
        println!("one image of {} x {} pixels, {} steps of {}, guidance {}", p.size[0], p.size[1], p.steps, p.sampler, p.guidance);
        println!("{}", latencies("whole", &p.rows));
    }
    let mut table = Table::new(["size", ">params", ">MACs", ">file", ">peak, call", ">peak, image", ">on the GPU"]);
    let mb = |bytes: Option<u64>| bytes.map_or("-".into(), |n| format!("{:.1} MB", n as f64 / 1e6));
    for f in &timings.footprints {
        let (params, macs) = (format!("{:.2}M", f.params as f64 / 1e6), format!("{:.2}G", f.macs as f64 / 1e9));
        let [call, image] = [f.call, f.image].map(|peak| mb(peak.map(|p| p.resident_bytes)));
        let on_gpu = mb(f.image.or(f.call).and_then(|p| p.device_bytes));
        table.row([f.unet.clone(), params, macs, mb(Some(f.unet_file_bytes)), call, image, on_gpu]);
    }
    print!("{table}");
}

fn latencies(what: &str, rows: &[LatencyRow]) -> Table {
    let mut table = Table::new([what, ">median", ">quartiles", ">", ">speed-up"]);
    let ms = |s: f64| format!("{:.2} ms", 1e3 * s);
    for row in rows {
        table.row([row.unet.clone(), ms(row.median_s), ms(row.q1_s), ms(row.q3_s), format!("{:.2}x", row.speedup)]);
    }
    table
}
