//! The whole flow on a small random model: every subcommand's files are what the next one reads.

use std::path::Path;

use serde_json::Value;

use crate::support::{Base, DISTILL, base, copy, fails, names, ok, read_json, run, text};

fn f64s(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn inspect_counts_every_parameter() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("layers.json");
    let printed = ok(&["inspect", "--model", text(&base.model), "--json", "--out", text(&out)]);
    let layers = read_json(&out);
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), layers);
    assert_eq!((&layers["family"], &layers["prediction_type"]), (&"SDXL".into(), &"v_prediction".into()));
    assert_eq!((&layers["latent"], &layers["image"]), (&serde_json::json!([8, 8]), &serde_json::json!([32, 32])));
    let unet = unet::UNet::open(&base.model, tch::Device::Cpu, tch::Kind::Float).unwrap();
    assert_eq!(layers["table"]["total_params"].as_u64().unwrap(), unet.num_parameters());
    let table = ok(&["inspect", "--model", text(&base.model.join("unet"))]);
    assert!(table.contains("mid_block.attentions.0.transformer_blocks.1.ff") && table.contains("tiny (SDXL, latents 8 x 8)"), "{table}");
    let blocks: Value = serde_json::from_str(&ok(&["inspect", "--model", text(&base.model), "--granularity", "block", "--json"])).unwrap();
    let count = |v: &Value| v["table"]["layers"].as_array().unwrap().len();
    // Three branches of each block become one item.
    assert!(count(&blocks) < count(&layers));
    assert_eq!(blocks["table"]["total_params"], layers["table"]["total_params"]);
}

#[test]
fn calibration_sets_of_two_seeds_differ_and_one_seed_repeats() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let again = dir.path().join("again.safetensors");
    ok(&[
        "calibrate",
        "--model",
        text(&base.model),
        "--scenes",
        "6",
        "--seed",
        "1",
        "--bins",
        "3",
        "--device",
        "cpu",
        "--out",
        text(&again),
    ]);
    let bytes = |p: &Path| std::fs::read(p).unwrap();
    assert_eq!(bytes(&again), bytes(&base.calibration));
    assert_ne!(bytes(&base.heldout), bytes(&base.calibration));
    let prompts = dir.path().join("prompts.txt");
    std::fs::write(&prompts, "a red circle\n\n a large blue square \n").unwrap();
    let free = dir.path().join("free.safetensors");
    let call = ["calibrate", "--model", text(&base.model), "--prompts", text(&prompts), "--steps", "3", "--device", "cpu", "--json"];
    let summary: Value = serde_json::from_str(&ok(&[&call[..], &["--out", text(&free)]].concat())).unwrap();
    assert_eq!((&summary["points"], &summary["source"]), (&2.into(), &"trajectories".into()));
    let set = data::CalibrationSet::open(&free).unwrap();
    assert_eq!(set.prompts, ["a red circle", "a large blue square"]);
    assert!(set.target.is_none());
}

#[test]
fn scores_have_samples_and_agree_with_a_forward_pass() {
    let base = base();
    let scores = read_json(&base.score("output_loss"));
    let rows = scores["scores"].as_array().unwrap();
    assert_eq!(rows.len(), scores["table"]["layers"].as_array().unwrap().len());
    assert_eq!(scores["bins"].as_array().unwrap().len(), 6);
    assert!(rows.iter().all(|r| f64s(&r["samples"]).len() == 6 && r["value"].as_f64().unwrap() >= 0.0));
    // The same number, by hand, for one layer and the first sample.
    let row = &rows[rows.len() / 2];
    let set = data::CalibrationSet::open(&base.calibration).unwrap();
    let unet = unet::UNet::open(&base.model, tch::Device::Cpu, tch::Kind::Float).unwrap();
    let point = set.batch(0, 1, tch::Device::Cpu, tch::Kind::Float).unwrap();
    let less = unet.prune(&prune_core::RemovalSet::single(row["id"].as_str().unwrap())).unwrap();
    let predict = |u: &unet::UNet| tch::no_grad(|| u.forward(&point.x_t, &point.timesteps, &point.cond)).unwrap();
    let gap = (predict(&unet) - predict(&less)).to_kind(tch::Kind::Double).square().mean(tch::Kind::Double).double_value(&[]);
    let stored = f64s(&row["samples"])[0];
    assert!((gap - stored).abs() <= 1e-3 * gap, "{gap} against {stored}");
    for criterion in ["task_loss_delta", "magnitude", "taylor", "random", "clip_score"] {
        assert_eq!(read_json(&base.score(criterion))["criterion"], criterion);
    }
}

#[test]
fn plans_meet_their_budget_and_the_exact_one_is_the_cheapest() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let mut predicted = Vec::new();
    for method in ["exact", "greedy", "random", "bk-sdm"] {
        let out = dir.path().join(format!("{method}.json"));
        let scores = base.score("output_loss");
        let args =
            ["plan", "--scores", text(&scores), "--model", text(&base.model), "--ratio", "0.5", "--method", method, "--out", text(&out)];
        let printed = ok(&args);
        assert!(printed.contains("parameters") && printed.contains("predicted"), "{printed}");
        let plan = read_json(&out);
        assert!(plan["params_ratio"].as_f64().unwrap() >= 0.5);
        assert_eq!(plan["optimal"].as_bool().unwrap(), method == "exact");
        predicted.push(plan["predicted"].as_f64().unwrap());
    }
    assert!(predicted[1..].iter().all(|p| *p >= predicted[0]), "{predicted:?}");
    let out = dir.path().join("pinned.json");
    let scores = base.score("magnitude");
    let pinned = ["--keep", "mid_block.resnets.0", "--remove", "up_blocks.0.resnets.1", "--macs-ratio", "0.3"];
    ok(&[&["plan", "--scores", text(&scores), "--out", text(&out)], &pinned[..]].concat());
    let removed = read_json(&out)["removed"].clone();
    let removed: Vec<&str> = removed.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    assert!(removed.contains(&"up_blocks.0.resnets.1") && !removed.contains(&"mid_block.resnets.0"));
}

#[test]
fn block_plans_prune_whole_blocks() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (scores, plan, out) = (dir.path().join("scores"), dir.path().join("plan.json"), dir.path().join("pruned"));
    let call = ["score", "--model", text(&base.model), "--calibration", text(&base.calibration), "--criterion", "magnitude"];
    ok(&[&call[..], &["--granularity", "block", "--device", "cpu", "--out", text(&scores)]].concat());
    let file = scores.join("magnitude.json");
    let call = ["plan", "--scores", text(&file), "--ratio", "0.3"];
    ok(&[&call[..], &["--remove", "mid_block.attentions.0.transformer_blocks.0", "--out", text(&plan)]].concat());
    ok(&["prune", "--model", text(&base.model), "--plan", text(&plan), "--unet-only", "--out", text(&out)]);
    let unet = unet::UNet::open(&out, tch::Device::Cpu, tch::Kind::Float).unwrap();
    assert_eq!(unet.num_parameters(), read_json(&plan)["params_left"].as_u64().unwrap());
    for branch in ["attn1", "attn2", "ff"] {
        assert!(unet.removed().contains(&format!("mid_block.attentions.0.transformer_blocks.0.{branch}")));
    }
}

#[test]
fn a_pruned_model_directory_is_whole_and_makes_images() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (plan, pruned, out) = (base.plan(dir.path(), "0.3"), dir.path().join("pruned"), dir.path().join("images"));
    ok(&["prune", "--model", text(&base.model), "--plan", text(&plan), "--kind", "f32", "--out", text(&pruned)]);
    assert_eq!(names(&pruned), names(&base.model));
    ok(&["generate", "--model", text(&pruned), "--prompt", "a red circle", "--steps", "2", "--device", "cpu", "--out", text(&out)]);
    assert_eq!(names(&out), ["00000.png", "images.json"]);
    // A pruned model can be scored and pruned again.
    let table: Value = serde_json::from_str(&ok(&["inspect", "--model", text(&pruned), "--json"])).unwrap();
    assert_eq!(table["table"]["total_params"], read_json(&plan)["params_left"]);
}

#[test]
fn images_depend_on_prompt_and_seed_only_and_are_kept() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.txt");
    std::fs::write(&prompts, "a red circle\na blue ring\na green cross\n").unwrap();
    let make = |out: &Path, more: &[&str]| {
        let call = ["generate", "--model", text(&base.model), "--prompts-file", text(&prompts), "--steps", "2", "--seed", "4"];
        ok(&[&call[..], &["--device", "cpu", "--out", text(out)], more].concat())
    };
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let latents = dir.path().join("latents.safetensors");
    make(&a, &["--batch", "3", "--save-latents", text(&latents)]);
    make(&b, &["--batch", "3"]);
    let bytes = |d: &Path, name: &str| std::fs::read(d.join(name)).unwrap();
    for name in names(&a) {
        assert_eq!(bytes(&a, &name), bytes(&b, &name), "{name}");
    }
    let shape = unet::weights::TensorFile::open(&latents).unwrap().tensor("latents").unwrap().unwrap().size();
    assert_eq!(shape, [3, 4, 8, 8]);
    let manifest = read_json(&a.join("images.json"));
    let seeds: Vec<u64> = manifest["images"].as_array().unwrap().iter().map(|i| i["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [4, 5, 6]);
    assert_eq!(diffusion::images::read_png_text(a.join("00001.png")).unwrap()["prompt"], "a blue ring");
    // What is there and was made alike is kept; a lost image is drawn again, the same.
    let lost = bytes(&b, "00001.png");
    std::fs::remove_file(b.join("00001.png")).unwrap();
    assert!(make(&b, &["--batch", "3"]).contains("1 drawn now, 2 kept"));
    assert!(make(&b, &["--batch", "3"]).contains("0 drawn now, 3 kept"));
    assert!(bytes(&b, "00001.png") == lost, "the same bytes");
    assert!(make(&b, &["--cfg", "1.5"]).contains("3 drawn now, 0 kept"));
}

#[test]
fn rendered_scenes_are_read_back_by_the_checker() {
    let dir = tempfile::tempdir().unwrap();
    let (stream, held) = (dir.path().join("stream"), dir.path().join("held"));
    ok(&["render-scenes", "--count", "5", "--seed", "3", "--out", text(&stream)]);
    assert_eq!(names(&stream), ["00000.png", "00001.png", "00002.png", "00003.png", "00004.png", "scenes.jsonl"]);
    ok(&["render-scenes", "--scene-prompts", "4", "--per-prompt", "2", "--size", "64", "--out", text(&held)]);
    let lines = std::fs::read_to_string(held.join("scenes.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 8);
    for (i, line) in lines.lines().enumerate() {
        let record: scenes::SceneRecord = serde_json::from_str(line).unwrap();
        let image = diffusion::images::read_image(held.join(format!("{i:05}.png"))).unwrap();
        assert_eq!(eval::check_image(&record.caption, &image).unwrap().all_correct(), 1.0, "{}", record.caption);
    }
}

/// A run directory with everything that the report knows, made by the subcommands alone.
fn run_directory(base: &Base, run: &Path) {
    let at = |name: &str| run.join(name);
    let model = text(&base.model);
    ok(&["inspect", "--model", model, "--out", text(&at("layers.json"))]);
    std::fs::create_dir_all(at("scores")).unwrap();
    for name in names(&base.scores) {
        std::fs::copy(base.scores.join(&name), at("scores").join(&name)).unwrap();
    }
    let scores: Vec<String> =
        ["output_loss", "task_loss_delta", "magnitude", "clip_score"].map(|c| text(&base.score(c)).to_string()).into();
    let scores: Vec<&str> = scores.iter().map(String::as_str).collect();
    let audit = ["audit", "--model", model, "--calibration", text(&base.heldout), "--ratios", "0.2,0.5", "--sets-per-size", "3"];
    let out = at("audit.json");
    ok(&[&audit[..], &["--device", "cpu", "--out", text(&out), "--scores"], &scores].concat());
    let names_of_plans = ["output_loss-0.5", "random-1-0.5", "bk-sdm-0.5"];
    for (name, more) in
        names_of_plans.iter().zip([&["--method", "exact"][..], &["--method", "random", "--seed", "1"], &["--method", "bk-sdm"]])
    {
        let out = at(&format!("plans/{name}.json"));
        let call = ["plan", "--model", model, "--scores", scores[0], "--ratio", "0.5", "--out", text(&out)];
        ok(&[&call[..], more].concat());
    }
    let plans: Vec<String> = names_of_plans.map(|n| text(&at(&format!("plans/{n}.json"))).to_string()).into();
    let plans: Vec<&str> = plans.iter().map(String::as_str).collect();
    let out = at("joint.json");
    ok(&[&["joint", "--model", model, "--calibration", text(&base.heldout), "--device", "cpu", "--out", text(&out), "--plan"], &plans[..]]
        .concat());
    let pruned = at("models/output_loss-0.5");
    ok(&["prune", "--model", model, "--plan", plans[0], "--unet-only", "--out", text(&pruned)]);
    let settings = at("distill.toml");
    std::fs::write(&settings, DISTILL).unwrap();
    for features in ["plain", "normalized"] {
        let out = at(&format!("distill/{features}"));
        // One student from the plan, one from the folder: the same start.
        let who = if features == "plain" { ["--plan", plans[0]] } else { ["--student", text(&pruned)] };
        let call =
            ["distill", "--model", model, "--config", text(&settings), "--features", features, "--device", "cpu", "--out", text(&out)];
        ok(&[&call[..], &who].concat());
    }
    let folders = [
        ("teacher", None),
        ("output_loss-0.5", Some(pruned.clone())),
        ("plain", Some(at("distill/plain"))),
        ("normalized", Some(at("distill/normalized/unet"))),
    ];
    for (name, unet) in &folders {
        let out = at(&format!("images/{name}"));
        let mut args = vec!["generate", "--model", model, "--scene-prompts", "5", "--steps", "2", "--device", "cpu", "--out", text(&out)];
        if let Some(unet) = unet {
            args.extend(["--unet", text(unet)]);
        }
        ok(&args);
    }
    ok(&["render-scenes", "--scene-prompts", "5", "--size", "32", "--out", text(&at("real"))]);
    let images: Vec<String> = folders.iter().map(|(n, _)| format!("{n}={}", text(&at(&format!("images/{n}"))))).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let (out, real) = (at("eval.json"), at("real"));
    let call = ["eval", "--reference", images[0], "--clip", model, "--real", text(&real), "--compare", "normalized:plain"];
    ok(&[&call[..], &["--device", "cpu", "--out", text(&out), "--images"], &images[1..]].concat());
    let speed = format!("normalized={}", text(&at("distill/normalized")));
    let out = at("speed.json");
    let call = ["speed", "--model", model, "--unet", &speed, "--rounds", "2", "--warmup", "1", "--picture-rounds", "2", "--steps", "2"];
    ok(&[&call[..], &["--device", "cpu", "--out", text(&out)]].concat());
    std::fs::write(
        at("commands.json"),
        r#"{"commands": [{"stage": "score", "line": "laptop-diff score .."}], "stages": [{"stage": "score", "seconds": 1.5}]}"#,
    )
    .unwrap();
}

#[test]
fn the_whole_flow_ends_in_a_report() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    run_directory(base, &run_dir);
    let printed = ok(&["report", text(&run_dir), "--title", "A small test"]);
    assert!(printed.trim_end().ends_with("report.html"), "{printed}");
    let html = std::fs::read_to_string(run_dir.join("report.html")).unwrap();
    assert!(html.contains("A small test") && html.contains("data:image/png;base64,"));
    assert!(!html.contains("http://") || html.contains("http://www.w3.org/"), "nothing is fetched");
    assert!(std::fs::read_to_string(run_dir.join("report.md")).unwrap().contains("A small test"));

    let results = read_json(&run_dir.join("results.json"));
    let names: Vec<&str> = results["criteria"].as_array().unwrap().iter().map(|c| c["criterion"].as_str().unwrap()).collect();
    assert_eq!(names, ["output_loss", "task_loss_delta", "clip_score", "magnitude", "taylor", "random"]);
    assert_eq!(results["headline_plan"], "output_loss-0.5");
    let roles: Vec<&str> = results["unets"].as_array().unwrap().iter().map(|u| u["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["teacher", "pruned", "student", "student"]);
    let plan = results["plans"].as_array().unwrap().iter().find(|p| p["name"] == "output_loss-0.5").unwrap();
    assert!(plan["joint"]["mean"].as_f64().unwrap() > 0.0 && plan["plan"]["predicted"] == plan["predicted_output_loss"]);
    for run in results["distillations"].as_array().unwrap() {
        assert_eq!(run["plan"], "output_loss-0.5");
        let curve = run["curve"].as_array().unwrap();
        assert_eq!(curve.len(), 2);
        let point = &curve[1];
        let sum = point["task"].as_f64().unwrap() + point["out_kd"].as_f64().unwrap() + 0.5 * point["feat_kd"].as_f64().unwrap();
        assert!((sum - point["total"].as_f64().unwrap()).abs() < 1e-3 * sum, "the weights were taken out of the terms");
    }
    assert_eq!(results["gallery"]["rows"][0]["cells"][0]["image"], "images/teacher/00000.png");
    assert!(results["comparisons"].as_array().unwrap().iter().any(|c| c["metric"] == "clip_score"));
    // Runs side by side: the same one twice here, of which a student that was timed fits a generous latency.
    let run_dir = text(&run_dir);
    let table: Value =
        serde_json::from_str(&ok(&["compare", run_dir, run_dir, "--metric", "psnr_teacher", "--latency", "1e6", "--json"])).unwrap();
    assert_eq!(table["rows"].as_array().unwrap().len(), 6);
    let chosen = &table["rows"][table["choice"].as_u64().unwrap() as usize];
    assert!(chosen["unet"] == "normalized" && chosen["pareto"] == true && chosen["latency_s"].as_f64().unwrap() > 0.0, "{chosen}");
    let printed = ok(&["compare", run_dir, "--max-latency", "1e-9"]);
    assert!(printed.contains("within 0.000000001 ms for a call: none of them") && printed.contains("teacher"), "{printed}");
    // By images and memory: the student needs no more than what it was measured to need.
    let rows = |more: &[&str]| -> Value { serde_json::from_str(&ok(&[&["compare", run_dir, "--json"], more].concat())).unwrap() };
    let all = rows(&["--latency", "1e6", "--latency-of", "image"]);
    let student = all["rows"].as_array().unwrap().iter().find(|r| r["unet"] == "normalized").unwrap();
    assert!(student["image_s"].as_f64().unwrap() > 0.0 && student["file_bytes"].as_u64().unwrap() > 1000, "{student}");
    assert!(all["choice"].is_u64());
    let megabytes = student["memory_bytes"].as_u64().unwrap() as f64 / 1e6;
    assert!(rows(&["--max-memory", &(1.01 * megabytes).to_string()])["choice"].is_u64());
    assert!(rows(&["--max-memory", "1"])["choice"].is_null());
    fails(&["compare", run_dir, "--max-memory=-1"], 2, &["--max-memory -1", "above 0"]);
    fails(&["compare", run_dir, "--metric", "beauty"], 2, &["beauty", "clip_score"]);
    let run_dir = dir.path().join("run");
    // The same files give the same bytes.
    let first = std::fs::read(run_dir.join("results.json")).unwrap();
    ok(&["report", text(&run_dir), "--title", "A small test"]);
    assert_eq!(first, std::fs::read(run_dir.join("results.json")).unwrap());
    // The audit measured each criterion that has a joint value against its own.
    let audit = read_json(&run_dir.join("audit.json"));
    let against: Vec<(&str, &str)> =
        audit["audits"].as_array().unwrap().iter().map(|a| (a["criterion"].as_str().unwrap(), a["against"].as_str().unwrap())).collect();
    let own = |c| (c, c);
    assert_eq!(against, [own("clip_score"), ("magnitude", "output_loss"), own("output_loss"), own("task_loss_delta")]);
    // What the report says of bins, budgets and settings comes from the files.
    let results = read_json(&run_dir.join("results.json"));
    let bins = &results["criteria"][0]["bins"];
    assert_eq!(bins["standard_errors"].as_array().unwrap().len(), bins["means"].as_array().unwrap().len());
    let score = read_json(&run_dir.join("scores/output_loss.json"));
    let (bin_of, samples) = (f64s(&score["bins"]), f64s(&score["scores"][3]["samples"]));
    let of: Vec<f64> = bin_of.iter().zip(&samples).filter(|(b, _)| **b == 1.0).map(|(_, s)| *s).collect();
    let se = (of[0] - of[1]).abs() / 2.0;
    assert!(of.len() == 2 && (bins["standard_errors"][3][1].as_f64().unwrap() - se).abs() < 1e-9 * se, "the standard error of two samples");
    let plan = &results["plans"].as_array().unwrap().iter().find(|p| p["name"] == "output_loss-0.5").unwrap()["plan"];
    let on_front =
        |p: &Value| p[0] == plan["params_removed"] && (p[1].as_f64().unwrap() / plan["predicted"].as_f64().unwrap() - 1.0).abs() < 1e-9;
    assert!(results["front"]["points"].as_array().unwrap().iter().any(on_front), "the exact plan lies on the front");
    assert!(results["provenance"]["config"]["distill/plain/distill.json"].as_str().unwrap().contains("\"steps\": 4"));
    // Two runs side by side; the other one has no images.
    let other = dir.path().join("other");
    copy(&run_dir, &other);
    std::fs::remove_file(other.join("eval.json")).unwrap();
    let page = dir.path().join("both/page.html");
    fails(&["report", text(&run_dir), text(&other)], 2, &["several run directories", "--out"]);
    fails(&["report", text(&run_dir), text(&run_dir), "--out", text(&page)], 2, &["there twice"]);
    ok(&["report", text(&run_dir), text(&other), "--out", text(&page), "--title", "Two small tests"]);
    assert_eq!(crate::support::names(page.parent().unwrap()), ["page.html", "report.md", "runs.json"]);
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("Two small tests") && html.contains("id=\"run-2-scores\"") && !html.contains("id=\"run-2-quality\""));
    let both = read_json(&page.with_file_name("runs.json"));
    assert_eq!((&both["runs"][0]["name"], &both["runs"][1]["name"]), (&"run".into(), &"other".into()));
    assert_eq!(both["runs"][0]["results"]["plans"], results["plans"]);
    // A report without most of the files is shorter, not an error.
    for name in ["audit.json", "joint.json", "eval.json", "speed.json", "commands.json"] {
        std::fs::remove_file(run_dir.join(name)).unwrap();
    }
    std::fs::remove_dir_all(run_dir.join("distill")).unwrap();
    let out = run(&["report", text(&run_dir)]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
