//! `laptop-diff measure`: how much time each layer takes on this device. Model -> **resource file** -> `plan --resource`.
//!
//! A layer's cost is what the forward pass gains without it, not what the layer takes alone: launches, copies and caches are in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use artifact::Document;
use eval::{LatencyRow, Subject, measure_latency};
use prune_core::{LayerId, RemovalSet};
use unet::{ForwardOptions, Granularity, TapSet, UNet};

use super::speed::{device_name, inputs, subject};
use crate::common::{Interrupted, prepare_file, stop_flag, stopped};
use crate::device::{Place, PlaceArgs, kind_name};
use crate::hub::ModelArg;
use crate::model::{TableSizes, parse_granularity};
use crate::progress;

/// Name of the resource.
const NAME: &str = "latency_ns";

/// Arguments of `measure`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout, its unet/ folder or a single file.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// What one item is: branch, block or transformer2d.
    #[arg(long, default_value = "branch", value_parser = parse_granularity)]
    granularity: Granularity,
    /// Samples per call.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    batch: i64,
    /// Timed calls without each layer; the calls of all layers are interleaved.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Untimed calls before.
    #[arg(long, default_value_t = 1)]
    warmup: u64,
    /// Height and width of the latents [default: the model's own].
    #[arg(long)]
    latent_size: Option<i64>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Measures and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let model = args.model.open()?;
    let (h, w) = model.latents(args.latent_size)?;
    let table = model.table(TableSizes { latent: args.latent_size, tokens: None, granularity: args.granularity })?;
    let Place { device, kind } = args.place.open()?;
    let unet = UNet::open(model.unet(), device, kind)?;

    // First the whole network, then it without each layer, then without each group whose shell goes along.
    let mut sets = vec![RemovalSet::empty()];
    sets.extend(table.layers().iter().map(|layer| RemovalSet::single(layer.id.clone())));
    sets.extend(table.shells().iter().map(|shell| shell.members.iter().cloned().collect::<RemovalSet>()));
    let (stop, taps) = (stop_flag()?, TapSet::none());
    let bar = progress::bar("measure", (args.rounds + args.warmup) * sets.len() as u64);
    let (x, t, cond) = inputs(unet.config(), args.batch, (h, w), model.tokens(), device);
    let mut subjects: Vec<Subject<'_>> = sets
        .iter()
        .map(|set| {
            let name = set.iter().next().map_or("whole".to_string(), ToString::to_string);
            let options = ForwardOptions { ablated: set, taps: &taps };
            let (unet, x, t, cond) = (&unet, &x, &t, &cond);
            subject(name, &stop, &bar, device, move || unet.forward_with(x, t, cond, &options).map(drop))
        })
        .collect();
    let rows = measure_latency(&mut subjects, args.batch as u64, args.warmup as usize, args.rounds as usize)?;
    bar.finish_and_clear();
    if stopped(&stop) {
        return Err(Interrupted("stopped; nothing was written".into()).into());
    }
    let layers = table.layers().len();
    let saved = |row: &LatencyRow| nanoseconds(rows[0].median_s - row.median_s);
    let ids = |ids: Vec<LayerId>, rows: &[LatencyRow]| -> BTreeMap<LayerId, u64> { ids.into_iter().zip(rows.iter().map(saved)).collect() };
    let costs = ids(table.layers().iter().map(|l| l.id.clone()).collect(), &rows[1..=layers]);
    let mut shells = ids(table.shells().iter().map(|s| s.id.clone()).collect(), &rows[layers + 1..]);
    for shell in table.shells() {
        let inside: u64 = shell.members.iter().map(|id| costs[id]).sum();
        shells.entry(shell.id.clone()).and_modify(|all| *all = all.saturating_sub(inside));
    }
    let file = unet::ResourceFile {
        name: NAME.into(),
        fingerprint: table.fingerprint().to_string(),
        method: format!(
            "median of {} interleaved calls with and without each layer, batch {}, latents {h} x {w}, {}, {}",
            args.rounds,
            args.batch,
            device_name(device),
            kind_name(kind)
        ),
        total: nanoseconds(rows[0].median_s),
        layers: costs,
        shells,
    };
    file.write(&args.out)?;
    if args.json {
        print!("{}", file.to_text(&args.out)?);
        return Ok(());
    }
    print(&file, &rows);
    println!("written     {}", args.out.display());
    Ok(())
}

/// Noise can make a pass without a layer seem slower; such a layer saves nothing.
fn nanoseconds(seconds: f64) -> u64 {
    (1e9 * seconds).max(0.0).round() as u64
}

fn print(file: &unet::ResourceFile, rows: &[LatencyRow]) {
    let wide = file.layers.keys().map(|id| id.as_str().len()).max().unwrap_or(2);
    let ms = |ns: u64| 1e-6 * ns as f64;
    println!("{:wide$}  {:>10}  {:>7}", "without", "saves, ms", "share");
    let mut sorted: Vec<_> = file.layers.iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    for (id, ns) in sorted {
        println!("{id:wide$}  {:>10.4}  {:>6.2}%", ms(*ns), 100.0 * *ns as f64 / file.total.max(1) as f64);
    }
    println!();
    println!("whole       {:.3} ms (quartiles {:.3} to {:.3})", ms(file.total), 1e3 * rows[0].q1_s, 1e3 * rows[0].q3_s);
}
