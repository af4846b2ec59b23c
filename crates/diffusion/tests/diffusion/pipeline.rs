//! Model directory and pipeline against fixtures that diffusers computed
//! (tests/fixtures/gen_diffusion_pipeline.py), and against what their documentation promises.

use std::collections::BTreeMap;

use diffusion::{
    AutoencoderKl, DecodeParts, Error, Family, GenerateOptions, ModelDir, OffloadedPipeline, Pipeline, SamplerKind, TimeIds, images,
    write_model_index,
};
use image::RgbImage;
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};

use crate::support::{assert_close, copy_dir, cpu_pipeline, fixtures, get};

// --- whole pipelines ---

fn options(file: &TensorFile, sampler: SamplerKind) -> GenerateOptions {
    let meta = file.metadata();
    GenerateOptions {
        prompts: serde_json::from_str(&meta["prompts"]).unwrap(),
        negative: None,
        steps: meta["steps"].parse().unwrap(),
        guidance: meta["guidance"].parse().unwrap(),
        sampler,
        karras: false,
        clip_skip: 0,
        seeds: serde_json::from_str(&meta["seeds"]).unwrap(),
        height: 32,
        width: 32,
        batch: 2,
        latents: Some(get(file, "noise")),
        decode: DecodeParts::default(),
    }
}

fn agrees_with_diffusers(name: &str) {
    let pipeline = cpu_pipeline(name);
    let file = TensorFile::open(fixtures().join(name).join("expected.safetensors")).unwrap();
    let size = TimeIds::uncropped(32, 32);
    let prompts: Vec<String> = serde_json::from_str(&file.metadata()["prompts"]).unwrap();
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    for (i, (_, tokenizer)) in pipeline.text().parts().iter().enumerate() {
        let expected = get(&file, ["ids.tokenizer", "ids.tokenizer_2"][i]);
        assert_close("token ids", &tokenizer.encode(&prompts).unwrap(), &expected, 0.0);
    }
    let cond = pipeline.encode_prompts(&prompts, size).unwrap();
    let negative = pipeline.encode_negative(None, &cond, size).unwrap();
    assert_close("embeds", &cond.encoder_hidden_states, &get(&file, "embeds.prompt"), 1e-4);
    assert_close("negative embeds", &negative.encoder_hidden_states, &get(&file, "embeds.negative"), 1e-4);
    let skipped = pipeline.text().encode_skipping(&prompts, size, 1).unwrap();
    assert_close("embeds one layer down", &skipped.encoder_hidden_states, &get(&file, "embeds.skipped"), 1e-4);
    assert!(matches!(pipeline.text().encode_skipping(&prompts, size, 4), Err(Error::Input { name, .. }) if name == "clip_skip"));
    if let (Some(added), Some(negative)) = (&cond.added, &negative.added) {
        assert_close("pooled", &added.text_embeds, &get(&file, "embeds.pooled"), 1e-4);
        assert_close("negative pooled", &negative.text_embeds, &get(&file, "embeds.negative_pooled"), 1e-4);
    }

    for kind in SamplerKind::ALL {
        let what = format!("{name} {kind}");
        let mut heard = Vec::new();
        let made = pipeline.generate(pipeline.unet(), &options(&file, kind), &mut |p| heard.push(p)).unwrap();
        assert_close(&what, &made.latents, &get(&file, &format!("{kind}.latents")), 1e-3);
        let images: Vec<&RgbImage> = made.images.iter().collect();
        // [-1, 1] -> [0, 255], as [N, H, W, 3]
        let ours = ((images::to_tensor(&images).unwrap() + 1.0) * 127.5).round().permute([0, 2, 3, 1]);
        assert_close(&what, &ours, &get(&file, &format!("{kind}.pictures")), 2.0);
        // Two batches of six steps: the start, every step's start, the end.
        assert_eq!(heard.len(), 2 * 8);
        assert_eq!((heard[15].done, heard[15].total, heard[15].step), (3, 3, 6));
    }
    type Change = fn(&mut GenerateOptions);
    let variants: [(&str, SamplerKind, Change); 5] = [
        ("ddim.negative", SamplerKind::Ddim, |o| o.negative = Some("blue".into())),
        ("ddim.skip", SamplerKind::Ddim, |o| o.clip_skip = 1),
        ("euler.karras", SamplerKind::Euler, |o| o.karras = true),
        ("dpmpp-2m.karras", SamplerKind::DpmPp2m, |o| o.karras = true),
        // All noise from the seeds.
        ("seeded", SamplerKind::EulerAncestral, |o| o.latents = None),
    ];
    for (what, kind, change) in variants {
        let mut options = options(&file, kind);
        change(&mut options);
        let made = pipeline.generate(pipeline.unet(), &options, &mut |_| {}).unwrap();
        assert_close(&format!("{name} {what}"), &made.latents, &get(&file, &format!("{what}.latents")), 1e-3);
    }
}

#[test]
fn sdxl_images_agree_with_diffusers() {
    agrees_with_diffusers("sdxl");
}

#[test]
fn sd15_images_agree_with_diffusers() {
    agrees_with_diffusers("sd15");
}

#[test]
fn sd21_images_agree_with_diffusers() {
    agrees_with_diffusers("sd21");
}

#[test]
fn latent_consistency_models_take_the_weight_of_guidance_as_an_input() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixtures().join("sd15"), dir.path());
    copy_dir(&fixtures().join("lcm"), dir.path());
    let file = TensorFile::open(fixtures().join("lcm/expected.safetensors")).unwrap();
    let pipeline = Pipeline::open(dir.path(), None, Device::Cpu, Kind::Float).unwrap();
    let offloaded = OffloadedPipeline::open(dir.path(), None, Device::Cpu, Kind::Float).unwrap();
    for guidance in [1.0, 5.0] {
        let options = GenerateOptions { guidance, ..options(&file, SamplerKind::Lcm) };
        let made = pipeline.generate(pipeline.unet(), &options, &mut |_| {}).unwrap();
        assert_close(&format!("guidance {guidance}"), &made.latents, &get(&file, &format!("lcm.{guidance}.latents")), 1e-3);
        assert!(offloaded.generate(&options, &mut |_| {}).unwrap().latents.equal(&made.latents));
    }
    let options = GenerateOptions { negative: Some("blue".into()), ..options(&file, SamplerKind::Lcm) };
    assert!(matches!(pipeline.generate(pipeline.unet(), &options, &mut |_| {}), Err(Error::Input { name, .. }) if name == "negative"));
}

#[test]
fn parts_can_be_in_memory_one_after_the_other() {
    for name in ["sdxl", "sd15"] {
        let file = TensorFile::open(fixtures().join(name).join("expected.safetensors")).unwrap();
        let mut options = options(&file, SamplerKind::EulerAncestral);
        (options.latents, options.negative, options.clip_skip) = (None, Some("blue".into()), 1);
        let resident = cpu_pipeline(name);
        let offloaded = OffloadedPipeline::open(fixtures().join(name), None, Device::Cpu, Kind::Float).unwrap();
        assert_eq!(offloaded.native_size(), resident.native_size());
        let expected = resident.generate(resident.unet(), &options, &mut |_| {}).unwrap();
        let mut heard = Vec::new();
        let made = offloaded.generate(&options, &mut |p| heard.push(p)).unwrap();
        assert!(made.latents.equal(&expected.latents) && made.images == expected.images, "{name}");
        // Two batches: the start and six steps each; then both are decoded.
        assert_eq!(heard.len(), 2 * 7 + 2);
        assert_eq!((heard[13].done, heard[14].done, heard[15].done), (2, 2, 3));
        options.height = 30;
        assert!(matches!(offloaded.generate(&options, &mut |_| {}), Err(Error::Input { name, .. }) if name == "height"));
    }
}

#[test]
fn large_latents_are_decoded_in_parts() {
    let file = TensorFile::open(fixtures().join("sd21/expected.safetensors")).unwrap();
    let vae = AutoencoderKl::open(fixtures().join("sd21/vae"), Device::Cpu, Kind::Float).unwrap();
    let (z, expected) = (get(&file, "tiled.z"), get(&file, "tiled.decoded"));
    let decode = |z: &Tensor, sliced, tiled| vae.decode_in_parts(z, DecodeParts { sliced, tiled }).unwrap();
    assert_close("tiles", &decode(&z, false, true), &expected, 1e-4);
    let whole = vae.decode(&z).unwrap();
    assert!((&whole - &expected).abs().max().double_value(&[]) > 1e-2, "tiles cannot be the whole");
    // Other images beside it change nothing.
    let two = Tensor::cat(&[&(&z * -1.0), &z], 0);
    for (sliced, tiled, one) in [(true, false, &whole), (true, true, &expected), (false, true, &expected)] {
        assert_close("two", &decode(&two, sliced, tiled).narrow(0, 1, 1), one, 1e-4);
    }
    // An image of the size of training is one tile.
    let small = z.narrow(2, 0, 8).narrow(3, 0, 8);
    assert!(decode(&small, false, true).equal(&vae.decode(&small).unwrap()));
    assert!(vae.decode_in_parts(&small.get(0), DecodeParts { sliced: true, tiled: true }).is_err());
}

#[test]
fn images_that_overflow_in_f16_are_decoded_in_f32() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixtures().join("sd21"), dir.path());
    // A first convolution beyond what f16 can sum up; the norms behind it forgive its size.
    let weights = dir.path().join("vae/diffusion_pytorch_model.safetensors");
    let scale = |(key, t): (String, Tensor)| {
        let t = if key == "decoder.conv_in.weight" { t.to_kind(Kind::Float) * 20000.0 } else { t };
        (key, t.to_kind(Kind::Half))
    };
    let tensors: Tensors = TensorFile::open(&weights).unwrap().tensors().unwrap().into_iter().map(scale).collect();
    assert!(tensors.values().all(|t| t.isfinite().all().int64_value(&[]) == 1));
    save_tensors(&weights, &tensors, &BTreeMap::new(), None).unwrap();
    let config = std::fs::read_to_string(dir.path().join("vae/config.json")).unwrap();
    let config = config.replace("\"force_upcast\": true", "\"force_upcast\": false");
    std::fs::write(dir.path().join("vae/config.json"), config).unwrap();

    let half = Pipeline::open(dir.path(), None, Device::Cpu, Kind::Half).unwrap();
    let full = Pipeline::open(dir.path(), None, Device::Cpu, Kind::Float).unwrap();
    assert_eq!(half.vae().kind(), Kind::Half);
    let x = half.initial_noise(&[3], 32, 32).unwrap();
    let raw = half.vae().decode(&(&x / half.vae().config().scaling_factor)).unwrap();
    assert_eq!(raw.isfinite().all().int64_value(&[]), 0, "it overflows");
    assert_eq!(half.decode(&x).unwrap(), full.decode(&x).unwrap());
    assert!(matches!(half.decode(&(x * f64::NAN)), Err(Error::NotFinite { .. })));
}

#[test]
fn a_image_depends_on_its_own_prompt_and_seed_only() {
    let pipeline = cpu_pipeline("sdxl");
    let run = |prompts: &[&str], seeds: &[u64], batch: usize, guidance: f64| {
        let options = GenerateOptions {
            prompts: prompts.iter().map(|p| p.to_string()).collect(),
            negative: None,
            steps: 3,
            guidance,
            sampler: SamplerKind::EulerAncestral,
            karras: false,
            clip_skip: 0,
            seeds: seeds.to_vec(),
            height: 32,
            width: 48,
            batch,
            latents: None,
            decode: DecodeParts::default(),
        };
        pipeline.generate(pipeline.unet(), &options, &mut |_| {}).unwrap()
    };
    let file = TensorFile::open(fixtures().join("samplers.safetensors")).unwrap();
    let noise = pipeline.initial_noise(&[3, 7], 32, 32).unwrap();
    assert_close("noise of a seed", &noise.get(1), &get(&file, "seeded_noise"), 1e-6);
    let together = run(&["a red circle", "blue", "green"], &[7, 8, 9], 3, 5.0);
    let alone = run(&["blue"], &[8], 1, 5.0);
    assert_close("alone", &alone.latents.get(0), &together.latents.get(1), 1e-4);
    assert_eq!(together.images[1].dimensions(), (48, 32));
    let far = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) > 1e-2;
    assert!(far(&run(&["blue"], &[9], 1, 5.0).latents, &alone.latents), "the seed must matter");
    assert!(far(&run(&["red"], &[8], 1, 5.0).latents, &alone.latents), "the prompt must matter");
    assert!(far(&run(&["blue"], &[8], 1, 1.0).latents, &alone.latents), "guidance must matter");
    assert_eq!(run(&["blue"], &[8], 1, 5.0).images, alone.images, "the same call twice");
}

#[test]
fn settings_that_do_not_fit_are_refused_before_anything_runs() {
    let pipeline = cpu_pipeline("sd15");
    let base = || GenerateOptions {
        prompts: vec!["red".into()],
        negative: None,
        steps: 2,
        guidance: 5.0,
        sampler: SamplerKind::Ddim,
        karras: false,
        clip_skip: 0,
        seeds: vec![1],
        height: 32,
        width: 32,
        batch: 1,
        latents: None,
        decode: DecodeParts::default(),
    };
    type Change = fn(&mut GenerateOptions);
    let cases: [(&str, Change); 9] = [
        ("prompts", |o| o.prompts.clear()),
        ("seeds", |o| o.seeds.push(2)),
        ("height", |o| o.height = 30),
        ("width", |o| o.width = 0),
        ("batch", |o| o.batch = 0),
        ("steps", |o| o.steps = 0),
        ("karras", |o| o.karras = true),
        ("seeds", |o| {
            // Given latents replace the initial noise only.
            (o.latents, o.sampler) = (Some(Tensor::zeros([1, 4, 8, 8], (Kind::Float, Device::Cpu))), SamplerKind::Lcm);
            o.seeds.clear();
        }),
        ("latents", |o| o.latents = Some(Tensor::zeros([1, 4, 4, 4], (Kind::Float, Device::Cpu)))),
    ];
    for (name, change) in cases {
        let mut options = base();
        change(&mut options);
        match pipeline.generate(pipeline.unet(), &options, &mut |_| panic!("started")) {
            Err(Error::Input { name: found, .. }) => assert_eq!(found, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    let mut options = base();
    options.latents = Some(Tensor::full([1, 4, 8, 8], f64::NAN, (Kind::Float, Device::Cpu)));
    assert!(matches!(pipeline.generate(pipeline.unet(), &options, &mut |_| {}), Err(Error::NotFinite { .. })));
}

// --- model directory ---

#[test]
fn missing_parts_are_named() {
    let whole = fixtures().join("sdxl");
    assert_eq!(ModelDir::open(&whole, None).unwrap().family(), Family::StableDiffusionXl);
    assert!(ModelDir::open(&whole, None).unwrap().force_zeros_for_empty_prompt());
    assert_eq!(ModelDir::open(fixtures().join("sd15"), None).unwrap().family(), Family::StableDiffusion);
    for (gone, named) in [
        ("model_index.json", "model_index.json"),
        ("unet/config.json", "unet/config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "unet"),
        ("vae", "vae"),
        ("text_encoder_2", "text_encoder_2"),
        ("text_encoder/model.safetensors", "text_encoder"),
        ("tokenizer_2/vocab.json", "tokenizer_2/vocab.json"),
        ("scheduler/scheduler_config.json", "scheduler/scheduler_config.json"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&whole, dir.path());
        let path = dir.path().join(gone);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap()
        } else {
            std::fs::remove_file(&path).unwrap()
        }
        let message = ModelDir::open(dir.path(), None).unwrap_err().to_string();
        assert!(message.contains(&dir.path().join(named).display().to_string()), "{gone}: {message}");
    }
    let message = ModelDir::open(whole.join("nowhere"), None).unwrap_err().to_string();
    assert!(message.contains("nowhere: no such folder"), "{message}");
    let message = ModelDir::open(&whole, Some(&whole.join("vae/nowhere"))).unwrap_err().to_string();
    assert!(message.contains("vae/nowhere: no such folder"), "{message}");
}

#[test]
fn another_unet_can_take_the_place_of_the_models_own() {
    let whole = fixtures().join("sdxl");
    let dir = tempfile::tempdir().unwrap();
    let pipeline = cpu_pipeline("sdxl");
    pipeline.unet().save(dir.path().join("unet"), None, &BTreeMap::new()).unwrap();
    // The folder, or a directory that holds it.
    for over in [dir.path().to_path_buf(), dir.path().join("unet")] {
        let found = ModelDir::open(&whole, Some(&over)).unwrap();
        assert_eq!(found.unet(), dir.path().join("unet"));
        assert!(Pipeline::open(&whole, Some(&over), Device::Cpu, Kind::Float).is_ok());
    }
    match ModelDir::open(&whole, Some(&fixtures().join("sd15"))) {
        Err(Error::Config { key, .. }) => assert_eq!(key, "addition_embed_type"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_fingerprint_changes_with_weights_and_config_only() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixtures().join("sd15"), dir.path());
    let before = unet::fingerprint(fixtures().join("sd15")).unwrap();
    assert_eq!(before.len(), 64);
    assert_eq!(before, unet::fingerprint(dir.path().join("unet")).unwrap());
    assert_eq!(before, ModelDir::open(dir.path(), None).unwrap().fingerprint().unwrap());
    let weights = dir.path().join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    assert_ne!(before, unet::fingerprint(dir.path()).unwrap());
}

#[test]
fn a_written_index_is_accepted() {
    for (name, family) in [("sdxl", Family::StableDiffusionXl), ("sd15", Family::StableDiffusion)] {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&fixtures().join(name), dir.path());
        write_model_index(dir.path(), family, "EulerDiscreteScheduler", false).unwrap();
        let found = ModelDir::open(dir.path(), None).unwrap();
        assert_eq!(found.family(), family);
        assert!(!found.force_zeros_for_empty_prompt());
    }
}
