//! `distill` on a cache and on images: the same training whether images were encoded before or are encoded in the step.

use std::collections::BTreeMap;
use std::path::Path;

use image::RgbImage;

use crate::support::{DISTILL, base, fails, ok, read_json, text, trainer_keys};

fn write_folder(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for n in 0..5u32 {
        let (w, h) = [(40, 40), (64, 40)][n as usize % 2];
        let image = RgbImage::from_fn(w, h, |x, y| image::Rgb([(x * 7 + n * 50) as u8, (y * 5) as u8, (x * y) as u8]));
        diffusion::images::write_png(dir.join(format!("{n}.png")), &image, &BTreeMap::new()).unwrap();
        std::fs::write(dir.join(format!("{n}.txt")), format!("a red circle {n}")).unwrap();
    }
}

fn settings(data: &str) -> String {
    let (rest, _) = DISTILL.split_once("[data]").unwrap();
    format!("{}\n[data]\n{data}\ncaption_dropout = 0.25\n", rest.replace("taps = \"stages\"", "taps = \"self_attention\""))
}

#[test]
fn images_train_the_same_student_from_a_cache_and_on_the_fly() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (folder, cache) = (dir.path().join("images"), dir.path().join("cache"));
    write_folder(&folder);
    ok(&["cache", "--model", text(&base.model), "--images", text(&folder), "--device", "cpu", "--out", text(&cache), "--size", "32"]);
    let plan = base.plan(dir.path(), "0.3");
    let config = dir.path().join("distill.toml");
    let call = |out: &Path, settings: &str| {
        std::fs::write(&config, settings).unwrap();
        let call = ["distill", "--model", text(&base.model), "--plan", text(&plan), "--config", text(&config), "--out", text(out)];
        [&call[..], &["--device", "cpu"]].concat().iter().map(|s| s.to_string()).collect::<Vec<_>>()
    };
    let train = |name: &str, data: &str| {
        let out = dir.path().join(name);
        let args = call(&out, &settings(data));
        ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let rows = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
        let losses: Vec<f64> =
            rows.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["loss"].as_f64().unwrap()).collect();
        assert!(rows.contains(".attn1") && losses.len() == 2, "{rows}");
        losses
    };
    let losses = train("cached", "source = \"cache\"\npath = \"cache\"\nlatents = \"mean\"\nworkers = 0");
    let same = train("images", "source = \"images\"\npaths = [\"images\"]\nsize = 32\nlatents = \"mean\"\nworkers = 2");
    // What f16 keeps of moments and text.
    for (a, b) in losses.iter().zip(&same) {
        assert!((a - b).abs() < 5e-3 * a.abs(), "{losses:?} {same:?}");
    }
    assert_eq!(read_json(&dir.path().join("images/.work/images.json"))["images"].as_array().unwrap().len(), 5);

    // Threads are no part of a run's identity: a finished one is gone on with. Draws from the posterior are.
    let out = dir.path().join("cached");
    let again = call(&out, &settings("source = \"cache\"\npath = \"cache\"\nlatents = \"mean\"\nworkers = 3"));
    ok(&again.iter().map(String::as_str).collect::<Vec<_>>());
    let other = call(&out, &settings("source = \"cache\"\npath = \"cache\"\nlatents = \"sample\""));
    fails(&other.iter().map(String::as_str).collect::<Vec<_>>(), 3, &["another run", "data was", "mean"]);
}

#[test]
fn data_that_does_not_fit_is_refused_before_training() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.3");
    let config = dir.path().join("distill.toml");
    let refused = |data: &str, code: i32, words: &[&str]| {
        std::fs::write(&config, settings(data)).unwrap();
        let out = dir.path().join("out");
        let call = ["distill", "--model", text(&base.model), "--plan", text(&plan), "--config", text(&config), "--out", text(&out)];
        fails(&[&call[..], &["--device", "cpu"]].concat(), code, words);
    };
    refused("source = \"cache\"\npath = \"cache\"", 3, &["cache.json"]);
    refused("source = \"cache\"\npath = \"cache\"\ncount = 3", 2, &["unknown field `count`", "workers"]);
    refused("source = \"pictures\"", 2, &["pictures", "images"]);
    refused("source = \"images\"\npaths = []", 2, &["data.paths"]);
    refused("source = \"images\"\npaths = [\"absent\"]", 3, &["absent", "a folder of images"]);
    refused("source = \"images\"\npaths = [\"x\"]\nsize = 33", 2, &["33"]);
    refused("source = \"images\"\npaths = [\"x\"]\nworkers = 9999", 2, &["data.workers"]);
    refused("source = \"scenes\"\nseed = 1\ncount = 3\noffset_noise = -1.0", 2, &["data.offset_noise"]);
    // A cache of another model.
    let (folder, cache, other) = (dir.path().join("images"), dir.path().join("cache"), dir.path().join("other"));
    write_folder(&folder);
    crate::support::write_model(&other, 77);
    ok(&["cache", "--model", text(&other), "--images", text(&folder), "--device", "cpu", "--out", text(&cache), "--size", "32"]);
    refused("source = \"cache\"\npath = \"cache\"", 3, &["made with another model", "text_encoder/model.safetensors"]);
}

#[test]
fn a_training_that_goes_astray_ends_with_its_own_code_and_no_student() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (plan, config) = (base.plan(dir.path(), "0.3"), dir.path().join("distill.toml"));
    // The first step leaves f32; or all weights are finite, and no loss after the first step is.
    for (name, lr, words) in [
        ("f32", "1e39", &["the weights are NaN or infinite after step", "`lr`", "`clip_norm`"][..]),
        ("loss", "1e30", &["of 4 steps", "holds the last finite ones", "checkpoint-00000004"]),
    ] {
        let out = dir.path().join(name);
        std::fs::write(&config, DISTILL.replace("lr = 1e-3", &format!("lr = {lr}")).replace("warmup = 1", "warmup = 0")).unwrap();
        let call = ["distill", "--model", text(&base.model), "--plan", text(&plan), "--config", text(&config), "--out", text(&out)];
        let call = [&call[..], &["--device", "cpu"]].concat();
        for _ in 0..2 {
            fails(&call, 5, words);
            assert!(!out.join("unet").exists() && !out.join("distill.json").exists());
        }
        if name == "loss" {
            let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
            assert!(log.lines().last().unwrap().contains("\"loss\":null"), "{log}");
        }
    }
}

#[test]
fn a_layer_wise_warm_up_and_adapters_alone_are_settings() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.3");
    let (config, out) = (dir.path().join("distill.toml"), dir.path().join("out"));
    let loops = trainer_keys(DISTILL);
    let lora = "[lora]\nrank = 2\nalpha = 4.0\ntargets = [\"attention\"]\n";
    std::fs::write(&config, format!("{DISTILL}\n[layerwise]{loops}\n{lora}")).unwrap();
    let call = ["distill", "--model", text(&base.model), "--plan", text(&plan), "--config", text(&config), "--out", text(&out)];
    let call = [&call[..], &["--device", "cpu"]].concat();
    ok(&call);
    let log = std::fs::read_to_string(out.join(".work/layerwise/log.jsonl")).unwrap();
    assert!(log.contains("\"layerwise."), "{log}");
    let adapters = unet::weights::TensorFile::open(out.join("pytorch_lora_weights.safetensors")).unwrap();
    assert!(adapters.shapes().all(|(name, _)| name.starts_with("unet.") && (name.contains(".attn1.") || name.contains(".attn2."))));
    let trained = || std::fs::read(out.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let first = trained();
    // Finished in both parts, it has nothing left to do.
    ok(&call);
    assert!(trained() == first);
    std::fs::write(&config, format!("{DISTILL}\n[layerwise]{loops}\n{}", lora.replace("rank = 2", "rank = 0"))).unwrap();
    fails(&call, 2, &["lora.rank", "at least 1"]);
}
