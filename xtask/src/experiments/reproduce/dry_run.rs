//! `--dry-run`: what every stage reads, writes and takes, before hours are spent.
//!
//! Times come from a measurement of seconds (`laptop-diff estimate-cost`) on this device; memory and disk from the settings.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::flow::Sizes;
use super::settings::Settings;
use super::{Args, missing, needs_text, several_gpus, stages};
use crate::pipeline::{self, Stage, Work, duration};
use crate::{proc, setup};

/// What `laptop-diff estimate-cost --json` prints, as far as it is used here.
#[derive(Deserialize)]
struct Pace {
    device: String,
    compute: String,
    params: f64,
    layers: f64,
    scoring_passes: f64,
    latent_size: f64,
    latent_channels: f64,
    text_features: f64,
    forward_s: f64,
    train_s: f64,
    encode_s: f64,
    decode_s: f64,
}

impl Pace {
    fn sizes(&self) -> Sizes {
        Sizes {
            params: self.params,
            layers: self.layers,
            scoring_passes: self.scoring_passes,
            latents: self.latent_channels * self.latent_size * self.latent_size,
            text: self.text_features,
            bytes: if self.compute == "f32" { 4.0 } else { 2.0 },
        }
    }

    fn seconds(&self, work: &Work) -> f64 {
        work.forwards * self.forward_s + work.trainings * self.train_s + work.encodes * self.encode_s + work.decodes * self.decode_s
    }
}

/// Prints the plan of the run; fails when something is missing.
pub fn run(root: &Path, s: &Settings, out: &Path, args: &Args, verbose: bool) -> Result<()> {
    let program = pipeline::build(root, verbose)?;
    let given = ["--unet", &show(&s.model.unet_config), "--vae", &show(&s.model.vae_config), "--device", &args.common.device, "--json"];
    eprintln!("measuring the device (some seconds) ...");
    let mut estimate = Command::new(&program);
    estimate.args(["estimate-cost"]).args(given).current_dir(root);
    proc::with_libtorch(&mut estimate, root);
    let pace: Pace =
        serde_json::from_str(&proc::capture(&mut estimate)?).context("cannot read what `laptop-diff estimate-cost` printed")?;

    let missing = missing(root, s);
    let train = out.join("settings/distill.toml");
    let stages = stages(s, out, args, &train, pace.sizes(), missing.clone().into_iter().filter(|need| need.fetch.is_some()).collect());
    let made = |path: &Path| root.join(path).exists();
    print!("{}", table(&stages, &pace, out, &made));

    let mut problems = Vec::new();
    if let Some(text) = needs_text(s.needs.iter().filter(|need| made(&need.path))) {
        println!("\nthere:\n{}", first_lines(&text));
    }
    if let Some(text) = needs_text(missing.iter().copied().filter(|need| need.fetch.is_some())) {
        println!("\nto be fetched by the run:\n{text}");
    }
    if let Some(text) = needs_text(missing.iter().copied().filter(|need| need.how.is_some())) {
        println!("\nmissing:\n{text}");
        problems.push("data or weights".to_owned());
    }
    let disk: f64 = stages.iter().map(|stage| stage.costs().disk).sum();
    let free = setup::free_kb_at(root).map(|kilobytes| kilobytes as f64 * 1024.0);
    println!("\ndisk: about {} to write{}", size(disk), free.map_or(String::new(), |free| format!(", {} free", size(free))));
    if free.is_some_and(|free| free < disk) {
        problems.push("disk space".into());
    }
    let memory = stages.iter().map(|stage| stage.costs().memory).fold(0.0, f64::max);
    let total = memory_of(&pace.device);
    println!(
        "memory: at least {} for weights and training state, activations besides{}",
        size(memory),
        total.map_or(String::new(), |total| format!(", {} in all on {}", size(total), pace.device))
    );
    if total.is_some_and(|total| total < memory) {
        problems.push("memory".into());
    }
    let seconds: f64 = stages.iter().map(|stage| pace.seconds(&stage.costs())).sum();
    let gpus = f64::from(args.common.gpus);
    println!("time: about {} of one device, {} with --gpus {gpus}", time(seconds), time(span(&stages, &pace, args.common.gpus)));
    println!("not counted: text encoders, scorers of images, reading and writing; what is up to date is not subtracted");
    if let Err(error) = several_gpus(root, args) {
        println!("\n{error}");
        problems.push("NCCL".into());
    }
    if args.ranks > 1 && proc::capture(Command::new("torchrun").arg("--help")).is_err() {
        println!("\n--ranks {}: torchrun is not on PATH; it comes with torch {} for Python", args.ranks, setup::TORCH);
        problems.push("torchrun".into());
    }
    match problems.as_slice() {
        [] => {
            let again: Vec<String> = std::env::args().skip(1).filter(|word| word != "--dry-run").collect();
            println!("\nnothing is missing; run it: cargo xtask {}", again.join(" "));
            Ok(())
        }
        problems => bail!("missing: {}; nothing was run", problems.join(", ")),
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

/// The heads of the entries, without how to get what is there.
fn first_lines(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("      ")).collect::<Vec<_>>().join("\n")
}

/// One row for each stage.
fn table(stages: &[Stage], pace: &Pace, out: &Path, made: &dyn Fn(&Path) -> bool) -> String {
    let head = ["stage", "time", "disk", "memory", "reads", "writes"].map(str::to_owned);
    let mut rows = vec![head.to_vec()];
    for stage in stages {
        let costs = stage.costs();
        let seconds = pace.seconds(&costs);
        // Nearly every stage reads the model, so what is last in the list tells more.
        let shown = |paths: &[PathBuf]| match paths {
            [] => "-".to_owned(),
            [.., last] => {
                let more = if paths.len() > 1 { format!(" + {}", paths.len() - 1) } else { String::new() };
                format!("{}{more}", last.strip_prefix(out).unwrap_or(last).display())
            }
        };
        let done = if stage.outputs().iter().all(|output| made(output)) { " (there)" } else { "" };
        rows.push(vec![
            stage.name().to_owned(),
            if seconds >= 1.0 { time(seconds) } else { "short".into() },
            if costs.disk > 0.0 { size(costs.disk) } else { "-".into() },
            if costs.memory > 0.0 { size(costs.memory) } else { "-".into() },
            shown(stage.inputs()),
            shown(stage.outputs()) + done,
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = format!(
        "on {}, {}: one forward pass takes {:.3} s; results go to {}\n\n",
        pace.device,
        pace.compute,
        pace.forward_s,
        out.display()
    );
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            // Numbers to the right.
            if (1..=3).contains(&column) { format!("{cell:>width$}") } else { format!("{cell:width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Wall-clock seconds when independent stages share `gpus` devices: each stage starts as soon as its inputs and a device are there.
fn span(stages: &[Stage], pace: &Pace, gpus: u32) -> f64 {
    let mut ends: Vec<f64> = Vec::new();
    let mut free = vec![0.0f64; gpus as usize];
    for (index, stage) in stages.iter().enumerate() {
        let ready = (0..index).filter(|&other| stages[other].outputs().iter().any(|output| stage.needs(output))).map(|other| ends[other]);
        let mut start = ready.fold(0.0, f64::max);
        let seconds = pace.seconds(&stage.costs());
        if seconds > 0.0 {
            free.sort_by(f64::total_cmp);
            start = start.max(free[0]);
            free[0] = start + seconds;
        }
        ends.push(start + seconds);
    }
    ends.into_iter().fold(0.0, f64::max)
}

/// Bytes as people say them.
pub fn size(bytes: f64) -> String {
    match bytes {
        b if b >= 1e12 => format!("{:.1} TB", b / 1e12),
        b if b >= 1e9 => format!("{:.1} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.0} MB", b / 1e6),
        b => format!("{:.0} kB", (b / 1e3).ceil()),
    }
}

/// Seconds as people say them, from minutes to what nobody will wait for.
fn time(seconds: f64) -> String {
    const DAY: f64 = 86_400.0;
    match seconds / DAY {
        days if days >= 730.0 => format!("{:.0} years", days / 365.25),
        days if days >= 4.0 => format!("{days:.0} days"),
        _ => duration(seconds),
    }
}

/// Memory of the device: what nvidia-smi says of a GPU, else that of the machine.
fn memory_of(device: &str) -> Option<f64> {
    if let Some(number) = device.strip_prefix("cuda:") {
        let query = ["--query-gpu=memory.total", "--format=csv,noheader,nounits", "-i", number];
        let text = proc::capture(Command::new("nvidia-smi").args(query)).ok()?;
        return Some(text.trim().parse::<f64>().ok()? * 1024.0 * 1024.0);
    }
    Some(proc::bytes_of(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")? as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace {
            device: "cpu".into(),
            compute: "f32".into(),
            params: 1e6,
            layers: 10.0,
            scoring_passes: 5.0,
            latent_size: 16.0,
            latent_channels: 4.0,
            text_features: 100.0,
            forward_s: 1.0,
            train_s: 3.0,
            encode_s: 0.5,
            decode_s: 0.25,
        }
    }

    fn stage(name: &str, forwards: f64, reads: &[&str]) -> Stage {
        let stage = Stage::new(name, name, 1.0, "x").output("--out", name).work(Work { forwards, ..Work::default() });
        reads.iter().fold(stage, |stage, path| stage.reads(path))
    }

    #[test]
    fn seconds_are_counted_work_times_measured_pace() {
        let work = Work { forwards: 2.0, trainings: 3.0, encodes: 4.0, decodes: 8.0, ..Work::default() };
        assert_eq!(pace().seconds(&work), 2.0 + 9.0 + 2.0 + 2.0);
        assert_eq!(pace().sizes().latents, 1024.0);
    }

    #[test]
    fn independent_stages_share_devices_and_dependent_ones_wait() {
        let stages = [stage("a", 10.0, &[]), stage("b", 6.0, &[]), stage("plan", 0.0, &["a", "b"]), stage("c", 5.0, &["plan"])];
        assert_eq!(span(&stages, &pace(), 1), 21.0);
        assert_eq!(span(&stages, &pace(), 2), 15.0);
    }

    #[test]
    fn sizes_read_as_people_say_them() {
        assert_eq!([size(2.5e12), size(6.94e9), size(1.2e6), size(3e3)], ["2.5 TB", "6.9 GB", "1 MB", "3 kB"]);
        assert_eq!([time(90.0), time(400_000.0), time(1e8)], ["1 min 30 s", "5 days", "3 years"]);
    }
}
