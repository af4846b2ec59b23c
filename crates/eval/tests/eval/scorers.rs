//! Scores of the published metrics against their own Python packages (`tests/fixtures/gen_eval.py`), 1e-4 apart at most.

use std::path::{Path, PathBuf};

use diffusion::{ClipCrop, ClipModel, ClipPreprocess};
use eval::{
    Aesthetic, ClipJudge, ClipScale, ClipScorer, Error, ImageReward, ImageScorer, Inception, InceptionResize, Lpips, LpipsTrunk,
    PromptWords, cmmd,
};
use image::RgbImage;
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn read(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixtures().join("eval").join(name)).unwrap()).unwrap()
}

/// `image` of the script.
fn image(w: u32, h: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, y| {
        image::Rgb([0, 1, 2].map(|c| ((x * x / (w / 2 + 1) + 3 * y + 40 * c + ((x / 9 + y / 7) % 2) * 60 + 17 * seed) % 256) as u8))
    })
}

/// `fill` of the script.
fn fill(name: &str, shape: &[i64], gain: f64) -> Tensor {
    let seed = name.bytes().fold(2_166_136_261u32, |s, b| (s ^ u32::from(b)).wrapping_mul(16_777_619));
    let fan_in = shape.iter().skip(1).product::<i64>() as f64;
    let placed = ["pos", "cls", "class"].iter().any(|part| name.contains(part));
    let value = |i: u32| {
        let u = i.wrapping_mul(2_654_435_761).wrapping_add(seed);
        let u = (u ^ (u >> 16)).wrapping_mul(2_246_822_519);
        let v = f64::from(u ^ (u >> 13)) / 4_294_967_296.0 - 0.5;
        let v = if name.starts_with("lin") {
            v + 0.5
        } else if shape.len() >= 2 && !placed {
            v * (2.0 * gain * (3.0 / fan_in).sqrt())
        } else if name.ends_with("running_var") {
            1.0 + v
        } else if name.ends_with("weight") && shape.len() == 1 {
            1.0 + 0.2 * v
        } else if shape.is_empty() {
            2.0 + v
        } else {
            v * 0.2
        };
        v as f32
    };
    let n = shape.iter().product::<i64>() as u32;
    Tensor::from_slice(&(0..n).map(value).collect::<Vec<f32>>()).view(shape)
}

fn filled(shapes: &Value, gain: f64) -> Tensors {
    let shapes: std::collections::BTreeMap<String, Vec<i64>> = serde_json::from_value(shapes.clone()).unwrap();
    shapes
        .into_iter()
        .map(|(name, shape)| {
            let t = fill(&name, &shape, gain);
            (name, t)
        })
        .collect()
}

fn numbers(v: &Value) -> Vec<f64> {
    serde_json::from_value(v.clone()).unwrap()
}

fn case(v: &Value) -> (Vec<RgbImage>, Vec<String>) {
    let sizes: Vec<[u32; 2]> = serde_json::from_value(v["sizes"].clone()).unwrap();
    let prompts = v["prompts"].as_array().map(|p| p.iter().map(|p| p.as_str().unwrap().to_string()).collect()).unwrap_or_default();
    (sizes.iter().zip(0..).map(|([w, h], i)| image(*w, *h, i)).collect(), prompts)
}

#[track_caller]
fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    eprintln!("{what}: worst {worst:.1e}");
    assert!(got.len() == want.len() && worst < tolerance, "{what}: {worst:e} apart: {got:?}, expected {want:?}");
}

fn judge(scorer: &dyn ImageScorer, v: &Value) -> Vec<f64> {
    let (images, prompts) = case(v);
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    assert!(scorer.score(&images, &prompts[1..]).is_err() && scorer.score(&[], &[]).is_err());
    scorer.score(&images, &prompts).unwrap()
}

#[test]
fn hpsv2_from_its_training_checkpoint() {
    let v = read("hpsv2.json");
    let path = fixtures().join("eval/hpsv2/HPS.pt");
    let tokenizer = fixtures().join("diffusion/tokenizer");
    let open = |path: &Path| ClipJudge::open(path, Some(&tokenizer), ClipScale::Percent, Device::Cpu, Kind::Float, 2);
    close("HPSv2", &judge(&open(&path).unwrap(), &v), &numbers(&v["scores"]), 1e-4);

    // Without the settings beside it a file of these widths does not say its heads.
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("alone.pt");
    std::fs::copy(&path, &alone).unwrap();
    let err = open(&alone).err().unwrap().to_string();
    assert!(err.contains("alone.pt") && err.contains("open_clip_config.json"), "{err}");
    let err = open(&fixtures().join("eval/preprocess.safetensors")).err().unwrap().to_string();
    assert!(err.contains("preprocess.safetensors") && err.contains("no CLIP model"), "{err}");
}

#[test]
fn open_clip_weights_as_trainers_and_wrappers_save_them() {
    let v = read("hpsv2.json");
    let path = fixtures().join("eval/hpsv2/HPS.pt");
    let all = TensorFile::open(&path).unwrap().tensors().unwrap();
    let plain: Tensors = all.into_iter().filter_map(|(k, t)| Some((k.strip_prefix("state_dict.")?.to_string(), t))).collect();
    let in_text = |key: &str| !(key.starts_with("visual.") || key == "logit_scale");
    let split = |key: &str| if in_text(key) { format!("text.{key}") } else { key.to_string() };
    type Rename<'a> = &'a dyn Fn(&str) -> String;
    let forms: [(&str, Rename); 5] = [
        ("epoch_1.safetensors", &|key| format!("module.{key}")),
        ("epoch_2.safetensors", &|key| format!("state_dict.module.{key}")),
        ("clip.safetensors", &|key| format!("model.{key}")),
        ("custom_text.safetensors", &split),
        // Found in its folder by its published name.
        ("open_clip_pytorch_model.safetensors", &|key| key.to_string()),
    ];
    for (name, rename) in forms {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(path.with_file_name("open_clip_config.json"), dir.path().join("open_clip_config.json")).unwrap();
        let mut tensors: Tensors = plain.iter().map(|(key, t)| (rename(key), t.shallow_clone())).collect();
        if name.starts_with("epoch") {
            // What a trainer keeps beside.
            tensors.insert("optimizer.state.0.exp_avg".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
        }
        save_tensors(dir.path().join(name), &tensors, &Default::default(), None).unwrap();
        let named = if name.starts_with("open_clip") { dir.path().to_path_buf() } else { dir.path().join(name) };
        let tokenizer = fixtures().join("diffusion/tokenizer");
        let scorer = ClipJudge::open(&named, Some(&tokenizer), ClipScale::Percent, Device::Cpu, Kind::Float, 2)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        close(name, &judge(&scorer, &v), &numbers(&v["scores"]), 1e-4);
        let without = ClipJudge::open(&named, None, ClipScale::Percent, Device::Cpu, Kind::Float, 2).err().unwrap().to_string();
        assert!(without.contains("--tokenizer") && without.contains("no vocab.json"), "{without}");
    }
}

#[test]
fn a_clip_folder_of_weights_alone_takes_the_tokenizer_that_is_named() {
    let (v, whole, dir) = (read("pickscore.json"), fixtures().join("eval/pickscore"), tempfile::tempdir().unwrap());
    for file in ["config.json", "model.safetensors", "preprocessor_config.json"] {
        std::fs::copy(whole.join(file), dir.path().join(file)).unwrap();
    }
    let open = |tokenizer| ClipJudge::open(dir.path(), tokenizer, ClipScale::LogitScale, Device::Cpu, Kind::Float, 2);
    close("PickScore", &judge(&open(Some(whole.as_path())).unwrap(), &v), &numbers(&v["scores"]), 1e-4);
    let error = open(None).err().unwrap().to_string();
    assert!(error.contains("--tokenizer") && error.contains(&dir.path().display().to_string()), "{error}");
}

#[test]
fn hpsv2_1_as_its_package_scores() {
    let v = read("hpsv2_1.json");
    let (path, tokenizer) = (fixtures().join("eval/hpsv2_1/HPS_v2.1_compressed.pt"), fixtures().join("diffusion/tokenizer"));
    let scorer = ClipJudge::open(&path, Some(&tokenizer), ClipScale::Percent, Device::Cpu, Kind::Float, 2).unwrap();
    close("HPSv2.1", &judge(&scorer, &v), &numbers(&v["scores"]), 1e-4);
}

#[test]
fn open_clip_files_are_loaded_strictly() {
    let dir = tempfile::tempdir().unwrap();
    let path = fixtures().join("eval/hpsv2/HPS.pt");
    std::fs::copy(path.with_file_name("open_clip_config.json"), dir.path().join("open_clip_config.json")).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let mut tensors: Tensors =
        file.tensors().unwrap().into_iter().filter_map(|(k, t)| Some((k.strip_prefix("state_dict.")?.into(), t))).collect();
    tensors.insert("visual.extra".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
    let _gone = tensors.remove("ln_final.bias");
    let spoiled = dir.path().join("spoiled.safetensors");
    save_tensors(&spoiled, &tensors, &Default::default(), None).unwrap();
    let err = ClipModel::open_clip(&spoiled, Device::Cpu, Kind::Float).unwrap_err().to_string();
    assert!(
        err.contains("spoiled.safetensors")
            && err.contains("missing `text_model.final_layer_norm.bias`")
            && err.contains("unexpected `visual.extra`"),
        "{err}"
    );
}

#[test]
fn pickscore_and_clip_score_from_a_transformers_folder() {
    let v = read("pickscore.json");
    let open = |scale| ClipJudge::open(&fixtures().join("eval/pickscore"), None, scale, Device::Cpu, Kind::Float, 2).unwrap();
    close("PickScore", &judge(&open(ClipScale::LogitScale), &v), &numbers(&v["scores"]), 1e-4);
    close("CLIP score", &judge(&open(ClipScale::ClipScore), &v), &numbers(&v["clip_scores"]), 1e-4);
}

#[test]
fn aesthetic_predictor() {
    let (v, clip) = (read("aesthetic.json"), read("pickscore.json"));
    let dir = tempfile::tempdir().unwrap();
    let head = dir.path().join("head.safetensors");
    save_tensors(&head, &filled(&v["shapes"], 1.0), &Default::default(), None).unwrap();
    let scorer = ClipScorer::open(&fixtures().join("eval/pickscore"), Device::Cpu, Kind::Float, 8).unwrap();
    let aesthetic = Aesthetic::open(&head, scorer).unwrap();
    close("aesthetic", &judge(&aesthetic, &clip), &numbers(&v["scores"]), 1e-4);
}

#[test]
fn image_reward_with_its_tokenizer() {
    let v = read("imagereward.json");
    let words = || PromptWords::open(&fixtures().join("eval/vocab.txt")).unwrap();
    let (_, prompts) = case(&v);
    let (ids, mask) = words().encode(&prompts.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let want: Vec<i64> = v["ids"].as_array().unwrap().iter().flat_map(|r| r.as_array().unwrap()).map(|n| n.as_i64().unwrap()).collect();
    assert_eq!(Vec::<i64>::try_from(ids.flatten(0, -1)).unwrap(), want);
    assert_eq!(mask.sum(Kind::Int64).int64_value(&[]), want.iter().filter(|id| **id != 0).count() as i64);

    let tensors = filled(&v["shapes"], 1.0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ImageReward.safetensors");
    save_tensors(&path, &tensors, &Default::default(), None).unwrap();
    let model = ImageReward::open(&path, &fixtures().join("eval/vocab.txt"), Device::Cpu, 4).unwrap();
    close("ImageReward", &judge(&model, &v), &numbers(&v["scores"]), 1e-4);

    let other = ImageReward::open(&fixtures().join("eval/hpsv2/HPS.pt"), &fixtures().join("eval/vocab.txt"), Device::Cpu, 4).err().unwrap();
    assert!(other.to_string().contains("HPS.pt") && other.to_string().contains("no ImageReward"), "{other}");
    let lacking: Tensors = tensors.into_iter().filter(|(k, _)| k != "mlp.layers.7.bias").collect();
    assert!(ImageReward::from_tensors(lacking, words(), 4).err().unwrap().to_string().contains("`mlp.layers.7.bias`"));
}

#[test]
fn inception_of_fid_at_its_published_size() {
    let v = read("inception.json");
    let (images, _) = case(&v);
    for (name, resize) in [("torch", InceptionResize::Torch), ("pillow", InceptionResize::Pillow)] {
        let net = Inception::from_tensors(filled(&v["shapes"], 1.4), resize, 4).unwrap();
        for (image, want) in images.iter().zip(v["inputs"][name].as_array().unwrap()) {
            let x = net.pixels(&[image]).unwrap();
            let seen = x.slice(2, 0, None, 37).slice(3, 0, None, 37).flatten(0, -1).contiguous();
            close(&format!("inputs of {name}"), &Vec::<f64>::try_from(seen.to_kind(Kind::Double)).unwrap(), &numbers(want), 1e-4);
        }
        let features = net.features(&images).unwrap();
        assert_eq!(features.size(), [2, 2048]);
        for (row, want) in (0..).zip(v["features"][name].as_array().unwrap()) {
            let got = features.get(row).slice(0, 0, None, 16).to_kind(Kind::Double);
            close(&format!("features of {name}"), &Vec::<f64>::try_from(got.contiguous()).unwrap(), &numbers(want), 1e-4);
        }
    }
    let err = Inception::open(&fixtures().join("eval/hpsv2/HPS.pt"), InceptionResize::Torch, Device::Cpu, 4).err().unwrap().to_string();
    assert!(err.contains("HPS.pt") && err.contains("missing `Conv2d_1a_3x3.conv.weight`"), "{err}");
}

#[test]
fn lpips_of_both_classifiers() {
    let all = read("lpips.json");
    for (name, trunk) in [("alex", LpipsTrunk::Alex), ("vgg", LpipsTrunk::Vgg)] {
        let v = &all[name];
        let lpips = Lpips::from_tensors(filled(&v["trunk"], 1.4), filled(&v["linear"], 1.0), 4).unwrap();
        assert_eq!(lpips.trunk(), trunk);
        let sizes: Vec<[u32; 2]> = serde_json::from_value(v["sizes"].clone()).unwrap();
        let of = |seed| sizes.iter().map(|[w, h]| image(*w, *h, seed)).collect::<Vec<_>>();
        close(name, &lpips.distances(&of(0), &of(3)).unwrap(), &numbers(&v["distances"]), 1e-4);
        assert_eq!(lpips.distances(&of(0), &of(0)).unwrap(), [0.0, 0.0]);
        assert!(matches!(lpips.distances(&of(0), &of(0)[1..]), Err(Error::Input { .. })));
    }
    let wrong = Lpips::from_tensors(filled(&all["vgg"]["trunk"], 1.4), filled(&all["alex"]["linear"], 1.0), 4).err().unwrap();
    assert!(wrong.to_string().contains("lin1.model.1.weight"), "{wrong}");
}

#[test]
fn cmmd_of_its_definition() {
    let (x, y) = (fill("x", &[7, 6], 1.0), fill("y", &[5, 6], 1.0));
    close("CMMD", &[cmmd(&x, &y).unwrap()], &numbers(&serde_json::json!([read("cmmd.json")["value"]])), 1e-9);
    assert!(cmmd(&x, &x).unwrap().abs() < 1e-9);
    assert!(cmmd(&x, &y.narrow(1, 0, 3)).is_err() && cmmd(&(x / 0.0), &y).is_err());
}

#[test]
fn images_of_odd_sizes_become_the_references_inputs_to_the_byte() {
    let file = TensorFile::open(fixtures().join("eval/preprocess.safetensors")).unwrap();
    for (name, _) in file.shapes() {
        let (library, size) = name.split_once('.').unwrap();
        let (w, h) = size.split_once('x').unwrap();
        let crop = if library == "open_clip" { ClipCrop::HalfToEven } else { ClipCrop::Down };
        let preprocess = ClipPreprocess { crop, image_mean: [0.0; 3], image_std: [1.0; 3], ..ClipPreprocess::new(56) };
        let got = preprocess.pixels(&[&image(w.parse().unwrap(), h.parse().unwrap(), 1)]).unwrap() * 255.0;
        let want = file.tensor(name).unwrap().unwrap().to_kind(Kind::Float);
        assert_eq!(f64::try_from((got.squeeze_dim(0) - want).abs().max()).unwrap().round(), 0.0, "{name}");
    }
}
