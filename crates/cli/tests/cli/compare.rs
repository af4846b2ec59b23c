//! `forward` against diffusers: the fixtures were computed by `tests/fixtures/gen_unet.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};

use crate::support::{base, fails, ok, text};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/unet").join(name)
}

/// The inputs of a fixture under the names that `forward` wants.
fn inputs(case: &TensorFile, dir: &Path) -> PathBuf {
    let named = case.tensors().unwrap().into_iter().filter_map(|(k, t)| Some((k.strip_prefix("input.")?.to_string(), t)));
    let path = dir.join("inputs.safetensors");
    save_tensors(&path, &named.collect::<Tensors>(), &BTreeMap::new(), None).unwrap();
    path
}

fn output(path: &Path) -> Tensor {
    TensorFile::open(path).unwrap().tensor("sample").unwrap().expect("`sample` is written")
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_kind(Kind::Float) - b.to_kind(Kind::Float)).abs().max().double_value(&[])
}

#[test]
fn forward_gives_what_diffusers_gives() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["sd15", "sd21", "sdxl"] {
        let case = TensorFile::open(fixture(name).join("cases.safetensors")).unwrap();
        let (given, out) = (inputs(&case, dir.path()), dir.path().join(format!("{name}.safetensors")));
        ok(&["forward", "--model", text(&fixture(name)), "--inputs", text(&given), "--out", text(&out), "--device", "cpu"]);
        let expected = case.tensor("output").unwrap().unwrap();
        assert!(distance(&output(&out), &expected) <= 1e-4, "{name}");
    }
}

#[test]
fn a_missing_or_misshapen_input_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let case = TensorFile::open(fixture("sdxl").join("cases.safetensors")).unwrap();
    let whole = TensorFile::open(inputs(&case, dir.path())).unwrap().tensors().unwrap();
    let (given, out) = (dir.path().join("changed.safetensors"), dir.path().join("out.safetensors"));
    let call =
        ["forward", "--model", text(&fixture("sdxl")), "--inputs", text(&given), "--out", text(&out), "--device", "cpu"].map(String::from);
    let call: Vec<&str> = call.iter().map(String::as_str).collect();
    let change = |f: &dyn Fn(&mut Tensors)| {
        let mut tensors: Tensors = whole.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect();
        f(&mut tensors);
        save_tensors(&given, &tensors, &BTreeMap::new(), None).unwrap();
    };
    for name in ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"] {
        change(&|t| {
            t.remove(name);
        });
        fails(&call, 3, &["changed.safetensors", &format!("no tensor `{name}`"), &format!("add `{name}`")]);
    }
    change(&|t| {
        let wrong = t["sample"].narrow(1, 0, 3);
        t.insert("sample".into(), wrong);
    });
    fails(&call, 3, &["`sample`", "expected [batch, 4, height, width]", "[2, 3, 12, 8]"]);
    assert!(!out.exists());
}

#[test]
fn a_plan_and_the_model_pruned_by_it_give_the_same() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.4");
    let pruned = dir.path().join("pruned");
    ok(&["prune", "--model", text(&base.model), "--plan", text(&plan), "--unet-only", "--out", text(&pruned)]);
    let given = dir.path().join("inputs.safetensors");
    let shapes: [(&str, &[i64]); 5] = [
        ("sample", &[1, 4, 8, 8]),
        ("timestep", &[]),
        ("encoder_hidden_states", &[1, 5, 28]),
        ("text_embeds", &[1, 16]),
        ("time_ids", &[1, 6]),
    ];
    let value = |shape: &[i64]| {
        let n: i64 = shape.iter().product();
        (Tensor::arange(n, (Kind::Float, tch::Device::Cpu)) * 0.37).sin().view(shape)
    };
    let tensors = shapes.iter().map(|(name, shape)| (name.to_string(), if shape.is_empty() { Tensor::from(321i64) } else { value(shape) }));
    save_tensors(&given, &tensors.collect::<Tensors>(), &BTreeMap::new(), None).unwrap();
    let run = |model: &Path, more: &[&str], name: &str| {
        let out = dir.path().join(name);
        let mut args = vec!["forward", "--model", text(model), "--inputs", text(&given), "--out", text(&out), "--device", "cpu"];
        args.extend(more);
        ok(&args);
        output(&out)
    };
    let full = run(&base.model, &[], "full.safetensors");
    let planned = run(&base.model, &["--plan", text(&plan)], "planned.safetensors");
    let cut = run(&pruned, &[], "cut.safetensors");
    assert_eq!(distance(&planned, &cut), 0.0);
    assert!(distance(&full, &cut) > 1e-4, "the plan removes something");
}
