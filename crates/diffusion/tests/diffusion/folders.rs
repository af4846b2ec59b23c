//! Model directories as people have them: parts saved from larger models, settings left out, models that do not draw from text, and U-Nets
//! that do not fit. The right numbers are those of transformers and diffusers for the same parts in their plain form.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diffusion::{
    AutoencoderKl, ClipPreprocess, ClipTextConfig, ClipTextModel, Error, Family, HiddenAct, ModelDir, Pipeline, TimeIds, VaeConfig,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};

use crate::support::{assert_close, copy_dir, cpu_pipeline, fixtures, get};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

fn part(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/diffusion").join(name)
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

// Changes the settings in `file` of a directory.
fn change(dir: &Path, file: &str, with: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut value = read(&path);
    with(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn save(dir: &Path, file: &str, tensors: &Tensors) {
    save_tensors(dir.join(file), tensors, &BTreeMap::new(), None).unwrap();
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, CPU)
}

// What else a whole CLIP model holds.
fn other_parts() -> Tensors {
    let named = [
        ("logit_scale", zeros(&[])),
        ("text_projection.weight", zeros(&[5, 7])),
        ("visual_projection.weight", zeros(&[5, 7])),
        ("vision_model.embeddings.class_embedding", zeros(&[7])),
        ("vision_model.encoder.layers.0.layer_norm1.weight", zeros(&[7])),
        ("text_model.embeddings.position_ids", Tensor::arange(24, (Kind::Int64, Device::Cpu)).unsqueeze(0)),
    ];
    named.into_iter().map(|(name, t)| (name.to_string(), t)).collect()
}

#[test]
fn a_text_encoder_gives_the_same_numbers_in_every_form() {
    let io = TensorFile::open(part("text_encoder/io.safetensors")).unwrap();
    let plain = TensorFile::open(part("text_encoder/model.safetensors")).unwrap().tensors().unwrap();
    let tower: Tensors = plain.iter().map(|(key, t)| (key.trim_start_matches("text_model.").to_string(), t.shallow_clone())).collect();
    let with = |prefix: &str| -> Tensors { tower.iter().map(|(key, t)| (format!("{prefix}{key}"), t.shallow_clone())).collect() };
    let whole = || -> Tensors { with("text_model.").into_iter().chain(other_parts()).collect() };
    let half: Vec<String> = tower.keys().step_by(2).cloned().collect();
    let nested = |config: &Value| json!({"architectures": ["CLIPModel"], "model_type": "clip", "text_config": config, "vision_config": {}});

    type Form<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);
    let forms: Vec<Form> = vec![
        ("whole CLIP model", Box::new(|dir| save(dir, "model.safetensors", &whole()))),
        (
            "whole CLIP model and its settings",
            Box::new(|dir| {
                save(dir, "model.safetensors", &whole());
                change(dir, "config.json", |config| *config = nested(config));
            }),
        ),
        (
            "with a projection",
            Box::new(|dir| {
                save(dir, "model.safetensors", &whole());
                change(dir, "config.json", |config| config["architectures"] = json!(["CLIPModel"]));
            }),
        ),
        ("bare names", Box::new(|dir| save(dir, "model.safetensors", &with("")))),
        (
            "bare names of a whole model",
            Box::new(|dir| {
                let all = with("").into_iter().chain(other_parts()).filter(|(key, _)| !key.starts_with("text_model.")).collect();
                save(dir, "model.safetensors", &all);
            }),
        ),
        ("module.", Box::new(|dir| save(dir, "model.safetensors", &with("module.text_model.")))),
        ("transformer.", Box::new(|dir| save(dir, "model.safetensors", &with("transformer.text_model.")))),
        ("variant", Box::new(|dir| save(dir, "model.fp16.safetensors", &plain))),
        (
            "shards",
            Box::new(|dir| {
                let (mut first, mut second, mut map) = (Tensors::new(), Tensors::new(), serde_json::Map::new());
                for (key, t) in &tower {
                    let name = format!("text_model.{key}");
                    let (file, at) = if half.contains(key) { (1, &mut first) } else { (2, &mut second) };
                    map.insert(name.clone(), json!(format!("model-0000{file}-of-00002.safetensors")));
                    at.insert(name, t.shallow_clone());
                }
                save(dir, "model-00001-of-00002.safetensors", &first);
                save(dir, "model-00002-of-00002.safetensors", &second);
                std::fs::write(dir.join("model.safetensors.index.json"), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
            }),
        ),
    ];
    for (name, make) in forms {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(part("text_encoder/config.json"), dir.path().join("config.json")).unwrap();
        make(dir.path());
        let model = ClipTextModel::open(dir.path(), Device::Cpu, Kind::Float).unwrap_or_else(|e| panic!("{name}: {e}"));
        let out = model.forward(&get(&io, "ids")).unwrap();
        assert_close(name, &out.last, &get(&io, "last"), 1e-4);
        assert_close(name, &out.pooled, &get(&io, "pooled"), 1e-4);
        // Written again, it has the published names.
        assert!(model.parameters().keys().eq(with("text_model.").keys()), "{name}: {:?}", model.parameters().keys().next());
    }
    // A tensor of the encoder itself is still missed.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(part("text_encoder/config.json"), dir.path().join("config.json")).unwrap();
    let mut cut = whole();
    assert!(cut.remove("text_model.final_layer_norm.bias").is_some());
    save(dir.path(), "model.safetensors", &cut);
    let error = ClipTextModel::open(dir.path(), Device::Cpu, Kind::Float).unwrap_err().to_string();
    assert!(error.contains("missing `text_model.final_layer_norm.bias`"), "{error}");
}

#[test]
fn the_pipeline_says_whether_an_encoder_projects() {
    let expected = TensorFile::open(fixtures().join("sdxl/expected.safetensors")).unwrap();
    let prompts: Vec<String> = serde_json::from_str(&expected.metadata()["prompts"]).unwrap();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixtures().join("sdxl"), dir.path());
    let at = |name: &str| dir.path().join(name);
    // Both encoders as they are cut out of whole CLIP models.
    for name in ["text_encoder", "text_encoder_2"] {
        change(&at(name), "config.json", |config| config["architectures"] = json!(["CLIPModel"]));
        let mut all = other_parts();
        all.extend(TensorFile::open(at(name).join("model.safetensors")).unwrap().tensors().unwrap());
        save(&at(name), "model.safetensors", &all);
    }
    let pipeline = Pipeline::open(dir.path(), None, Device::Cpu, Kind::Float).unwrap();
    let cond = pipeline.encode_prompts(&prompts, TimeIds::uncropped(32, 32)).unwrap();
    assert_close("embeds", &cond.encoder_hidden_states, &get(&expected, "embeds.prompt"), 1e-4);
    assert_close("pooled", &cond.added.unwrap().text_embeds, &get(&expected, "embeds.pooled"), 1e-4);
}

#[test]
fn settings_that_are_left_out_have_the_defaults_of_their_library() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    std::fs::write(&file, "\u{feff}{}").unwrap();
    let text = ClipTextConfig::open(&file).unwrap();
    let sizes = [text.vocab_size, text.hidden_size, text.intermediate_size, text.projection_dim, text.num_hidden_layers];
    assert_eq!(sizes, [49408, 512, 2048, 512, 12]);
    assert_eq!([text.num_attention_heads, text.max_position_embeddings, text.bos_token_id, text.eos_token_id], [8, 77, 49406, 49407]);
    assert!(text.hidden_act == HiddenAct::QuickGelu && text.layer_norm_eps == 1e-5 && !text.with_projection);
    let vae = VaeConfig::open(&file).unwrap();
    assert!(vae.scaling_factor == 0.18215 && vae.force_upcast && vae.use_quant_conv && vae.use_post_quant_conv);
    assert_eq!((vae.latent_channels, vae.layers_per_block, vae.norm_num_groups, vae.sample_size), (4, 1, 32, 32));
    let odd = json!({"shift_factor": 0.0, "latents_mean": null, "latents_std": null, "sample_size": [64, 64], "a_later_setting": false});
    std::fs::write(&file, odd.to_string()).unwrap();
    assert_eq!(VaeConfig::open(&file).unwrap().sample_size, 64);
    // A CLIP folder of weights alone.
    std::fs::write(&file, json!({"model_type": "clip", "vision_config": {"image_size": 336}}).to_string()).unwrap();
    assert_eq!(ClipPreprocess::open(dir.path()).unwrap(), ClipPreprocess::new(336));
}

#[test]
fn an_autoencoder_with_more_or_less_than_published_ones() {
    let io = TensorFile::open(part("vae/io.safetensors")).unwrap();
    let plain = TensorFile::open(part("vae/diffusion_pytorch_model.safetensors")).unwrap().tensors().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(part("vae/config.json"), dir.path().join("config.json")).unwrap();
    let stem = "diffusion_pytorch_model.safetensors";
    let mut more: Tensors = plain.iter().map(|(key, t)| (key.clone(), t.shallow_clone())).collect();
    for extra in ["loss.logvar", "model_ema.decay", "loss.discriminator.main.0.weight"] {
        more.insert(extra.into(), zeros(&[1]));
    }
    save(dir.path(), stem, &more);
    let vae = AutoencoderKl::open(dir.path(), Device::Cpu, Kind::Float).unwrap();
    assert_close("mean", &vae.encode(&get(&io, "x")).unwrap().mean, &get(&io, "mean"), 1e-4);
    assert!(vae.parameters().keys().eq(plain.keys()));

    // Neither setting nor weights: from before there was a choice. `vae_plain` has none of the two convolutions.
    let (io, bare) = (TensorFile::open(part("vae_plain/io.safetensors")).unwrap(), tempfile::tempdir().unwrap());
    copy_dir(&part("vae_plain"), bare.path());
    let untold = |config: &mut Value| {
        ["use_quant_conv", "use_post_quant_conv"].iter().for_each(|key| drop(config.as_object_mut().unwrap().remove(*key)))
    };
    change(bare.path(), "config.json", untold);
    let vae = AutoencoderKl::open(bare.path(), Device::Cpu, Kind::Float).unwrap();
    assert_close("decoded", &vae.decode(&get(&io, "z")).unwrap(), &get(&io, "decoded"), 1e-4);
    // Where the setting asks for them they are missed.
    change(bare.path(), "config.json", |config| config["use_quant_conv"] = json!(true));
    let error = AutoencoderKl::open(bare.path(), Device::Cpu, Kind::Float).unwrap_err().to_string();
    assert!(error.contains("missing `quant_conv.weight`"), "{error}");
    // Where it rules them out, those that are there are passed over.
    change(dir.path(), "config.json", |config| config["use_post_quant_conv"] = json!(false));
    assert!(AutoencoderKl::open(dir.path(), Device::Cpu, Kind::Float).is_ok());
}

// --- what does not draw from text, and what does not fit ---

#[test]
fn models_that_do_not_draw_from_text_are_refused_by_their_settings() {
    let set = |file: &'static str, key: &'static str, value: Value| move |dir: &Path| change(dir, file, |config| config[key] = value);
    let unet = "unet/config.json";
    type Case = (&'static str, Box<dyn FnOnce(&Path)>, &'static str, &'static str, &'static str);
    let cases: Vec<Case> = vec![
        ("sd15", Box::new(set(unet, "in_channels", json!(9))), unet, "in_channels", "inpainting"),
        ("sdxl", Box::new(set(unet, "in_channels", json!(9))), unet, "in_channels", "inpainting"),
        ("sd15", Box::new(set(unet, "in_channels", json!(8))), unet, "in_channels", "pix2pix"),
        ("sd21", Box::new(set(unet, "in_channels", json!(5))), unet, "in_channels", "depths"),
        ("sd21", Box::new(set(unet, "in_channels", json!(7))), unet, "in_channels", "upscaler"),
        ("sd15", Box::new(set(unet, "in_channels", json!(6))), unet, "in_channels", "got 6"),
        ("sd15", Box::new(set(unet, "out_channels", json!(8))), unet, "out_channels", "got 8"),
        ("sd15", Box::new(set("vae/config.json", "latent_channels", json!(16))), unet, "in_channels", "expected 16"),
        ("sd15", Box::new(set("vae/config.json", "out_channels", json!(4))), "vae/config.json", "out_channels", "those of an image"),
        ("sd15", Box::new(set(unet, "cross_attention_dim", json!(40))), unet, "cross_attention_dim", "width of the text encoders"),
        (
            "sdxl",
            Box::new(set("text_encoder/config.json", "hidden_size", json!(15))),
            unet,
            "cross_attention_dim",
            "width of the text encoders",
        ),
        (
            "sdxl",
            Box::new(set(unet, "projection_class_embeddings_input_dim", json!(44))),
            unet,
            "projection_class_embeddings_input_dim",
            "refiner",
        ),
        (
            "sdxl",
            Box::new(set(unet, "projection_class_embeddings_input_dim", json!(68))),
            unet,
            "projection_class_embeddings_input_dim",
            "50, as 6 sizes",
        ),
        (
            "sd15",
            Box::new(set("model_index.json", "_class_name", json!("FluxPipeline"))),
            "model_index.json",
            "_class_name",
            "FluxPipeline",
        ),
        (
            "sd15",
            Box::new(set("model_index.json", "_class_name", json!("StableDiffusion3Pipeline"))),
            "model_index.json",
            "_class_name",
            "Diffusion3",
        ),
        (
            "sd15",
            Box::new(set("model_index.json", "_class_name", json!("KandinskyV22Pipeline"))),
            "model_index.json",
            "_class_name",
            "Kandinsky",
        ),
        (
            "sd15",
            Box::new(set("model_index.json", "_class_name", json!("PixArtAlphaPipeline"))),
            "model_index.json",
            "_class_name",
            "PixArt",
        ),
        (
            "sd15",
            Box::new(set("model_index.json", "_class_name", json!("StableDiffusionUpscalePipeline"))),
            "model_index.json",
            "_class_name",
            "enlarges",
        ),
        (
            "sd21",
            Box::new(set("model_index.json", "_class_name", json!("StableDiffusionDepth2ImgPipeline"))),
            "model_index.json",
            "_class_name",
            "depths",
        ),
        (
            "sd15",
            Box::new(set("model_index.json", "_class_name", json!("StableDiffusionImageVariationPipeline"))),
            "model_index.json",
            "_class_name",
            "in place",
        ),
    ];
    for (name, with, file, named, told) in cases {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&fixtures().join(name), dir.path());
        with(dir.path());
        match ModelDir::open(dir.path(), None) {
            Err(ref e @ Error::Config { ref path, ref key, .. }) => {
                assert!(*path == dir.path().join(file) && key == named && e.to_string().contains(told), "{e}");
            }
            other => panic!("{named} {told}: {other:?}"),
        }
    }
}

#[test]
fn a_refiner_is_told_by_its_u_net_although_it_lacks_a_text_encoder() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixtures().join("sdxl"), dir.path());
    for gone in ["text_encoder", "tokenizer"] {
        std::fs::remove_dir_all(dir.path().join(gone)).unwrap();
    }
    change(dir.path(), "model_index.json", |index| {
        index["_class_name"] = json!("StableDiffusionXLImg2ImgPipeline");
        (index["text_encoder"], index["tokenizer"]) = (json!([null, null]), json!([null, null]));
    });
    change(dir.path(), "unet/config.json", |config| config["projection_class_embeddings_input_dim"] = json!(44));
    let error = ModelDir::open(dir.path(), None).unwrap_err().to_string();
    assert!(error.contains("projection_class_embeddings_input_dim") && error.contains("an SDXL refiner"), "{error}");
}

#[test]
fn a_u_net_in_place_of_the_models_own_must_fit_it() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixtures().join("sd15/unet"), dir.path());
    change(dir.path(), "config.json", |config| config["in_channels"] = json!(9));
    let error = Pipeline::open(fixtures().join("sd15"), Some(dir.path()), Device::Cpu, Kind::Float).unwrap_err().to_string();
    assert!(error.contains(&dir.path().join("config.json").display().to_string()) && error.contains("inpainting"), "{error}");
    // Another pipeline of the same parts is none of these.
    for class in ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionControlNetPipeline"] {
        let whole = tempfile::tempdir().unwrap();
        copy_dir(&fixtures().join("sd15"), whole.path());
        change(whole.path(), "model_index.json", |index| index["_class_name"] = json!(class));
        assert_eq!(ModelDir::open(whole.path(), None).unwrap().family(), Family::StableDiffusion, "{class}");
    }
}

#[test]
fn a_file_in_place_of_a_folder_is_told() {
    let file = fixtures().join("sd15/unet/diffusion_pytorch_model.safetensors");
    let error = ModelDir::open(&file, None).unwrap_err().to_string();
    assert!(error.contains("a U-Net without the text encoders") && error.contains("--unet"), "{error}");
    let error = ModelDir::open(fixtures().join("sd15/unet"), None).unwrap_err().to_string();
    assert!(error.contains("this folder is one part of a model"), "{error}");
    // Not a U-Net, in place of one.
    let vae = fixtures().join("sd15/vae/diffusion_pytorch_model.safetensors");
    let error = ModelDir::open(fixtures().join("sd15"), Some(&vae)).unwrap_err().to_string();
    assert!(error.contains("vae/diffusion_pytorch_model.safetensors") && !error.contains("no such"), "{error}");
    drop(cpu_pipeline("sd15"));
}
