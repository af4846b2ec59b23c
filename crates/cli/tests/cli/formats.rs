//! Pruned models in the forms of other programs: written, told about beforehand, read again.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unet::UNet;
use unet::weights::{TensorFile, Tensors, save_tensors};

use crate::support::{base, fails, names, ok, read_json, text};

fn params(path: &Path) -> u64 {
    UNet::open(path, Device::Cpu, Kind::Float).unwrap().num_parameters()
}

#[test]
fn every_format_is_written_as_the_report_foretells() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = base.plan(dir.path(), "0.3");
    let told: Value = serde_json::from_str(&ok(&["portability", "--model", text(&base.model), "--plan", text(&plan), "--json"])).unwrap();
    let told = told.as_array().unwrap();
    assert_eq!(told.len(), 6);
    let left = read_json(&plan)["params_left"].as_u64().unwrap();
    for row in told {
        let format = row["format"].as_str().unwrap();
        let out = dir.path().join(format!("{format}.out"));
        let call = ["prune", "--model", text(&base.model), "--plan", text(&plan), "--format", format, "--out", text(&out)];
        let Some(expected) = row["params"].as_u64() else {
            fails(&call, 2, &["ComfyUI cannot load this network", "--portable"]);
            assert!(!out.exists());
            continue;
        };
        ok(&call);
        assert_eq!(params(&out), expected, "{format}");
        assert_eq!(expected, left + row["padded"].as_u64().unwrap(), "{format}");
        if !["single-file", "checkpoint"].contains(&format) {
            assert_eq!(names(&out), names(&base.model));
        }
        assert_eq!(out.join("unet/laptop_diff_unet.py").exists(), format == "diffusers-loader");
    }
    let table = ok(&["portability", "--model", text(&base.model), "--plan", text(&plan)]);
    assert!(table.contains("diffusers-loader") && table.contains("its block is kept in part"), "{table}");
}

#[test]
fn portable_plans_need_no_padding() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let scores = base.score("output_loss");
    for (portable, format) in [("diffusers", "diffusers"), ("comfyui", "single-file")] {
        let out = dir.path().join(format!("{portable}.json"));
        let call = [
            "plan",
            "--scores",
            text(&scores),
            "--model",
            text(&base.model),
            "--ratio",
            "0.1",
            "--portable",
            portable,
            "--out",
            text(&out),
        ];
        ok(&call);
        let told: Value =
            serde_json::from_str(&ok(&["portability", "--model", text(&base.model), "--plan", text(&out), "--json"])).unwrap();
        let row = told.as_array().unwrap().iter().find(|row| row["format"] == format).unwrap().clone();
        assert_eq!(row["padded"].as_u64(), Some(0), "{row}");
        assert!(read_json(&out)["params_ratio"].as_f64().unwrap() >= 0.1);
        fails(
            &["plan", "--scores", text(&scores), "--ratio", "0.1", "--portable", portable, "--out", text(&out)],
            2,
            &["--portable needs --model"],
        );
        fails(&[&call[..6], &["0.9", "--portable", portable, "--out", text(&out)]].concat(), 4, &["loads without padding"]);
    }
}

#[test]
fn single_files_go_through_the_flow() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let single = dir.path().join("single.safetensors");
    ok(&["prune", "--model", text(&base.model), "--format", "original", "--unet-only", "--out", text(&single)]);
    assert_eq!(params(&single), params(&base.model));
    let inspected = ok(&["inspect", "--model", text(&single), "--json"]);
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let layers = |v: &Value| v["table"]["layers"].clone();
    let whole: Value = serde_json::from_str(&ok(&["inspect", "--model", text(&base.model), "--tokens", "77", "--json"])).unwrap();
    assert_eq!(layers(&inspected), layers(&whole));
    let out = dir.path().join("folder");
    fails(&["prune", "--model", text(&single), "--out", text(&out)], 2, &["single file", "--unet-only"]);
    ok(&["prune", "--model", text(&single), "--unet-only", "--out", text(&out)]);
    assert_eq!(params(&out), params(&base.model));
    fails(&["inspect", "--model", text(&base.model.join("model_index.json"))], 3, &["model_index.json"]);
}

#[test]
fn loras_lose_what_the_plan_removed() {
    let base = base();
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("plan.json");
    let scores = base.score("magnitude");
    let call = ["plan", "--scores", text(&scores), "--params", "1", "--out", text(&plan)];
    ok(&[&call[..], &["--remove", "down_blocks.1.attentions.0.transformer_blocks.0.attn1"]].concat());
    let removed = read_json(&plan)["removed"].clone();
    let gone = |id: &str| removed.as_array().unwrap().iter().any(|r| r == id);
    let unet = UNet::open(&base.model, Device::Cpu, Kind::Float).unwrap();
    let modules: Vec<String> = unet.parameters().keys().filter_map(|k| k.strip_suffix(".to_q.weight").map(str::to_string)).collect();
    assert!(modules.iter().any(|m| gone(m)) && modules.iter().any(|m| !gone(m)));
    for style in ["kohya", "peft", "processor"] {
        let name = |module: &str| match style {
            "kohya" => format!("lora_unet_{}_to_q.lora_down.weight", module.replace('.', "_")),
            "peft" => format!("unet.{module}.to_q.lora_A.weight"),
            _ => format!("unet.{module}.processor.to_q_lora.down.weight"),
        };
        let tensor = || Tensor::ones([2, 3], (Kind::Half, Device::Cpu));
        let mut lora: Tensors = modules.iter().map(|m| (name(m), tensor())).collect();
        let foreign = if style == "kohya" { "lora_te1_text_model_encoder.lora_down.weight" } else { "text_encoder.q_proj.lora_A.weight" };
        lora.insert(foreign.into(), tensor());
        let (given, out) = (dir.path().join("lora.safetensors"), dir.path().join("out.safetensors"));
        save_tensors(&given, &lora, &BTreeMap::from([("ss_network_dim".to_string(), "2".to_string())]), None).unwrap();
        let call = ["remap-lora", "--model", text(&base.model), "--lora", text(&given), "--plan", text(&plan), "--out", text(&out)];
        let printed = ok(&[&call[..], &["--list"]].concat());
        let kept = TensorFile::open(&out).unwrap();
        let got: Vec<&str> = kept.shapes().map(|(n, _)| n).collect();
        let mut expected: Vec<String> = modules.iter().filter(|m| !gone(m)).map(|m| name(m)).collect();
        expected.push(foreign.into());
        expected.sort();
        assert_eq!(got, expected, "{style}");
        assert_eq!(kept.metadata()["ss_network_dim"], "2");
        assert!(printed.contains(&format!("dropped {}", name("down_blocks.1.attentions.0.transformer_blocks.0.attn1"))), "{printed}");
        // A key of another model.
        lora.insert(name("down_blocks.9.attentions.0.transformer_blocks.0.attn1"), tensor());
        save_tensors(&given, &lora, &BTreeMap::new(), None).unwrap();
        fails(&call, 3, &["lora.safetensors", "name no module of this U-Net", "down_blocks"]);
    }
}
