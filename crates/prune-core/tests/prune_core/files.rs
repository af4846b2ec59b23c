//! The three file formats: round trips to the byte, validation with typed errors, and readers that survive anything.

use crate::support;
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::support::{id, parts, table};
use proptest::prelude::*;
use prune_core::audit::{AuditFile, JointLoss, MeasuredSet};
use prune_core::refine::RefineRecord;
use prune_core::score::{BinWeights, LayerScore, Population, ScoresParts, certify, merge_scores, weigh_bins};
use prune_core::table::Cost;
use prune_core::{Budget, Constraints, Error, LayerTable, Plan, Scores, audit, file, solve};
use serde_json::{Value, json};

fn small_table() -> LayerTable {
    table(&[10, 20, 30, 9_007_199_254_740_993], &[(vec![0, 1], 5)])
}

fn sampled() -> Scores {
    let samples = [[0.1, 0.2, 0.7], [1e-17, 2.0, 3.0], [5e-324, 0.0, 0.0], [-1.0 / 3.0, 2.0 / 3.0, 1e300]];
    let layers = samples.iter().enumerate().map(|(i, s)| (id(i), LayerScore::from_samples(s.to_vec()).unwrap()));
    Scores::new(ScoresParts {
        table: small_table(),
        criterion: "output_loss".to_owned(),
        seed: Some(u64::MAX),
        settings: BTreeMap::from([("note".to_owned(), json!({"z": [1, {"a": null}], "b": "\u{1f600}\n"}))]),
        first_sample: 7,
        bins: vec![0, 4, 4],
        layers: layers.collect(),
    })
    .unwrap()
}

fn plan() -> Plan {
    let scores = Scores::from_values(&small_table(), "magnitude", (0..4).map(|i| (id(i), 0.1 + i as f64))).unwrap();
    let mut constraints = Constraints::none();
    constraints.keep.insert(id(3));
    solve(&scores, &Budget::params(34), &constraints).unwrap()
}

fn audited() -> AuditFile {
    let loss = |mean| BTreeMap::from([("output_loss".to_owned(), JointLoss { mean, standard_error: None })]);
    let set = |members: &[usize], mean| MeasuredSet {
        stratum: format!("layers={}", members.len()),
        removed: support::set(members.iter().copied()),
        losses: loss(mean),
    };
    let sets = vec![set(&[0], 0.4), set(&[1, 2], 1.9), set(&[0, 2], 0.3)];
    let audits = vec![audit(&sampled(), "output_loss", &sets).unwrap()];
    AuditFile::new(&small_table(), 3, 10..20, audits, sets)
}

fn refined() -> RefineRecord {
    let text = r#"{
        "format": "laptop-diff/refinement", "version": 1, "model": "toy", "fingerprint": "f00d", "criterion": "output_loss",
        "method": {"beam": {"width": 2, "candidates": 8}}, "samples": {"start": 0, "end": 4}, "held_out": {"start": 4, "end": 6},
        "first_samples": 2, "max_forwards": 100, "seed": 18446744073709551615, "start": ["layers.00", "layers.01"],
        "forwards": 14, "steps": [{"forwards": 8, "loss": 0.3, "removed": ["layers.01", "layers.02"]}],
        "outcome": {
            "removed": ["layers.01", "layers.02"],
            "start_search": {"mean": 0.5, "standard_error": 0.1}, "search": {"mean": 0.3, "standard_error": 0.1},
            "start_held_out": {"mean": 0.6, "standard_error": null}, "held_out": {"mean": 0.4, "standard_error": null}
        },
        "measured": [
            {"removed": ["layers.00", "layers.01"], "losses": [0.4, 0.5, 0.5, 0.6]},
            {"removed": ["layers.01", "layers.02"], "losses": [0.3]}
        ]
    }"#;
    RefineRecord::from_json(text.as_bytes(), &small_table()).unwrap()
}

/// A folder of its own for each test, emptied first.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn files_come_back_to_the_bit_and_are_written_the_same_twice() {
    let folder = folder("round_trip");
    let table = small_table();
    let path = folder.join("scores.json");
    sampled().write(&path).unwrap();
    let first = std::fs::read(&path).unwrap();
    let scores = Scores::read_for(&path, &table).unwrap();
    assert_eq!(scores, sampled());
    scores.write(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first);

    let path = folder.join("plan.json");
    plan().write(&path).unwrap();
    assert_eq!(Plan::read(&path, &table).unwrap(), plan());

    let path = folder.join("audit.json");
    audited().write(&path).unwrap();
    assert_eq!(AuditFile::read(&path, &table).unwrap(), audited());

    let path = folder.join("refine.json");
    refined().write(&path).unwrap();
    assert_eq!(RefineRecord::read(&path, &table).unwrap(), refined());

    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["audit.json", "plan.json", "refine.json", "scores.json"]);
}

#[test]
fn the_plan_file_reads_well() {
    let expected = r#"{
  "format": "prune-core/plan",
  "version": 3,
  "model": "toy",
  "fingerprint": "f00d",
  "method": "exact",
  "criterion": "magnitude",
  "budget": {
    "cost": "params",
    "ratio": null,
    "required": 34
  },
  "limits": [],
  "constraints": {
    "keep": ["layers.03"],
    "remove": [],
    "together": [],
    "requires": []
  },
  "seed": null,
  "predicted": 1.2000000000000002,
  "lower_bound": 1.2000000000000002,
  "optimal": true,
  "params_removed": 35,
  "params_left": 9007199254741033,
  "params_ratio": 3.885780586188015e-15,
  "macs_removed": 105,
  "macs_left": 27021597764223079,
  "macs_ratio": 3.885780586188018e-15,
  "removed": ["layers.00", "layers.01"],
  "removed_shared_costs": ["shared_costs.0"]
}
"#;
    assert_eq!(plan().to_json().unwrap(), expected);
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = folder("failed_write");
    let path = folder.join("taken");
    std::fs::create_dir_all(path.join("inside")).unwrap();
    let error = file::write_bytes(&path, b"new").unwrap_err();
    assert!(error.to_string().starts_with("cannot write "), "{error}");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    assert!(matches!(file::write_bytes(&folder.join(".."), b""), Err(Error::Io { .. })));
    assert!(matches!(file::write_bytes(&folder.join("no/such/folder"), b""), Err(Error::Io { .. })));
    // A value that JSON cannot say is refused before anything is written.
    let path = folder.join("bad.json");
    let error = file::write_json(&path, &BTreeMap::from([((1, 2), 3)])).unwrap_err();
    assert!(matches!(error, Error::Serialize { .. }) && !path.exists());
}

#[test]
fn writers_of_one_file_do_not_meet() {
    let path = folder("threads").join("number.json");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let path = &path;
            scope.spawn(move || (0..50).for_each(|_| file::write_json(path, &vec![thread; 1000]).unwrap()));
        }
    });
    let numbers: Vec<u32> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(numbers, vec![numbers[0]; 1000]);
}

#[test]
fn errors_name_the_file() {
    let folder = folder("named");
    let path = folder.join("plan.json");
    let error = Plan::read(&path, &small_table()).unwrap_err();
    assert!(error.to_string().contains("named/plan.json"), "{error}");
    sampled().write(&path).unwrap();
    let error = Plan::read(&path, &small_table()).unwrap_err().to_string();
    assert!(error.ends_with("plan.json: `format` is `prune-core/scores`; expected `prune-core/plan`"), "{error}");
}

#[test]
fn files_of_the_older_formats_are_read() {
    let older = |text: String, name: &str, version: u32| {
        let text = text.replace("shared_costs\"", "shells\"").replace("\"losses\"", "\"gaps\"");
        edited(&text, |value| (value["format"], value["version"]) = (format!("laptop-diff/{name}").into(), version.into()))
    };
    let (table, [scores, plan_text, audit, refinement]) = (small_table(), texts());
    assert_eq!(Scores::from_json(&older(scores.clone(), "scores", 1)).unwrap(), sampled());
    assert_eq!(Plan::from_json(&older(plan_text, "plan", 2), &table).unwrap(), plan());
    assert_eq!(AuditFile::from_json(&older(audit, "audit", 1), &table).unwrap(), audited());
    assert_eq!(RefineRecord::from_json(&older(refinement.clone(), "refinement", 1), &table).unwrap(), refined());
    let second = edited(&refinement, |value| value["version"] = 2.into());
    assert_eq!(RefineRecord::from_json(&second, &table).unwrap(), refined());
    // Each name has its own versions.
    let error = Scores::from_json(&older(scores, "scores", 2)).unwrap_err();
    assert!(matches!(error, Error::WrongVersion { format, expected: 1, got: 2 } if format == "laptop-diff/scores"));
}

/// The document with one change, as bytes.
fn edited(text: &str, edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut value: Value = serde_json::from_str(text).unwrap();
    edit(&mut value);
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn edited_scores_are_refused() {
    let read = |edit: fn(&mut Value)| Scores::from_json(&edited(&sampled().to_json().unwrap(), edit)).unwrap_err();
    assert!(matches!(read(|v| v["version"] = 3.into()), Error::WrongVersion { expected: 2, got: 3, .. }));
    assert!(matches!(read(|v| v["extra"] = 1.into()), Error::Parse { problem, .. } if problem.contains("extra")));
    assert!(matches!(read(|v| v["criterion"] = "".into()), Error::EmptyName { .. }));
    assert!(matches!(read(|v| v["scores"][0]["value"] = 0.4.into()), Error::Inconsistent { .. }));
    assert!(matches!(read(|v| v["scores"][0]["value"] = Value::Null), Error::Parse { .. }));
    assert!(matches!(read(|v| v["scores"][1]["id"] = "layers.00".into()), Error::DuplicateId { .. }));
    assert!(matches!(read(|v| v["scores"][1]["id"] = "layers.0".into()), Error::UnknownLayer { nearest: Some(_), .. }));
    assert!(matches!(read(|v| v["bins"] = json!([1])), Error::Length { .. }));
    assert!(matches!(read(|v| v["first_sample"] = u64::MAX.into()), Error::Overflow { .. }));
    assert!(matches!(read(|v| v["table"]["layers"] = json!([])), Error::EmptyTable { .. }));
    let text = sampled().to_json().unwrap().replace("\"value\": 1.6666666666666667", "\"value\": 1e999");
    assert!(matches!(Scores::from_json(text.as_bytes()), Err(Error::Parse { .. })));
    let other = LayerTable::new({
        let mut parts = parts(&[10], &[]);
        parts.fingerprint = "beef".to_owned();
        parts
    })
    .unwrap();
    let path = folder("other_model").join("scores.json");
    sampled().write(&path).unwrap();
    let error = Scores::read_for(&path, &other).unwrap_err();
    assert!(error.to_string().contains("made for model `toy` (f00d), not for `toy` (beef)"), "{error}");
    // The same weights cut into other layers; a model of another name is no other model.
    let mut moved = parts(&[10, 20, 30, 9_007_199_254_740_993], &[(vec![0, 1], 5)]);
    moved.model = "moved".to_owned();
    assert_eq!(Scores::read_for(&path, &LayerTable::new(moved.clone()).unwrap()).unwrap(), sampled());
    let mut merged = moved.clone();
    merged.layers[2].kind = "merged".to_owned();
    let error = Scores::read_for(&path, &LayerTable::new(merged).unwrap()).unwrap_err().to_string();
    assert!(error.contains("differ from this model's at layer 2: expected `layers.02` (merged, 30 parameters, 90 MACs, "), "{error}");
    moved.shared_costs[0].members.push(id(2));
    let error = Scores::read_for(&path, &LayerTable::new(moved).unwrap()).unwrap_err().to_string();
    let (mine, theirs) =
        ("`layers.00`, `layers.01`, `layers.02`", "`shared_costs.0`, 5 parameters and 15 MACs around `layers.00`, `layers.01`;");
    assert!(
        error.contains("at shared cost `shared_costs.0`: expected 5 parameters and 15 MACs around")
            && error.contains(mine)
            && error.contains(theirs),
        "{error}"
    );
}

#[test]
fn edited_plans_are_refused() {
    let read = |edit: fn(&mut Value)| Plan::from_json(&edited(&plan().to_json().unwrap(), edit), &small_table()).unwrap_err();
    assert!(matches!(read(|v| v["fingerprint"] = "beef".into()), Error::OtherModel { .. }));
    assert!(matches!(read(|v| v["params_removed"] = 34.into()), Error::Inconsistent { key, .. } if key == "params_removed"));
    assert!(matches!(read(|v| v["removed_shared_costs"] = json!([])), Error::Inconsistent { key, .. } if key == "removed_shared_costs"));
    assert!(matches!(read(|v| v["removed"][0] = "layers.01".into()), Error::DuplicateId { .. }));
    assert!(matches!(read(|v| v["removed"][0] = "layers.0O".into()), Error::UnknownLayer { nearest: Some(_), .. }));
    assert!(matches!(read(|v| v["removed"] = json!(["layers.01", "layers.00"])), Error::Inconsistent { .. }));
    assert!(matches!(read(|v| v["constraints"]["keep"] = json!(["layers.00"])), Error::Inconsistent { .. }));
    assert!(matches!(read(|v| v["constraints"]["remove"] = json!(["layers.02"])), Error::Inconsistent { .. }));
    assert!(matches!(read(|v| v["budget"]["required"] = 36.into()), Error::BudgetMissed { needed: 36, removed: 35, .. }));
    assert!(matches!(read(|v| v["unknown"] = 36.into()), Error::Parse { problem, .. } if problem.contains("unknown")));
    assert!(matches!(read(|v| v["method"] = "".into()), Error::EmptyName { .. }));
    assert!(matches!(read(|v| *v = json!([])), Error::Parse { .. }));
}

#[test]
fn edited_audits_are_refused() {
    let read = |edit: fn(&mut Value)| AuditFile::from_json(&edited(&audited().to_json().unwrap(), edit), &small_table()).unwrap_err();
    assert!(matches!(read(|v| v["fingerprint"] = "beef".into()), Error::OtherModel { .. }));
    assert!(matches!(read(|v| v["audits"][0]["predicted"] = json!([1.0])), Error::Length { expected: 3, got: 1, .. }));
    assert!(matches!(read(|v| v["sets"][0]["removed"] = json!(["x"])), Error::UnknownLayer { nearest: None, .. }));
}

#[test]
fn edited_refinements_are_refused() {
    let read = |edit: fn(&mut Value)| RefineRecord::from_json(&edited(&refined().to_json().unwrap(), edit), &small_table()).unwrap_err();
    assert!(matches!(read(|v| v["version"] = 4.into()), Error::WrongVersion { expected: 3, got: 4, .. }));
    assert!(matches!(read(|v| v["fingerprint"] = "beef".into()), Error::OtherModel { .. }));
    assert!(matches!(read(|v| v["extra"] = 1.into()), Error::Parse { problem, .. } if problem.contains("extra")));
    assert!(matches!(read(|v| v["method"] = "tabu".into()), Error::Parse { problem, .. } if problem.contains("tabu")));
    assert!(matches!(read(|v| v["start"][0] = "layers.0".into()), Error::UnknownLayer { nearest: Some(_), .. }));
    assert!(matches!(read(|v| v["steps"][0]["removed"][0] = "x".into()), Error::UnknownLayer { .. }));
    assert!(matches!(read(|v| v["outcome"]["removed"][0] = "x".into()), Error::UnknownLayer { .. }));
    assert!(matches!(read(|v| v["measured"][1]["removed"][0] = "x".into()), Error::UnknownLayer { .. }));
    assert!(matches!(read(|v| v["measured"][0]["losses"] = json!([0, 0, 0, 0, 0])), Error::Length { expected: 4, got: 5, .. }));
}

#[test]
fn hand_crafted_plans_are_checked() {
    let table = small_table();
    let plan = Plan::from_removed(&table, "by-hand", ["layers.02", "layers.00"]).unwrap();
    assert_eq!(plan.removed, [id(0), id(2)]);
    assert_eq!((plan.removed_cost(Cost::Params), plan.removed_cost(Cost::Macs)), (40, 120));
    assert_eq!((plan.budget, plan.predicted, plan.optimal), (None, None, false));
    let mut short = Plan::from_removed(&table, "by-hand", ["layers.02"]).unwrap();
    let error = short.set_budget(&Budget::params(31), &table).unwrap_err();
    assert_eq!(error.to_string(), "plan `by-hand` removes 30 params, but the budget asks for 31");
    short.set_budget(&Budget::macs(90), &table).unwrap();
    short.check(&table).unwrap();
    assert!(matches!(Plan::from_removed(&table, "by-hand", ["layers.00", "layers.00"]), Err(Error::DuplicateId { .. })));
    assert!(matches!(Plan::from_removed(&table, "", ["layers.00"]), Err(Error::EmptyName { .. })));
    assert!(matches!(Plan::from_removed(&table, "by-hand", ["mid_block"]), Err(Error::UnknownLayer { nearest: None, .. })));
}

#[test]
fn bad_tables_are_refused() {
    use prune_core::table::TableParts;
    let read = |edit: fn(&mut TableParts)| {
        let mut parts = parts(&[10, 20, 30], &[(vec![0, 1], 5), (vec![2], 1)]);
        edit(&mut parts);
        LayerTable::new(parts).unwrap_err()
    };
    assert!(matches!(read(|t| t.layers.clear()), Error::EmptyTable { .. }));
    assert!(matches!(read(|t| t.model.clear()), Error::EmptyName { key } if key == "model"));
    assert!(matches!(read(|t| t.fingerprint.clear()), Error::EmptyName { .. }));
    assert!(matches!(read(|t| t.layers[1].id = id(0)), Error::DuplicateId { key, .. } if key == "layers"));
    assert!(
        matches!(read(|t| t.shared_costs[1].id = t.shared_costs[0].id.clone()), Error::DuplicateId { key, .. } if key == "shared_costs")
    );
    assert!(matches!(read(|t| t.shared_costs[0].members[1] = id(0)), Error::DuplicateId { .. }));
    assert!(matches!(read(|t| t.shared_costs[1].members[0] = id(0)), Error::SharedMember { .. }));
    assert!(matches!(read(|t| t.shared_costs[1].members[0] = "layers.20".into()), Error::UnknownLayer { nearest: Some(_), .. }));
    assert!(matches!(read(|t| t.shared_costs[1].members.clear()), Error::NothingToRemove { .. }));
    assert!(matches!(read(|t| { (t.layers[2].params, t.layers[2].macs) = (0, 0) }), Error::NothingToRemove { .. }));
    assert!(matches!(read(|t| t.layers[0].params = u64::MAX), Error::Overflow { .. }));
    assert!(matches!(read(|t| t.total_macs = 197), Error::TotalTooSmall { cost: Cost::Macs, expected: 197, got: 198 }));
}

/// Replaces, removes or doubles one part of a JSON value, chosen by a path of indices.
fn mutate(value: &mut Value, path: &[usize], with: &Value) {
    let (Some(step), deeper) = (path.first(), path.get(1..).unwrap_or(&[])) else {
        *value = with.clone();
        return;
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            let at = step % items.len();
            if step % 7 == 3 {
                let copy = items[at].clone();
                items.push(copy);
            } else {
                mutate(&mut items[at], deeper, with);
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            let key = fields.keys().nth(step % fields.len()).unwrap().clone();
            if step % 7 == 3 {
                fields.remove(&key);
            } else {
                mutate(&mut fields[&key], deeper, with);
            }
        }
        other => *other = with.clone(),
    }
}

/// One file of each format.
fn texts() -> [String; 4] {
    [sampled().to_json(), plan().to_json(), audited().to_json(), refined().to_json()].map(Result::unwrap)
}

/// Every reader on these bytes; what is accepted must be usable.
fn read_all(bytes: &[u8]) {
    if let Ok(scores) = Scores::from_json(bytes) {
        let _ = solve(&scores, &Budget::params_ratio(0.5), &Constraints::none()).map(|plan| plan.check(scores.table()).unwrap());
        scores.to_json().unwrap();
        let _ = certify(&scores, &Budget::params_ratio(0.5), &Constraints::none(), 0.1, Population::Expectation);
        let _ = (merge_scores(std::slice::from_ref(&scores)), weigh_bins(&scores, &BinWeights::Early));
        let _ = (scores.samples(), scores.bin_means("layers.00"), scores.missing());
    }
    if let Ok(plan) = Plan::from_json(bytes, &small_table()) {
        plan.to_json().unwrap();
    }
    if let Ok(audit) = AuditFile::from_json(bytes, &small_table()) {
        audit.to_json().unwrap();
    }
    if let Ok(record) = RefineRecord::from_json(bytes, &small_table()) {
        record.to_json().unwrap();
    }
}

proptest! {
    #![proptest_config(support::cases(1500))]

    #[test]
    fn readers_survive_random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
    }

    #[test]
    fn readers_survive_damaged_files(which in 0usize..4, at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
        let text = texts()[which].clone();
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] = byte;
        }
        read_all(&bytes);
    }

    #[test]
    fn readers_survive_edited_documents(
        which in 0usize..4,
        edits in prop::collection::vec((prop::collection::vec(0usize..40, 0..6), 0usize..12), 1..4),
    ) {
        let values = [
            Value::Null, json!(0), json!(-1), json!(1), json!(u64::MAX), json!(1e308), json!(""), json!("layers.01"),
            json!([]), json!({}), json!([[]]), json!(true),
        ];
        let text = texts()[which].clone();
        let bytes = edited(&text, |value| {
            for (path, with) in &edits {
                mutate(value, path, &values[*with]);
            }
        });
        read_all(&bytes);
    }
}
