//! Adapters of the original on a pruned network: which keys go where, bit for bit.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};
use unet::{Error, ExportTarget, Program, remap_lora};

use crate::support::{published, same_bits};

#[test]
fn adapters_keep_every_bit_and_every_foreign_key() {
    let full = published();
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("lora.safetensors"), folder.path().join("out.safetensors"));
    let gone = "down_blocks.2.attentions.0.transformer_blocks.0.attn1";
    let target = ExportTarget::new(
        full.config(),
        &["attn1", "attn2", "ff"].map(|b| gone.replace("attn1", b)).into_iter().collect(),
        Program::Diffusers,
    )
    .unwrap();
    let (there, moved) =
        ("down_blocks.2.attentions.0.transformer_blocks.1.attn2.to_k", "down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k");
    let underscored = |name: &str| name.replace('.', "_");
    // The name before, and after; gone where there is none.
    let cases: Vec<(String, Option<String>)> = vec![
        (format!("lora_unet_{}.lora_down.weight", underscored(there)), Some(format!("lora_unet_{}.lora_down.weight", underscored(moved)))),
        (format!("lora_unet_{}.alpha", underscored(there)), Some(format!("lora_unet_{}.alpha", underscored(moved)))),
        (format!("lora_unet_{}.dora_scale", underscored(there)), Some(format!("lora_unet_{}.dora_scale", underscored(moved)))),
        (format!("lora_unet_{}.hada_w1_a", underscored(there)), Some(format!("lora_unet_{}.hada_w1_a", underscored(moved)))),
        (format!("lycoris_{}.lokr_w1", underscored(there)), Some(format!("lycoris_{}.lokr_w1", underscored(moved)))),
        (format!("unet.{there}.lora_A.default.weight"), Some(format!("unet.{moved}.lora_A.default.weight"))),
        (format!("unet.{there}.lora_magnitude_vector.weight"), Some(format!("unet.{moved}.lora_magnitude_vector.weight"))),
        (format!("base_model.model.{there}.lora_B.weight"), Some(format!("base_model.model.{moved}.lora_B.weight"))),
        (format!("{there}.lora_B.weight"), Some(format!("{moved}.lora_B.weight"))),
        (
            "diffusion_model.input_blocks.7.1.transformer_blocks.1.ff.net.2.lora_mid.weight".into(),
            Some("diffusion_model.input_blocks.7.1.transformer_blocks.0.ff.net.2.lora_mid.weight".into()),
        ),
        (
            "lora_unet_input_blocks_7_1_transformer_blocks_1_attn1_to_q.lora_up.weight".into(),
            Some("lora_unet_input_blocks_7_1_transformer_blocks_0_attn1_to_q.lora_up.weight".into()),
        ),
        (format!("lora_unet_{}_to_q.lora_up.weight", underscored(gone)), None),
        (format!("unet.{gone}.to_out.0.lora_A.weight"), None),
        (format!("unet.{gone}.processor.to_out_lora.up.weight"), None),
    ];
    let foreign = [
        "bundle_emb.style.string_to_param.*",
        "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_down.weight",
        "clip_g.text_projection.lora_up.weight",
        "lora_clip_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.hada_w2_b",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "network_alphas",
        "alphas",
        "emb_params",
        "something.new",
    ];
    let kinds = [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Float8e4m3fn, Kind::Float8e5m2, Kind::Int64];
    let value = |i: usize| (Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]) + i as f64).to_kind(kinds[i % 6]);
    let mut lora: Tensors =
        cases.iter().map(|(key, _)| key.as_str()).chain(foreign).enumerate().map(|(i, key)| (key.to_string(), value(i))).collect();
    lora.insert("lora_te1.empty".into(), Tensor::zeros([0, 4], (Kind::Half, Device::Cpu)));
    let metadata: BTreeMap<String, String> =
        [("ss_network_dim", "4"), ("modelspec.title", "é"), ("sshs_model_hash", "0")].map(|(k, v)| (k.into(), v.into())).into();
    save_tensors(&path, &lora, &metadata, None).unwrap();
    let told = remap_lora(full.config(), &target, &path, &out).unwrap();
    assert_eq!((told.kept, told.dropped.len(), told.foreign.len()), (11, 3, 12));
    let written = TensorFile::open(&out).unwrap();
    assert_eq!(written.metadata(), &metadata);
    assert_eq!(written.shapes().count(), 23);
    for (from, to) in cases.iter().map(|(a, b)| (a.as_str(), b.as_deref())).chain(foreign.iter().map(|f| (*f, Some(*f)))) {
        let Some(to) = to else {
            assert!(told.dropped.contains(&from.to_string()), "{from}");
            continue;
        };
        let got = written.tensor(to).unwrap().unwrap_or_else(|| panic!("{from} is not at {to}"));
        assert!(same_bits(&got, &lora[from]), "{from}");
    }
    assert_eq!(written.tensor("lora_te1.empty").unwrap().unwrap().size(), [0, 4]);

    // One file of another model, and files that change nothing in a U-Net.
    for (key, problem, hint) in [
        ("lora_unet_down_blocks_7_attentions_0_proj_in.lora_up.weight", "name no module", "the model that the LoRA was made for"),
        ("unet.down_blocks.2.attentions.9.proj_in.lora_A.weight", "name no module", "the model that the LoRA was made for"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_up.weight", "name no module", "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "name no module", "Flux"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "no key names a module", "text encoders alone"),
        ("decoder.conv_in.weight", "no key names a module", "name a LoRA"),
    ] {
        save_tensors(&path, &Tensors::from([(key.to_string(), value(0))]), &metadata, None).unwrap();
        let Err(Error::Format { problem: p, hint: h, .. }) = remap_lora(full.config(), &target, &path, &out) else { panic!("{key}") };
        assert!(p.contains(problem) && h.contains(hint), "{key}: {p}; {h}");
    }
    assert_eq!(TensorFile::open(&out).unwrap().shapes().count(), 23, "nothing was written over");
}
