//! One network in every container that people have it in: names, prefixes, shards, number types, and what stands beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};
use unet::{Prediction, SingleFileNames, StoredUNet, UNet, architecture, fingerprint, stored_kind, weight_files};

use crate::support::{clones, difference, original, prefixed, refused, same_bits, v1, write, zero};

fn same_network(path: &Path, unet: &UNet) {
    let back = UNet::open(path, Device::Cpu, unet.kind()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(back.parameters().keys().collect::<Vec<_>>(), unet.parameters().keys().collect::<Vec<_>>());
    for (key, t) in back.parameters() {
        assert!(same_bits(t, &unet.parameters()[key]), "{}: {key}", path.display());
    }
    assert_eq!(back.config().stages, unet.config().stages);
}

#[test]
fn any_names_behind_any_prefix_give_the_same_network() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    // Plain, inpainting, instruct-pix2pix, with the guidance scale as an input, without a mid block, with linear projections.
    let linear = [("use_linear_projection", json!(true)), ("cross_attention_dim", json!(40)), ("block_out_channels", json!([64, 128]))];
    let nets = [
        v1(&[]),
        v1(&[("in_channels", json!(9))]),
        v1(&[("in_channels", json!(8)), ("time_cond_proj_dim", json!(20))]),
        v1(&[("mid_block_type", Value::Null), ("layers_per_block", json!([1, 2]))]),
        v1(&[("conv_in_kernel", json!(5)), ("mid_block_type", json!("UNetMidBlock2D"))]),
        v1(&[&linear[..], &[("attention_head_dim", json!([1, 2]))]].concat()),
    ];
    let prefixes =
        ["", "model.diffusion_model.", "diffusion_model.", "unet.", "module.", "model.", "module.unet.", "_orig_mod.", "generator.unet."];
    for unet in &nets {
        for prefix in prefixes {
            for tensors in [original(unet), clones(unet.parameters())] {
                write(&path, &prefixed(prefix, tensors));
                same_network(&path, unet);
                assert_eq!(architecture(&path).unwrap().in_channels, unet.config().in_channels);
            }
        }
    }
    // The average of training and a teacher beside it do not count.
    let unet = &nets[0];
    let mut tensors = prefixed("model.diffusion_model.", original(unet));
    tensors.extend(prefixed("model.diffusion_model_ema.", original(&v1(&[("in_channels", json!(9))]))));
    tensors.extend(prefixed("real_score.model.diffusion_model.", original(&nets[3])));
    tensors.insert("control_model.input_blocks.0.0.weight".into(), zero());
    write(&path, &tensors);
    same_network(&path, unet);
}

#[test]
fn tensors_beside_the_network_are_told_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let unet = v1(&[]);
    let marks = [
        (vec!["v_pred"], Some(Prediction::V), false),
        (vec!["v_pred", "ztsnr"], Some(Prediction::V), true),
        (vec!["ztsnr"], None, true),
        (vec!["edm_mean", "edm_std"], Some(Prediction::Edm), false),
        (vec!["edm_vpred.sigma_max", "edm_vpred.sigma_min"], Some(Prediction::Edm), false),
        (vec!["decay", "some.buffer"], None, false),
    ];
    for (names, prediction, ztsnr) in marks {
        for (shape, prefix) in [(vec![], ""), (vec![0], ""), (vec![1, 2], ""), (vec![0, 3], "model.diffusion_model.")] {
            let mut tensors = prefixed(prefix, original(&unet));
            tensors.extend(names.iter().map(|n| (n.to_string(), Tensor::ones(&shape[..], (Kind::Float, Device::Cpu)))));
            write(&path, &tensors);
            let stored = StoredUNet::open(&path).unwrap();
            assert_eq!((stored.markers().prediction, stored.markers().zero_terminal_snr), (prediction, ztsnr), "{names:?} {shape:?}");
            assert_eq!(stored.beside(), names);
            same_network(&path, &unet);
        }
    }
    // By the ModelSpec standard.
    let spec = |value: &str| BTreeMap::from([("modelspec.prediction_type".to_string(), value.to_string())]);
    for (said, prediction) in [("v", Some(Prediction::V)), ("epsilon", Some(Prediction::Epsilon)), ("other", None)] {
        save_tensors(&path, &original(&unet), &spec(said), None).unwrap();
        assert_eq!(StoredUNet::open(&path).unwrap().markers().prediction, prediction);
    }
    // A tensor inside the network that the architecture has no place for would change numbers.
    for (strange, told) in
        [("input_blocks.1.1.transformer_blocks.0.attn3.to_q.weight", "attn3"), ("middle_block.7.weight", "middle_block.7")]
    {
        let mut tensors = original(&unet);
        tensors.insert(strange.into(), zero());
        write(&path, &tensors);
        let error = UNet::open(&path, Device::Cpu, Kind::Half).unwrap_err().to_string();
        assert!(error.contains("1 unexpected") && error.contains(told), "{error}");
    }
}

#[test]
fn floats_of_eight_bits_are_widened_and_scaled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let unet = v1(&[]);
    let eight = [Kind::Float8e4m3fn, Kind::Float8e5m2, Kind::Float8e4m3fnuz, Kind::Float8e5m2fnuz];
    // The last one has all types in one file.
    for kind in eight.into_iter().map(Some).chain([Some(Kind::BFloat16), Some(Kind::Double), None]) {
        let mixed = [Kind::Float8e4m3fn, Kind::Half, Kind::BFloat16, Kind::Double, Kind::Float, Kind::Float8e5m2];
        let stored: Tensors =
            original(&unet).into_iter().enumerate().map(|(i, (k, t))| (k, t.to_kind(kind.unwrap_or(mixed[i % 6])))).collect();
        write(&path, &prefixed("model.diffusion_model.", clones(&stored)));
        let back = UNet::open(&path, Device::Cpu, Kind::Float).unwrap();
        let names = SingleFileNames::new(unet.config());
        for (key, t) in back.parameters() {
            assert!(same_bits(t, &stored[&names.to_single_file(key).unwrap()].to_kind(Kind::Float)), "{kind:?}: {key}");
        }
        if let Some(kind) = kind {
            let computed = if eight.contains(&kind) {
                Kind::Half
            } else if kind == Kind::Double {
                Kind::Float
            } else {
                kind
            };
            assert_eq!(stored_kind(&path).unwrap(), computed);
        }
    }

    // With a factor for each tensor or each row, in the words of several programs.
    for (scale, input, per_row) in [
        ("scale_weight", "scale_input", false),
        ("weight_scale", "input_scale", false),
        ("weight_scale", "input_scale", true),
        ("weight_scale_inv", "input_scale", false),
    ] {
        let (mut tensors, mut expected) = (original(&unet), Tensors::new());
        for (n, key) in original(&unet).into_keys().enumerate() {
            let Some(layer) = key.strip_suffix(".weight").filter(|k| k.contains("attn") || k.ends_with("0.0")) else { continue };
            let small = (&tensors[&key].to_kind(Kind::Float) * 3.0).to_kind(Kind::Float8e4m3fn);
            let rows = small.size()[0];
            let factors = match per_row {
                true => Tensor::linspace(0.5, 2.0, rows, (Kind::Float, Device::Cpu)).view([rows, 1]),
                false => Tensor::from(0.25f32 + n as f32 / 64.0),
            };
            let shape: Vec<i64> = small.size().iter().enumerate().map(|(i, _)| if i == 0 && per_row { rows } else { 1 }).collect();
            expected.insert(key.clone(), small.to_kind(Kind::Float) * factors.view(&shape[..]));
            tensors.insert(format!("{layer}.{scale}"), factors);
            tensors.insert(format!("{layer}.{input}"), Tensor::from(1f32));
            tensors.insert(key, small);
        }
        assert!(expected.len() > 8);
        let mut whole = prefixed("model.diffusion_model.", tensors);
        whole.insert("model.diffusion_model.scaled_fp8".into(), Tensor::zeros([0], (Kind::Float8e4m3fn, Device::Cpu)));
        let quant = br#"{"format": "float8_e4m3fn"}"#;
        whole.insert("model.diffusion_model.input_blocks.0.0.comfy_quant".into(), Tensor::from_slice(quant));
        write(&path, &whole);
        let back = UNet::open(&path, Device::Cpu, Kind::Float).unwrap();
        let names = SingleFileNames::new(unet.config());
        for (key, t) in back.parameters() {
            if let Some(expected) = expected.get(&names.to_single_file(key).unwrap()) {
                assert!(difference(t, expected) == 0.0, "{scale}: {key}");
            }
        }
    }

    // Other ways of packing numbers.
    let layer = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q";
    for (ending, told) in [
        ("weight.quant_state.bitsandbytes__nf4", "bitsandbytes (nf4)"),
        ("weight.absmax", "bitsandbytes"),
        ("weight.quant_map", "bitsandbytes"),
        ("SCB", "int8"),
        ("weight._data", "quanto"),
        ("weight_scale_2", "NVFP4"),
        ("qweight", "GPTQ"),
    ] {
        let mut tensors = prefixed("model.diffusion_model.", original(&unet));
        tensors.insert(format!("{layer}.{ending}"), Tensor::ones([4], (Kind::Uint8, Device::Cpu)));
        write(&path, &tensors);
        let (problem, hint) = refused(&path);
        assert!(problem.contains(told) && problem.contains(ending) && hint.contains("f16"), "{problem}; {hint}");
    }
    let mut tensors = prefixed("model.diffusion_model.", original(&unet));
    tensors.insert(format!("{layer}.comfy_quant"), Tensor::from_slice(br#"{"format": "nvfp4"}"#));
    write(&path, &tensors);
    assert!(refused(&path).0.contains("nvfp4"));
}

/// The tensors in two shards with their index, under these names.
fn shards(dir: &Path, tensors: &Tensors, index: &str, names: [&str; 2]) {
    let mut map = BTreeMap::new();
    for (half, name) in names.into_iter().enumerate() {
        let part: Tensors =
            tensors.iter().enumerate().filter(|(i, _)| i % 2 == half).map(|(_, (k, t))| (k.clone(), t.shallow_clone())).collect();
        map.extend(part.keys().map(|k| (k.clone(), name)));
        write(&dir.join(name), &part);
    }
    std::fs::write(dir.join(index), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
}

#[test]
fn shards_and_variants_are_found_by_folder_index_and_shard() {
    let unet = v1(&[]);
    let stem = "diffusion_pytorch_model";
    for (index, names) in [
        ("safetensors.index.json", ["-00001-of-00002.safetensors", "-00002-of-00002.safetensors"]),
        ("safetensors.index.fp16.json", [".fp16-00001-of-00002.safetensors", ".fp16-00002-of-00002.safetensors"]),
        ("fp16.safetensors.index.json", ["-00001-of-00002.fp16.safetensors", "-00002-of-00002.fp16.safetensors"]),
        ("safetensors.index.non_ema.json", [".non_ema-00001-of-00002.safetensors", ".non_ema-00002-of-00002.safetensors"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("unet");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), unet.config().to_json().to_string()).unwrap();
        let (index, names) = (format!("{stem}.{index}"), names.map(|n| format!("{stem}{n}")));
        shards(&folder, unet.parameters(), &index, [&names[0], &names[1]]);
        for path in [dir.path().to_path_buf(), folder.clone(), folder.join(&index), folder.join(&names[1])] {
            same_network(&path, &unet);
            assert_eq!(weight_files(&path).unwrap(), names.clone().map(|n| folder.join(n)), "{}", path.display());
        }
        assert_eq!(fingerprint(dir.path()).unwrap(), fingerprint(folder.join(&index)).unwrap());
        // All shards without their index, then without one of them.
        let text = std::fs::read_to_string(folder.join(&index)).unwrap();
        std::fs::remove_file(folder.join(&index)).unwrap();
        same_network(dir.path(), &unet);
        std::fs::write(folder.join(&index), &text).unwrap();
        std::fs::remove_file(folder.join(&names[0])).unwrap();
        let (problem, _) = refused(dir.path());
        assert!(problem.contains(&names[0]), "{problem}");
        std::fs::write(folder.join(&index), text.replace(&names[0], "../elsewhere.safetensors")).unwrap();
        assert!(refused(dir.path()).0.contains("leads out of its folder"));
    }
    // The order of variants: the published one before others, the training state last.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), unet.config().to_json().to_string()).unwrap();
    for variant in ["non_ema.", "int.", "bf16.", "fp16.", ""] {
        let file = dir.path().join(format!("{stem}.{variant}safetensors"));
        write(&file, unet.parameters());
        assert_eq!(weight_files(dir.path()).unwrap(), [file]);
    }
}

#[test]
fn a_configuration_beside_a_file_says_what_shapes_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lightning.safetensors");
    // Five heads for 40 channels: no shape tells.
    let odd = [
        ("block_out_channels", json!([40, 80])),
        ("attention_head_dim", json!(5)),
        ("cross_attention_dim", json!(24)),
        ("norm_num_groups", json!(8)),
    ];
    let unet = v1(&odd);
    write(&path, unet.parameters());
    let (problem, hint) = refused(&path);
    assert!(problem.contains("number of heads") && hint.contains("config.json"), "{problem}; {hint}");
    std::fs::write(dir.path().join("config.json"), unet.config().to_json().to_string()).unwrap();
    same_network(&path, &unet);
    write(&path, &original(&unet));
    same_network(&path, &unet);
    // That of something else does not count.
    for other in [json!({"architectures": ["CLIPTextModel"], "hidden_size": 3}), v1(&[]).config().to_json()] {
        std::fs::write(dir.path().join("config.json"), other.to_string()).unwrap();
        assert!(refused(&path).0.contains("number of heads"));
    }
    // A folder of weights without configuration is read off the shapes as well.
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("diffusion_pytorch_model.safetensors"), v1(&[]).parameters());
    same_network(folder.path(), &v1(&[]));
}

#[test]
fn checkpoints_of_training_programs_are_read() {
    let files = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pytorch_files").join(name);
    let case = TensorFile::open(files("lightning_case.safetensors")).unwrap().tensors().unwrap();
    for name in ["lightning.ckpt", "lightning_legacy.ckpt"] {
        let unet = UNet::open(files(name), Device::Cpu, Kind::Float).unwrap();
        let cond = unet::Conditioning::text(case["input.encoder_hidden_states"].shallow_clone());
        let out = tch::no_grad(|| unet.forward(&case["input.sample"], &case["input.timestep"], &cond)).unwrap();
        // diffusers converted the same tensors.
        assert!(difference(&out, &case["output"]) < 1e-4, "{name}");
        let stored = StoredUNet::open(files(name)).unwrap();
        assert!(stored.beside().iter().any(|n| n == "state_dict.first_stage_model.encoder.conv_in.weight"));
        assert!(stored.beside().iter().any(|n| n == "optimizer_states.0.state.0.exp_avg"));
        assert_eq!(stored.kind(), Kind::Half);
    }
}
