//! What a run needs before its weights are there: random models of an architecture, published reductions, estimates, fetching.

use std::path::{Path, PathBuf};

use crate::support::{command, fails, names, ok, read_json, text};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// SDXL's full depth at a small width, with the embedded model's other parts.
fn deep_model(dir: &Path) -> PathBuf {
    let model = dir.join("model");
    let unet = root("configs/rehearse/sdxl-unet.json");
    ok(&["random-model", "--unet", text(&unet), "--rest", text(&root("assets/tiny-sdxl")), "--seed", "3", "--out", text(&model)]);
    model
}

#[test]
fn a_random_model_is_a_whole_model_and_the_same_for_the_same_seed() {
    let dir = tempfile::tempdir().unwrap();
    let model = deep_model(dir.path());
    let parts = ["clip", "model_index.json", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"];
    assert_eq!(names(&model), parts);
    let weights = |model: &Path| std::fs::read(model.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let again = tempfile::tempdir().unwrap();
    assert_eq!(weights(&model), weights(&deep_model(again.path())));
    let drawn = dir.path().join("images");
    ok(&["generate", "--model", text(&model), "--prompt", "a red circle", "--steps", "1", "--device", "cpu", "--out", text(&drawn)]);

    // A U-Net that takes one text encoder makes a Stable Diffusion model of the first kind.
    let small = dir.path().join("sd15");
    let unet = root("configs/rehearse/sd15-unet.json");
    let tiny = root("assets/tiny-sdxl");
    ok(&["random-model", "--unet", text(&unet), "--rest", text(&tiny), "--out", text(&small)]);
    assert_eq!(read_json(&small.join("model_index.json"))["_class_name"], "StableDiffusionPipeline");
    assert!(!small.join("text_encoder_2").exists());
    let second = root("configs/full-sdxl/text_encoder_2.json");
    let call = ["random-model", "--unet", text(&unet), "--rest", text(&tiny), "--text-encoder-2", text(&second)];
    let none = dir.path().join("none");
    fails(&[&call[..], &["--out", text(&none)]].concat(), 2, &["text_encoder_2", "one text encoder"]);
    assert!(!none.exists());
}

#[test]
fn published_reductions_have_budgets_of_their_own_which_other_plans_can_take() {
    let dir = tempfile::tempdir().unwrap();
    let model = deep_model(dir.path());
    let images = dir.path().join("images");
    ok(&["render-scenes", "--count", "2", "--captions", "--out", text(&images)]);
    assert!(std::fs::read_to_string(images.join("00001.txt")).is_ok_and(|caption| !caption.is_empty()));
    let (set, scores) = (dir.path().join("set.safetensors"), dir.path().join("scores"));
    ok(&["calibrate", "--model", text(&model), "--images", text(&images), "--device", "cpu", "--out", text(&set)]);
    let call = ["score", "--model", text(&model), "--calibration", text(&set), "--criterion", "magnitude"];
    ok(&[&call[..], &["--device", "cpu", "--out", text(&scores)]].concat());
    let scores = scores.join("magnitude.json");
    let plan = |method: &str, name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let call = ["plan", "--model", text(&model), "--scores", text(&scores), "--method", method, "--out", text(&out)];
        ok(&[&call[..], more].concat());
        (read_json(&out), out)
    };
    let (rival, file) = plan("ssd-1b", "rival.json", &[]);
    assert_eq!(rival["method"], "ssd-1b");
    let (exact, _) = plan("exact", "exact.json", &["--like", text(&file)]);
    assert_eq!(exact["budget"]["required"], rival["params_removed"]);
    assert!(exact["params_removed"].as_u64() >= rival["params_removed"].as_u64());
    assert!(exact["predicted"].as_f64() <= rival["predicted"].as_f64());

    let out = dir.path().join("no.json");
    let call = ["plan", "--model", text(&model), "--scores", text(&scores), "--out", text(&out)];
    fails(&call, 2, &["--ratio", "--like"]);
    fails(&[&call[..], &["--method", "koala-700m", "--ratio", "0.5"]].concat(), 2, &["koala-700m", "leave --ratio out"]);
    assert!(!out.exists());
}

#[test]
fn an_estimate_needs_no_weights_and_counts_what_scoring_takes() {
    let (unet, vae) = (root("configs/rehearse/sdxl-unet.json"), root("assets/tiny-sdxl/vae"));
    let call = ["estimate", "--unet", text(&unet), "--vae", text(&vae), "--device", "cpu", "--json"];
    let estimate: serde_json::Value = serde_json::from_str(&ok(&call)).unwrap();
    assert_eq!((estimate["layers"].as_u64(), estimate["latent_size"].as_u64()), (Some(227), Some(16)));
    let passes = estimate["scoring_passes"].as_f64().unwrap();
    assert!(passes > 100.0 && passes < 228.0, "{passes}");
    for seconds in ["forward_s", "train_s", "encode_s", "decode_s"] {
        assert!(estimate[seconds].as_f64().is_some_and(|s| s > 0.0), "{seconds}");
    }
    let missing = root("configs/rehearse/none.json");
    fails(&["estimate", "--unet", text(&missing), "--vae", text(&vae), "--device", "cpu"], 3, &["none.json"]);
}

#[test]
fn fetching_links_to_the_cache_and_replaces_nothing_but_links() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, link) = (dir.path().join("hub"), dir.path().join("data/vocab.txt"));
    let snapshot = cache.join("models--some--one/snapshots/c0ffee");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(snapshot.join("vocab.txt"), "words").unwrap();
    std::fs::create_dir_all(cache.join("models--some--one/refs")).unwrap();
    std::fs::write(cache.join("models--some--one/refs/main"), "c0ffee").unwrap();
    let call = |out: &Path| {
        let mut call = command(&["fetch", "some/one:vocab.txt", "--out", text(out)]);
        call.env("HF_HUB_CACHE", &cache).env("HF_HUB_OFFLINE", "1");
        call.output().unwrap()
    };
    for _ in 0..2 {
        let out = call(&link);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "words");
    }
    let own = dir.path().join("own.txt");
    std::fs::write(&own, "mine").unwrap();
    let out = call(&own);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("already there"));
    assert_eq!(std::fs::read_to_string(&own).unwrap(), "mine");
}
