//! Results of a made-up run: their file, what contradicts, what is read of them again.

use std::path::Path;

use artifact::Document;
use prune_core::table::TableParts;
use prune_core::{LayerId, LayerTable, Scores};
use report::{
    AuditResult, CriterionScores, Error, PublishedDecline, PublishedFile, Results, ResultsSummary, Role, render_html, render_markdown,
};
use serde_json::Value;

use crate::run;

#[test]
fn results_are_written_whole_and_the_same_every_time() {
    let (dir, results) = run();
    let (a, b) = (dir.path().join("a.json"), dir.path().join("b.json"));
    results.write(&a).unwrap();
    run().1.write(&b).unwrap();
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(files.len(), 3, "no temporary file is left: {files:?}");
    let back = ResultsSummary::read(&a).unwrap();
    assert_eq!((back.title, back.metrics, back.unets), (results.title, results.metrics, results.unets));
}

#[test]
fn the_file_holds_the_layers_scores_plans_and_audits_under_their_own_names() {
    let (dir, results) = run();
    let path = dir.path().join("results.json");
    results.write(&path).unwrap();
    let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let layer = &json["model"]["table"]["layers"][1];
    assert_eq!((layer["kind"].as_str(), layer["stage"].as_str()), (Some("resnet"), Some("down_blocks.0")));
    let (scores, rows) = (&results.criteria[0], &json["criteria"][0]["scores"]);
    assert_eq!(rows.as_array().unwrap().len(), results.layers().len());
    assert_eq!(rows[3]["layer"], results.layers()[3].id.as_str());
    assert_eq!((rows[3]["mean"].as_f64(), rows[3]["standard_error"].as_f64()), (Some(scores.values()[3]), scores.standard_errors()[3]));
    assert_eq!(json["criteria"][0]["samples"], 10);
    assert_eq!(json["plans"][0]["plan"]["removed"].as_array().unwrap().len(), results.plans[0].plan.removed.len());
    assert!(json["audit"]["audits"][0]["strata"]["params_ratio=0.5"]["pearson"].is_f64());
}

#[test]
fn foreign_damaged_and_newer_files_are_refused_with_the_key() {
    let (dir, results) = run();
    let path = dir.path().join("results.json");
    results.write(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let refused = |text: &str| ResultsSummary::parse(text.as_bytes(), Path::new("results.json")).unwrap_err();
    let err = refused(&text.replacen("\"version\": 3", "\"version\": 9", 1));
    assert!(matches!(&err, artifact::Error::Key { key, got, .. } if key == "version" && got == "9"), "{err}");
    let err = refused(&text.replacen("laptop-diff/results", "laptop-diff/plan", 1));
    assert!(matches!(&err, artifact::Error::Key { key, .. } if key == "format"), "{err}");
    assert!(matches!(refused("{}"), artifact::Error::Key { got, .. } if got == "nothing"));
    assert!(matches!(refused(&text[..text.len() / 2]), artifact::Error::Format { .. }));
    let err = refused(&text.replacen("\"unets\"", "\"networks\"", 1));
    assert!(err.to_string().contains("unets"), "{err}");
    assert!(ResultsSummary::read(&dir.path().join("none.json")).unwrap_err().to_string().contains("none.json"));
    // The keys that are read stand in version 1 as well.
    let older = text.replacen("\"version\": 2", "\"version\": 1", 1);
    assert_eq!(ResultsSummary::parse(older.as_bytes(), Path::new("results.json")).unwrap().unets, results.unets);
}

#[test]
fn contradictions_are_found_before_anything_is_written() {
    let (dir, results) = run();
    let path = dir.path().join("bad.json");
    let refused = |change: &dyn Fn(&mut Results)| {
        let mut bad = results.clone();
        change(&mut bad);
        let err = bad.write(&path).unwrap_err().to_string();
        assert!(!path.exists(), "{err}");
        err
    };
    assert!(refused(&|r| r.plans[0].plan.removed.push("mid_block.resnets.7".into())).contains("`mid_block.resnets.7`"));
    assert!(refused(&|r| r.headline_plan = Some("none".into())).contains("headline_plan"));
    assert!(refused(&|r| r.criteria[1] = of_fewer_layers(r)).contains("criteria.task_loss_delta"));
    assert!(refused(&|r| r.distillations[0].curve[3].terms.truncate(2)).contains("feature terms"));
    assert!(refused(&|r| r.unets[0].role = Role::Student).contains("the teacher first"));
    assert!(refused(&|r| r.unets[1].name = "teacher".into()).contains("twice"));
    assert!(refused(&|r| r.gallery.as_mut().unwrap().rows[0].cells.truncate(1)).contains("4 images"));
    assert!(refused(&|r| r.unets[0].metrics[0].value.value = f64::NAN).contains("not finite"));
    assert!(refused(&|r| r.distillations[0].curve[0].terms[1] = f64::NAN).contains("not finite"));
    assert!(refused(&|r| r.plans[0].plan.predicted = Some(f64::INFINITY)).contains("not finite"));
}

/// Scores of the same criterion that lack the last layer.
fn of_fewer_layers(results: &Results) -> CriterionScores {
    let of = &results.model.table;
    let table = LayerTable::new(TableParts {
        model: of.model().into(),
        fingerprint: of.fingerprint().into(),
        total_params: of.total_params(),
        total_macs: of.total_macs(),
        layers: of.layers()[..of.len() - 1].to_vec(),
        shared_costs: Vec::new(),
    })
    .unwrap();
    let values: Vec<(LayerId, f64)> = table.layers().iter().map(|layer| (layer.id.clone(), 1.0)).collect();
    CriterionScores::new(Scores::from_values(&table, "task_loss_delta", values).unwrap(), None).unwrap()
}

#[test]
fn a_stratum_that_is_no_size_of_sets_is_refused() {
    let (_dir, results) = run();
    let refused = |change: &dyn Fn(&mut prune_core::audit::AuditFile)| {
        let mut file = results.audit.clone().unwrap().file;
        change(&mut file);
        AuditResult::new(file).unwrap_err()
    };
    let err = refused(&|file| file.sets[4].stratum = "half=0.5".into());
    assert!(matches!(&err, Error::Results { got, .. } if got == "`half=0.5`"), "{err}");
    refused(&|file| {
        let stats = file.audits[0].overall.clone();
        file.audits[0].strata.insert("layers=many".into(), stats);
    });
}

#[test]
fn published_declines_stand_beside_those_of_the_run() {
    let (dir, mut results) = run();
    assert!(!render_markdown(&results, None).contains("Published"));
    let metric = results.metrics[0].id.clone();
    let published =
        PublishedDecline { name: "others at half size".into(), metric, ratio: 0.5, decline_percent: 8.2, source: "a paper".into() };
    results.published = vec![published.clone()];
    let text = render_markdown(&results, None);
    let rows: Vec<&str> =
        text.lines().skip_while(|line| !line.starts_with("## Published")).take_while(|line| !line.starts_with("## St")).collect();
    assert!(rows.iter().any(|row| row.contains("others at half size") && row.contains("| 8.2 |") && row.contains("a paper")));
    let own = results.unets.iter().filter(|unet| unet.metric(&published.metric).is_some_and(|m| m.decline.is_some())).count();
    assert!(own > 0 && rows.iter().filter(|row| row.contains("this run")).count() == own, "{rows:?}");
    assert!(render_html(&results, None, dir.path()).unwrap().contains("others at half size"));

    let file = dir.path().join("published.json");
    let write = |ratio| {
        let results = vec![PublishedDecline { ratio, ..published.clone() }];
        PublishedFile { results }.write(&file)
    };
    assert!(write(50.0).unwrap_err().to_string().contains("between 0 and 1"));
    write(0.5).unwrap();
    assert_eq!(PublishedFile::read(&file).unwrap().results, [published]);
}
