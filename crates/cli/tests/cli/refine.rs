//! Scores with less work, and plans that lose less together.

use std::path::Path;

use crate::support::{base, fails, ok, read_json, text};

#[test]
fn a_refined_plan_is_no_worse_where_it_was_not_searched() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (plan, out) = (base.plan(dir.path(), "0.4"), dir.path().join("refined.json"));
    let scores = base.score("output_loss");
    let start = ["refine", "--model", text(&base.model), "--scores", text(&scores), "--plan", text(&plan)];
    let rest = ["--calibration", text(&base.calibration), "--first-samples", "1", "--device", "cpu", "--out", text(&out)];
    let call = [&start[..], &rest[..]].concat();
    for method in ["swaps", "beam", "evolution", "interactions"] {
        let printed = ok(&[&call[..], &["--method", method, "--max-forwards", "120", "--candidates", "6"]].concat());
        assert!(printed.contains("held-out points") && printed.contains("evaluations"), "{printed}");
        let record = dir.path().join("refined.refinement.json");
        let (outcome, measured) = (read_json(&record)["outcome"].clone(), read_json(&record)["measured"].clone());
        let mean = |key: &str| outcome["decision"][key]["mean"].as_f64().unwrap();
        assert!(mean("chosen") <= mean("start"), "{method}");
        let refined = read_json(&out);
        assert!(refined["params_ratio"].as_f64().unwrap() >= 0.4);
        // It is a plan like any other, and a second run only reads what the first one measured.
        ok(&["prune", "--model", text(&base.model), "--plan", text(&out), "--unet-only", "--out", text(&dir.path().join(method))]);
        ok(&[&call[..], &["--method", method, "--max-forwards", "120", "--candidates", "6"]].concat());
        assert_eq!(read_json(&out)["removed"], refined["removed"]);
        let again = read_json(&record);
        assert_eq!(again["outcome"], outcome);
        assert_eq!(again["measured"], measured, "a run that only reads loses nothing");
        fails(
            &[&call[..], &["--method", method, "--max-forwards", "120", "--candidates", "5"]].concat(),
            2,
            &["refinement.json", "delete"],
        );
        std::fs::remove_file(&record).unwrap();
    }
    fails(&[&call[..], &["--held-out", "6"]].concat(), 2, &["--held-out 6", "1 to 5"]);
    fails(&[&call[..], &["--max-forwards", "3"]].concat(), 2, &["max_forwards"]);
}

#[test]
fn the_measured_front_serves_any_budget() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&dir.path().join(name)).to_string();
    let scores = base.score("output_loss");
    let model = ["--model", text(&base.model), "--calibration", text(&base.calibration), "--device", "cpu"];
    let out = at("front.json");
    let call = ["front", "--scores", text(&scores), "--first-samples", "1", "--max-forwards", "150", "--refine", "1", "--out", &out];
    let printed = ok(&[&call[..], &model].concat());
    assert!(printed.contains("held-out points") && printed.contains("evaluations of"), "{printed}");
    let front = read_json(Path::new(&out));
    let plans = front["plans"].as_array().unwrap().clone();
    let number = |plan: &serde_json::Value, key: &str| plan["costs"][key].as_u64().unwrap();
    let loss = |plan: &serde_json::Value| plan["loss"]["mean"].as_f64().unwrap();
    assert!(front["forwards"].as_u64().unwrap() <= 150 && plans.len() > 2);
    assert!(plans.is_sorted_by(|a, b| number(a, "params") < number(b, "params") && loss(a) < loss(b)));
    // A second run only reads what the first one measured.
    ok(&[&call[..], &model].concat());
    assert_eq!(read_json(Path::new(&out)), front);

    let (taken, ratio) = (at("taken.json"), number(&plans[1], "params").to_string());
    let plan = ["plan", "--scores", text(&scores), "--measured", &out, "--out", &taken];
    let printed = ok(&[&plan[..], &["--params", &ratio]].concat());
    assert!(printed.contains("measured-front"), "{printed}");
    assert_eq!(read_json(Path::new(&taken))["removed"], plans[1]["removed"]);
    ok(&["prune", "--model", text(&base.model), "--plan", &taken, "--unet-only", "--out", &at("pruned")]);
    fails(&[&plan[..], &["--ratio", "1"]].concat(), 4, &["budget"]);
    fails(&[&plan[..], &["--ratio", "0.4", "--keep", "x"]].concat(), 2, &["--measured", "--keep"]);
    fails(&[&call[..], &model, &["--by", "watts"]].concat(), 2, &["watts", "params, macs"]);
    fails(&[&call[..], &model, &["--held-out", "6"]].concat(), 2, &["--held-out 6", "1 to 5"]);
    std::fs::write(&out, "{}").unwrap();
    fails(&[&plan[..], &["--ratio", "0.4"]].concat(), 3, &["front.json"]);
}

#[test]
fn parts_of_a_scoring_run_merge_to_the_whole() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let call = ["score", "--model", text(&base.model), "--calibration", text(&base.calibration), "--criterion", "output_loss"];
    let run = |more: &[&str], name: &str| {
        let out = dir.path().join(name);
        ok(&[&call[..], &["--batch", "2", "--device", "cpu", "--out", text(&out)], more].concat());
        out.join("output_loss.json")
    };
    let whole = run(&[], "whole");
    let parts = ["1/3", "2/3", "3/3"].map(|part| run(&["--shard", part], &part.replace('/', "-")));
    let merged = dir.path().join("merged.json");
    ok(&["merge-scores", "--scores", text(&parts[2]), text(&parts[0]), text(&parts[1]), "--out", text(&merged)]);
    assert_eq!(std::fs::read(&merged).unwrap(), std::fs::read(&whole).unwrap());
    let out = dir.path().join("never.json");
    fails(&["merge-scores", "--scores", text(&parts[0]), text(&parts[1]), "--out", text(&out)], 2, &["4 of the run's 6 points"]);
    fails(&["merge-scores", "--scores", text(&parts[0]), text(&parts[2]), "--out", text(&out)], 2, &["sample"]);
    let bad = dir.path().join("bad");
    fails(&[&call[..], &["--shard", "4/3", "--out", text(&bad)]].concat(), 2, &["shard"]);

    let printed = {
        let out = dir.path().join("adaptive");
        ok(&[&call[..], &["--adaptive", "0.3,0.5", "--first-samples", "2", "--device", "cpu", "--out", text(&out)]].concat())
    };
    assert!(printed.contains("layer evaluations") && printed.contains("ratio 0.3"), "{printed}");

    // Bins that count differently choose differently, or at least predict differently.
    let predicted = |bins: &str| {
        let out = dir.path().join("plan.json");
        ok(&["plan", "--scores", text(&whole), "--ratio", "0.4", "--bins", bins, "--out", text(&out)]);
        read_json(&out)["predicted"].as_f64().unwrap()
    };
    assert_ne!(predicted("early"), predicted("late"));
    assert_eq!(predicted("uniform"), predicted("0=2,1=2,2=2"));
    fails(&["plan", "--scores", text(&whole), "--ratio", "0.4", "--bins", "0=1", "--out", text(&out)], 2, &["bin weights"]);
}

#[test]
fn steps_and_pairs_give_plans_like_any_other() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&dir.path().join(name)).to_string();
    let data = ["--model", text(&base.model), "--calibration", text(&base.calibration), "--device", "cpu"];
    let steps = |count: &str, out: &str| {
        let printed = ok(&[&["plan-steps", "--ratio", "0.4", "--steps", count, "--out", &at(out)], &data[..]].concat());
        assert!(printed.contains("forward passes"), "{printed}");
        read_json(Path::new(&at(out)))
    };
    // One step is one-shot pruning.
    let scores = base.score("output_loss");
    let one_shot = read_json(&base.plan(dir.path(), "0.4"));
    assert_eq!(steps("1", "one.json")["removed"], one_shot["removed"]);
    let three = steps("3", "three.json");
    assert!(three["params_ratio"].as_f64().unwrap() >= 0.4);
    // Later steps say without which layers they scored; and a second run reads instead of measuring.
    let second = read_json(Path::new(&at("three.step-2.json")));
    assert!(!second["settings"]["removed"].as_array().unwrap().is_empty());
    assert_eq!(steps("3", "three.json"), three);
    ok(&["prune", "--model", text(&base.model), "--plan", &at("three.json"), "--unet-only", "--out", &at("pruned")]);
    let three_json = at("three.json");
    let again = ["plan-steps", "--ratio", "0.4", "--steps", "3", "--samples", "3", "--out", &three_json];
    fails(&[&again[..], &data[..]].concat(), 2, &["three.step-1.json", "delete"]);
    fails(&[&["plan-steps", "--ratio", "0.99", "--out", &at("never.json")], &data[..]].concat(), 4, &["budget"]);

    let plan = base.plan(dir.path(), "0.4");
    let pairs = ["pairs", "--scores", text(&scores), "--plan", text(&plan), "--count", "6"];
    let printed = ok(&[&pairs[..], &["--out", &at("pairs.json")], &data[..]].concat());
    assert!(printed.contains("interaction") && printed.contains(" + "), "{printed}");
    assert_eq!(read_json(Path::new(&at("pairs.json")))["sets"].as_array().unwrap().len(), 6);
    let (first, both) = (at("pairs.json"), at("more.json"));
    let more = ["--known", &first, "--out", &both];
    ok(&[&pairs[..], &more, &data[..]].concat());
    let sets = read_json(Path::new(&at("more.json")))["sets"].as_array().unwrap().clone();
    assert!(sets.len() > 6);
    for (number, set) in sets.iter().enumerate() {
        assert!(!sets[..number].iter().any(|other| other["removed"] == set["removed"]), "measured twice: {set}");
    }
    // The plan with pairs is proven, and for it the one-shot plan's sum is no longer the least.
    let out = at("paired.json");
    let call = ["plan", "--scores", text(&scores), "--ratio", "0.4", "--pairs", &both, "--out", &out];
    let printed = ok(&call);
    assert!(printed.contains("proven optimal") && printed.contains("measured pairs"), "{printed}");
    assert!(read_json(Path::new(&out))["params_ratio"].as_f64().unwrap() >= 0.4);
    fails(&[&call[..], &["--method", "greedy"]].concat(), 2, &["--interactions", "exact"]);
    // Pairs that nobody measured under the scores' criterion.
    let text_of = std::fs::read_to_string(&both).unwrap();
    std::fs::write(&both, text_of.replace("\"output_loss\"", "\"clip_score\"")).unwrap();
    fails(&call, 3, &["more.json", "`output_loss` was not measured", "clip_score"]);
    let none = at("none.json");
    fails(&[&pairs[..], &["--known", &both, "--out", &none], &data[..]].concat(), 3, &["more.json", "`output_loss` was not measured"]);
}
