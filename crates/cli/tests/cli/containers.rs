//! U-Nets as people hold them, on the command: single files of networks that nothing here draws with are scored, planned and pruned
//! from tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};
use unet::{UNet, UNetConfig};

use crate::support::{fails, ok, read_json, text};

fn config(edits: &[(&str, Value)]) -> UNetConfig {
    let mut json = json!({
        "_class_name": "UNet2DConditionModel", "attention_head_dim": 8, "block_out_channels": [32, 64], "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    });
    for (key, value) in edits {
        json[key] = value.clone();
    }
    UNetConfig::parse(&json.to_string(), "test").unwrap()
}

/// Inpainting, instruct-pix2pix, and the refiner's five sizes.
fn nets() -> [(&'static str, UNetConfig); 3] {
    let refiner = [
        ("attention_head_dim", json!([1, 2])),
        ("block_out_channels", json!([64, 128])),
        ("cross_attention_dim", json!(24)),
        ("use_linear_projection", json!(true)),
        ("addition_embed_type", json!("text_time")),
        ("addition_time_embed_dim", json!(256)),
        ("projection_class_embeddings_input_dim", json!(5 * 256 + 16)),
    ];
    [("inpainting", config(&[("in_channels", json!(9))])), ("pix2pix", config(&[("in_channels", json!(8))])), ("refiner", config(&refiner))]
}

fn noise(shape: &[i64]) -> Tensor {
    unet::weights::seeded(3, || Tensor::randn(shape, (Kind::Float, Device::Cpu)))
}

/// A calibration set as docs/formats.md describes it, of four points.
fn calibration(path: &Path, config: &UNetConfig) {
    let n = 4;
    let mut tensors = Tensors::from([
        ("x_t".to_string(), noise(&[n, config.in_channels, 8, 8])),
        ("timesteps".to_string(), Tensor::from_slice(&[900f32, 600.0, 300.0, 1.0])),
        ("bins".to_string(), Tensor::from_slice(&[0i64, 0, 1, 1])),
        ("encoder_hidden_states".to_string(), noise(&[n, 3, config.text_width])),
        ("target".to_string(), noise(&[n, config.out_channels, 8, 8])),
    ]);
    if config.added.is_some() {
        tensors.insert("text_embeds".into(), noise(&[n, 16]));
        tensors.insert("time_ids".into(), Tensor::from_slice(&[64f32, 64.0, 0.0, 0.0, 6.0]).expand([n, 5], false).contiguous());
    }
    let metadata = [
        ("format", "laptop-diff calibration set"),
        ("version", "1"),
        ("seed", "0"),
        ("source", "latents"),
        ("source_hash", "by hand"),
        ("prediction_type", "epsilon"),
        ("num_bins", "2"),
        ("prompts", r#"["a", "b", "c", "d"]"#),
    ];
    save_tensors(path, &tensors, &metadata.map(|(k, v)| (k.to_string(), v.to_string())).into(), None).unwrap();
}

fn written(dir: &Path, name: &str, unet: &UNet) -> PathBuf {
    let path = dir.join(format!("{name}.safetensors"));
    unet.save_single_file(&path, None, &BTreeMap::new(), None).unwrap();
    // As another program would write it.
    let tensors = TensorFile::open(&path).unwrap().tensors().unwrap();
    save_tensors(&path, &tensors, &[("modelspec.title".to_string(), name.to_string())].into(), None).unwrap();
    path
}

#[test]
fn networks_of_other_tasks_are_scored_and_pruned_from_tensors() {
    for (name, config) in nets() {
        let dir = tempfile::tempdir().unwrap();
        let unet = UNet::random(&config, 5, Device::Cpu, Kind::Half).unwrap();
        let model = written(dir.path(), name, &unet);
        let (points, scores, plan) = (dir.path().join("calib.safetensors"), dir.path().join("scores"), dir.path().join("plan.json"));
        calibration(&points, &config);
        let score = ["score", "--model", text(&model), "--calibration", text(&points), "--out", text(&scores), "--criterion"];
        ok(&[&score[..], &["output_loss"]].concat());
        let file = scores.join("output_loss.json");
        ok(&["plan", "--scores", text(&file), "--model", text(&model), "--ratio", "0.2", "--out", text(&plan)]);
        assert!(read_json(&plan)["params_ratio"].as_f64().unwrap() >= 0.2, "{name}");
        let out = dir.path().join("pruned");
        ok(&["prune", "--model", text(&model), "--plan", text(&plan), "--unet-only", "--out", text(&out)]);
        let pruned = UNet::open(&out, Device::Cpu, Kind::Half).unwrap();
        assert_eq!(pruned.num_parameters(), read_json(&plan)["params_left"].as_u64().unwrap(), "{name}");
        assert_eq!(pruned.metadata()["modelspec.title"], name);
        for (key, t) in pruned.parameters() {
            assert!(t.equal(&unet.parameters()[key]), "{name}: {key}");
        }
    }
}

#[test]
fn what_is_no_unet_is_called_by_its_name_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.safetensors");
    let one = |key: &str| Tensors::from([(key.to_string(), noise(&[2, 2]))]);
    for (key, told) in [("double_blocks.0.img_attn.qkv.weight", "Flux"), ("lora_unet_conv_in.lora_up.weight", "remap-lora")] {
        save_tensors(&path, &one(key), &BTreeMap::new(), None).unwrap();
        for call in [&["inspect", "--model"][..], &["prune", "--unet-only", "--out", "out", "--model"]] {
            fails(&[call, &[text(&path)]].concat(), 3, &["file.safetensors", told]);
        }
    }
    // A warning, and the table, for a file with marks of its own.
    let unet = UNet::random(&config(&[]), 5, Device::Cpu, Kind::Half).unwrap();
    let mut tensors = TensorFile::open(written(dir.path(), "marked", &unet)).unwrap().tensors().unwrap();
    tensors.insert("v_pred".into(), Tensor::zeros([0], (Kind::Float, Device::Cpu)));
    save_tensors(&path, &tensors, &BTreeMap::new(), None).unwrap();
    let told = ok(&["inspect", "--model", text(&path)]);
    assert!(told.contains(&format!("parameters  {}", unet.num_parameters())), "{told}");
    let told: Value = serde_json::from_str(&ok(&["inspect", "--model", text(&path), "--json"])).unwrap();
    assert_eq!(told["prediction_type"], "v_prediction");
}
