//! Tokens that were added to a tokenizer, and textual inversion, against transformers and diffusers
//! (tests/fixtures/gen_added_tokens.py), and the forms in which a tokenizer's files come.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diffusion::{DecodeParts, Error, GenerateOptions, Pipeline, SamplerKind, TextEncoders, TimeIds, Tokenizer};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, save_tensors};

use crate::support::{assert_close, copy_dir, fixtures, get};

fn tokenizers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/diffusion")
}

#[derive(serde::Deserialize)]
struct Cases {
    texts: Vec<String>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    folder: String,
    files: BTreeMap<String, Option<String>>,
    ids: Vec<Vec<i64>>,
}

fn ids(dir: &Path, texts: &[&str]) -> diffusion::Result<Vec<Vec<i64>>> {
    Ok(Vec::try_from(Tokenizer::open(dir)?.encode(texts)?).unwrap())
}

#[test]
fn added_tokens_agree_with_transformers_in_every_form_of_the_files() {
    let text = std::fs::read_to_string(tokenizers().join("added_tokens.json")).unwrap();
    let Cases { texts, cases } = serde_json::from_str(&text).unwrap();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(cases.len(), 20);
    for case in cases {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&tokenizers().join(&case.folder), dir.path());
        for (file, text) in &case.files {
            match text {
                Some(text) => std::fs::write(dir.path().join(file), text).unwrap(),
                None => std::fs::remove_file(dir.path().join(file)).unwrap(),
            }
        }
        for ((text, got), expected) in texts.iter().zip(ids(dir.path(), &texts).unwrap()).zip(&case.ids) {
            assert_eq!(&got, expected, "{}: {text:?}", case.name);
        }
    }
}

#[test]
fn files_of_windows_editors_are_read_and_ids_that_clash_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&tokenizers().join("tokenizer"), dir.path());
    let at = |name: &str| dir.path().join(name);
    let expected = ids(dir.path(), &["a red ring, and blue"]).unwrap();
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"] {
        let text = std::fs::read_to_string(at(name)).unwrap();
        std::fs::write(at(name), format!("\u{feff}{}", text.replace('\n', "\r\n"))).unwrap();
    }
    assert_eq!(ids(dir.path(), &["a red ring, and blue"]).unwrap(), expected);

    let size = Tokenizer::open(dir.path()).unwrap().vocab_size();
    // Rows of the embeddings are what the file says, gaps or not.
    std::fs::write(at("added_tokens.json"), json!({"<cat>": size + 3}).to_string()).unwrap();
    assert_eq!(ids(dir.path(), &["<cat>"]).unwrap()[0][1], size + 3);
    assert_eq!(Tokenizer::open(dir.path()).unwrap().vocab_size(), size + 4);
    for (text, told) in [
        (json!({"<cat>": size, "<dog>": size}), ["`<cat>`", "`<dog>`"]),
        (json!({"<cat>": 7}), ["`<cat>` has the id 7", "which is that of"]),
        (json!({"<cat>": -1}), ["added_tokens.json", "-1, not a whole number"]),
        (json!({"<cat>": "650"}), ["`<cat>`", "not a whole number"]),
    ] {
        std::fs::write(at("added_tokens.json"), text.to_string()).unwrap();
        let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(told.iter().all(|part| error.contains(part)), "{error}");
    }
    std::fs::remove_file(at("added_tokens.json")).unwrap();
    for (file, text, told) in [
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {"content": "<cat>"}}}"#, "added_tokens_decoder"),
        ("tokenizer_config.json", r#"{"model_max_length": 2}"#, "model_max_length"),
        ("merges.txt", "#version: 0.2\na b\na b c\n", "line 3 is no pair of tokens: `a b c`"),
    ] {
        let whole = std::fs::read(at(file)).unwrap();
        std::fs::write(at(file), text).unwrap();
        let error = Tokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(told), "{error}");
        std::fs::write(at(file), whole).unwrap();
    }
}

#[test]
fn a_length_that_is_not_named_is_that_of_the_encoder() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixtures().join("sd15"), dir.path());
    let config = dir.path().join("tokenizer/tokenizer_config.json");
    for length in [Value::Null, json!(1e30), json!(1000000000000000019884624838656.0)] {
        std::fs::write(&config, json!({ "model_max_length": length }).to_string()).unwrap();
        assert_eq!(Tokenizer::open(dir.path().join("tokenizer")).unwrap().model_max_length(), 77);
        let pipeline = Pipeline::open(dir.path(), None, Device::Cpu, Kind::Float).unwrap();
        assert_eq!(pipeline.text().parts()[0].1.model_max_length(), 11);
    }
}

// The fixture's model with the new rows in its embeddings and the new tokens beside its vocabulary.
fn inverted(name: &str, file: &TensorFile, dir: &Path, with_rows: bool) {
    copy_dir(&fixtures().join(name), dir);
    let parts: &[&str] = if name == "sdxl" { &["", "_2"] } else { &[""] };
    for part in parts {
        let tokens = &file.metadata()[&format!("{name}{part}.added_tokens.json")];
        std::fs::write(dir.join(format!("tokenizer{part}/added_tokens.json")), tokens).unwrap();
        if !with_rows {
            continue;
        }
        let encoder = dir.join(format!("text_encoder{part}"));
        let weights = encoder.join("model.safetensors");
        let mut tensors = TensorFile::open(&weights).unwrap().tensors().unwrap();
        let (_, table) = tensors.iter_mut().find(|(key, _)| key.ends_with("token_embedding.weight")).unwrap();
        let rows = get(file, &format!("{name}{part}.embeddings"));
        *table = Tensor::cat(&[table.to_kind(Kind::Float), rows], 0).to_kind(Kind::Half);
        let size = table.size()[0];
        save_tensors(&weights, &tensors, &BTreeMap::new(), None).unwrap();
        let path = encoder.join("config.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["vocab_size"] = size.into();
        std::fs::write(&path, config.to_string()).unwrap();
    }
}

#[test]
fn textual_inversion_agrees_with_diffusers() {
    let file = TensorFile::open(fixtures().join("textual_inversion.safetensors")).unwrap();
    let prompts: Vec<String> = serde_json::from_str(&file.metadata()["prompts"]).unwrap();
    let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    for name in ["sd15", "sdxl"] {
        let dir = tempfile::tempdir().unwrap();
        inverted(name, &file, dir.path(), true);
        let pipeline = Pipeline::open(dir.path(), None, Device::Cpu, Kind::Float).unwrap();
        let cond = pipeline.encode_prompts(&texts, TimeIds::uncropped(32, 32)).unwrap();
        assert_close(name, &cond.encoder_hidden_states, &get(&file, &format!("{name}.prompt_embeds")), 1e-3);
        let options = GenerateOptions {
            prompts: prompts.clone(),
            negative: Some(file.metadata()["negative"].clone()),
            steps: 3,
            guidance: 5.0,
            sampler: SamplerKind::Ddim,
            karras: false,
            clip_skip: 0,
            seeds: vec![1, 2, 3],
            height: 32,
            width: 32,
            batch: 2,
            latents: Some(get(&file, &format!("{name}.noise"))),
            decode: DecodeParts::default(),
        };
        let made = pipeline.generate(pipeline.unet(), &options, &mut |_| {}).unwrap();
        let expected = get(&file, &format!("{name}.latents"));
        let scale = expected.abs().max().double_value(&[]);
        assert_close(name, &made.latents, &expected, 1e-3 * scale.max(1.0));
    }
}

#[test]
fn an_added_token_without_an_embedding_is_refused_where_it_is_used() {
    let file = TensorFile::open(fixtures().join("textual_inversion.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    inverted("sd15", &file, dir.path(), false);
    let parts = [(dir.path().join("text_encoder"), dir.path().join("tokenizer"))];
    let text = TextEncoders::open(diffusion::Family::StableDiffusion, &parts, Device::Cpu, Kind::Float).unwrap();
    assert!(text.encode(&["a red square"], TimeIds::uncropped(32, 32)).is_ok());
    match text.encode(&["a red square", "a <toy>"], TimeIds::uncropped(32, 32)) {
        Err(Error::Input { name, got, .. }) => assert!(name == "prompt" && got.contains("`<toy>`"), "{got}"),
        other => panic!("{other:?}"),
    }
}
