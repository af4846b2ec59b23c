//! Input files that are missing, cut off, foreign, or made for another model: one clear line, exit code 3, nothing written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use unet::weights::{TensorFile, Tensors, save_tensors};

use crate::support::{Base, base, fails, names, read_json, text, write_model};

/// A copy of the model's U-Net folder, to be damaged.
fn unet_copy(base: &Base, dir: &Path) -> (PathBuf, PathBuf) {
    let unet = dir.join("unet");
    std::fs::create_dir_all(&unet).unwrap();
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        std::fs::copy(base.model.join("unet").join(name), unet.join(name)).unwrap();
    }
    (unet.clone(), unet.join("diffusion_pytorch_model.safetensors"))
}

/// `forward` on a model, whatever it is.
fn forward_fails(model: &Path, dir: &Path, words: &[&str]) {
    let (inputs, out) = (dir.join("inputs.safetensors"), dir.join("out.safetensors"));
    if !inputs.exists() {
        let tensors = [("sample", vec![1, 4, 8, 8]), ("timestep", vec![1]), ("encoder_hidden_states", vec![1, 5, 28])];
        let mut tensors: Tensors =
            tensors.into_iter().map(|(n, s)| (n.to_string(), tch::Tensor::ones(s, (tch::Kind::Float, tch::Device::Cpu)))).collect();
        for (name, width) in [("text_embeds", 16), ("time_ids", 6)] {
            tensors.insert(name.into(), tch::Tensor::ones([1, width], (tch::Kind::Float, tch::Device::Cpu)));
        }
        save_tensors(&inputs, &tensors, &BTreeMap::new(), None).unwrap();
    }
    fails(&["forward", "--model", text(model), "--inputs", text(&inputs), "--out", text(&out), "--device", "cpu"], 3, words);
    assert!(!out.exists());
}

#[test]
fn a_model_that_is_missing_or_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("nowhere");
    fails(&["inspect", "--model", text(&nowhere)], 3, &["nowhere", "does not exist", "model directory"]);
    fails(&["inspect", "--model", text(dir.path())], 3, &["config.json"]);
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    fails(&["inspect", "--model", text(&file)], 3, &["file", "a text, not a file of weights"]);
}

#[test]
fn weights_that_are_missing_cut_off_or_foreign() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (unet, weights) = unet_copy(base, dir.path());
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    forward_fails(&unet, dir.path(), &["diffusion_pytorch_model.safetensors", "fetch it again"]);
    std::fs::write(&weights, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n").unwrap();
    forward_fails(&unet, dir.path(), &["diffusion_pytorch_model.safetensors", "Git LFS"]);
    std::fs::remove_file(&weights).unwrap();
    forward_fails(&unet, dir.path(), &["no `diffusion_pytorch_model.safetensors`"]);
}

#[test]
fn a_tensor_that_is_missing_unexpected_or_misshapen() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (unet, weights) = unet_copy(base, dir.path());
    let file = TensorFile::open(&weights).unwrap();
    let (whole, metadata) = (file.tensors().unwrap(), file.metadata().clone());
    let change = |f: &dyn Fn(&mut Tensors)| {
        let mut tensors: Tensors = whole.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect();
        f(&mut tensors);
        save_tensors(&weights, &tensors, &metadata, None).unwrap();
    };
    change(&|t| {
        t.remove("conv_in.bias");
    });
    forward_fails(&unet, dir.path(), &["1 missing", "missing `conv_in.bias`"]);
    change(&|t| {
        t.insert("conv_in.surplus".into(), t["conv_in.bias"].shallow_clone());
    });
    forward_fails(&unet, dir.path(), &["1 unexpected", "unexpected `conv_in.surplus`"]);
    change(&|t| {
        t.insert("conv_in.bias".into(), t["conv_in.bias"].narrow(0, 0, 3));
    });
    forward_fails(&unet, dir.path(), &["`conv_in.bias`", "expected shape [8]", "got [3]"]);
    // What a pruned file says is gone.
    let pruned = |removed: &str| {
        let says = [("laptop_diff.version", "1"), ("laptop_diff.removed", removed)];
        save_tensors(&weights, &whole, &says.map(|(k, v)| (k.into(), v.into())).into(), None).unwrap();
    };
    pruned("[\"mid_block.resnets.7\"]");
    let words = ["diffusion_pytorch_model.safetensors", "`laptop_diff.removed`", "`mid_block.resnets.7`", "write the model again"];
    forward_fails(&unet, dir.path(), &words);
    pruned("mid_block");
    forward_fails(&unet, dir.path(), &["diffusion_pytorch_model.safetensors", "`laptop_diff.removed`", "no list"]);
}

#[test]
fn a_configuration_that_is_broken_or_unknown() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (unet, _) = unet_copy(base, dir.path());
    let path = unet.join("config.json");
    let text_of = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text_of[..40]).unwrap();
    forward_fails(&unet, dir.path(), &["config.json", "not a JSON object"]);
    std::fs::write(&path, text_of.replacen('{', "{\"dual_cross_attention\": true,", 1)).unwrap();
    forward_fails(&unet, dir.path(), &["config.json", "dual_cross_attention", "expected", "got"]);
}

#[test]
fn score_files_that_are_no_scores_or_another_models() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (bad, out) = (dir.path().join("scores.json"), dir.path().join("plan.json"));
    let plan = |more: &[&str], words: &[&str]| {
        fails(&[&["plan", "--scores", text(&bad), "--ratio", "0.5", "--out", text(&out)], more].concat(), 3, words);
        assert!(!out.exists());
    };
    plan(&[], &["scores.json", "cannot read"]);
    let whole = std::fs::read_to_string(base.score("output_loss")).unwrap();
    std::fs::write(&bad, &whole[..whole.len() / 2]).unwrap();
    plan(&[], &["scores.json", "not a valid", "line"]);
    std::fs::write(&bad, "{\"format\": \"laptop-diff/plan\", \"version\": 1}").unwrap();
    plan(&[], &["scores.json", "`laptop-diff/plan`", "expected `prune-core/scores`"]);
    std::fs::write(&bad, whole.replacen("\"version\": 2", "\"version\": 99", 1)).unwrap();
    plan(&[], &["scores.json", "99", "version 2"]);
    std::fs::write(&bad, &whole).unwrap();
    let other = dir.path().join("other");
    write_model(&other, 8);
    plan(&["--model", text(&other)], &["scores.json", "made for model `tiny`", "not for `other`"]);
}

#[test]
fn a_plan_of_another_model_or_an_edited_one() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.3");
    let (other, out) = (dir.path().join("other"), dir.path().join("pruned"));
    write_model(&other, 8);
    let prune = |model: &Path, words: &[&str]| {
        fails(&["prune", "--model", text(model), "--plan", text(&plan), "--out", text(&out)], 3, words);
        assert!(!out.exists(), "nothing is left behind");
    };
    prune(&other, &["output_loss-0.3.json", "made for model `tiny`", "not for `other`"]);
    let mut edited = read_json(&plan);
    edited["removed"].as_array_mut().unwrap().pop();
    std::fs::write(&plan, edited.to_string()).unwrap();
    prune(&base.model, &["output_loss-0.3.json", "params_removed", "edited or damaged"]);
    edited["removed"].as_array_mut().unwrap().push("mid_block.resnets.9".into());
    std::fs::write(&plan, edited.to_string()).unwrap();
    prune(&base.model, &["unknown layer `mid_block.resnets.9`"]);
}

#[test]
fn a_calibration_set_that_is_none_or_of_another_shape() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("scores");
    let score = |set: &Path, words: &[&str]| {
        let call = ["score", "--model", text(&base.model), "--calibration", text(set), "--criterion", "output_loss", "--device", "cpu"];
        fails(&[&call[..], &["--out", text(&out)]].concat(), 3, words);
        assert!(!out.exists() || names(&out).is_empty());
    };
    score(&dir.path().join("nothing.safetensors"), &["nothing.safetensors", "No such file"]);
    score(&base.model.join("unet/diffusion_pytorch_model.safetensors"), &["not a calibration set"]);
    let file = TensorFile::open(&base.calibration).unwrap();
    let mut tensors = file.tensors().unwrap();
    let narrow = tensors["encoder_hidden_states"].narrow(2, 0, 20);
    tensors.insert("encoder_hidden_states".into(), narrow);
    let changed = dir.path().join("changed.safetensors");
    save_tensors(&changed, &tensors, file.metadata(), None).unwrap();
    score(&changed, &["encoder_hidden_states", "expected", "28"]);
}

#[test]
fn folders_of_images_that_are_none_or_do_not_match() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("eval.json");
    let eval = |reference: &str, images: &[&str], code: i32, words: &[&str]| {
        let mut args = vec!["eval", "--clip", text(&base.model), "--device", "cpu", "--out", text(&out), "--reference", reference];
        if !images.is_empty() {
            args.push("--images");
            args.extend(images);
        }
        fails(&args, code, words);
        assert!(!out.exists());
    };
    let nowhere = format!("teacher={}", text(&dir.path().join("nowhere")));
    eval(&nowhere, &[], 3, &["nowhere", "generate"]);
    eval("nonsense", &[], 2, &["nonsense", "--reference <NAME=DIR>", "expected NAME=DIR"]);
    let make = |name: &str, seed: &str| {
        let at = dir.path().join(name);
        let call = ["generate", "--model", text(&base.model), "--prompt", "a red circle", "--steps", "1", "--seed", seed];
        crate::support::ok(&[&call[..], &["--device", "cpu", "--out", text(&at)]].concat());
        at
    };
    let (a, b) = (make("a", "1"), make("b", "2"));
    let (first, second) = (format!("a={}", text(&a)), format!("b={}", text(&b)));
    eval(&first, &[&second], 2, &["seed of image 0: expected 1, as in the reference, got 2"]);
    std::fs::write(a.join("00000.png"), "no image").unwrap();
    eval(&first, &[], 3, &["00000.png", "not an intact image"]);
}

#[test]
fn a_report_needs_a_run_directory() {
    let dir = tempfile::tempdir().unwrap();
    fails(&["report", text(&dir.path().join("nowhere"))], 3, &["nowhere", "run directory"]);
    fails(&["report", text(dir.path())], 3, &["layers.json", "inspect"]);
    assert!(names(dir.path()).is_empty());
}
