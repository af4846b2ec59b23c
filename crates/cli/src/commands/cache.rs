//! `laptop-diff cache`: pictures with captions as VAE moments and text features on disk, so that training need not compute
//! them in every epoch. Pictures -> **shards** -> training.
//!
//! A picture goes to the bucket with the nearest proportions. A bucket's pictures are written in parts of one batch, and as
//! many parts as make a shard become one file; what the files name is what is done, so a stopped run goes on in mid-shard and
//! ends with the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use data::{CACHE_FORMAT, CACHE_MANIFEST, CACHE_VERSION};
use diffusion::picture::{Size, aspect_sizes, to_tensor};
use diffusion::{AutoencoderKl, ModelDir, TextEncoders, TimeIds};
use image::RgbImage;
use rayon::prelude::*;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unet::UNetConfig;
use unet::weights::{TensorFile, Tensors, save_tensors};

use crate::captioned::{Columns, Found, visit};
use crate::common::{BadFile, BadInput, Interrupted, prepare_dir, stop_flag, stopped};
use crate::device::{Place, PlaceArgs};
use crate::encoding::{decode, encoder_identity, settle_size};
use crate::hub::ModelArg;
use crate::progress;

/// Arguments of `cache`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout, or org/name on the Hugging Face Hub.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Folders or WebDataset tars of pictures with captions (0001.jpg beside 0001.txt), or .parquet tables of them.
    #[arg(long, num_args = 1.., required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    columns: Columns,
    /// The folder to write; the same command goes on with a stopped run.
    #[arg(long)]
    out: PathBuf,
    /// Side in pixels of the square that every bucket has the area of [default: the model's own].
    #[arg(long)]
    size: Option<i64>,
    /// Sides of buckets are multiples of this [default: 64 from 512 pixels on, else the least that the model takes].
    #[arg(long)]
    step: Option<i64>,
    /// Pictures in a shard, a multiple of --batch.
    #[arg(long, default_value_t = 1024)]
    shard: usize,
    /// Pictures computed at once.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Stop when more pictures than this are damaged or have no caption; bad.json names them.
    #[arg(long, default_value_t = 100)]
    max_bad: usize,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Batches whose pictures are decoded together, on all cores.
const AHEAD: usize = 4;

/// A picture ready to be encoded.
struct Sample {
    name: String,
    caption: String,
    picture: RgbImage,
    size: TimeIds,
}

/// Makes or completes the cache.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.batch == 0 || args.shard == 0 || !args.shard.is_multiple_of(args.batch) {
        let given = format!("--shard {} --batch {}", args.shard, args.batch);
        return Err(BadInput(format!("{given}: expected at least 1, and the first a multiple of the second")).into());
    }
    prepare_dir(&args.out)?;
    let dir = ModelDir::open(args.model.path()?, None)?;
    let config = UNetConfig::open(dir.unet())?;
    let Place { device, kind } = args.place.open()?;
    let encoders = Encoders {
        vae: AutoencoderKl::open(dir.vae(), device, kind)?,
        text: TextEncoders::open(dir.family(), &dir.text_parts(), device, kind)?,
        device,
    };
    let (size, step) = settle_size(args.size, args.step, &config, encoders.vae.config())?;
    let buckets = aspect_sizes(size, step);
    let settings = json!({ "model": encoder_identity(&dir)?, "size": size, "step": step, "shard": args.shard, "batch": args.batch });
    begin(&args.out, &settings)?;
    encoders.tell_cost((size, size), args.batch)?;

    let mut shards = Shards::open(&args.out, &encoders, args.shard / args.batch, args.batch)?;
    let (stop, bar) = (stop_flag()?, progress::bar("pictures", 0));
    let mut bad: Vec<(String, String)> = Vec::new();
    let mut waiting: Vec<(String, Found)> = Vec::new();
    let kept = shards.done.len();
    for source in &args.images {
        let _all = visit(source, &args.columns, &mut |found| {
            if stopped(&stop) {
                return Err(Interrupted("stopped; run the same command to go on".into()).into());
            }
            let inner = found.as_ref().map_or_else(|(name, _)| name, |pair| &pair.name);
            let name = format!("{}/{inner}", source.display());
            if !shards.done.contains(&name) {
                waiting.push((name, found));
            }
            if waiting.len() == AHEAD * args.batch {
                take(&mut waiting, &buckets, &mut shards, &mut bad, args)?;
                bar.set_position(shards.done.len() as u64);
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    take(&mut waiting, &buckets, &mut shards, &mut bad, args)?;
    shards.finish()?;
    bar.finish_and_clear();
    let written = finish(&args.out, &settings, &shards, &bad)?;
    let (all, new) = (shards.done.len(), shards.done.len() - kept);
    println!("{}: {all} pictures in {written} shards, {new} of them new; {} left out", args.out.display(), bad.len());
    Ok(())
}

/// Decodes what waits, on all cores, and hands it on in order.
fn take(
    waiting: &mut Vec<(String, Found)>,
    buckets: &[Size],
    shards: &mut Shards,
    bad: &mut Vec<(String, String)>,
    args: &Args,
) -> anyhow::Result<()> {
    let read = |(name, found): (String, Found)| -> Result<Sample, (String, String)> {
        let pair = found.map_err(|(_, reason)| (name.clone(), reason))?;
        let (picture, size) = decode(&pair.bytes, buckets).map_err(|reason| (name.clone(), reason))?;
        Ok(Sample { size, picture, caption: pair.caption, name })
    };
    let samples: Vec<_> = std::mem::take(waiting).into_par_iter().map(read).collect();
    for sample in samples {
        match sample {
            Ok(sample) => shards.add(sample)?,
            Err((name, reason)) => {
                tracing::warn!("{name} is left out: {reason}");
                bad.push((name, reason));
                if bad.len() > args.max_bad {
                    let problem = format!("{} pictures are damaged or have no caption, {} is the last", bad.len(), bad[bad.len() - 1].0);
                    return Err(BadFile::new(&args.images[0], problem, "repair them, or allow more with --max-bad").into());
                }
            }
        }
    }
    Ok(())
}

fn manifest(out: &Path) -> PathBuf {
    out.join(CACHE_MANIFEST)
}

/// Refuses a folder with a cache of other settings.
fn begin(out: &Path, settings: &Value) -> anyhow::Result<()> {
    let path = manifest(out);
    if path.is_file() {
        let old: Value = crate::common::read_versioned(&path, CACHE_FORMAT, CACHE_VERSION, "choose another --out")?;
        if old["settings"] != *settings {
            let problem = format!("--out {}: a cache of another model or of other sizes; choose another --out", out.display());
            return Err(BadInput(problem).into());
        }
        return Ok(());
    }
    let value = json!({ "format": CACHE_FORMAT, "version": CACHE_VERSION, "complete": false, "settings": settings });
    Ok(prune_core::file::write_json(&path, &value)?)
}

fn finish(out: &Path, settings: &Value, shards: &Shards, bad: &[(String, String)]) -> anyhow::Result<usize> {
    let files: Vec<String> = safetensors(out)?.iter().filter_map(|p| Some(p.file_name()?.to_str()?.to_string())).collect();
    let value = json!({
        "format": CACHE_FORMAT,
        "version": CACHE_VERSION,
        "complete": true,
        "settings": settings,
        "pictures": shards.done.len(),
        "shards": files,
    });
    prune_core::file::write_json(&manifest(out), &value)?;
    let bad: Vec<Value> = bad.iter().map(|(name, reason)| json!({ "name": name, "reason": reason })).collect();
    prune_core::file::write_json(&out.join("bad.json"), &bad)?;
    Ok(files.len())
}

fn safetensors(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

struct Encoders {
    vae: AutoencoderKl,
    text: TextEncoders,
    device: Device,
}

impl Encoders {
    /// What is stored of some pictures of one size, and the size of each.
    fn encode(&self, pictures: &[&RgbImage], captions: &[&str], sizes: &[TimeIds]) -> anyhow::Result<Tensors> {
        let _no_grad = tch::no_grad_guard();
        let x = to_tensor(pictures)?.to_device(self.device).to_kind(self.vae.kind());
        let moments = self.vae.encode(&x)?;
        let cond = self.text.encode(captions, sizes[0])?;
        let cpu = |t: &Tensor| t.to_device(Device::Cpu).to_kind(Kind::Half);
        let ids: Vec<i64> = sizes.iter().flat_map(|s| s.to_array()).map(|n| n as i64).collect();
        let mut out = Tensors::from([
            ("mean".to_string(), cpu(&moments.mean)),
            ("logvar".to_string(), cpu(&moments.logvar)),
            ("encoder_hidden_states".to_string(), cpu(&cond.encoder_hidden_states)),
            // Whole numbers, which f16 would round.
            ("time_ids".to_string(), Tensor::from_slice(&ids).f_view([sizes.len() as i64, 6])?),
        ]);
        if let Some(added) = &cond.added {
            out.insert("text_embeds".into(), cpu(&added.text_embeds));
        }
        Ok(out)
    }

    /// Says, before the work, what a picture costs.
    fn tell_cost(&self, (height, width): Size, batch: usize) -> anyhow::Result<()> {
        let picture = RgbImage::new(width as u32, height as u32);
        let (pictures, captions) = (vec![&picture; batch], vec![""; batch]);
        let start = std::time::Instant::now();
        let made = self.encode(&pictures, &captions, &vec![TimeIds::uncropped(height, width); batch])?;
        let rate = batch as f64 / start.elapsed().as_secs_f64();
        let bytes: usize = made.values().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum();
        let kib = bytes as f64 / batch as f64 / 1024.0;
        eprintln!("a picture of {height} x {width} takes {kib:.1} KiB; encoding {rate:.1} pictures a second");
        Ok(())
    }
}

/// The files of the cache and what is not yet in one.
struct Shards<'a> {
    out: &'a Path,
    encoders: &'a Encoders,
    // Parts of a shard, and pictures of a part.
    parts: usize,
    batch: usize,
    done: BTreeSet<String>,
    // Per bucket: number of the shard that is being filled, how many parts it has, and what waits for the next part.
    open: BTreeMap<Size, (usize, usize, Vec<Sample>)>,
}

impl<'a> Shards<'a> {
    /// Reads what is there.
    fn open(out: &'a Path, encoders: &'a Encoders, parts: usize, batch: usize) -> anyhow::Result<Self> {
        let mut shards = Self { out, encoders, parts, batch, done: BTreeSet::new(), open: BTreeMap::new() };
        let files = safetensors(out)?;
        let known: Vec<(PathBuf, Option<Slot>)> = files.into_iter().map(|p| (p.clone(), place(&p))).collect();
        // A shard was put together, but its parts could not all be removed any more.
        let whole: BTreeSet<(Size, usize)> = known.iter().filter_map(|(_, at)| at.filter(|a| a.2.is_none()).map(|a| (a.0, a.1))).collect();
        for (path, at) in known {
            let Some((size, shard, part)) = at else {
                return Err(BadFile::new(&path, "no shard of a cache", "choose another --out").into());
            };
            if part.is_some() && whole.contains(&(size, shard)) {
                std::fs::remove_file(&path)?;
                continue;
            }
            let names = listed(&TensorFile::open(&path)?, &path, "names")?;
            shards.done.extend(names);
            let entry = shards.open.entry(size).or_insert((0, 0, Vec::new()));
            match part {
                None => *entry = (entry.0.max(shard + 1), 0, Vec::new()),
                Some(part) => *entry = (shard, part + 1, Vec::new()),
            }
        }
        let full: Vec<Size> = shards.open.iter().filter(|(_, s)| s.1 == parts).map(|(size, _)| *size).collect();
        for size in full {
            shards.merge(size)?;
        }
        Ok(shards)
    }

    fn add(&mut self, sample: Sample) -> anyhow::Result<()> {
        let size = sample.size.target_size;
        if !self.done.insert(sample.name.clone()) {
            return Ok(());
        }
        let (_, parts, waiting) = self.open.entry(size).or_insert((0, 0, Vec::new()));
        waiting.push(sample);
        if waiting.len() < self.batch {
            return Ok(());
        }
        let samples = std::mem::take(waiting);
        *parts += 1;
        let full = *parts == self.parts;
        self.write(size, &samples)?;
        if full { self.merge(size) } else { Ok(()) }
    }

    /// Writes what still waits, and makes shards of all parts.
    fn finish(&mut self) -> anyhow::Result<()> {
        for size in self.open.keys().copied().collect::<Vec<_>>() {
            let (_, parts, waiting) = self.open.get_mut(&size).expect("a key of it");
            let samples = std::mem::take(waiting);
            if !samples.is_empty() {
                *parts += 1;
                self.write(size, &samples)?;
            }
            if self.open[&size].1 > 0 {
                self.merge(size)?;
            }
        }
        Ok(())
    }

    // The bucket's newest part.
    fn write(&self, size: Size, samples: &[Sample]) -> anyhow::Result<()> {
        let (shard, parts, _) = &self.open[&size];
        let pictures: Vec<&RgbImage> = samples.iter().map(|s| &s.picture).collect();
        let captions: Vec<&str> = samples.iter().map(|s| s.caption.as_str()).collect();
        let sizes: Vec<TimeIds> = samples.iter().map(|s| s.size).collect();
        let tensors = self.encoders.encode(&pictures, &captions, &sizes)?;
        let names: Vec<&str> = samples.iter().map(|s| s.name.as_str()).collect();
        let path = self.out.join(part_name(size, *shard, parts - 1));
        Ok(save_tensors(path, &tensors, &metadata(&json!(names), &json!(captions)), None)?)
    }

    // One file instead of the bucket's parts.
    fn merge(&mut self, size: Size) -> anyhow::Result<()> {
        let (shard, parts, _) = self.open[&size];
        let paths: Vec<PathBuf> = (0..parts).map(|n| self.out.join(part_name(size, shard, n))).collect();
        let (mut names, mut captions) = (Vec::new(), Vec::new());
        let mut columns: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for path in &paths {
            let file = TensorFile::open(path)?;
            names.extend(listed(&file, path, "names")?);
            captions.extend(listed(&file, path, "captions")?);
            for (key, t) in file.tensors()? {
                columns.entry(key).or_default().push(t);
            }
        }
        let tensors: Tensors = columns.into_iter().map(|(key, rows)| (key, Tensor::cat(&rows, 0))).collect();
        let path = self.out.join(format!("{}x{}-{shard:05}.safetensors", size.0, size.1));
        save_tensors(path, &tensors, &metadata(&json!(names), &json!(captions)), None)?;
        for path in paths {
            std::fs::remove_file(path)?;
        }
        self.open.insert(size, (shard + 1, 0, Vec::new()));
        Ok(())
    }
}

fn part_name(size: Size, shard: usize, part: usize) -> String {
    format!("{}x{}-{shard:05}.part-{part:05}.safetensors", size.0, size.1)
}

/// Bucket, shard, and part of a shard that is not whole yet.
type Slot = (Size, usize, Option<usize>);

/// What a file's name tells.
fn place(path: &Path) -> Option<Slot> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".safetensors")?;
    let (stem, part) = match stem.split_once(".part-") {
        Some((stem, part)) => (stem, Some(part.parse().ok()?)),
        None => (stem, None),
    };
    let (size, shard) = stem.split_once('-')?;
    let (h, w) = size.split_once('x')?;
    Some(((h.parse().ok()?, w.parse().ok()?), shard.parse().ok()?, part))
}

fn metadata(names: &Value, captions: &Value) -> BTreeMap<String, String> {
    let own = [("format", CACHE_FORMAT.to_string()), ("version", CACHE_VERSION.to_string())];
    let lists = [("names", names.to_string()), ("captions", captions.to_string())];
    own.into_iter().chain(lists).map(|(key, value)| (key.to_string(), value)).collect()
}

fn listed(file: &TensorFile, path: &Path, key: &str) -> anyhow::Result<Vec<String>> {
    let text = file.metadata().get(key).map_or("", String::as_str);
    let bad = |e: serde_json::Error| BadFile::new(path, format!("no list of {key} ({e})"), "choose another --out");
    Ok(serde_json::from_str(text).map_err(bad)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_read_back() {
        assert_eq!(place(Path::new("a/32x48-00003.safetensors")), Some(((32, 48), 3, None)));
        assert_eq!(place(Path::new(&part_name((32, 48), 3, 7))), Some(((32, 48), 3, Some(7))));
        assert_eq!(place(Path::new("model.safetensors")), None);
    }
}
