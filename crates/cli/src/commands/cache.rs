//! `laptop-diff cache`: images with captions as VAE moments and text features on disk, so that training need not compute them in
//! every epoch. Images -> **shards** -> training.

use std::path::PathBuf;

use data::{CacheEvent, CacheOptions, Encoders, ImageText, LatentCache};

use crate::common::{Interrupted, prepare_dir, stop_flag, stopped};
use crate::device::{DeviceArgs, DeviceDtype};
use crate::image_source::{ColumnArgs, with_flags};
use crate::model::WholeModelArgs;
use crate::progress;

/// Arguments of `cache`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    whole: WholeModelArgs,
    /// Folders or WebDataset tars of images with captions (0001.jpg beside 0001.txt), .parquet tables of them, or folders of these.
    #[arg(long, num_args = 1.., required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// The folder to write; the same command goes on with a stopped run.
    #[arg(long)]
    out: PathBuf,
    /// Side in pixels of the square that every bucket has the area of [default: the model's own].
    #[arg(long)]
    size: Option<i64>,
    /// Sides of buckets are multiples of this [default: 64 from 512 pixels on, else the least that the model takes].
    #[arg(long)]
    step: Option<i64>,
    /// Images in a shard, a multiple of --batch.
    #[arg(long, default_value_t = 1024)]
    shard: usize,
    /// Images computed at once.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Stop when more images than this are damaged or have no caption; bad.json names them.
    #[arg(long, default_value_t = 100)]
    max_bad: usize,
    #[command(flatten)]
    place: DeviceArgs,
}

/// Makes or completes the cache.
pub fn run(args: &Args) -> anyhow::Result<()> {
    build(args).map_err(with_flags)
}

fn build(args: &Args) -> anyhow::Result<()> {
    let source = ImageText::open(&args.images)?.with_columns(args.columns.columns());
    prepare_dir(&args.out)?;
    let options = CacheOptions { size: args.size, step: args.step, shard: args.shard, batch: args.batch, max_bad: args.max_bad };
    let DeviceDtype { device, kind } = args.place.open()?;
    let encoders = Encoders::open(args.whole.named()?, device, kind)?;
    let (stop, bar) = (stop_flag()?, progress::bar("images", 0));
    let report = LatentCache::build(&source, &encoders, &args.out, &options, &mut |event| -> anyhow::Result<()> {
        match event {
            CacheEvent::Images(n) => bar.set_position(n),
            CacheEvent::Cost { size: (height, width), bytes, per_second } => {
                let kib = bytes / 1024.0;
                eprintln!("an image of {height} x {width} takes {kib:.1} KiB; encoding {per_second:.1} images a second");
            }
        }
        if stopped(&stop) { Err(Interrupted("stopped; run the same command to go on".into()).into()) } else { Ok(()) }
    })?;
    bar.finish_and_clear();
    println!("{}: {report}", args.out.display());
    Ok(())
}
