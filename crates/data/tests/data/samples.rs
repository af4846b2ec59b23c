//! Training data from caches and images: every sample of an epoch, the same bits whoever reads, and refusals by name.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use data::{
    Batch, CACHE_FORMAT, CACHE_MANIFEST, Error, Image, ImageSamples, ImageSource, LatentCache, LatentCacheSamples, Posterior, ReadOptions,
    SHARD_VERSION, Samples,
};
use diffusion::{AutoencoderKl, ClipTextModel, Family, TextEncoders, TimeIds, Tokenizer, VaeConfig};
use tch::{Device, Kind, Tensor};
use unet::weights::{Tensors, save_tensors};

const SCALING: f64 = 0.5;

fn model() -> BTreeMap<String, String> {
    BTreeMap::from([("vae/w.safetensors".into(), "a1".repeat(32)), ("text_encoder/w.safetensors".into(), "b2".repeat(32))])
}

fn meta() -> BTreeMap<String, String> {
    BTreeMap::from([("format".into(), CACHE_FORMAT.into()), ("version".into(), SHARD_VERSION.to_string())])
}

/// A shard whose image number `n` has `n` in everything.
fn shard(dir: &Path, name: &str, (h, w): (i64, i64), numbers: &[i64]) {
    let full = |tail: &[i64]| {
        let rows: Vec<Tensor> = numbers.iter().map(|&n| Tensor::full(tail, n as f64, (Kind::Half, Device::Cpu))).collect();
        Tensor::stack(&rows, 0)
    };
    let tensors = Tensors::from([
        ("mean".to_string(), full(&[4, h, w])),
        ("logvar".to_string(), full(&[4, h, w]) * 0.0 - 2.0),
        ("encoder_hidden_states".to_string(), full(&[3, 5])),
        ("text_embeds".to_string(), full(&[7])),
        ("time_ids".to_string(), full(&[6]).to_kind(Kind::Int64)),
    ]);
    save_tensors(dir.join(name), &tensors, &meta(), None).unwrap();
}

fn manifest(dir: &Path, change: impl Fn(&mut serde_json::Value)) {
    let shards = ["4x6-00000.safetensors", "4x6-00001.safetensors", "6x4-00000.safetensors"];
    let mut value = serde_json::json!({ "format": CACHE_FORMAT, "version": 1, "complete": true,
        "settings": { "model": model(), "size": 40, "step": 8, "shard": 4, "batch": 2 }, "pictures": 9, "shards": shards });
    change(&mut value);
    std::fs::write(dir.join(CACHE_MANIFEST), value.to_string()).unwrap();
}

fn write(dir: &Path) {
    shard(dir, "4x6-00000.safetensors", (4, 6), &[0, 1, 2, 3]);
    shard(dir, "4x6-00001.safetensors", (4, 6), &[4]);
    shard(dir, "6x4-00000.safetensors", (6, 4), &[5, 6, 7, 8]);
    manifest(dir, |_| {});
}

fn reading(posterior: Posterior, workers: usize) -> ReadOptions {
    ReadOptions { batch: 2, seed: 3, posterior, workers, stride: 1, device: Device::Cpu }
}

fn samples(cache: &Arc<LatentCache>, posterior: Posterior, workers: usize) -> LatentCacheSamples {
    LatentCacheSamples::new(cache.clone(), SCALING, reading(posterior, workers)).unwrap()
}

fn same(a: &Batch, b: &Batch) -> bool {
    let pooled = |b: &Batch| b.cond.added.as_ref().map(|a| a.text_embeds.shallow_clone()).unwrap();
    a.latents.equal(&b.latents) && a.cond.encoder_hidden_states.equal(&b.cond.encoder_hidden_states) && pooled(a).equal(&pooled(b))
}

#[test]
fn an_epoch_of_a_cache_has_every_image_with_what_belongs_to_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let cache = Arc::new(LatentCache::open(dir.path(), &model(), true).unwrap());
    assert_eq!((cache.len(), cache.buckets()), (9, vec![5, 4]));
    let mut samples = samples(&cache, Posterior::Mean, 2);
    for epoch in 0..2 {
        let mut seen = Vec::new();
        for micro in 5 * epoch..5 * epoch + 5 {
            let Batch { latents, cond } = samples.batch(micro).unwrap();
            let added = cond.added.unwrap();
            assert!(matches!(latents.size()[..], [2, 4, 4, 6] | [2, 4, 6, 4]) && latents.kind() == Kind::Float);
            for row in 0..2 {
                let n = added.time_ids.get(row).double_value(&[0]);
                for (t, scale) in [(&latents, SCALING), (&cond.encoder_hidden_states, 1.0), (&added.text_embeds, 1.0)] {
                    assert!(t.get(row).eq(n * scale).all().int64_value(&[]) == 1, "image {n}");
                }
                assert_eq!(latents.size()[2] == 6, n >= 5.0, "its own bucket");
                seen.push(n as i64);
            }
        }
        seen.sort_unstable();
        let all: Vec<i64> = seen.iter().copied().filter(|n| (0..9).contains(n)).collect();
        assert_eq!(all.len(), 10, "one image of the odd bucket comes twice");
        seen.dedup();
        assert_eq!(seen, (0..9).collect::<Vec<_>>());
    }
}

#[test]
fn neither_threads_nor_a_resumption_in_the_middle_of_an_epoch_change_a_bit() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let cache = Arc::new(LatentCache::open(dir.path(), &model(), true).unwrap());
    let mut alone = samples(&cache, Posterior::Sample, 0);
    let whole: Vec<Batch> = (0..12).map(|n| alone.batch(n).unwrap()).collect();
    for (workers, first) in [(3, 0), (2, 3), (0, 7)] {
        let mut again = samples(&cache, Posterior::Sample, workers);
        for n in first..12 {
            assert!(same(&again.batch(n).unwrap(), &whole[n as usize]), "{workers} workers from {first}: {n}");
        }
    }
    // Two ranks share them.
    for rank in 0..2 {
        let shared = ReadOptions { stride: 2, ..reading(Posterior::Sample, 2) };
        let mut own = LatentCacheSamples::new(cache.clone(), SCALING, shared).unwrap();
        assert!((0..6).all(|k| same(&own.batch(2 * k + rank).unwrap(), &whole[(2 * k + rank) as usize])));
    }
    // A draw differs from the mean by noise of the posterior's width, exp(-1), and from epoch to epoch.
    let mean = samples(&cache, Posterior::Mean, 0).batch(0).unwrap();
    let off = (&whole[0].latents - &mean.latents).std(true).double_value(&[]) / SCALING;
    assert!((0.25..0.5).contains(&off), "{off}");
}

#[test]
fn a_cache_that_does_not_fit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let refused = |model: &BTreeMap<String, String>, pooled: bool| match LatentCache::open(dir.path(), model, pooled) {
        Err(e @ (Error::Format { .. } | Error::Artifact(_))) => e.to_string(),
        other => panic!("{other:?}"),
    };
    let mut other = model();
    other.insert("vae/w.safetensors".into(), "c3".repeat(32));
    let said = refused(&other, true);
    assert!(said.contains("vae/w.safetensors was a1a1a1a1a1a1 there and is c3c3c3c3c3c3 here"), "{said}");
    other = model();
    other.remove("text_encoder/w.safetensors");
    assert!(refused(&other, true).contains("text_encoder/w.safetensors was b2b2b2b2b2b2 there and is absent here"));
    for (key, value, expected) in [
        ("complete", serde_json::json!(false), "run the same `cache` command again"),
        ("version", serde_json::json!(3), "`version`: expected 2, got 3"),
        ("format", serde_json::json!("laptop-diff/plan"), "laptop-diff/plan"),
        ("shards", serde_json::json!([]), "no image"),
        ("settings", serde_json::json!(3), "integer `3`"),
    ] {
        manifest(dir.path(), |m| m[key] = value.clone());
        let said = refused(&model(), true);
        assert!(said.contains(expected) && said.contains(CACHE_MANIFEST), "{key}: {said}");
    }
    manifest(dir.path(), |_| {});
    // A shard of another shape, of another kind, and none.
    let path = dir.path().join("4x6-00001.safetensors");
    let t = |shape: &[i64]| Tensor::zeros(shape, (Kind::Half, Device::Cpu));
    let mut tensors = Tensors::from([("mean".into(), t(&[1, 4, 4, 6])), ("logvar".into(), t(&[2, 4, 4, 6]))]);
    tensors.extend([("encoder_hidden_states".to_string(), t(&[1, 3, 5])), ("time_ids".into(), t(&[1, 6]))]);
    save_tensors(&path, &tensors, &meta(), None).unwrap();
    let said = refused(&model(), false);
    assert!(said.contains("`logvar` has the shape [2, 4, 4, 6]") && said.contains("4x6-00001"), "{said}");
    tensors.insert("logvar".into(), t(&[1, 4, 4, 6]));
    save_tensors(&path, &tensors, &meta(), None).unwrap();
    LatentCache::open(dir.path(), &model(), false).unwrap();
    assert!(refused(&model(), true).contains("no tensor `text_embeds`"));
    save_tensors(&path, &tensors, &BTreeMap::new(), None).unwrap();
    assert!(refused(&model(), false).contains("not a shard of laptop-diff/cache version 1 to 2"));
    std::fs::remove_file(&path).unwrap();
    assert!(LatentCache::open(dir.path(), &model(), true).unwrap_err().to_string().contains("4x6-00001.safetensors"));
}

/// Two buckets of images, each of one colour.
struct Colours;

impl ImageSource for Colours {
    fn buckets(&self) -> Vec<u64> {
        vec![3, 2]
    }

    fn image(&self, bucket: usize, index: u64) -> data::Result<Image> {
        let (h, w) = [(16, 24), (24, 16)][bucket];
        let rgb = vec![(40 * (bucket as u64 * 3 + index)) as u8; (3 * h * w) as usize];
        Ok(Image { rgb, caption: format!("{bucket}{index}"), size: TimeIds::cropped((100, 100 + index as i64), (h, w)) })
    }
}

// The first text encoder alone stands for Stable Diffusion 1.x.
fn encoders() -> (AutoencoderKl, TextEncoders) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-sdxl");
    let vae = AutoencoderKl::random(&VaeConfig::open(root.join("vae/config.json")).unwrap(), 1, Device::Cpu, Kind::Float).unwrap();
    let text = ClipTextModel::open(root.join("text_encoder"), Device::Cpu, Kind::Float).unwrap();
    let parts = vec![(text, Tokenizer::open(root.join("tokenizer")).unwrap())];
    (vae, TextEncoders::new(Family::StableDiffusion, parts, Device::Cpu).unwrap())
}

#[test]
fn images_encoded_in_the_step_are_what_the_networks_make_of_them() {
    tch::set_num_threads(1);
    let (vae, text) = encoders();
    let mut samples = ImageSamples::new(Arc::new(Colours), &vae, &text, reading(Posterior::Mean, 2)).unwrap();
    let mut drawn = ImageSamples::new(Arc::new(Colours), &vae, &text, reading(Posterior::Sample, 0)).unwrap();
    let mut sizes = Vec::new();
    for micro in 0..3 {
        let batch = samples.batch(micro).unwrap();
        let [b, _, h, w] = batch.latents.size()[..] else { panic!("{:?}", batch.latents) };
        assert_eq!(b, 2);
        sizes.push((h, w));
        // Which images these are is told by the text.
        for row in 0..2 {
            let found = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)].into_iter().filter(|&(bucket, index)| {
                let p = Colours.image(bucket, index).unwrap();
                let (h, w) = p.size.target_size;
                let cond = text.encode(&[&p.caption], p.size).unwrap();
                let near = |a: &Tensor, b: &Tensor| a.size() == b.size() && (a - b).abs().max().double_value(&[]) < 1e-4;
                let x = Tensor::full([1, 3, h, w], f64::from(p.rgb[0]) / 127.5 - 1.0, (Kind::Float, Device::Cpu));
                let latent = tch::no_grad(|| vae.encode(&x)).unwrap().mean * vae.config().scaling_factor;
                near(&batch.cond.encoder_hidden_states.get(row), &cond.encoder_hidden_states.get(0))
                    && near(&batch.latents.get(row), &latent.get(0))
            });
            assert_eq!(found.count(), 1, "batch {micro} row {row}");
        }
        let draw = drawn.batch(micro).unwrap();
        assert!(draw.latents.size() == batch.latents.size() && !draw.latents.equal(&batch.latents));
    }
    sizes.sort_unstable();
    sizes.dedup();
    assert_eq!(sizes.len(), 2, "both buckets in an epoch");
}
