//! The autoencoder, the CLIP models and the tokenizer against diffusers and transformers (tests/fixtures/gen_diffusion_models.py),
//! and what training needs of them: gradients, fresh parameters, files.

use std::path::{Path, PathBuf};

use diffusion::{
    AutoencoderKl, ClipConfig, ClipModel, ClipPreprocess, ClipTextConfig, ClipTextModel, Error, Tokenizer, Truncated, VaeConfig,
};
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, Weights, save_tensors, seeded};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/diffusion").join(name)
}

fn io(name: &str) -> Tensors {
    TensorFile::open(fixture(name).join("io.safetensors")).unwrap().tensors().unwrap()
}

#[track_caller]
fn close(name: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size(), "{name}: shape");
    let error = (got - expected).abs().max().double_value(&[]);
    assert!(error <= tolerance, "{name}: max abs error {error:e}");
}

#[test]
fn autoencoder_agrees_with_diffusers() {
    for name in ["vae", "vae_plain"] {
        let io = io(name);
        let vae = AutoencoderKl::open(fixture(name), Device::Cpu, Kind::Float).unwrap();
        let moments = vae.encode(&io["x"]).unwrap();
        close("mean", &moments.mean, &io["mean"], 1e-4);
        close("logvar", &moments.logvar, &io["logvar"], 1e-4);
        close("sample", &moments.sample(&io["noise"]), &io["sample"], 1e-4);
        close("kl", &(moments.kl() / &io["kl"]), &io["kl"].ones_like(), 1e-5);
        close("decoded", &vae.decode(&io["z"]).unwrap(), &io["decoded"], 1e-4);
    }
}

#[test]
fn autoencoder_loads_the_old_attention_names_and_gives_today_s() {
    let io = io("vae");
    let dir = tempfile::tempdir().unwrap();
    let new = AutoencoderKl::open(fixture("vae"), Device::Cpu, Kind::Float).unwrap();
    let old: Tensors = new
        .parameters()
        .iter()
        .map(|(key, t)| {
            let key = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")]
                .iter()
                .fold(key.clone(), |key, (now, before)| key.replace(now, before));
            (key, t.shallow_clone())
        })
        .collect();
    assert!(old.contains_key("encoder.mid_block.attentions.0.proj_attn.weight"));
    save_tensors(dir.path().join("diffusion_pytorch_model.safetensors"), &old, &Default::default(), None).unwrap();
    std::fs::copy(fixture("vae/config.json"), dir.path().join("config.json")).unwrap();
    let vae = AutoencoderKl::open(dir.path(), Device::Cpu, Kind::Float).unwrap();
    close("mean", &vae.encode(&io["x"]).unwrap().mean, &io["mean"], 1e-4);
    assert!(vae.parameters().keys().eq(new.parameters().keys()));
}

#[test]
fn text_encoders_agree_with_transformers() {
    for (name, output) in [("text_encoder", "pooled"), ("text_encoder_2", "projected")] {
        let io = io(name);
        let model = ClipTextModel::open(fixture(name), Device::Cpu, Kind::Float).unwrap();
        let out = model.forward(&io["ids"]).unwrap();
        assert_eq!(out.hidden_states.len() as i64, model.config().num_hidden_layers + 1);
        for (n, state) in out.hidden_states.iter().enumerate() {
            close(&format!("{name} hidden_states.{n}"), state, &io[&format!("hidden_states.{n}")], 1e-4);
        }
        close("last", &out.last, &io["last"], 1e-4);
        let got = if output == "pooled" { Some(&out.pooled) } else { out.projected.as_ref() };
        close(output, got.unwrap(), &io[output], 1e-4);
    }
}

#[test]
fn clip_agrees_with_transformers() {
    let io = io("clip");
    let clip = ClipModel::open(fixture("clip"), Device::Cpu, Kind::Float).unwrap();
    close("image_embedding", &clip.image_embedding(&io["pixels"]).unwrap(), &io["image_embedding"], 1e-4);
    let image = clip.image_features(&io["pixels"]).unwrap();
    let text = clip.text_features(&io["ids"]).unwrap();
    close("image_features", &image, &io["image_features"], 1e-4);
    close("text_features", &text, &io["text_features"], 1e-4);
    let unit = |x: &Tensor| x / x.square().sum_dim_intlist([1i64].as_slice(), true, None::<Kind>).sqrt();
    let logits = unit(&image).matmul(&unit(&text).tr()) * clip.logit_scale().exp();
    close("logits_per_image", &logits, &io["logits_per_image"], 1e-4);
}

#[test]
fn images_are_prepared_as_transformers_does() {
    let io = io("clip");
    let images = ["exact", "large", "small"].map(|name| {
        let t = &io[&format!("picture.{name}")];
        let bytes: Vec<u8> = Vec::try_from(t.flatten(0, 2)).unwrap();
        image::RgbImage::from_raw(t.size()[1] as u32, t.size()[0] as u32, bytes).unwrap()
    });
    let preprocess = ClipPreprocess::open(fixture("clip")).unwrap();
    assert_eq!(preprocess, ClipPreprocess { shortest_edge: 24, crop_size: 21, ..ClipPreprocess::new(21) });
    let got = preprocess.pixels(&[&images[0], &images[1], &images[2]]).unwrap();
    close("exact", &got.narrow(0, 0, 1), &io["pixels"].narrow(0, 0, 1), 1e-5);
    // Pillow rounds to whole numbers between its two passes: one step of 255 apart, at most, after division by the deviation.
    close("resized", &got, &io["pixels"], 1.01 / 255.0 / 0.26);
}

#[derive(serde::Deserialize)]
struct Tokens {
    texts: Vec<String>,
    tokenizer: Vec<Vec<i64>>,
    tokenizer_2: Vec<Vec<i64>>,
}

#[test]
fn tokenizers_agree_with_transformers() {
    let tokens: Tokens = serde_json::from_str(&std::fs::read_to_string(fixture("tokens.json")).unwrap()).unwrap();
    assert_eq!(tokens.texts.len(), 200);
    let texts: Vec<&str> = tokens.texts.iter().map(String::as_str).collect();
    let expected = [("tokenizer", &tokens.tokenizer), ("tokenizer_2", &tokens.tokenizer_2), ("tokenizer_json", &tokens.tokenizer_2)];
    for (name, expected) in expected {
        let tokenizer = Tokenizer::open(fixture(name)).unwrap();
        let ids: Vec<Vec<i64>> = Vec::try_from(tokenizer.encode(&texts).unwrap()).unwrap();
        for ((text, got), expected) in texts.iter().zip(&ids).zip(expected) {
            assert_eq!(got, expected, "{name}: {text:?}");
        }
    }
}

#[test]
fn tokenizer_files_are_written_as_they_were_when_transformers_read_them() {
    let words = std::fs::read_to_string(fixture("words.txt")).unwrap();
    let words: Vec<&str> = words.split_whitespace().collect();
    let dir = tempfile::tempdir().unwrap();
    for (name, pad) in [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")] {
        Tokenizer::write_from_words(dir.path(), &words, 24, pad).unwrap();
        for file in ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"] {
            let (got, expected) = (std::fs::read_to_string(dir.path().join(file)), std::fs::read_to_string(fixture(name).join(file)));
            assert_eq!(got.unwrap(), expected.unwrap(), "{name}/{file}");
        }
    }
    let refused = Tokenizer::write_from_words(dir.path(), &words, 24, "[PAD]");
    assert!(matches!(refused, Err(Error::Input { name, .. }) if name == "pad_token"));
    let vocab = dir.path().join("vocab.json");
    let whole = std::fs::read_to_string(&vocab).unwrap();
    std::fs::write(&vocab, whole.replacen(": 7", ": 7.5", 1)).unwrap();
    let error = Tokenizer::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("vocab.json") && error.contains("is 7.5, not a whole number"), "{error}");
}

#[test]
fn a_prompt_that_is_too_long_keeps_its_end_token_and_is_reported() {
    let tokenizer = Tokenizer::open(fixture("tokenizer")).unwrap();
    let long = format!("{}é blue ring", "red ".repeat(22));
    let encoded = tokenizer.encode_batch(&["a red ring", &long]).unwrap();
    assert_eq!(encoded.truncated, [Truncated { prompt: 1, tokens: 25, rest: "é blue ring".into() }]);
    let ids: Vec<Vec<i64>> = Vec::try_from(encoded.ids).unwrap();
    let word = |text: &str| (0..tokenizer.vocab_size()).find(|&id| tokenizer.token(id).as_deref() == Some(text)).unwrap();
    assert_eq!(ids[0][..5], [tokenizer.bos(), word("a</w>"), word("red</w>"), word("ring</w>"), tokenizer.eos()]);
    assert!(ids[0][5..].iter().all(|&id| id == tokenizer.pad()));
    assert_eq!(ids[1].len(), tokenizer.model_max_length());
    assert_eq!(ids[1][23], tokenizer.eos());
    assert!(matches!(tokenizer.encode(&[]), Err(Error::Input { .. })));
}

fn small_text() -> ClipTextConfig {
    ClipTextConfig::open(fixture("text_encoder_2")).unwrap()
}

// Doubles made from f32 masters stand for the casts of mixed precision: the gradient must arrive at the masters.
fn check_gradients(masters: &Tensors, loss: impl Fn(Weights) -> Tensor) {
    let mut masters: Tensors = masters.iter().map(|(key, t)| (key.clone(), t.detach().copy())).collect();
    for t in masters.values_mut() {
        let _ = t.requires_grad_(true);
    }
    let casts = masters.iter().map(|(key, t)| (key.clone(), t.to_kind(Kind::Double))).collect();
    loss(Weights::from_tensors(casts)).backward();
    for (key, t) in &masters {
        let grad = t.grad();
        assert!(grad.defined(), "{key} has no gradient");
        let size = grad.abs().max().double_value(&[]);
        assert!(size.is_finite(), "{key}: gradient {size}");
        // Softmax does not see what is added to all keys alike.
        let invisible = key.ends_with("k_proj.bias") || key.ends_with("to_k.bias");
        assert!(size > 1e-9 || invisible, "{key}: gradient {size:e}");
    }
}

#[test]
fn gradients_reach_every_parameter() {
    let (device, kind) = (Device::Cpu, Kind::Float);

    let config = VaeConfig::open(fixture("vae")).unwrap();
    let vae = AutoencoderKl::random(&config, 1, device, kind).unwrap();
    let x = io("vae")["x"].to_kind(Kind::Double);
    check_gradients(vae.parameters(), |weights| {
        let vae = AutoencoderKl::from_weights(&config, weights).unwrap();
        let moments = vae.encode(&x).unwrap();
        let z = moments.sample(&seeded(4, || moments.mean.randn_like()));
        vae.decode(&z).unwrap().square().mean(Kind::Double) + moments.kl().mean(Kind::Double)
    });

    let config = small_text();
    let text = ClipTextModel::random(&config, 2, device, kind).unwrap();
    let ids = &io("text_encoder_2")["ids"];
    check_gradients(text.parameters(), |weights| {
        let out = ClipTextModel::from_weights(&config, weights).unwrap().forward(ids).unwrap();
        // Mean squares of normalized states would be blind to what comes before the normalization.
        out.projected.unwrap().pow_tensor_scalar(3).mean(Kind::Double)
    });

    let config = ClipConfig::open(fixture("clip")).unwrap();
    let clip = ClipModel::random(&config, 3, device, kind).unwrap();
    let (pixels, ids) = (&io("clip")["pixels"], io("clip")["ids"].narrow(0, 0, 3));
    check_gradients(clip.parameters(), |weights| {
        let clip = ClipModel::from_weights(&config, weights).unwrap();
        let unit = |x: Tensor| &x / x.square().sum_dim_intlist([1i64].as_slice(), true, None::<Kind>).sqrt();
        let (image, text) = (unit(clip.image_features(pixels).unwrap()), unit(clip.text_features(&ids).unwrap()));
        let logits = image.matmul(&text.tr()) * clip.logit_scale().exp();
        logits.cross_entropy_for_logits(&Tensor::arange(3, (Kind::Int64, device)))
    });
}

#[test]
fn fresh_parameters_depend_on_the_seed_alone_and_start_as_in_clip() {
    let config = ClipConfig::open(fixture("clip")).unwrap();
    let make = |seed| ClipModel::random(&config, seed, Device::Cpu, Kind::Float).unwrap();
    let (a, b, c) = (make(7), make(7), make(8));
    assert!(a.parameters().iter().all(|(key, t)| *t == b.parameters()[key]));
    assert!(a.parameters()["text_projection.weight"] != c.parameters()["text_projection.weight"]);
    close("logit_scale", a.logit_scale(), &Tensor::from((1.0f32 / 0.07).ln()), 1e-4);
    let std = a.parameters()["text_model.embeddings.token_embedding.weight"].std(true).double_value(&[]);
    assert!((std - 0.02).abs() < 0.001, "{std}");
}

#[test]
fn saved_models_open_with_the_same_values_and_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (device, kind) = (Device::Cpu, Kind::Float);
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    let same = |a: &Tensors, b: &Tensors| a.len() == b.len() && a.iter().all(|(key, t)| b.get(key) == Some(t));

    let vae = AutoencoderKl::open(fixture("vae"), device, kind).unwrap();
    vae.save(dir.path().join("vae"), None).unwrap();
    let again = AutoencoderKl::open(dir.path(), device, kind).unwrap();
    assert!(same(vae.parameters(), again.parameters()));
    assert_eq!(vae.config(), again.config());
    again.save(dir.path().join("second"), None).unwrap();
    for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
        assert_eq!(bytes(&dir.path().join("vae").join(file)), bytes(&dir.path().join("second").join(file)));
    }
    // force_upcast: f16 is stored, but f32 is computed.
    vae.save(dir.path().join("vae"), Some(Kind::Half)).unwrap();
    let half = AutoencoderKl::open(dir.path(), device, Kind::Half).unwrap();
    let weight = &half.parameters()["decoder.conv_in.weight"];
    assert_eq!(weight.kind(), Kind::Float);
    assert!(*weight == vae.parameters()["decoder.conv_in.weight"].to_kind(Kind::Half).to_kind(Kind::Float));

    for name in ["text_encoder", "text_encoder_2"] {
        let text = ClipTextModel::open(fixture(name), device, kind).unwrap();
        text.save(dir.path().join(name), None).unwrap();
        let again = ClipTextModel::open(dir.path().join(name), device, kind).unwrap();
        assert!(same(text.parameters(), again.parameters()));
        assert_eq!(text.config(), again.config());
        assert!(again.parameters().contains_key("text_model.final_layer_norm.weight"));
    }

    let clip = ClipModel::open(fixture("clip"), device, kind).unwrap();
    let preprocess = ClipPreprocess::open(fixture("clip")).unwrap();
    clip.save(dir.path().join("clip"), None, &preprocess).unwrap();
    let again = ClipModel::open(dir.path(), device, kind).unwrap();
    assert!(same(clip.parameters(), again.parameters()));
    assert_eq!(clip.config(), again.config());
    assert_eq!(preprocess, ClipPreprocess::open(dir.path()).unwrap());
}

#[test]
fn stored_position_ids_are_passed_over() {
    let clip = ClipModel::open(fixture("clip"), Device::Cpu, Kind::Float).unwrap();
    let mut tensors: Tensors = clip.parameters().iter().map(|(key, t)| (key.clone(), t.shallow_clone())).collect();
    tensors.insert("text_model.embeddings.position_ids".into(), Tensor::arange(9, (Kind::Int64, Device::Cpu)));
    assert!(ClipModel::from_weights(clip.config(), Weights::from_tensors(tensors)).is_ok());
}

#[test]
fn settings_that_would_change_numbers_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let change = |from: &str, key: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(fixture(from)).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(&file, config.to_string()).unwrap();
    };
    let key = |e: Error| match e {
        Error::Config { key, .. } => key,
        other => other.to_string(),
    };
    for (name, value) in [
        ("shift_factor", serde_json::json!(0.1)),
        ("latents_mean", serde_json::json!([0.0])),
        ("act_fn", serde_json::json!("relu")),
        ("down_block_types", serde_json::json!(["DownEncoderBlock2D"])),
        ("up_block_types", serde_json::json!(["UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"])),
        ("block_out_channels", serde_json::json!([12, 20, 30])),
        ("layers_per_block", serde_json::json!("two")),
        ("_class_name", serde_json::json!("AutoencoderTiny")),
    ] {
        change("vae/config.json", name, value);
        assert_eq!(key(VaeConfig::open(&file).unwrap_err()), name);
    }
    for (name, value) in [
        ("hidden_act", serde_json::json!("relu")),
        ("num_attention_heads", serde_json::json!(5)),
        ("eos_token_id", serde_json::json!([1, 2])),
        ("architectures", serde_json::json!(["BertModel"])),
    ] {
        change("text_encoder/config.json", name, value);
        assert_eq!(key(ClipTextConfig::open(&file).unwrap_err()), name);
    }
    std::fs::write(&file, "version https://git-lfs.github.com/spec/v1").unwrap();
    assert!(matches!(VaeConfig::open(&file), Err(Error::Format { .. })));
}

#[test]
fn settings_of_the_first_releases_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    // `text_config_dict` wins over `text_config`, even where it only implies a default; null stands for absence.
    write(
        "config.json",
        r#"{"model_type": "clip", "projection_dim": 768, "text_config": {"hidden_size": 8, "eos_token_id": 2},
            "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12},
            "vision_config": {"patch_size": 14, "hidden_act": null}, "vision_config_dict": null}"#,
    );
    let config = ClipConfig::open(dir.path()).unwrap();
    assert_eq!((config.projection_dim, config.text.hidden_size, config.text.eos_token_id), (768, 768, 49407));
    assert_eq!((config.vision.patch_size, config.vision.hidden_size), (14, 768));
    write("preprocessor_config.json", r#"{"size": 224, "crop_size": 224, "do_resize": true, "resample": 3}"#);
    assert_eq!(ClipPreprocess::open(dir.path()).unwrap(), ClipPreprocess::new(224));
    write("preprocessor_config.json", r#"{"size": 224, "crop_size": {"height": 224, "width": 200}}"#);
    assert!(matches!(ClipPreprocess::open(dir.path()), Err(Error::Config { key, .. }) if key == "crop_size"));
    // The settings of SD-v1.5's autoencoder, as they were published.
    write(
        "config.json",
        r#"{"_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
            "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"#,
    );
    let vae = VaeConfig::open(dir.path()).unwrap();
    assert_eq!((vae.scaling_factor, vae.downscale(), vae.force_upcast), (0.18215, 8, true));
}

#[test]
fn inputs_of_another_form_are_errors() {
    let vae = AutoencoderKl::open(fixture("vae"), Device::Cpu, Kind::Float).unwrap();
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    assert!(matches!(vae.encode(&zeros(&[1, 4, 16, 16])), Err(Error::Input { .. })));
    assert!(matches!(vae.encode(&zeros(&[1, 3, 16, 3])), Err(Error::Input { .. })));
    assert!(matches!(vae.decode(&zeros(&[5, 4, 4])), Err(Error::Input { .. })));
    let text = ClipTextModel::open(fixture("text_encoder_2"), Device::Cpu, Kind::Float).unwrap();
    for ids in
        [Tensor::from_slice(&[1i64, 97]), Tensor::from_slice(&[-1i64, 2]), Tensor::from_slice(&[1i32, 2]), Tensor::from_slice(&[1i64; 14])]
    {
        assert!(matches!(text.forward(&ids.unsqueeze(0)), Err(Error::Input { .. })));
    }
    let clip = ClipModel::open(fixture("clip"), Device::Cpu, Kind::Float).unwrap();
    assert!(matches!(clip.image_features(&zeros(&[1, 3, 24, 24])), Err(Error::Input { .. })));
}
