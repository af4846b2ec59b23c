//! Published scores on the command line: prompts with categories, images kept, scores kept, wrong weights named.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{base, fails, ok, read_json, text};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

const PROMPTS: &str = "Prompt\tCategory\na red circle\tshapes\na blue square\tshapes\ntwo green stars\tcounts\nthree circles\tcounts\n";

#[test]
fn published_scores_by_category_go_on_where_they_stopped() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (prompts, pruned) = (at("prompts.tsv"), at("pruned"));
    std::fs::write(&prompts, PROMPTS).unwrap();
    ok(&["prune", "--model", text(&base.model), "--plan", text(&base.plan(dir.path(), "0.5")), "--unet-only", "--out", text(&pruned)]);
    for (name, unet) in [("teacher", None), ("student", Some(&pruned))] {
        let out = at(name);
        let model = text(&base.model);
        let mut args = vec![
            "generate",
            "--model",
            model,
            "--prompts-file",
            text(&prompts),
            "--num-images-per-prompt",
            "2",
            "--num-inference-steps",
            "2",
        ];
        args.extend(["--device", "cpu", "--out", text(&out)]);
        args.extend(unet.iter().flat_map(|u| ["--unet", text(u)]));
        ok(&args);
    }
    assert_eq!(read_json(&at("teacher/images.json"))["images"][4]["category"], "counts");

    let (teacher, student) = (format!("teacher={}", text(&at("teacher"))), format!("student={}", text(&at("student"))));
    let pickscore = format!("pickscore={}", text(&fixture("eval/pickscore")));
    let hpsv2 = format!("hpsv2={}", text(&fixture("eval/hpsv2/HPS.pt")));
    let (tokenizer, out) = (fixture("diffusion/tokenizer"), at("eval.json"));
    let call = ["eval", "--reference", &teacher, "--images", &student, "--device", "cpu", "--out", text(&out), "--metric", &pickscore];
    let more = ["--metric", &hpsv2, "--tokenizer", text(&tokenizer)];
    let printed = ok(&[&call[..], &more].concat());
    assert!(printed.contains("PickScore") && printed.contains("shapes"), "{printed}");

    let file = read_json(&out);
    let ids: Vec<&str> = file["metrics"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["pickscore", "hpsv2", "psnr_teacher"]);
    assert_eq!(file["weights_sha256"]["hpsv2"].as_str().unwrap().len(), 64);
    let rows = file["by_category"].as_array().unwrap();
    let told: Vec<(&str, &str)> = rows.iter().map(|r| (r["category"].as_str().unwrap(), r["unet"].as_str().unwrap())).collect();
    assert_eq!(told, [("counts", "teacher"), ("counts", "student"), ("shapes", "teacher"), ("shapes", "student")]);
    let value = |v: &Value| v["metrics"][0]["value"]["value"].as_f64().unwrap();
    assert!(
        (value(&file["unets"][1]) - (value(&rows[1]) + value(&rows[3])) / 2.0).abs() < 1e-9,
        "categories of the same size average to the whole"
    );

    // Kept scores are taken as they are; after an image has changed only its own is computed again.
    let path = at("image_scores.json");
    let mut kept = read_json(&path);
    let computed = kept["unets"]["student"]["pickscore"]["values"].clone();
    assert_eq!(computed.as_array().unwrap().len(), 8);
    for unet in ["teacher", "student"] {
        kept["unets"][unet]["pickscore"]["values"] = vec![7.5; 8].into();
    }
    std::fs::write(&path, kept.to_string()).unwrap();
    ok(&call);
    assert_eq!(value(&read_json(&out)["unets"][1]), 7.5);
    image::RgbImage::new(32, 32).save(at("student/00003.png")).unwrap();
    ok(&call);
    assert_eq!(value(&read_json(&out)["unets"][0]), 7.5);
    let again = &read_json(&path)["unets"]["student"]["pickscore"]["values"];
    assert!(again[0] == 7.5 && again[7] == 7.5 && again[3] != 7.5 && again[3] != computed[3], "{again} after {computed}");

    let wrong = format!("imagereward={},{}", text(&fixture("eval/hpsv2/HPS.pt")), text(&fixture("eval/vocab.txt")));
    fails(&[&call[..9], &["--metric", &wrong]].concat(), 3, &["HPS.pt", "no ImageReward model"]);
    let evil = format!("fid={}", text(&fixture("pytorch_files/evil.pt")));
    fails(&[&call[..9], &["--metric", &evil]].concat(), 3, &["evil.pt", "posix.system", "refused"]);
    fails(&[&call[..9], &["--metric", &hpsv2]].concat(), 2, &["no vocab.json", "`tokenizer`", "--tokenizer"]);
    fails(&[&call[..9], &["--metric", "pickscore=./nowhere"]].concat(), 3, &["nowhere", "no such file or folder"]);
    assert_eq!(crate::support::run(&call[..9]).status.code(), Some(2), "without --clip or --metric");
}
