//! Several limits at once, on costs of the table and on measured ones.

use serde_json::Value;

use crate::support::{base, fails, ok, read_json, text};

#[test]
fn measured_latency_is_a_limit_like_any_other() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (resource, out) = (dir.path().join("latency.json"), dir.path().join("plan.json"));
    let printed = ok(&["profile-layers", "--model", text(&base.model), "--rounds", "2", "--device", "cpu", "--out", text(&resource)]);
    assert!(printed.contains("whole") && printed.contains("saves, ms"), "{printed}");
    let file = read_json(&resource);
    let layers = file["layers"].as_object().unwrap();
    let inspected: Value = serde_json::from_str(&ok(&["inspect", "--model", text(&base.model), "--json"])).unwrap();
    assert_eq!(layers.len(), inspected["table"]["layers"].as_array().unwrap().len());
    assert_eq!(file["fingerprint"], inspected["table"]["fingerprint"]);
    assert!(file["total"].as_u64().unwrap() > 0);

    // Figures of our own, so that the answer is known: only one layer costs time.
    let mut own = file.clone();
    let slow = "up_blocks.0.attentions.1.transformer_blocks.0.ff";
    for (id, ns) in own["layers"].as_object_mut().unwrap() {
        *ns = if id == slow { 700.into() } else { 0.into() };
    }
    own["shared_costs"].as_object_mut().unwrap().values_mut().for_each(|ns| *ns = 0.into());
    own["total"] = 1000.into();
    std::fs::write(&resource, own.to_string()).unwrap();
    let scores = base.score("output_loss");
    let call = ["plan", "--scores", text(&scores), "--ratio", "0.2", "--resource", text(&resource), "--out", text(&out)];
    let removed = |more: &[&str]| -> Vec<String> {
        ok(&[&call[..], more].concat());
        let plan = read_json(&out);
        assert!(plan["optimal"].as_bool().unwrap() && plan["params_ratio"].as_f64().unwrap() >= 0.2);
        plan["removed"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_string()).collect()
    };
    assert!(removed(&["--at-least", "latency_ns=70%"]).contains(&slow.to_string()));
    assert!(!removed(&["--at-most", "latency_ns=699"]).contains(&slow.to_string()));
    let few = removed(&["--at-least", "latency_ns=1", "--at-most", "params=25%"]);
    assert!(few.contains(&slow.to_string()));
    assert!(read_json(&out)["params_ratio"].as_f64().unwrap() <= 0.25);
    // A plan with limits is one like any other.
    ok(&["prune", "--model", text(&base.model), "--plan", text(&out), "--unet-only", "--out", text(&dir.path().join("pruned"))]);

    fails(&[&call[..], &["--at-least", "latency_ns=701"]].concat(), 4, &["latency_ns", "700"]);
    fails(&[&call[..], &["--at-least", "energy=1"]].concat(), 2, &["energy=1", "latency_ns, macs, params"]);
    fails(&[&call[..], &["--at-least", "macs=ten"]].concat(), 2, &["macs=ten", "PERCENT%"]);
    fails(&[&call[..], &["--at-most", "macs=1", "--method", "greedy"]].concat(), 2, &["--method exact"]);
    own["fingerprint"] = "another".into();
    std::fs::write(&resource, own.to_string()).unwrap();
    fails(&[&call[..], &["--at-least", "latency_ns=1"]].concat(), 3, &["latency.json", "another"]);
}

#[test]
fn memory_for_activations_is_a_limit_like_any_other() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let (resource, out) = (dir.path().join("activations.json"), dir.path().join("plan.json"));
    let printed = ok(&["inspect", "--model", text(&base.model), "--activations", text(&resource)]);
    assert!(printed.contains("MB per sample kept for training"), "{printed}");
    let file = read_json(&resource);
    let scores = base.score("output_loss");
    let call = ["plan", "--scores", text(&scores), "--ratio", "0.2", "--resource", text(&resource), "--out", text(&out)];
    ok(&[&call[..], &["--at-least", "activation_bytes=40%"]].concat());
    let removed: u64 = ["layers", "shared_costs"]
        .iter()
        .flat_map(|part| file[part].as_object().unwrap())
        .filter(|(id, _)| {
            ["removed", "removed_shared_costs"].iter().any(|key| read_json(&out)[key].as_array().unwrap().contains(&id.as_str().into()))
        })
        .map(|(_, bytes)| bytes.as_u64().unwrap())
        .sum();
    assert!(removed as f64 >= 0.4 * file["total"].as_f64().unwrap());
}
