//! The examples, which use every crate as a Rust program does: the whole method without the command, and parts of a caller's own.

use std::path::Path;

use report::{CompareOptions, Role, RunDir, compare_runs};

#[allow(dead_code)]
#[path = "../../examples/own_parts.rs"]
mod own_parts;
#[allow(dead_code)]
#[path = "../../examples/whole_method.rs"]
mod whole_method;

fn model() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-sdxl"))
}

#[test]
fn the_whole_method_runs_without_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let results = whole_method::whole_method(model(), dir.path()).unwrap();
    let roles: Vec<Role> = results.unets.iter().map(|unet| unet.role).collect();
    assert_eq!(roles, [Role::Teacher, Role::Pruned, Role::Student]);
    assert_eq!(results.criteria.iter().map(|c| c.id()).collect::<Vec<_>>(), ["output_loss", "magnitude"]);
    assert!(results.criteria[0].bins().is_some() && results.front.is_some());
    let plan = results.headline().unwrap();
    assert!(plan.joint.unwrap().mean > 0.0 && plan.plan.params_ratio >= 0.3 && plan.plan.optimal);
    assert_eq!((results.distillations[0].plan.as_str(), results.distillations[0].curve.len()), (plan.name.as_str(), 2));
    assert!(results.unets[2].metric("clip_score").is_some() && !results.comparisons.is_empty());
    let page = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    assert!(page.contains("data:image/png;base64,") && page.contains("output loss, exact 0.3, normalized features"));
    // What was written is what a program reads again.
    let run = RunDir::open(dir.path()).unwrap();
    assert_eq!(run.results(None, None).unwrap(), results);
    let table = compare_runs(&[dir.path().into()], &CompareOptions { metric: Some("clip_score".into()), ..Default::default() }).unwrap();
    assert_eq!(table.rows.len(), 3);
}

#[test]
fn a_criterion_a_feature_loss_and_a_metric_of_ones_own_are_known_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let results = own_parts::own_parts(model(), dir.path()).unwrap();
    assert_eq!((results.criteria[0].id(), results.criteria[0].label.as_str()), ("l1_loss", "l1_loss"));
    assert_eq!(results.plans[0].criterion(), Some("l1_loss"));
    let run = &results.distillations[0];
    assert_eq!((run.losses.feature_loss.as_str(), run.label.as_str()), ("absolute", "l1_loss, exact 0.3, absolute features"));
    assert!(!run.terms.is_empty() && run.curve.iter().all(|point| point.feat_kd > 0.0));
    let brightness = results.unets[1].metric("brightness").unwrap();
    assert!((0.0..=1.0).contains(&brightness.value.value) && brightness.verdict.is_some());
    assert!(results.comparisons.iter().any(|c| c.metric == "brightness"));
    for file in ["report.html", "report.md", "model-card-absolute.md"] {
        let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(text.contains("brightness") && text.contains("l1_loss"), "{file}");
    }
    let options = CompareOptions { metric: Some("brightness".into()), ..Default::default() };
    assert_eq!(compare_runs(&[dir.path().into()], &options).unwrap().metric.label, "brightness");
}
