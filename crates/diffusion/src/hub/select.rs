//! Which files of a repository are needed: those of a model directory, of one CLIP model, or of one U-Net.

use std::path::Path;

use artifact::Fields;
use unet::weights::{WeightFile, WeightName, component_files};

pub(super) const INDEX: &str = "model_index.json";
/// Files that a tokenizer's folder may have.
const TOKENIZER: [&str; 6] =
    ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"];
/// Folders with weights, and the names of these without endings.
const PARTS: [(&str, &str); 4] =
    [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model"), ("text_encoder_2", "model")];

/// The files of a published repository that a model directory needs; of a repository without `model_index.json`, those of its folder;
/// none where it is neither.
pub(super) fn needed<'a>(all: &[&'a str]) -> Vec<&'a str> {
    if !all.contains(&INDEX) {
        return single(all);
    }
    let inside = |folder: &str, files: &[&str]| {
        let is_one = |path: &&&str| path.rsplit_once('/').is_some_and(|(f, file)| f == folder && files.contains(&file));
        all.iter().filter(is_one).copied().collect::<Vec<_>>()
    };
    let mut out = vec![all[all.iter().position(|path| *path == INDEX).unwrap_or(0)]];
    out.extend(inside("scheduler", &["scheduler_config.json"]));
    out.extend(["tokenizer", "tokenizer_2"].iter().flat_map(|folder| inside(folder, &TOKENIZER)));
    for (part, stem) in PARTS {
        out.extend(inside(part, &["config.json"]));
        out.extend(weights(all, part, stem));
    }
    out
}

/// One CLIP model, as scorers of images are published, or one U-Net.
fn single<'a>(all: &[&'a str]) -> Vec<&'a str> {
    if !all.contains(&"config.json") {
        return Vec::new();
    }
    let small = |path: &&&str| ["config.json", "preprocessor_config.json"].contains(*path) || TOKENIZER.contains(*path);
    let mut out: Vec<&str> = all.iter().filter(small).copied().collect();
    let found = ["model", "diffusion_pytorch_model"].into_iter().map(|stem| weights(all, "", stem)).find(|files| !files.is_empty());
    out.extend(found.unwrap_or_default());
    out
}

/// The weights of a folder: safetensors, else PyTorch's; a plain name, else the f16 variant, else another.
fn weights<'a>(all: &[&'a str], folder: &str, stem: &str) -> Vec<&'a str> {
    // transformers names its files `model.safetensors` and `pytorch_model.bin`.
    let old = if stem == "model" { "pytorch_model" } else { stem };
    for (stem, ending) in [(stem, "safetensors"), (old, "bin")] {
        let files = all.iter().filter_map(|path| {
            let (of, file) = path.rsplit_once('/').unwrap_or(("", path));
            let usual = |name: &WeightName<'_>| of == folder && !name.variant.contains('-');
            Some((*path, WeightName::of(file, stem, ending).filter(usual)?))
        });
        let files: Vec<(&str, WeightName<'_>)> = files.collect();
        let heads = files.iter().filter(|(_, name)| name.file != WeightFile::Shard);
        let best = heads.min_by_key(|(path, name)| (name.rank(), name.file == WeightFile::Index, *path));
        let shards = |variant: &str| {
            let of_variant = |(_, name): &&(&str, WeightName<'_>)| name.file == WeightFile::Shard && name.variant == variant;
            files.iter().filter(of_variant).map(|(path, _)| *path).collect::<Vec<_>>()
        };
        match best {
            Some((path, WeightName { file: WeightFile::Index, variant })) => {
                return std::iter::once(*path).chain(shards(variant)).collect();
            }
            Some((path, _)) => return vec![*path],
            // Shards without their index.
            None if !files.is_empty() => return shards(files[0].1.variant),
            None => {}
        }
    }
    Vec::new()
}

/// Whether a name of a hub leads to a file below the folder that it is written to.
pub(super) fn is_plain(name: &str) -> bool {
    let word = |word: &str| !word.is_empty() && word != "." && word != "..";
    !name.contains(['\\', ':', '\0']) && name.split('/').all(word)
}

/// Whether a text of a hub can be a hash, and so the name of a file in the cache.
pub(super) fn is_hash(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// What a snapshot lacks of the parts that it names.
pub(super) fn lacking(snapshot: &Path) -> Option<String> {
    let there = |name: &str| snapshot.join(name).is_file();
    if !there(INDEX) {
        return (!there("config.json")).then(|| INDEX.into());
    }
    let index = Fields::open(&snapshot.join(INDEX)).ok()?;
    let named = |part: &str| index.get(part).and_then(|v| v.as_array()).is_some_and(|class| class.iter().all(|name| name.is_string()));
    let of_weights = PARTS.iter().filter(|(part, _)| named(part)).find_map(|(part, stem)| {
        let config = format!("{part}/config.json");
        match there(&config) {
            false => Some(config),
            true => component_files(&snapshot.join(part), stem).is_err().then(|| format!("{part}/{stem}.safetensors")),
        }
    });
    let tokenizers = || {
        let lacks = |part: &&&str| named(part) && !TOKENIZER.iter().any(|file| there(&format!("{part}/{file}")));
        ["tokenizer", "tokenizer_2"].iter().find(lacks).map(|part| part.to_string())
    };
    let scheduler = || (named("scheduler") && !there("scheduler/scheduler_config.json")).then(|| "scheduler/scheduler_config.json".into());
    of_weights.or_else(tokenizers).or_else(scheduler)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_model_directory_needs_is_fetched() {
        let all = [
            "README.md",
            "model_index.json",
            "scheduler/scheduler_config.json",
            "tokenizer/vocab.json",
            "tokenizer/added_tokens.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/config.json",
            "text_encoder/model.safetensors.index.json",
            "text_encoder/model-00001-of-00002.safetensors",
            "text_encoder/model-00002-of-00002.safetensors",
            "text_encoder/model.fp16-00001-of-00002.safetensors",
            "text_encoder/flax_model.msgpack",
            "../unet/config.json",
            "safety_checker/model.safetensors",
        ];
        let expected = [1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15].map(|i| all[i]);
        assert_eq!(needed(&all), expected);
    }

    #[test]
    fn every_form_of_weights_is_found_as_in_a_local_folder() {
        let cases: [(&[&str], &[&str]); 8] = [
            (&["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin"], &["unet/diffusion_pytorch_model.bin"]),
            (&["unet/diffusion_pytorch_model.fp16.bin"], &["unet/diffusion_pytorch_model.fp16.bin"]),
            (
                &["unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.bin"],
                &["unet/diffusion_pytorch_model.non_ema.safetensors"],
            ),
            (&["unet/diffusion_pytorch_model.non_ema.bin", "unet/diffusion_pytorch_model.bin"], &["unet/diffusion_pytorch_model.bin"]),
            (
                &[
                    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
                    "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
                    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
                    "unet/diffusion_pytorch_model.bin",
                ],
                &[
                    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
                    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
                    "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
                ],
            ),
            (
                &["text_encoder/pytorch_model-00001-of-00001.bin", "text_encoder/pytorch_model.bin.index.json"],
                &["text_encoder/pytorch_model.bin.index.json", "text_encoder/pytorch_model-00001-of-00001.bin"],
            ),
            (&["vae/diffusion_pytorch_model-00001-of-00001.safetensors"], &["vae/diffusion_pytorch_model-00001-of-00001.safetensors"]),
            (&["unet/diffusion_pytorch_model_lora.safetensors", "unet/model.safetensors", "vae/sub/diffusion_pytorch_model.bin"], &[]),
        ];
        for (files, expected) in cases {
            let all: Vec<&str> = ["model_index.json"].into_iter().chain(files.iter().copied()).collect();
            assert_eq!(needed(&all)[1..], *expected, "{files:?}");
        }
    }

    #[test]
    fn of_a_single_model_its_folder_is_fetched() {
        let all =
            ["README.md", "config.json", "vocab.json", "pytorch_model.bin", "model.safetensors", "flax_model.msgpack", "onnx/model.onnx"];
        assert_eq!(needed(&all), ["config.json", "vocab.json", "model.safetensors"]);
        assert_eq!(needed(&all[..4]), ["config.json", "vocab.json", "pytorch_model.bin"]);
        let unet = ["config.json", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"];
        assert_eq!(needed(&unet), ["config.json", "diffusion_pytorch_model.safetensors"]);
        assert!(needed(&["README.md", "sd_xl_base_1.0.safetensors"]).is_empty());
    }

    #[test]
    fn names_that_lead_elsewhere_are_not_plain() {
        for name in ["a", "unet/config.json", "a b/..c"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", "/etc/x", "../x", "unet/../../x", "unet//x", "./x", "a\\..\\x", "C:/x", "a\0b"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }
}
