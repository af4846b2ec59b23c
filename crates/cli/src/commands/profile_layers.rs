//! `laptop-diff profile-layers`: how much time each layer takes on this device. Model -> **resource file** -> `plan --resource`.

use std::path::PathBuf;

use artifact::Document;
use eval::{LatencyRow, ProfileOptions, profile_layers};
use unet::{Granularity, ResourceFile, TableSizes, UNet};

use crate::common::{Interrupted, prepare_file, stop_flag, stopped};
use crate::device::DeviceArgs;
use crate::model::{ModelArg, latents};
use crate::progress;
use crate::sampling::positive;
use crate::table::Table;

/// Arguments of `profile-layers`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout, its unet/ folder or a single file.
    #[arg(long)]
    model: ModelArg,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// What one item is: branch, block or transformer2d.
    #[arg(long, default_value = "branch")]
    granularity: Granularity,
    /// Samples per call.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..))]
    batch: i64,
    /// Timed calls without each layer; the calls of all layers are interleaved.
    #[arg(long, default_value_t = 9, value_parser = positive)]
    rounds: usize,
    /// Untimed calls before.
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Height and width of the latents [default: the model's own].
    #[arg(long)]
    latent_size: Option<i64>,
    #[command(flatten)]
    place: DeviceArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Measures and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    prepare_file(&args.out)?;
    let model = args.model.open()?;
    let latent = latents(&model, args.latent_size)?;
    let table = model.table(TableSizes { latent: args.latent_size, tokens: None, granularity: args.granularity })?;
    let place = args.place.open()?;
    let unet = UNet::open(model.unet(), place.device, place.kind)?;
    let options = ProfileOptions { batch: args.batch, latent, tokens: model.tokens(), rounds: args.rounds, warmup: args.warmup };
    let (stop, bar) = (stop_flag()?, progress::bar("calls", 0));
    let (file, whole) = profile_layers(&unet, &table, &options, |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        if stopped(&stop) { Err(anyhow::Error::from(Interrupted("stopped; nothing was written".into()))) } else { Ok(()) }
    })?;
    bar.finish_and_clear();
    file.write(&args.out)?;
    if args.json {
        print!("{}", file.to_text(&args.out)?);
        return Ok(());
    }
    print(&file, &whole);
    println!("written     {}", args.out.display());
    Ok(())
}

fn print(file: &ResourceFile, whole: &LatencyRow) {
    let ms = |ns: u64| 1e-6 * ns as f64;
    let mut sorted: Vec<_> = file.layers.iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let mut table = Table::new(["without", ">saves, ms", ">share"]);
    for (id, ns) in sorted {
        table.row([id.to_string(), format!("{:.4}", ms(*ns)), format!("{:.2}%", 100.0 * *ns as f64 / file.total.max(1) as f64)]);
    }
    println!("{table}");
    println!("whole       {:.3} ms (quartiles {:.3} to {:.3})", ms(file.total), 1e3 * whole.q1_s, 1e3 * whole.q3_s);
}
