//! What is no U-Net is called by its name, and the next step is told.

use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::support::{clones, original, refused, v1, write, zero};

/// What people name instead of a U-Net, and what they are told.
#[test]
fn other_files_are_called_by_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file.safetensors");
    for (keys, told) in [
        (vec!["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
        (vec!["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"], "a LoRA"),
        (vec!["lora_unet_mid_block.hada_w1_a"], "LoHa"),
        (vec!["lora_unet_mid_block.lokr_w1"], "LoKr"),
        (vec!["lora_unet_double_blocks_0_img_attn_proj.lora_down.weight"], "a LoRA for Flux"),
        (vec!["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"], "a LoRA for a diffusion transformer"),
        (vec!["first_stage_model.decoder.conv_in.weight", "first_stage_model.decoder.conv_out.bias"], "an autoencoder"),
        (vec!["decoder.conv_in.weight", "decoder.conv_out.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"], "an autoencoder"),
        (vec!["text_model.encoder.layers.0.self_attn.q_proj.weight"], "a CLIP text encoder"),
        (vec!["text_model.encoder.layers.0.mlp.fc1.weight", "vision_model.encoder.layers.0.mlp.fc1.weight"], "a CLIP model"),
        (vec!["encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5 text encoder"),
        (vec!["visual.transformer.resblocks.0.attn.in_proj_weight"], "an OpenCLIP model"),
        (vec!["control_model.input_blocks.0.0.weight", "control_model.time_embed.0.weight"], "a ControlNet"),
        (vec!["input_blocks.0.0.weight", "time_embed.0.weight", "input_hint_block.0.weight"], "a ControlNet"),
        (
            vec![
                "conv_in.weight",
                "time_embedding.linear_1.weight",
                "down_blocks.0.resnets.0.conv1.weight",
                "controlnet_cond_embedding.conv_in.weight",
            ],
            "a ControlNet",
        ),
        (vec!["adapter.body.0.resnets.0.block1.weight"], "a T2I-Adapter"),
        (vec!["body.0.block1.weight", "conv_in.weight"], "a T2I-Adapter"),
        (vec!["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter"),
        (vec!["double_blocks.0.img_attn.norm.key_norm.scale"], "Flux"),
        (vec!["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (vec!["single_transformer_blocks.0.attn.to_q.weight", "x_embedder.weight"], "Flux"),
        (vec!["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
        (vec!["transformer_blocks.0.attn.add_k_proj.weight", "pos_embed.proj.weight"], "Stable Diffusion 3"),
        (vec!["adaln_single.linear.weight", "transformer_blocks.0.attn1.to_q.weight"], "PixArt"),
        (vec!["clip_txt_pooled_mapper.weight"], "Stable Cascade"),
        (
            vec!["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q.weight"],
            "Video",
        ),
        (vec!["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "AnimateDiff"),
        (vec!["model_ema.diffusion_modelinput_blocks00weight"], "averaged"),
        (vec!["lora_controlnet", "input_blocks.0.0.weight", "input_hint_block.0.down"], "a Control-LoRA"),
        (vec!["vquantizer.codebook.weight"], "stage A"),
        (vec!["decoder.layers.1.weight", "encoder.layers.0.weight"], "TAESD"),
        (vec!["emb_params"], "a textual inversion"),
        (vec!["state.0.exp_avg_sq"], "an optimizer's state"),
        (vec!["something.else"], "no U-Net"),
        (vec![], "no tensor"),
    ] {
        write(&path, &keys.iter().map(|k| (k.to_string(), zero())).collect());
        let (problem, hint) = refused(&path);
        assert!(problem.contains(told) && !hint.is_empty(), "{keys:?}: {problem}; {hint}");
        assert!(!format!("{problem}{hint}").contains("LFS"), "{problem}; {hint}");
    }
    // U-Nets with inputs that no network here takes.
    let linear = [("use_linear_projection", json!(true)), ("block_out_channels", json!([64, 128])), ("attention_head_dim", json!([1, 2]))];
    let v2 = v1(&[&linear[..], &[("cross_attention_dim", json!(1024))]].concat());
    for (key, shape, told) in [
        ("label_emb.weight", vec![10, 128], "num_class_embeds"),
        ("label_emb.0.0.weight", vec![256, 2048], "unCLIP"),
        ("class_embedding.weight", vec![10, 128], "class_embed_type"),
        ("encoder_hid_proj.weight", vec![10, 128], "encoder_hid_dim_type"),
    ] {
        let mut tensors = if key.starts_with("label") { original(&v2) } else { clones(v2.parameters()) };
        tensors.insert(key.into(), Tensor::zeros(&shape[..], (Kind::Float, Device::Cpu)));
        write(&path, &tensors);
        assert!(refused(&path).0.contains(told), "{key}");
    }
}

/// A zip archive of one empty member.
fn zip_of(name: &str) -> Vec<u8> {
    let n = (name.len() as u16).to_le_bytes();
    let local = [&b"PK\x03\x04\x0a\0\0\0\0\0\0\0\x21\0"[..], &[0; 12], &n, &[0; 2], name.as_bytes()].concat();
    let central = [&b"PK\x01\x02\x0a\0\x0a\0\0\0\0\0\0\0\x21\0"[..], &[0; 12], &n, &[0; 16], name.as_bytes()].concat();
    let sizes = [(central.len() as u32).to_le_bytes(), (local.len() as u32).to_le_bytes()].concat();
    [&local[..], &central, b"PK\x05\x06\0\0\0\0\x01\0\x01\0", &sizes, &[0; 2]].concat()
}

#[test]
fn files_of_no_tensors_are_called_by_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let tar = [&[b'a'; 257][..], b"ustar  ", &[0; 300]].concat();
    let onnx = b"\x08\x08\x12\x07pytorch\x1a\x062.11.0:\xff\x01".to_vec();
    for (bytes, told) in [
        (b"".to_vec(), "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n".to_vec(), "Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html><body>Log in".to_vec(), "web page"),
        (b"\n  <HTML lang=\"en\">".to_vec(), "web page"),
        (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied".to_vec(), "XML"),
        (br#"{"error": "Invalid username or password."}"#.to_vec(), "JSON"),
        (b"Entry not found".to_vec(), "a text"),
        (b"GGUF\x03\x00\x00\x00more".to_vec(), "GGUF"),
        (onnx, "ONNX"),
        (b"ftrt\x00\x00\x00\x00\x00".to_vec(), "TensorRT"),
        (b"\x89HDF\r\n\x1a\n\x00".to_vec(), "Keras"),
        (b"\x81\xa6params\x82".to_vec(), "Flax"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00".to_vec(), "gzip"),
        (tar, "tar archive"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.".to_vec(), "pickle"),
        (zip_of("model/weights.safetensors"), "a zip archive of something else (model/weights.safetensors)"),
        (b"PK\x03\x04\x14\x00\x00\x00\x00\x00hello".to_vec(), "damaged zip"),
        (vec![0; 64], "neither"),
        ([&100u64.to_le_bytes()[..], b"{\"a\":"].concat(), "header has 100 bytes"),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let (problem, hint) = refused(&path);
        assert!(problem.contains(told) && !hint.is_empty(), "{told}: {problem}; {hint}");
        let lfs = told.contains("LFS");
        assert_eq!(format!("{problem}{hint}").contains("LFS"), lfs, "{problem}; {hint}");
    }
    // Half a file says how much is there.
    write(&path, &original(&v1(&[])));
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let (problem, hint) = refused(&path);
    assert!(problem.contains(&format!("{} bytes by its header, of which {}", whole.len(), whole.len() / 2)), "{problem}");
    assert!(hint.contains("download complete"), "{hint}");
    // Folders.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("sd_xl_base_1.0.safetensors"), &whole).unwrap();
    let (problem, hint) = refused(folder.path());
    assert!(problem.contains("sd_xl_base_1.0.safetensors") && hint.contains("name the file"), "{problem}; {hint}");
    std::fs::write(folder.path().join("model_index.json"), r#"{"_class_name": "FluxPipeline"}"#).unwrap();
    assert!(refused(folder.path()).0.contains("FluxPipeline"));
}
