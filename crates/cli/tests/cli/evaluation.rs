//! `eval` that draws: teacher and students from the same prompts and seeds, going on image by image; and `bench`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tch::{Device, Kind};
use unet::{UNet, UNetConfig};

use crate::support::{base, command, copy, fails, names, ok, read_json, run, text};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

const PROMPTS: &str = "Prompt\tCategory\na red circle\tshapes\na blue square\tshapes\ntwo green stars\tcounts\nthree circles\tcounts\n";

/// The command that draws eight images with teacher and student and scores them, into `dir`.
fn call(dir: &Path) -> Vec<String> {
    let (prompts, pruned) = (dir.join("prompts.tsv"), dir.join("pruned"));
    if !prompts.exists() {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(&prompts, PROMPTS).unwrap();
        let model = text(&base().model);
        ok(&["prune", "--model", model, "--plan", text(&base().plan(dir, "0.5")), "--unet-only", "--out", text(&pruned)]);
    }
    let (student, out) = (format!("student={}", text(&pruned)), dir.join("eval.json"));
    let pickscore = format!("pickscore={}", text(&fixture("eval/pickscore")));
    let args =
        ["eval", "--model", text(&base().model), "--unet", &student, "--prompts-file", text(&prompts), "--num-images-per-prompt", "2"];
    let more =
        ["--num-inference-steps", "2", "--draw-batch", "3", "--batch", "3", "--metric", &pickscore, "--device", "cpu", "--out", text(&out)];
    args.iter().chain(&more).map(ToString::to_string).collect()
}

fn run_of(dir: &Path) -> String {
    let call = call(dir);
    let done = run(&call.iter().map(String::as_str).collect::<Vec<_>>());
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{told}");
    told
}

/// Everything that must not depend on where a run was cut: the results, the scores and the images.
fn outcome(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files: Vec<String> = ["eval.json", "per_prompt.json", "image_scores.json"].map(String::from).into();
    for unet in ["teacher", "student"] {
        files.extend(names(&dir.join("images").join(unet)).into_iter().map(|n| format!("images/{unet}/{n}")));
    }
    files.into_iter().map(|name| (name.clone(), std::fs::read(dir.join(&name)).unwrap())).collect()
}

#[test]
fn one_command_draws_and_scores_and_redoes_only_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let told = run_of(dir.path());
    assert!(told.contains("teacher: 8 images drawn now, 0 kept") && told.contains("student: 8 images drawn now, 0 kept"), "{told}");
    let whole = outcome(dir.path());
    assert_eq!(whole.len(), 3 + 2 * 9);
    let file = read_json(&dir.path().join("eval.json"));
    assert_eq!((&file["unets"][0]["name"], &file["unets"][1]["name"]), (&"teacher".into(), &"student".into()));
    assert_eq!(file["by_category"].as_array().unwrap().len(), 4);
    let manifest = |unet: &str| read_json(&dir.path().join("images").join(unet).join("images.json"));
    assert_eq!(manifest("teacher")["images"], manifest("student")["images"], "the same prompts and seeds");
    assert_ne!(manifest("teacher")["settings"]["unet"], manifest("student")["settings"]["unet"]);

    // As after a kill: three images are not there, one is cut, no manifest, and half of the scores.
    let at = |name: &str| dir.path().join("images/student").join(name);
    for name in ["images.json", "00002.png", "00006.png", "00007.png"] {
        std::fs::remove_file(at(name)).unwrap();
    }
    std::fs::write(at("00004.png"), &whole["images/student/00004.png"][..40]).unwrap();
    let path = dir.path().join("image_scores.json");
    let mut kept = read_json(&path);
    for key in ["images", "values"] {
        kept["unets"]["student"]["pickscore"][key].as_array_mut().unwrap().truncate(3);
    }
    std::fs::write(&path, kept.to_string()).unwrap();
    let untouched = std::fs::metadata(at("00003.png")).unwrap().modified().unwrap();
    let told = run_of(dir.path());
    assert!(told.contains("teacher: 0 images drawn now, 8 kept") && told.contains("student: 4 images drawn now, 4 kept"), "{told}");
    assert_eq!(std::fs::metadata(at("00003.png")).unwrap().modified().unwrap(), untouched);
    let again = outcome(dir.path());
    for (name, bytes) in &whole {
        assert!(again[name] == *bytes, "{name} differs from the uninterrupted run's");
    }
    // Kept scores are not computed again: what stands there is believed.
    let mut kept = read_json(&path);
    kept["unets"]["student"]["pickscore"]["values"] = vec![7.5; 8].into();
    std::fs::write(&path, kept.to_string()).unwrap();
    let told = run_of(dir.path());
    assert!(told.contains("student: 0 images drawn now, 8 kept"), "{told}");
    assert_eq!(read_json(&dir.path().join("eval.json"))["unets"][1]["metrics"][0]["value"]["value"], 7.5);
}

#[test]
#[cfg(unix)]
fn a_killed_evaluation_goes_on_to_the_same_bytes() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run_of(dir.path());
    let call = call(other.path());
    let mut child = command(&call.iter().map(String::as_str).collect::<Vec<_>>())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let (first, deadline) = (other.path().join("images/teacher/00000.png"), Instant::now() + Duration::from_secs(120));
    while !first.exists() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no image was drawn");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = names(first.parent().unwrap()).iter().filter(|n| n.ends_with(".png") && !n.starts_with('.')).count();
    let told = run_of(other.path());
    // The last image may have been cut, never an earlier one.
    let again = (0..=1).any(|cut| told.contains(&format!("{} kept", kept - cut)));
    assert!(again, "{kept} were there: {told}");
    let (whole, resumed) = (outcome(dir.path()), outcome(other.path()));
    for (name, bytes) in &whole {
        // The prompts' file has another place, not another name; nothing else may differ.
        assert!(resumed[name] == *bytes, "{name} differs from the uninterrupted run's");
    }
}

#[test]
fn what_cannot_be_drawn_is_told_before_anything_is() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (text(&base().model), dir.path().join("eval.json"));
    let call = ["eval", "--clip", model, "--device", "cpu", "--out", text(&out)];
    let with = |more: &[&str], code: i32, words: &[&str]| fails(&[&call[..], more].concat(), code, words);
    with(&["--model", model], 2, &["--prompts-file", "--scene-prompts"]);
    with(&["--reference", "t=x", "--scene-prompts", "2"], 2, &["prompts are for drawing", "--model"]);
    with(&["--model", model, "--scene-prompts", "2", "--unet", "../a=x"], 2, &["../a=x", "plain name"]);
    with(&["--model", model, "--scene-prompts", "2", "--unet", "teacher=x"], 2, &["named teacher"]);
    with(&["--model", model, "--scene-prompts", "2", "--steps", "0"], 2, &["--num-inference-steps", "from 1"]);
    with(&["--model", model, "--scene-prompts", "2", "--metric", "pickscore=./nowhere"], 3, &["nowhere"]);
    assert!(!dir.path().join("images").exists());
    assert_eq!(run(&[&call[..], &["--model", model, "--reference", "t=x"]].concat()).status.code(), Some(2));
    assert_eq!(run(&call).status.code(), Some(2), "neither images nor a model");
}

/// The test model with another U-Net in it, of some 40 million parameters.
fn large_model(dir: &Path) {
    copy(&base().model, dir);
    let path = dir.join("unet/config.json");
    let mut config = read_json(&path);
    config["block_out_channels"] = vec![256, 320, 384].into();
    config["attention_head_dim"] = vec![8, 8, 8].into();
    config["norm_num_groups"] = 32.into();
    let config = UNetConfig::parse(&config.to_string(), "test").expect("a valid configuration");
    std::fs::remove_dir_all(dir.join("unet")).unwrap();
    UNet::random(&config, 1, Device::Cpu, Kind::Float).unwrap().save(dir.join("unet"), None, &BTreeMap::new()).unwrap();
}

#[test]
fn bench_measures_calls_images_files_and_the_memory_of_each_unet_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (large, out) = (dir.path().join("large"), dir.path().join("speed.json"));
    large_model(&large);
    let small = format!("small={}", text(&base().model.join("unet")));
    let call = ["bench", "--model", text(&large), "--unet", &small, "--rounds", "1", "--warmup", "1", "--image-rounds", "1"];
    let printed = ok(&[&call[..], &["--steps", "2", "--device", "cpu", "--out", text(&out)]].concat());
    assert!(printed.contains("one image of 32 x 32 pixels, 2 steps of ddim") && printed.contains("peak, image"), "{printed}");
    let file = read_json(&out);
    let names =
        |rows: &serde_json::Value| rows.as_array().unwrap().iter().map(|r| r["unet"].as_str().unwrap().to_string()).collect::<Vec<_>>();
    for rows in [&file["latency"], &file["image"]["rows"], &file["footprints"]] {
        assert_eq!(names(rows), ["teacher", "small"]);
    }
    assert!(file["image"]["rows"][1]["median_s"].as_f64().unwrap() > 0.0 && file["image"]["rows"][0]["speedup"] == 1.0);

    let (teacher, small) = (&file["footprints"][0], &file["footprints"][1]);
    let number =
        |row: &serde_json::Value, key: &str| row.pointer(key).and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{key}: {row}"));
    for (row, unet) in [(teacher, large.join("unet")), (small, base().model.join("unet"))] {
        let weights = unet.join("diffusion_pytorch_model.safetensors");
        assert_eq!(number(row, "/unet_file_bytes"), std::fs::metadata(weights).unwrap().len());
        assert_eq!(number(row, "/params"), UNet::open(&unet, Device::Cpu, Kind::Float).unwrap().num_parameters());
        assert!(number(row, "/model_file_bytes") > number(row, "/unet_file_bytes") && number(row, "/macs") > 0);
    }
    // f32 weights are in memory; the small one, measured later, is not charged for them.
    let weights = 4 * (number(teacher, "/params") - number(small, "/params"));
    assert!(weights > 100 << 20, "{weights}");
    for task in ["call", "image"] {
        let peak = |row| number(row, &format!("/{task}/resident_bytes"));
        let gap = peak(teacher) - peak(small);
        assert!(gap > weights / 10 * 9 && gap < weights * 2, "{task}: {gap} beyond the small one's for {weights} of weights");
        assert!(number(small, &format!("/{task}/before_bytes")) < peak(small) && file["footprints"][1][task]["device_bytes"].is_null());
    }
    fails(&[&call[..4], &["teacher=x", "--out", text(&out), "--device", "cpu"]].concat(), 2, &["teacher=..", "taken"]);
    // Found by the process that measures its memory, and told as if by this one.
    let broken = dir.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::copy(base().model.join("unet/config.json"), broken.join("config.json")).unwrap();
    std::fs::copy(large.join("unet/diffusion_pytorch_model.safetensors"), broken.join("diffusion_pytorch_model.safetensors")).unwrap();
    let student = format!("broken={}", text(&broken));
    let begins = format!("error: {}", text(&broken));
    fails(&[&call[..4], &[&student, "--out", text(&out), "--device", "cpu"]].concat(), 3, &[&begins, "another config"]);
    // A U-Net alone draws no image.
    let alone = base().model.join("unet");
    ok(&["speed", "--model", text(&alone), "--rounds", "1", "--no-memory", "--device", "cpu", "--out", text(&out)]);
    let file = read_json(&out);
    assert!(file.get("image").is_none() && file["footprints"][0]["call"].is_null() && file["footprints"][0]["model_file_bytes"].is_null());
}
