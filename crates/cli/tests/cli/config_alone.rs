//! What a configuration alone answers, and which names of one model are the same: the first commands of somebody new.

use std::path::Path;

use crate::support::{base, copy, fails, ok, read_json, text};

fn config(name: &str) -> String {
    format!("{}/../../configs/unet/{name}.json", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn published_sizes_come_from_a_config_json_without_weights() {
    // The sizes that diffusers counts for the published models.
    for (name, params) in [("sd15", 859_520_964u64), ("sdxl", 2_567_463_684)] {
        let table = ok(&["inspect", "--model", &config(name)]);
        assert!(table.contains(&format!("parameters  {params}")), "{table}");
        let json: serde_json::Value = serde_json::from_str(&ok(&["inspect", "--model", &config(name), "--json"])).unwrap();
        assert_eq!(json["table"]["total_params"], params);
    }
}

#[test]
fn a_published_reduction_needs_neither_weights_nor_scores() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("plan.json");
    let call = ["plan", "--model", &config("sdxl"), "--out", text(&out), "--method"];
    let told = ok(&[&call[..], &["ssd-1b"]].concat());
    assert!(told.contains("method      ssd-1b"), "{told}");
    let plan = read_json(&out);
    assert_eq!(plan["params_left"].as_u64().unwrap() + plan["params_removed"].as_u64().unwrap(), 2_567_463_684);
    // SSD-1B has 1,300 million parameters.
    assert!((1.25e9..1.45e9).contains(&plan["params_left"].as_f64().unwrap()));
    fails(&[&call[..], &["exact", "--ratio", "0.3"]].concat(), 2, &["--method exact needs --scores"]);
    fails(&["score", "--model", &config("sdxl"), "--criterion", "magnitude", "--out", text(dir.path())], 3, &["sdxl.json"]);
}

#[test]
fn a_plan_serves_every_name_of_its_model() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.3");
    // Beside its tokenizer, and alone, where nothing says how many text tokens the model has.
    let alone = dir.path().join("elsewhere");
    copy(&base.model.join("unet"), &alone);
    let rows = |model: &Path| ok(&["portability", "--model", text(model), "--plan", text(&plan)]);
    assert_eq!(rows(&base.model.join("unet")), rows(&base.model));
    assert_eq!(rows(&alone), rows(&base.model));
    let scores = base.score("output_loss");
    let again = dir.path().join("again.json");
    ok(&["plan", "--model", text(&alone), "--scores", text(&scores), "--ratio", "0.3", "--out", text(&again)]);
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&plan).unwrap());
    // An edited file is still told.
    let edited = std::fs::read_to_string(&plan).unwrap().replacen("\"macs_left\": ", "\"macs_left\": 1", 1);
    std::fs::write(&plan, edited).unwrap();
    fails(&["portability", "--model", text(&alone), "--plan", text(&plan)], 3, &["edited or damaged"]);
}

#[test]
fn older_names_of_commands_and_flags_still_work() {
    for (old, new) in [("joint", "measure-plans"), ("pairs", "interactions"), ("plan-steps", "plan-iterative")] {
        assert_eq!(ok(&[old, "--help"]), ok(&[new, "--help"]));
        assert!(!ok(&["--help"]).contains(&format!("  {old} ")), "{old}");
    }
}
