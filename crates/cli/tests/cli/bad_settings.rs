//! Budgets out of reach, unknown settings, values out of range, outputs that cannot be written: each its own exit code.

use std::path::Path;

use crate::support::{DISTILL, base, fails, names, ok, text};

#[test]
fn an_infeasible_budget_says_how_far_one_can_go() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("plan.json");
    let scores = base.score("output_loss");
    for method in ["exact", "greedy", "random", "bk-sdm"] {
        let call = ["plan", "--scores", text(&scores), "--model", text(&base.model), "--ratio", "0.999", "--method", method];
        fails(&[&call[..], &["--out", text(&out)]].concat(), 4, &["at most", "ratio 0."]);
    }
    assert!(!out.exists());
}

#[test]
fn values_out_of_range_and_unknown_layers() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (out, scores) = (dir.path().join("out"), base.score("output_loss"));
    let plan = |more: &[&str], words: &[&str]| {
        fails(&[&["plan", "--scores", text(&scores), "--out", text(&out)], more].concat(), 2, words);
    };
    plan(&["--ratio", "1.5"], &["`ratio` is 1.5", "from 0 to 1"]);
    plan(&["--ratio", "0.5", "--keep", "mid_block.resnet.0"], &["mid_block.resnet.0", "did you mean `mid_block.resnets.0`?"]);
    plan(&["--ratio", "0.5", "--keep", "mid_block.resnets.0", "--remove", "mid_block.resnets.0"], &["both kept and removed"]);
    plan(&["--ratio", "0.5", "--method", "bk-sdm"], &["--model"]);
    plan(&[], &["--ratio"]);
    let model = text(&base.model);
    let set = text(&base.calibration);
    let score = ["score", "--model", model, "--calibration", set, "--device", "cpu", "--out", text(&out)];
    fails(&[&score[..], &["--criterion", "output_loss", "--samples", "99"]].concat(), 2, &["--samples 99", "1 to 6"]);
    fails(&[&score[..], &["--criterion", "output_loss", "--batch", "0"]].concat(), 2, &["--batch 0"]);
    fails(&[&score[..], &["--criterion", "best_guess"]].concat(), 2, &["best_guess", "output_loss"]);
    let without = ["score", "--model", model, "--device", "cpu", "--out", text(&out)];
    fails(&[&without[..], &["--criterion", "random,taylor"]].concat(), 2, &["--criterion taylor needs --calibration"]);
    ok(&[&without[..], &["--criterion", "random,magnitude"]].concat());
    assert_eq!(names(&out), ["magnitude.json", "random.json"]);
    std::fs::remove_dir_all(&out).unwrap();
    let make = ["generate", "--model", model, "--device", "cpu", "--out", text(&out), "--steps", "2"];
    fails(&[&make[..], &["--prompt", "a red circle", "--size", "33"]].concat(), 2, &["height", "multiple of", "33"]);
    fails(&[&make[..], &["--prompt", "a red circle", "--sampler", "magic"]].concat(), 2, &["ddim", "dpmpp-2m", "lcm", "magic"]);
    fails(&[&make[..], &["--prompt", "a red circle", "--karras"]].concat(), 2, &["karras", "euler, dpmpp-2m", "ddim"]);
    fails(&[&make[..], &["--prompt", "a red circle", "--clip-skip", "40"]].concat(), 2, &["clip_skip", "40"]);
    fails(&make, 2, &["--prompt"]);
    fails(&["render-scenes", "--count", "1", "--size", "8", "--out", text(&out)], 2, &["image", "8"]);
    fails(&["inspect", "--model", model, "--latent-size", "0"], 3, &["latent_h", "0"]);
    fails(&["inspect", "--model", model, "--device", "cpu"], 2, &["--device"]);
    assert!(!out.exists() || names(&out).is_empty(), "{:?}", names(&out));
}

#[test]
fn a_settings_file_with_a_wrong_or_missing_key() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.3");
    let (config, out) = (dir.path().join("distill.toml"), dir.path().join("student"));
    let distill = |settings: &str, words: &[&str]| {
        std::fs::write(&config, settings).unwrap();
        let call = ["distill", "--model", text(&base.model), "--plan", text(&plan), "--config", text(&config), "--device", "cpu"];
        fails(&[&call[..], &["--out", text(&out)]].concat(), 2, &[&["distill.toml"], words].concat());
        assert!(!out.exists(), "settings are read before anything is made");
    };
    distill(&DISTILL.replace("warmup", "warm_up"), &["warm_up", "warmup"]);
    distill(&DISTILL.replace("feature_loss = \"normalized\"", "feature_loss = \"magic\""), &["magic", "normalized"]);
    for (old, new) in [("features", "feature_loss"), ("feat", "feature_weight"), ("out", "output_weight"), ("schedule", "lr_schedule")] {
        distill(&DISTILL.replace(&format!("\n{new} = "), &format!("\n{old} = ")), &[old, new]);
    }
    distill(&DISTILL.replace("seed = 3\n", ""), &["missing field `seed`"]);
    distill(&DISTILL.replace("steps = 4", "steps = \"four\""), &["steps", "four"]);
    distill("[losses", &["distill.toml"]);
}

#[test]
fn settings_out_of_range_are_refused_before_anything_is_made() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.3");
    let (config, out) = (dir.path().join("distill.toml"), dir.path().join("student"));
    for (from, to, words) in [
        ("norm_power = 2", "norm_power = 3", ["norm_power", "1 or 2"]),
        ("batch = 2", "batch = 0", ["`batch`", "at least 1"]),
        ("lr = 1e-3", "lr = -1.0", ["`lr`", "positive"]),
        ("caption_dropout = 0.1", "caption_dropout = 7.0", ["caption_dropout", "0 to 1"]),
        ("count = 8", "count = 0", ["data.count", "at least 1"]),
    ] {
        std::fs::write(&config, DISTILL.replacen(from, to, 1)).unwrap();
        let call = ["distill", "--model", text(&base.model), "--plan", text(&plan), "--config", text(&config), "--device", "cpu"];
        fails(&[&call[..], &["--out", text(&out)]].concat(), 2, &words);
        assert!(!out.exists());
    }
}

/// A path that nobody can write, the superuser neither: its folder is a file.
fn unwritable(dir: &Path) -> String {
    let file = dir.join("file");
    std::fs::write(&file, "x").unwrap();
    text(&file.join("out.json")).to_string()
}

#[test]
fn an_unwritable_output_is_found_before_the_work() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let out = unwritable(dir.path());
    let (model, set, scores) = (text(&base.model), text(&base.calibration), base.score("output_loss"));
    let plan = base.plan(dir.path(), "0.3");
    let settings = dir.path().join("distill.toml");
    std::fs::write(&settings, DISTILL).unwrap();
    let calls: [&[&str]; 9] = [
        &["inspect", "--model", model],
        &["calibrate", "--model", model, "--scenes", "4"],
        &["score", "--model", model, "--calibration", set, "--criterion", "output_loss"],
        &["plan", "--scores", text(&scores), "--ratio", "0.5"],
        &["audit", "--model", model, "--calibration", set, "--scores", text(&scores)],
        &["joint", "--model", model, "--calibration", set, "--plan", text(&plan)],
        &["prune", "--model", model, "--plan", text(&plan)],
        &["distill", "--model", model, "--plan", text(&plan), "--config", text(&settings)],
        &["generate", "--model", model, "--prompt", "a red circle"],
    ];
    for call in calls {
        fails(&[call, &["--out", &out]].concat(), 6, &["cannot be written", "--out"]);
    }
    fails(&["render-scenes", "--count", "1", "--out", &out], 6, &["cannot be written"]);
    fails(&["plan", "--scores", text(&scores), "--ratio", "0.5", "--out", text(dir.path())], 2, &["this is a folder"]);
}

#[test]
fn a_folder_with_something_in_it_is_not_overwritten() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.3");
    let before = names(&base.model);
    fails(&["prune", "--model", text(&base.model), "--plan", text(&plan), "--out", text(&base.model)], 2, &["something already"]);
    assert_eq!(names(&base.model), before);
}

#[test]
fn the_committed_settings_of_retraining_are_accepted() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.3");
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let scenes: toml::Table = toml::from_str("source = \"scenes\"\nseed = 1\ncount = 8\ncaption_dropout = 0.1").unwrap();
    for (name, table) in [
        ("reproduce-tiny", Some("distill")),
        ("study-tiny", Some("distill")),
        ("study-mid", Some("distill")),
        ("distill-sd15", None),
        ("distill-sdxl", None),
    ] {
        let committed = std::fs::read_to_string(configs.join(format!("{name}.toml"))).unwrap();
        let all: toml::Table = toml::from_str(&committed).unwrap();
        let mut settings = table.map_or(&all, |t| all[t].as_table().unwrap()).clone();
        // The whole run would take minutes and needs a cache; its other settings are the same.
        settings.insert("data".into(), scenes.clone().into());
        let trainer = settings["trainer"].as_table_mut().unwrap();
        trainer.insert("batch".into(), 2.into());
        if trainer.contains_key("accumulate") {
            trainer.insert("accumulate".into(), 2.into());
        }
        if let Some(validation) = settings.get_mut("validation").and_then(toml::Value::as_table_mut) {
            validation.insert("steps".into(), 1.into());
        }
        let (config, out) = (dir.path().join(format!("{name}.toml")), dir.path().join(name));
        std::fs::write(&config, toml::to_string(&settings).unwrap()).unwrap();
        let call = ["distill", "--model", text(&base.model), "--plan", text(&plan), "--config", text(&config), "--steps", "1"];
        ok(&[&call[..], &["--device", "cpu", "--out", text(&out)]].concat());
        let expected: &[&str] = match settings.contains_key("validation") {
            false => &[".work", "distill.json", "log.jsonl", "tensorboard", "unet"],
            true => &[".work", "distill.json", "log.jsonl", "tensorboard", "unet", "validation", "validation.jsonl"],
        };
        assert_eq!(names(&out), expected, "{name}");
    }
}
