//! One file in, one file out: every command that takes a model directory takes a whole checkpoint, with the same results.

use std::path::{Path, PathBuf};

use unet::weights::TensorFile;

use crate::support::{fails, ok, read_json, text};

/// A model that draws scenes, in the shape of SDXL; it predicts the velocity.
fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-sdxl")
}

/// The pixels that a model draws of two prompts; the files also say of which U-Net.
fn images(model: &Path, out: &Path, more: &[&str]) -> Vec<image::RgbImage> {
    let call = ["generate", "--model", text(model), "--prompt", "a red circle", "a blue square", "--out", text(out), "--device", "cpu"];
    ok(&[&call, &["--num-inference-steps", "2"][..], more].concat());
    let list = read_json(&out.join("images.json"));
    let files = list["images"].as_array().unwrap().iter().map(|image| out.join(image["file"].as_str().unwrap()));
    files.map(|file| image::open(file).unwrap().to_rgb8()).collect()
}

#[test]
fn a_checkpoint_is_taken_like_its_directory_and_comes_out_smaller() {
    let (model, dir) = (model(), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name);
    let file = at("whole.safetensors");
    ok(&["convert", text(&model), text(&file)]);
    let drawn = images(&model, &at("a"), &[]);
    assert_eq!(drawn.len(), 2);
    assert!(drawn == images(&file, &at("b"), &[]));
    assert!(drawn == images(&file, &at("c"), &["--offload", "--vae", text(&model.join("vae")), "--tokenizer", text(&model)]));

    let calibrated = |model: &Path, name: &str| {
        let out = at(name);
        ok(&["calibrate", "--model", text(model), "--scenes", "4", "--bins", "2", "--out", text(&out), "--device", "cpu"]);
        TensorFile::open(out).unwrap().tensors().unwrap()
    };
    let (a, b) = (calibrated(&model, "a.safetensors"), calibrated(&file, "b.safetensors"));
    assert!(a.keys().eq(b.keys()) && a.iter().all(|(name, t)| t.equal(&b[name])));

    ok(&["score", "--model", text(&file), "--criterion", "magnitude", "--out", text(&at("scores")), "--device", "cpu"]);
    let (scores, plan) = (at("scores/magnitude.json"), at("plan.json"));
    // Without padding, so that the file is smaller, too.
    let call = ["plan", "--model", text(&file), "--scores", text(&scores), "--ratio", "0.1", "--portable", "comfyui"];
    ok(&[&call[..], &["--out", text(&plan)]].concat());
    let small = at("small.safetensors");
    ok(&["prune", "--model", text(&file), "--plan", text(&plan), "--format", "checkpoint", "--out", text(&small)]);
    assert!(std::fs::metadata(&small).unwrap().len() < std::fs::metadata(&file).unwrap().len());
    let drawn = images(&small, &at("d"), &[]);
    // The student as the directory's U-Net draws the same scenes, by other sums.
    let pruned = at("pruned");
    ok(&["prune", "--model", text(&file), "--plan", text(&plan), "--unet-only", "--out", text(&pruned)]);
    let again = at("again.safetensors");
    ok(&["convert", text(&file), text(&again), "--unet", text(&pruned)]);
    assert!(drawn == images(&again, &at("e"), &[]));

    for (from, out) in [(&file, &small), (&model, &at("folder"))] {
        fails(&["convert", text(from), text(out)], 2, &[text(out)]);
    }
}

#[test]
fn files_for_other_programs_say_what_the_model_predicts() {
    let (model, dir) = (model(), tempfile::tempdir().unwrap());
    for format in ["single-file", "checkpoint"] {
        let out = dir.path().join(format!("{format}.safetensors"));
        ok(&["prune", "--model", text(&model), "--format", format, "--out", text(&out)]);
        let file = TensorFile::open(&out).unwrap();
        assert_eq!(file.shape("v_pred"), Some(&[0][..]), "{format}");
        assert_eq!(file.metadata()["modelspec.prediction_type"], "v", "{format}");
        assert_eq!(file.has("first_stage_model.decoder.conv_in.weight"), format == "checkpoint");
    }
    let lone = dir.path().join("single-file.safetensors");
    let out = dir.path().join("images");
    fails(&["generate", "--model", text(&lone), "--prompt", "x", "--out", text(&out), "--device", "cpu"], 3, &[text(&lone), "--unet"]);
    // As a U-Net it draws, and so is its purpose.
    assert!(images(&model, &dir.path().join("a"), &["--unet", text(&lone)]) == images(&model, &dir.path().join("b"), &[]));
}
