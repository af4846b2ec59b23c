//! `generate` with everything that can be asked of it, against what diffusers' pipelines computed from the same noise
//! (tests/fixtures/gen_diffusion_pipeline.py).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};

use crate::support::{base, command, copy, fails, names, ok, read_json, text};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/diffusion_pipeline").join(name)
}

fn tensor(path: &Path, name: &str) -> Tensor {
    TensorFile::open(path).unwrap().tensor(name).unwrap().unwrap_or_else(|| panic!("no `{name}` in {}", path.display()))
}

#[test]
fn the_command_draws_what_diffusers_draws() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["sdxl", "sd15", "sd21"] {
        let expected = fixture(model).join("expected.safetensors");
        let meta = TensorFile::open(&expected).unwrap().metadata().clone();
        let prompts: Vec<String> = serde_json::from_str(&meta["prompts"]).unwrap();
        let list = dir.path().join("prompts.txt");
        std::fs::write(&list, prompts.join("\n")).unwrap();
        let noise = dir.path().join("noise.safetensors");
        let tensors = Tensors::from([("latents".to_string(), tensor(&expected, "noise"))]);
        save_tensors(&noise, &tensors, &BTreeMap::new(), None).unwrap();
        // Seeds 7, 8 and 9 are the fixture's.
        let cases: [(&str, &[&str]); 4] = [
            ("ddim.negative", &["--sampler", "ddim", "--negative-prompt", "blue"]),
            ("ddim.skip", &["--clip-skip", "1"]),
            ("dpmpp-2m.karras", &["--sampler", "dpmpp-2m", "--karras", "--vae-slicing"]),
            ("lcm", &["--sampler", "lcm", "--offload"]),
        ];
        for (name, more) in cases {
            let (out, latents) = (dir.path().join(model).join(name), dir.path().join("latents.safetensors"));
            let model = fixture(model);
            let call = [
                "generate",
                "--model",
                text(&model),
                "--prompts-file",
                text(&list),
                "--seed",
                "7",
                "--num-inference-steps",
                &meta["steps"],
            ];
            let call =
                [&call[..], &["--guidance-scale", &meta["guidance"], "--batch", "2", "--device", "cpu", "--out", text(&out)]].concat();
            ok(&[&call[..], &["--latents", text(&noise), "--save-latents", text(&latents)], more].concat());
            let theirs = tensor(&expected, &format!("{name}.latents"));
            let worst = (tensor(&latents, "latents") - theirs).to_kind(Kind::Double).abs().max().double_value(&[]);
            assert!(worst <= 1e-3, "{name} {}: {worst:e}", model.display());
            assert_eq!(names(&out).len(), 4);
        }
    }
}

#[test]
fn parts_one_after_the_other_give_the_same_files() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let call = ["generate", "--model", text(&base.model), "--prompt", "a red circle", "a blue ring", "a green cross", "--steps", "2"];
        let call = [&call[..], &["--sampler", "euler-ancestral", "--batch", "2", "--device", "cpu", "--out", text(&out)]].concat();
        let said = ok(&[&call[..], more].concat());
        (out, said)
    };
    let (a, b) = (make("a", &[]).0, make("b", &["--offload"]).0);
    for name in names(&a) {
        assert_eq!(std::fs::read(a.join(&name)).unwrap(), std::fs::read(b.join(&name)).unwrap(), "{name}");
    }
    // Images that are there are kept, whichever way they were drawn, but not when they would look different.
    assert!(make("a", &["--offload", "--vae-slicing"]).1.contains("0 drawn now, 3 kept"));
    assert!(make("a", &["--clip-skip", "1"]).1.contains("3 drawn now, 0 kept"));
    let settings = &read_json(&a.join("images.json"))["settings"];
    assert_eq!((settings["clip_skip"].as_u64(), settings["sampler"].as_str()), (Some(1), Some("euler-ancestral")));
    let told = diffusion::images::read_png_text(a.join("00002.png")).unwrap();
    assert!(told["settings"].contains("\"clip_skip\":1") && told["prompt"] == "a green cross", "{told:?}");
}

fn changed(model: &Path, file: &str, with: impl FnOnce(&mut serde_json::Value)) {
    let mut value = read_json(&model.join(file));
    with(&mut value);
    std::fs::write(model.join(file), value.to_string()).unwrap();
}

#[test]
fn settings_of_another_solver_are_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("out"));
    copy(&fixture("sd15"), &model);
    changed(&model, "scheduler/scheduler_config.json", |config| {
        config["_class_name"] = "DPMSolverMultistepScheduler".into();
        (config["solver_order"], config["solver_type"]) = (3.into(), "heun".into());
        (config["algorithm_type"], config["a_setting_to_come"]) = ("sde-dpmsolver++".into(), false.into());
    });
    let said = |sampler: &str| {
        let call =
            ["generate", "--model", text(&model), "--prompt", "a red circle", "yellow", "--num-inference-steps", "2", "--batch", "1"];
        let ended = command(&[&call[..], &["--sampler", sampler, "--device", "cpu", "--out", text(&out)]].concat()).output().unwrap();
        assert!(ended.status.success());
        String::from_utf8_lossy(&ended.stderr).into_owned()
    };
    let with_solver = said("dpmpp-2m");
    for told in [
        "`solver_order` is 3; the sampler dpmpp-2m runs with 2",
        "`algorithm_type` is sde-dpmsolver++; the sampler dpmpp-2m runs with dpmsolver++",
        "`solver_type` is heun; the sampler dpmpp-2m runs with midpoint",
        "setting `a_setting_to_come` is not known",
    ] {
        assert_eq!(with_solver.matches(told).count(), 1, "{told}: {with_solver}");
    }
    assert!(!said("ddim").contains("solver_order"));
}

#[test]
fn models_that_do_not_draw_from_text_are_refused_before_anything_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (model, prompts) = (dir.path().join("model"), dir.path().join("prompts.txt"));
    copy(&fixture("sd15"), &model);
    std::fs::write(&prompts, "a red circle").unwrap();
    changed(&model, "unet/config.json", |config| config["in_channels"] = 9.into());
    // Nothing could be loaded.
    for part in ["unet", "vae"] {
        std::fs::write(model.join(part).join("diffusion_pytorch_model.safetensors"), "no weights").unwrap();
    }
    let told = ["unet/config.json", "in_channels", "an inpainting model", "calibration set of tensors"];
    let (out, set) = (dir.path().join("out"), dir.path().join("set.safetensors"));
    fails(&["generate", "--model", text(&model), "--prompt", "red", "--device", "cpu", "--out", text(&out)], 3, &told);
    for source in [["--prompts", text(&prompts)], ["--scenes", "2"]] {
        let call = ["calibrate", "--model", text(&model), "--device", "cpu", "--out", text(&set)];
        fails(&[&call[..], &source].concat(), 3, &told);
    }
    assert!(names(&out).is_empty() && !set.exists());
    // A U-Net alone is told from a whole checkpoint, and from a path that is not there.
    let file = fixture("sd15").join("unet/diffusion_pytorch_model.safetensors");
    let told = ["a U-Net without the text encoders", "--unet"];
    fails(&["generate", "--model", text(&file), "--prompt", "red", "--device", "cpu", "--out", text(&out)], 3, &told);
}

#[test]
fn models_of_the_hub_come_from_its_cache_when_there_is_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, out) = (dir.path().join("hub"), dir.path().join("out"));
    // Nobody listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let call = |model: &str, offline: &str| {
        let args =
            ["generate", "--model", model, "--prompt", "red", "--steps", "1", "--size", "32", "--device", "cpu", "--out", text(&out)];
        let mut command = command(&args);
        command.current_dir(dir.path()).env("HF_HUB_CACHE", &cache).env("HF_HUB_OFFLINE", offline);
        command.env("HF_ENDPOINT", format!("http://127.0.0.1:{port}")).output().unwrap()
    };
    for (offline, word) in [("1", "offline"), ("0", "cannot be reached")] {
        let refused = call("acme/tiny", offline);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(3), "{said}");
        let expected = cache.join("models--acme--tiny").join("snapshots").display().to_string();
        assert!(said.contains(word) && said.contains(&expected) && said.contains("no such folder"), "{said}");
    }
    let folder = cache.join("models--acme--tiny");
    copy(&fixture("sd15"), &folder.join("snapshots/abc123"));
    std::fs::create_dir_all(folder.join("refs")).unwrap();
    std::fs::write(folder.join("refs/main"), "abc123").unwrap();
    for model in ["acme/tiny", "acme/tiny@abc123"] {
        let made = call(model, "1");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        assert_eq!(read_json(&out.join("images.json"))["settings"]["model"], "acme/tiny");
    }
}
