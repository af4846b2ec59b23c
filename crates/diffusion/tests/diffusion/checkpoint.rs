//! Whole checkpoints: a model directory becomes one and comes back bit for bit, and draws the same from both; what a foreign file does not
//! say is told from its shapes, its markers and its U-Net.

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::{
    AutoencoderKl, ClipTextConfig, ClipTextModel, DecodeParts, Family, GenerateOptions, HiddenAct, ModelDir, ModelRef, NoiseSchedule,
    OffloadedPipeline, Overrides, Pipeline, PredictionType, SamplerKind, SchedulerConfig, TimestepSpacing, Tokenizer, VaeConfig, convert,
    write_model_index,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};
use unet::{UNet, UNetConfig};

use crate::support::fixtures;

/// Final latents of two images.
fn drawn(model: impl Into<ModelRef>, size: i64) -> Tensor {
    let pipeline = Pipeline::open(model, None, Device::Cpu, Kind::Float).unwrap();
    pipeline.generate(pipeline.unet(), &options(size), &mut |_| {}).unwrap().latents
}

fn options(size: i64) -> GenerateOptions {
    GenerateOptions {
        prompts: vec!["a red circle".into(), "two blue squares, naïve café".into()],
        negative: None,
        steps: 3,
        guidance: 3.0,
        sampler: SamplerKind::Ddim,
        karras: false,
        clip_skip: 0,
        seeds: vec![1, 2],
        height: size,
        width: size,
        batch: 2,
        latents: None,
        decode: DecodeParts::default(),
    }
}

fn tensors(file: &Path) -> Tensors {
    TensorFile::open(file).unwrap().tensors().unwrap()
}

#[track_caller]
fn assert_same(a: &Tensors, b: &Tensors, what: &str) {
    let lacks = |a: &Tensors, b: &Tensors| a.keys().find(|name| !b.contains_key(*name)).cloned();
    assert_eq!((lacks(a, b), lacks(b, a)), (None, None), "{what}");
    for (name, t) in a {
        assert!(t.kind() == b[name].kind() && t.size() == b[name].size() && t.equal(&b[name]), "{what}: {name}");
    }
}

/// Writes the tensors and metadata of `from` again, changed.
fn rewritten(from: &Path, to: &Path, change: impl FnOnce(&mut Tensors, &mut BTreeMap<String, String>)) {
    let file = TensorFile::open(from).unwrap();
    let (mut tensors, mut metadata) = (file.tensors().unwrap(), file.metadata().clone());
    change(&mut tensors, &mut metadata);
    save_tensors(to, &tensors, &metadata, None).unwrap();
}

#[test]
fn a_directory_becomes_a_checkpoint_and_comes_back_and_draws_the_same() {
    for name in ["sd15", "sd21", "sdxl"] {
        let (from, dir) = (fixtures().join(name), tempfile::tempdir().unwrap());
        let (file, back, again) = (dir.path().join("a.safetensors"), dir.path().join("back"), dir.path().join("b.safetensors"));
        convert(&from, None, &file).unwrap();
        assert!(drawn(&from, 32).equal(&drawn(&file, 32)), "{name}");
        let offloaded = OffloadedPipeline::open(&file, None, Device::Cpu, Kind::Float).unwrap();
        assert!(offloaded.generate(&options(32), &mut |_| {}).unwrap().latents.equal(&drawn(&file, 32)), "{name}, offloaded");

        convert(&file, None, &back).unwrap();
        let family = ModelDir::open(&back, None).unwrap().family();
        for (encoder, tokenizer) in family.text_parts() {
            let weights = format!("{encoder}/model.safetensors");
            let named = |name: String| if name.starts_with("text_") { name } else { format!("text_model.{name}") };
            let own = tensors(&from.join(&weights)).into_iter().map(|(name, t)| (named(name), t)).collect();
            assert_same(&own, &tensors(&back.join(&weights)), &weights);
            for words in ["vocab.json", "merges.txt", "tokenizer_config.json"].map(|file| format!("{tokenizer}/{file}")) {
                assert_eq!(std::fs::read(from.join(&words)).unwrap(), std::fs::read(back.join(&words)).unwrap(), "{words}");
            }
        }
        for part in ["unet", "vae"] {
            let weights = format!("{part}/diffusion_pytorch_model.safetensors");
            // Markers stay with the U-Net.
            let found = tensors(&back.join(&weights)).into_iter().filter(|(name, _)| name != "v_pred").collect();
            assert_same(&tensors(&from.join(&weights)), &found, &weights);
        }
        assert_eq!(SchedulerConfig::open(&from).unwrap(), SchedulerConfig::open(&back).unwrap());
        assert!(drawn(&from, 32).equal(&drawn(&back, 32)), "{name}");
        convert(&back, None, &again).unwrap();
        assert_same(&tensors(&file), &tensors(&again), name);
    }
}

#[test]
fn parts_stand_under_the_names_and_in_the_shapes_that_other_programs_know() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let file = dir.path().join(format!("{name}.safetensors"));
        convert(fixtures().join(name), None, &file).unwrap();
        TensorFile::open(file).unwrap()
    };
    let (v1, v2, xl) = (open("sd15"), open("sd21"), open("sdxl"));
    let c = v1.shape("first_stage_model.encoder.mid.attn_1.norm.weight").unwrap()[0];
    for leaf in ["q", "k", "v", "proj_out"] {
        assert_eq!(v1.shape(&format!("first_stage_model.decoder.mid.attn_1.{leaf}.weight")), Some(&[c, c, 1, 1][..]));
    }
    assert!(v1.has("cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight"));
    assert!(v1.has("model.diffusion_model.input_blocks.0.0.weight"));
    // One layer more than the directory has, which nothing reads, and which adds nothing where it is read.
    let layers = (0..).take_while(|n| v2.has(&format!("cond_stage_model.model.transformer.resblocks.{n}.ln_1.weight"))).count() as i64;
    assert_eq!(layers, 1 + ClipTextConfig::open(fixtures().join("sd21/text_encoder")).unwrap().num_hidden_layers);
    let last = v2.tensor(&format!("cond_stage_model.model.transformer.resblocks.{}.attn.in_proj_weight", layers - 1)).unwrap().unwrap();
    assert_eq!(last.size()[0], 3 * last.size()[1]);
    assert_eq!(last.abs().max().double_value(&[]), 0.0);

    assert!(xl.has("conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"));
    let (ours, theirs) = (tensors(&fixtures().join("sdxl/text_encoder_2/model.safetensors")), "conditioner.embedders.1.model.");
    let get = |name: &str| xl.tensor(&format!("{theirs}{name}")).unwrap().unwrap();
    assert!(get("text_projection").equal(&ours["text_projection.weight"].tr()));
    let part = |leaf: &str| ours[&format!("text_model.encoder.layers.2.self_attn.{leaf}_proj.weight")].shallow_clone();
    assert!(get("transformer.resblocks.2.attn.in_proj_weight").equal(&Tensor::cat(&[part("q"), part("k"), part("v")], 0)));

    for (file, architecture) in [(&v1, "stable-diffusion-v1"), (&xl, "stable-diffusion-xl-v1-base")] {
        assert_eq!(file.metadata()["modelspec.architecture"], architecture);
    }
    let is_v = |file: &TensorFile| (file.has("v_pred"), file.metadata()["modelspec.prediction_type"].clone());
    for (name, file) in [("sd15", &v1), ("sd21", &v2), ("sdxl", &xl)] {
        let expected = SchedulerConfig::open(fixtures().join(name)).unwrap().prediction_type == PredictionType::VPrediction;
        assert_eq!(is_v(file), (expected, if expected { "v" } else { "epsilon" }.to_string()), "{name}");
    }
}

/// The settings of a model as wide as the heads of Stable Diffusion ask, and no wider.
fn unet_config(xl: bool, linear: bool) -> UNetConfig {
    let mut config = json!({
        "attention_head_dim": [1, 2], "block_out_channels": [64, 128], "cross_attention_dim": if xl { 128 } else { 64 },
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1, "sample_size": if xl { 128 } else { 64 }, "use_linear_projection": linear, "transformer_layers_per_block": 1,
    });
    if xl {
        config["addition_embed_type"] = json!("text_time");
        config["addition_time_embed_dim"] = json!(256);
        config["projection_class_embeddings_input_dim"] = json!(64 + 6 * 256);
    }
    UNetConfig::parse(&config.to_string(), "test").unwrap()
}

fn text_config(act: HiddenAct, pad: i64, with_projection: bool) -> ClipTextConfig {
    ClipTextConfig {
        vocab_size: Tokenizer::PUBLISHED_IDS,
        hidden_size: 64,
        intermediate_size: 96,
        projection_dim: 64,
        num_hidden_layers: 2,
        num_attention_heads: 1,
        max_position_embeddings: 77,
        hidden_act: act,
        layer_norm_eps: 1e-5,
        bos_token_id: 49406,
        eos_token_id: 49407,
        pad_token_id: pad,
        with_projection,
    }
}

/// A model directory with random weights and everything else as published.
fn published(dir: &Path, xl: bool, linear: bool, scheduler: SchedulerConfig) {
    let (cpu, kind) = (Device::Cpu, Kind::Float);
    let family = if xl { Family::StableDiffusionXl } else { Family::StableDiffusion };
    UNet::random(&unet_config(xl, linear), 1, cpu, kind).unwrap().save(dir.join("unet"), None, &BTreeMap::new()).unwrap();
    let vae = VaeConfig {
        in_channels: 3,
        out_channels: 3,
        block_out_channels: vec![32, 32, 64, 64],
        layers_per_block: 1,
        latent_channels: 4,
        norm_num_groups: 32,
        sample_size: if xl { 1024 } else { 512 },
        scaling_factor: if xl { 0.13025 } else { 0.18215 },
        force_upcast: true,
        use_quant_conv: true,
        use_post_quant_conv: true,
        mid_block_add_attention: true,
    };
    AutoencoderKl::random(&vae, 2, cpu, kind).unwrap().save(dir.join("vae"), Some(Kind::Half)).unwrap();
    let (clip, open_clip) = ((HiddenAct::QuickGelu, 1, "<|endoftext|>"), (HiddenAct::Gelu, 0, "!"));
    let encoders = if xl { vec![clip, open_clip] } else { vec![if linear { open_clip } else { clip }] };
    for (n, ((act, pad, word), (encoder, tokenizer))) in encoders.into_iter().zip(family.text_parts()).enumerate() {
        let config = text_config(act, pad, n == 1);
        ClipTextModel::random(&config, 3 + n as u64, cpu, kind).unwrap().save(dir.join(encoder), Some(Kind::Half)).unwrap();
        Tokenizer::write_published(dir.join(tokenizer), 77, word).unwrap();
    }
    NoiseSchedule::new(scheduler).unwrap().save(dir.join("scheduler")).unwrap();
    write_model_index(dir, family, "EulerDiscreteScheduler", xl).unwrap();
}

#[test]
fn what_a_foreign_file_does_not_say_is_told_from_shapes_and_markers() {
    let v = SchedulerConfig {
        rescale_betas_zero_snr: true,
        timestep_spacing: Some(TimestepSpacing::Trailing),
        ..SchedulerConfig::stable_diffusion(PredictionType::VPrediction)
    };
    let epsilon = SchedulerConfig::stable_diffusion(PredictionType::Epsilon);
    for (name, xl, linear, scheduler) in [("v1", false, false, &epsilon), ("v2", false, true, &v), ("xl", true, true, &v)] {
        let dir = tempfile::tempdir().unwrap();
        let (from, ours, theirs) = (dir.path().join("model"), dir.path().join("ours.safetensors"), dir.path().join("theirs.safetensors"));
        published(&from, xl, linear, scheduler.clone());
        convert(&from, None, &ours).unwrap();
        // As others write it: the prediction is said once, the tokenizer is everybody's.
        rewritten(&ours, &theirs, |tensors, metadata| {
            assert!(!metadata["laptop_diff.files"].contains("vocab.json"));
            metadata.retain(|key, _| key == "modelspec.prediction_type");
            if name == "v1" {
                tensors.insert("model_ema.decay".into(), Tensor::from(0.9999f32));
                tensors.insert(
                    "cond_stage_model.transformer.text_model.embeddings.position_ids".into(),
                    Tensor::arange(77, (Kind::Int64, Device::Cpu)),
                );
            }
        });
        let (a, b) = (ModelDir::open(&from, None).unwrap(), ModelDir::open(&theirs, None).unwrap());
        assert_eq!(a.vae_config().unwrap(), b.vae_config().unwrap(), "{name}");
        assert_eq!(a.schedule(None).unwrap().config(), b.schedule(None).unwrap().config(), "{name}");
        let encoders = |dir: &ModelDir| {
            dir.text_encoders(Device::Cpu, Kind::Float).unwrap().parts().iter().map(|(e, _)| e.config().clone()).collect::<Vec<_>>()
        };
        assert_eq!(encoders(&a), encoders(&b), "{name}");
        assert!(drawn(&from, 64).equal(&drawn(&theirs, 64)), "{name}");

        // There and back: every tensor, the superfluous ones too.
        let (back, again) = (dir.path().join("back"), dir.path().join("again.safetensors"));
        convert(&theirs, None, &back).unwrap();
        convert(&back, None, &again).unwrap();
        assert_same(&tensors(&theirs), &tensors(&again), name);
    }
}

#[test]
fn files_of_the_first_days_and_of_training_programs_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (from, ours, old) = (fixtures().join("sd15"), dir.path().join("ours.safetensors"), dir.path().join("old.safetensors"));
    convert(&from, None, &ours).unwrap();
    rewritten(&ours, &old, |tensors, _| {
        let renamed = std::mem::take(tensors).into_iter().map(|(name, t)| {
            // No tower, attention of the autoencoder as matrices, everything wrapped.
            let t = if name.contains("attn_1") && t.dim() == 4 { t.squeeze() } else { t };
            (format!("state_dict.{}", name.replace(".transformer.text_model.", ".transformer.")), t)
        });
        *tensors = renamed.collect();
    });
    assert!(drawn(&from, 32).equal(&drawn(&old, 32)));
}

#[test]
fn another_autoencoder_tokenizer_or_prediction_takes_the_place_of_the_models_own() {
    let dir = tempfile::tempdir().unwrap();
    let (from, file) = (dir.path().join("model"), dir.path().join("a.safetensors"));
    published(&from, false, false, SchedulerConfig::stable_diffusion(PredictionType::Epsilon));
    convert(&from, None, &file).unwrap();
    let expected = drawn(&from, 64);
    // As a Civitai page has it: the autoencoder alone, and a checkpoint that lacks it.
    let (lone, bare) = (dir.path().join("vae.safetensors"), dir.path().join("bare.safetensors"));
    rewritten(&file, &lone, |tensors, metadata| {
        metadata.clear();
        let mine = std::mem::take(tensors).into_iter();
        *tensors = mine.filter_map(|(name, t)| Some((name.strip_prefix("first_stage_model.")?.to_string(), t))).collect();
    });
    rewritten(&file, &bare, |tensors, _| tensors.retain(|name, _| !name.starts_with("first_stage_model.")));
    let message = ModelDir::open(&bare, None).unwrap_err().to_string();
    assert!(message.contains("bare.safetensors") && message.contains("--vae"), "{message}");

    let with = |path: &Path, overrides: Overrides| ModelRef { path: path.into(), overrides };
    let published_names = from.join("vae/diffusion_pytorch_model.safetensors");
    for vae in [&lone, &file, &published_names, &from.join("vae"), &from] {
        let given = with(&bare, Overrides { vae: Some(vae.clone()), ..Overrides::default() });
        let own = AutoencoderKl::open(&from, Device::Cpu, Kind::Float).unwrap();
        let found = ModelDir::open(given.clone(), None).unwrap().vae(Device::Cpu, Kind::Float).unwrap();
        assert_eq!(found.config(), own.config(), "{}", vae.display());
        assert_same(found.parameters(), own.parameters(), &vae.display().to_string());
        if !vae.starts_with(&from) {
            let whole = dir.path().join(vae.file_stem().unwrap());
            convert(given, None, &whole).unwrap();
            assert!(drawn(&whole, 64).equal(&expected), "{}, converted", vae.display());
        }
    }
    for tokenizer in [&from, &from.join("tokenizer")] {
        let given = with(&file, Overrides { tokenizer: Some(tokenizer.clone()), ..Overrides::default() });
        assert!(drawn(given, 64).equal(&expected));
    }
    for path in [&from, &file] {
        let v = Overrides { prediction_type: Some(PredictionType::VPrediction), ..Overrides::default() };
        assert_eq!(ModelDir::open(with(path, v), None).unwrap().schedule(None).unwrap().prediction_type(), PredictionType::VPrediction);
    }
}

#[test]
fn a_student_takes_the_place_of_the_unet_in_a_whole_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (from, file, student) = (fixtures().join("sd15"), dir.path().join("a.safetensors"), dir.path().join("student"));
    convert(&from, None, &file).unwrap();
    let full = UNet::open(&from, Device::Cpu, Kind::Float).unwrap();
    let removed = ["mid_block.attentions.0.transformer_blocks.0.ff", "up_blocks.0.resnets.1"].into_iter().collect();
    full.prune(&removed).unwrap().save(&student, None, &BTreeMap::new()).unwrap();
    let expected = {
        let pipeline = Pipeline::open(&from, Some(&student), Device::Cpu, Kind::Float).unwrap();
        pipeline.generate(pipeline.unet(), &options(32), &mut |_| {}).unwrap().latents
    };
    let close = |found: &Tensor| (found - &expected).abs().max().double_value(&[]) < 1e-4;
    for (n, model) in [&from, &file].into_iter().enumerate() {
        let whole = dir.path().join(format!("whole{n}.safetensors"));
        convert(model, Some(&student), &whole).unwrap();
        assert!(close(&drawn(&whole, 32)), "{n}");
        let own = |name: &String| !name.starts_with("model.diffusion_model.");
        let others = |path: &Path| tensors(path).into_iter().filter(|(name, _)| own(name)).collect::<Tensors>();
        assert_same(&others(&whole), &others(&file), "what stands beside the student");
    }
    let folder = dir.path().join("whole");
    convert(&file, Some(&student), &folder).unwrap();
    assert!(drawn(&folder, 32).equal(&expected));
    // Two directories: nothing to convert.
    assert!(convert(&from, Some(&student), &dir.path().join("other")).is_err());
}

/// A checkpoint of `from` that says nothing of what its U-Net predicts.
fn silent(from: &Path, to: &Path) {
    let file = to.with_extension("said.safetensors");
    convert(from, None, &file).unwrap();
    rewritten(&file, to, |tensors, metadata| {
        tensors.remove("v_pred");
        metadata.retain(|key, _| !key.starts_with("modelspec."));
        without_files(metadata, "scheduler");
    });
}

/// Takes the small files of some folders out of the metadata.
fn without_files(metadata: &mut BTreeMap<String, String>, folder: &str) {
    let mut files: serde_json::Value = serde_json::from_str(&metadata["laptop_diff.files"]).unwrap();
    files["files"].as_object_mut().unwrap().retain(|path, _| !path.starts_with(folder));
    metadata.insert("laptop_diff.files".into(), files.to_string());
}

/// A U-Net that answers with the noise itself, `scale` times: its first convolution makes `x` and `-x`, its last one takes `silu(x) - silu(-x)`,
/// which is `x`, and all between passes on what it got.
fn echo(scale: f64) -> UNet {
    let unet = UNet::random(&unet_config(false, false), 1, Device::Cpu, Kind::Float).unwrap();
    let _no_grad = tch::no_grad_guard();
    for t in unet.parameters().values() {
        let _ = t.shallow_clone().zero_();
    }
    let get = |name: &str| unet.parameters()[name].shallow_clone();
    // Two channels of x and -x each in every group of the last normalization; the skip comes behind 64 channels of the way up.
    let (conv_in, skip, conv_out) = (get("conv_in.weight"), get("up_blocks.1.resnets.1.conv_shortcut.weight"), get("conv_out.weight"));
    for channel in 0..64 {
        let (sign, of) = (if channel % 2 == 0 { 1.0 } else { -1.0 }, channel / 16);
        let _ = conv_in.get(channel).get(of).get(1).get(1).fill_(sign);
        let _ = skip.get(channel).get(64 + channel).fill_(1.0);
        let _ = conv_out.get(of).get(channel).get(1).get(1).fill_(sign * scale / 8.0);
    }
    let _ = get("conv_norm_out.weight").fill_(1.0);
    unet
}

#[test]
fn a_file_that_does_not_say_what_its_unet_predicts_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("velocity.safetensors");
    // The embedded model is trained, and predicts the velocity.
    silent(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-sdxl"), &file);
    let model = ModelDir::open(&file, None).unwrap();
    assert!(model.said_scheduler().unwrap().is_none());
    assert_eq!(model.schedule(None).unwrap().prediction_type(), PredictionType::VPrediction);

    let (from, file) = (dir.path().join("model"), dir.path().join("noise.safetensors"));
    published(&from, false, false, SchedulerConfig::stable_diffusion(PredictionType::VPrediction));
    silent(&from, &file);
    let asked = |unet: &UNet| ModelDir::open(&file, None).unwrap().schedule(Some(unet)).unwrap().prediction_type();
    assert_eq!(asked(&echo(1.0)), PredictionType::Epsilon);
    // Of a network that answers nothing, neither is the better reading.
    assert_eq!(asked(&echo(0.0)), PredictionType::Epsilon);
}

#[test]
fn files_that_cannot_draw_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.safetensors");
    convert(fixtures().join("sdxl"), None, &file).unwrap();
    let refused = |name: &str, change: &dyn Fn(&mut Tensors, &mut BTreeMap<String, String>)| {
        let path = dir.path().join(format!("{name}.safetensors"));
        rewritten(&file, &path, |tensors, metadata| change(tensors, metadata));
        let message = Pipeline::open(&path, None, Device::Cpu, Kind::Float).unwrap_err().to_string();
        assert!(message.contains(&format!("{name}.safetensors")) && !message.contains('\n'), "{message}");
        message
    };
    let without = |prefix: &'static str| {
        move |tensors: &mut Tensors, _: &mut BTreeMap<String, String>| tensors.retain(|name, _| !name.starts_with(prefix))
    };
    assert!(refused("unet_alone", &|tensors, _| tensors.retain(|name, _| name.starts_with("model."))).contains("--unet"));
    assert!(refused("one_encoder", &without("conditioner.embedders.1.")).contains("text encoder"));
    assert!(refused("no_vae", &without("first_stage_model.")).contains("--vae"));
    let edm = refused("edm", &|tensors, metadata| {
        tensors.remove("v_pred");
        tensors.insert("edm_vpred.sigma_max".into(), Tensor::from(120f32));
        metadata.remove("modelspec.prediction_type");
        without_files(metadata, "scheduler");
    });
    assert!(edm.contains("edm_vpred.sigma_max"), "{edm}");
    assert!(refused("vocabulary", &|_, metadata| without_files(metadata, "tokenizer")).contains("--tokenizer"));
    assert!(
        refused("foreign_path", &|_, metadata| {
            let mut files: serde_json::Value = serde_json::from_str(&metadata["laptop_diff.files"]).unwrap();
            files["files"]["../outside.json"] = json!("{}");
            metadata.insert("laptop_diff.files".into(), files.to_string());
        })
        .contains("../outside.json")
    );

    // Nothing is left behind where a part is missing.
    let out = dir.path().join("out");
    assert!(convert(dir.path().join("no_vae.safetensors"), None, &out).is_err() && !out.exists());
    let broken = dir.path().join("broken");
    std::fs::create_dir_all(broken.join("text_encoder_2")).unwrap();
    for part in ["unet", "vae", "scheduler", "tokenizer", "tokenizer_2", "text_encoder"] {
        std::os::unix::fs::symlink(fixtures().join("sdxl").join(part), broken.join(part)).unwrap();
    }
    std::fs::copy(fixtures().join("sdxl/model_index.json"), broken.join("model_index.json")).unwrap();
    rewritten(&fixtures().join("sdxl/text_encoder_2/model.safetensors"), &broken.join("text_encoder_2/model.safetensors"), |tensors, _| {
        tensors.remove("text_model.encoder.layers.1.self_attn.k_proj.weight");
    });
    let to = dir.path().join("never.safetensors");
    let message = convert(&broken, None, &to).unwrap_err().to_string();
    assert!(message.contains("stand together") && !to.exists(), "{message}");
}
