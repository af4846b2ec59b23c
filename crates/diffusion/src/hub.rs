//! Models of the Hugging Face Hub: `org/name` -> a model directory in the cache that the hub's other clients share. Stands
//! before the model directory; nothing else knows of the network.
//!
//! Only the files that a [`ModelDir`](crate::ModelDir) needs are fetched: safetensors, and f16 ones only where there are no others.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use artifact::hex;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha1::{Digest, Sha1};

use crate::error::{Error, Result};

/// The public hub.
pub const ENDPOINT: &str = "https://huggingface.co";

/// The hub and the folder for what comes from it.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// The cache, for example `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// Access token; `None` takes the one that the hub's own login left beside the cache, if any.
    pub token: Option<String>,
    /// Takes what is in the cache and asks nobody.
    pub offline: bool,
}

/// `org/name` or `org/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// `org/name`.
    pub id: String,
    /// Branch, tag or commit; `main` unless named.
    pub revision: String,
}

impl FromStr for HubModel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let word =
            |w: &str| !w.is_empty() && !w.starts_with(['.', '-']) && w.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        // A revision may have slashes, but leads nowhere else.
        if id.split('/').count() == 2 && id.split('/').all(word) && revision.split('/').all(word) {
            return Ok(Self { id: id.into(), revision: revision.into() });
        }
        Err(Error::Input { name: "hub model".into(), expected: "org/name or org/name@revision".into(), got: text.into() })
    }
}

impl Display for HubModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.id, self.revision)
    }
}

impl HubModel {
    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, revision.into())
    }

    fn error(&self, problem: impl Into<String>, hint: impl Into<String>) -> Error {
        Error::Hub { model: self.to_string(), problem: problem.into(), hint: hint.into() }
    }
}

/// How far the download of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Download<'a> {
    /// The file's path in the model directory.
    pub file: &'a str,
    /// Bytes that are here, those of an earlier, interrupted run included.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Hub {
    /// The model directory of `model` in the cache, completed where files are missing. A file that was cut off is continued,
    /// and every new file is compared with the hash under which the hub keeps it. When the hub cannot be reached, or
    /// [`Hub::offline`], what was fetched before is taken.
    ///
    /// # Errors
    /// [`Error::Hub`] when the hub refuses, a download breaks off or is damaged, or it cannot be reached and the cache does not
    /// have the model: then it names the folder that it expects. [`Error::Io`] when the cache cannot be written.
    pub fn fetch(&self, model: &HubModel, progress: &mut dyn FnMut(Download)) -> Result<PathBuf> {
        self.fetch_where(model, needed, progress)
    }

    /// One file of `model`, fetched and kept like a model directory.
    ///
    /// # Errors
    /// As [`Hub::fetch`]; [`Error::Hub`] when the repository has no such file.
    pub fn fetch_file(&self, model: &HubModel, file: &str, progress: &mut dyn FnMut(Download)) -> Result<PathBuf> {
        let snapshot = self.fetch_where(model, |all| all.iter().copied().filter(|path| *path == file).collect(), progress)?;
        let path = snapshot.join(file);
        if path.is_file() {
            Ok(path)
        } else {
            Err(model.error(format!("it has no file `{file}`"), "look at the repository's list of files"))
        }
    }

    fn fetch_where(
        &self,
        model: &HubModel,
        wanted: impl for<'a> Fn(&[&'a str]) -> Vec<&'a str>,
        progress: &mut dyn FnMut(Download),
    ) -> Result<PathBuf> {
        if self.offline {
            return self.cached(model, "offline, as asked");
        }
        let api = self.api(model)?;
        let info = match api.repo(model.repo(&model.revision)).info() {
            Ok(info) => info,
            Err(e) => {
                let why = e.to_string();
                return match status(e) {
                    Some(code) => Err(model
                        .error(format!("{} answers {code}", self.endpoint), "check name and revision, and whether your token may read it")),
                    None => self.cached(model, &format!("{} cannot be reached ({why})", self.endpoint)),
                };
            }
        };
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(model.error(format!("`{}` is no commit", info.sha), "is the endpoint a hub?"));
        }
        let snapshot = self.folder(model).join("snapshots").join(&info.sha);
        // Every file of the same commit, whatever happens to the branch meanwhile.
        let files = api.repo(model.repo(&info.sha));
        let names: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        for name in wanted(&names) {
            let path = snapshot.join(name);
            if !path.is_file() {
                // A link whose file is gone.
                let _absent = std::fs::remove_file(&path);
                download(model, &files, name, progress)?;
            }
        }
        self.cache().repo(model.repo(&model.revision)).create_ref(&info.sha).map_err(Error::io(&self.cache))?;
        Ok(snapshot)
    }

    /// The folder of `model` in the cache, there or not.
    pub fn folder(&self, model: &HubModel) -> PathBuf {
        self.cache.join(model.repo(&model.revision).folder_name())
    }

    fn cache(&self) -> Cache {
        Cache::new(self.cache.clone())
    }

    fn api(&self, model: &HubModel) -> Result<Api> {
        let builder = ApiBuilder::from_cache(self.cache()).with_endpoint(self.endpoint.clone()).with_progress(false);
        let builder = if self.token.is_some() { builder.with_token(self.token.clone()) } else { builder };
        builder.build().map_err(|e| model.error(e.to_string(), "check the endpoint"))
    }

    fn cached(&self, model: &HubModel, why: &str) -> Result<PathBuf> {
        let folder = self.folder(model);
        let reference = folder.join("refs").join(&model.revision);
        // A revision that is itself a commit needs no reference.
        let commit = std::fs::read_to_string(&reference).unwrap_or_else(|_| model.revision.clone());
        let snapshot = folder.join("snapshots").join(commit.trim());
        if snapshot.is_dir() {
            tracing::warn!("{model}: {why}; taking {}", snapshot.display());
            return Ok(snapshot);
        }
        let expected = folder.join("snapshots").join("<commit>");
        let hint = format!("fetch it with a connection, or put it into {} and the commit into {}", expected.display(), reference.display());
        Err(model.error(format!("{why}, and it is not in the cache"), hint))
    }
}

// The HTTP status of an answer, `None` when there was none.
fn status(e: ApiError) -> Option<u16> {
    match e {
        ApiError::RequestError(e) => e.into_response().map(|r| r.status()),
        _ => None,
    }
}

struct Told<'a, 'b> {
    file: &'a str,
    done: u64,
    total: u64,
    tell: &'b mut dyn FnMut(Download),
}

impl Progress for Told<'_, '_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, self.total) = (0, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.tell)(Download { file: self.file, done: self.done, total: self.total });
    }

    fn finish(&mut self) {}
}

fn download(model: &HubModel, files: &ApiRepo, name: &str, progress: &mut dyn FnMut(Download)) -> Result<()> {
    let told = Told { file: name, done: 0, total: 0, tell: progress };
    let path = files.download_with_progress(name, told).map_err(|e| {
        model.error(format!("{name} was not fetched ({e})"), "run the same command again; it goes on where this one stopped")
    })?;
    let blob = std::fs::canonicalize(&path).map_err(Error::io(&path))?;
    if let Some(found) = damage(&blob)? {
        // Else it would pass for whole the next time.
        for file in [&path, &blob] {
            std::fs::remove_file(file).map_err(Error::io(file))?;
        }
        return Err(model.error(format!("{name} is damaged (its hash is {found})"), "it was removed; run the same command again"));
    }
    Ok(())
}

// The hash of a blob, when it is another than the one that it is named by: SHA-256 for large files, git's for small ones.
fn damage(blob: &Path) -> Result<Option<String>> {
    let name = blob.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let found = match name.len() {
        64 => artifact::file_sha256(blob)?,
        40 => {
            let bytes = std::fs::read(blob).map_err(Error::io(blob))?;
            hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
        }
        // Where the file system has no links there are no such names.
        _ => return Ok(None),
    };
    Ok((!found.eq_ignore_ascii_case(name)).then_some(found))
}

/// The files of a published repository that a model directory needs.
fn needed<'a>(all: &[&'a str]) -> Vec<&'a str> {
    const SMALL: [(&str, &[&str]); 4] = [
        ("", &["model_index.json"]),
        ("scheduler", &["scheduler_config.json"]),
        ("tokenizer", &["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"]),
        ("tokenizer_2", &["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"]),
    ];
    const PARTS: [(&str, &str); 4] =
        [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model"), ("text_encoder_2", "model")];
    if !all.contains(&"model_index.json") {
        return single(all);
    }
    let split = |path: &'a str| path.rsplit_once('/').unwrap_or(("", path));
    let mut out: Vec<&str> = Vec::new();
    for &path in all {
        let (folder, file) = split(path);
        if SMALL.iter().any(|(f, files)| *f == folder && files.contains(&file)) {
            out.push(path);
        }
    }
    for (part, stem) in PARTS {
        let of_part = || all.iter().copied().filter(|path| split(path).0 == part);
        out.extend(of_part().filter(|path| split(path).1 == "config.json"));
        let (whole, half) = (format!("{stem}.safetensors"), format!("{stem}.fp16.safetensors"));
        let one = [whole, half].into_iter().find_map(|file| of_part().find(|path| split(path).1 == file));
        match one {
            Some(path) => out.push(path),
            None => out.extend(of_part().filter(|path| is_shard(split(path).1, stem))),
        }
    }
    out
}

/// The files of a repository that is one CLIP model, as scorers of images are published: safetensors, else PyTorch's file.
fn single<'a>(all: &[&'a str]) -> Vec<&'a str> {
    const SMALL: [&str; 7] = [
        "config.json",
        "preprocessor_config.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
    ];
    let mut out: Vec<&str> = all.iter().copied().filter(|path| SMALL.contains(path)).collect();
    let whole = ["model.safetensors", "pytorch_model.bin"].into_iter().find(|file| all.contains(file));
    let shards = || all.iter().copied().filter(|path| is_shard(path, "model"));
    match whole {
        Some("pytorch_model.bin") if shards().next().is_some() => out.extend(shards()),
        Some(file) => out.extend(all.iter().copied().filter(|path| *path == file)),
        None => out.extend(shards()),
    }
    out
}

// `<stem>.safetensors.index.json`, or `<stem>-00001-of-00002.safetensors`
fn is_shard(file: &str, stem: &str) -> bool {
    let Some(rest) = file.strip_prefix(stem) else { return false };
    let number = |text: &str| text.split("-of-").count() == 2 && text.split("-of-").all(|n| n.chars().all(|c| c.is_ascii_digit()));
    rest == ".safetensors.index.json" || rest.strip_prefix('-').and_then(|r| r.strip_suffix(".safetensors")).is_some_and(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_paths() {
        let found: HubModel = "org/na.me-1".parse().unwrap();
        assert_eq!((found.id.as_str(), found.revision.as_str()), ("org/na.me-1", "main"));
        assert_eq!("org/name@refs/pr/3".parse::<HubModel>().unwrap().revision, "refs/pr/3");
        for wrong in ["name", "/org/name", "./name", "../name", "a/b/c", "org/name@../../x", "org/", "org/na me", "org/name@"] {
            assert!(wrong.parse::<HubModel>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_a_model_directory_needs_is_fetched() {
        let all = [
            "README.md",
            "model_index.json",
            "scheduler/scheduler_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "text_encoder/config.json",
            "text_encoder/model-00001-of-00002.safetensors",
            "text_encoder/model-00002-of-00002.safetensors",
            "text_encoder/model.fp16-00001-of-00002.safetensors",
            "text_encoder/model.safetensors.index.json",
            "text_encoder/flax_model.msgpack",
            "../unet/config.json",
            "safety_checker/model.safetensors",
        ];
        let expected = [1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 14].map(|i| all[i]);
        assert_eq!(needed(&all), expected);
    }

    #[test]
    fn of_a_single_clip_model_its_folder_is_fetched() {
        let all =
            ["README.md", "config.json", "vocab.json", "pytorch_model.bin", "model.safetensors", "flax_model.msgpack", "onnx/model.onnx"];
        assert_eq!(needed(&all), ["config.json", "vocab.json", "model.safetensors"]);
        assert_eq!(needed(&all[..4]), ["config.json", "vocab.json", "pytorch_model.bin"]);
    }
}
