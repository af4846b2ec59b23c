//! Models of the Hugging Face Hub: `org/name` -> a model directory in the cache that the hub's other clients share. Stands
//! before the model directory; nothing else knows of the network.
//!
//! Only the files that a [`ModelDir`](crate::ModelDir) needs are fetched: safetensors, and f16 ones or PyTorch's only where there are no
//! others.

mod download;
mod environment;
mod select;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use artifact::Fields;
use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};

use self::download::{Fetching, status};
use self::select::{INDEX, is_hash, is_plain, lacking, needed};
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
    /// Access token, if any; it goes to the endpoint's host only.
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
    /// [`Error::Hub`] when the hub refuses, a download breaks off or is damaged, the repository holds no model directory, or the hub
    /// cannot be reached and the cache does not have all of the model: then it names the folder that it expects. [`Error::Io`] when the
    /// cache cannot be written.
    pub fn fetch(&self, model: &HubModel, progress: &mut dyn FnMut(Download)) -> Result<PathBuf> {
        // Before gigabytes of another kind of model come.
        let index = self.fetch_where(model, |all| all.iter().copied().filter(|path| *path == INDEX).collect(), progress)?;
        refuse_without_unet(model, &index.snapshot)?;
        let found = if self.offline || index.names.is_none() { index } else { self.fetch_where(model, needed, progress)? };
        if found.names.as_ref().is_some_and(|names| needed(&names.iter().map(String::as_str).collect::<Vec<_>>()).is_empty()) {
            return Err(no_directory(model, &found.names.unwrap_or_default()));
        }
        match lacking(&found.snapshot) {
            Some(part) if found.names.is_none() => Err(model.error(
                format!("only a part of it is in the cache: {} is not there", found.snapshot.join(part).display()),
                "fetch it with a connection",
            )),
            _ => Ok(found.snapshot),
        }
    }

    /// One file of `model`, fetched and kept like a model directory.
    ///
    /// # Errors
    /// As [`Hub::fetch`]; [`Error::Hub`] when the repository has no such file.
    pub fn fetch_file(&self, model: &HubModel, file: &str, progress: &mut dyn FnMut(Download)) -> Result<PathBuf> {
        let found = self.fetch_where(model, |all| all.iter().copied().filter(|path| *path == file).collect(), progress)?;
        let path = found.snapshot.join(file);
        match found.names {
            _ if is_plain(file) && path.is_file() => Ok(path),
            None => Err(model.error(format!("`{file}` is not in the cache"), "fetch it with a connection")),
            Some(names) => Err(model.error(format!("it has no file `{file}`"), listed(&names))),
        }
    }

    fn fetch_where(
        &self,
        model: &HubModel,
        wanted: impl for<'a> Fn(&[&'a str]) -> Vec<&'a str>,
        progress: &mut dyn FnMut(Download),
    ) -> Result<Found> {
        if self.offline {
            return self.cached(model, "offline, as asked");
        }
        let api = self.api(model)?;
        let info = match api.repo(model.repo(&model.revision)).info() {
            Ok(info) => info,
            Err(e) => {
                let why = e.to_string();
                return match status(e) {
                    Some(code) if code == 429 || code >= 500 => self.cached(model, &format!("{} answers {code}", self.endpoint)),
                    Some(code) => Err(self.refusal(model, code)),
                    None => self.cached(model, &format!("{} cannot be reached ({why})", self.endpoint)),
                };
            }
        };
        if !is_hash(&info.sha) {
            return Err(model.error(format!("`{}` is no commit", info.sha), "is the endpoint a hub?"));
        }
        let snapshot = self.folder(model).join("snapshots").join(&info.sha);
        // Every file of the same commit, whatever happens to the branch meanwhile.
        let fetching = Fetching { hub: self, model, files: api.repo(model.repo(&info.sha)), commit: &info.sha };
        let names: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).filter(|name| is_plain(name)).collect();
        for name in wanted(&names) {
            fetching.fetch(name, &snapshot.join(name), progress)?;
        }
        // A shared cache that holds the model may be one that cannot be written.
        if std::fs::read_to_string(self.reference(model)).ok().as_deref() != Some(&info.sha) {
            self.cache().repo(model.repo(&model.revision)).create_ref(&info.sha).map_err(Error::io(&self.cache))?;
        }
        Ok(Found { snapshot, names: Some(names.into_iter().map(String::from).collect()) })
    }

    /// What an answer of the hub means, and what helps.
    fn refusal(&self, model: &HubModel, code: u16) -> Error {
        let page = format!("{}/{}", self.endpoint, model.id);
        let hint = match code {
            401 => format!("check the name; a private model needs the token of an account that may read it (HF_TOKEN); page: {page}"),
            403 => format!("this model is gated: accept its conditions on {page} and give the token of that account (HF_TOKEN)"),
            404 => format!("check name and revision (`{}`) on {page}", model.revision),
            _ => format!("check name and revision, and whether your token may read it; page: {page}"),
        };
        let known = [(401, "nobody who is not logged in"), (403, "a refusal"), (404, "that there is no such model, revision or file")];
        let meaning = known.iter().find(|(known, _)| *known == code).map_or(String::new(), |(_, what)| format!(" ({what})"));
        model.error(format!("{} answers {code}{meaning}", self.endpoint), hint)
    }

    /// The folder of `model` in the cache, there or not.
    pub fn folder(&self, model: &HubModel) -> PathBuf {
        self.cache.join(model.repo(&model.revision).folder_name())
    }

    /// The file that holds the commit of the model's revision.
    fn reference(&self, model: &HubModel) -> PathBuf {
        self.folder(model).join("refs").join(&model.revision)
    }

    fn cache(&self) -> Cache {
        Cache::new(self.cache.clone())
    }

    fn api(&self, model: &HubModel) -> Result<Api> {
        let builder = ApiBuilder::from_cache(self.cache()).with_endpoint(self.endpoint.clone()).with_progress(false);
        builder.with_token(self.token.clone()).build().map_err(|e| model.error(e.to_string(), "check the endpoint"))
    }

    fn cached(&self, model: &HubModel, why: &str) -> Result<Found> {
        let folder = self.folder(model);
        let reference = self.reference(model);
        // A revision that is itself a commit needs no reference.
        let commit = std::fs::read_to_string(&reference).unwrap_or_else(|_| model.revision.clone());
        let snapshot = folder.join("snapshots").join(commit.trim());
        if snapshot.is_dir() {
            tracing::warn!("{model}: {why}; taking {}", snapshot.display());
            return Ok(Found { snapshot, names: None });
        }
        let expected = folder.join("snapshots").join("<commit>");
        let hint = format!("fetch it with a connection, or put it into {} and the commit into {}", expected.display(), reference.display());
        Err(model.error(format!("{why}, and it is not in the cache"), hint))
    }
}

/// A snapshot in the cache.
struct Found {
    snapshot: PathBuf,
    /// The files of the repository; `None` when the hub was not asked.
    names: Option<Vec<String>>,
}

/// Pipelines around a transformer have none, and nothing here can work on them.
fn refuse_without_unet(model: &HubModel, snapshot: &Path) -> Result<()> {
    let path = snapshot.join(INDEX);
    if !path.is_file() {
        return Ok(());
    }
    let index = Fields::open(&path)?;
    let has = |part: &str| index.get(part).and_then(|v| v.as_array()).is_some_and(|class| class.iter().all(|name| name.is_string()));
    if has("unet") {
        return Ok(());
    }
    let class = index.text("_class_name")?.unwrap_or_else(|| "a pipeline without a name".into());
    Err(model.error(format!("it is a {class}, which has no U-Net"), "name a Stable Diffusion v1, v2 or XL model; nothing more was fetched"))
}

fn no_directory(model: &HubModel, names: &[String]) -> Error {
    let weights = names.iter().find(|name| [".safetensors", ".ckpt", ".pt", ".bin", ".pth"].iter().any(|ending| name.ends_with(ending)));
    let hint = match weights {
        Some(file) => format!("it holds single files: name one, such as {}:{file}, where a command takes a file", model.id),
        None => listed(names),
    };
    model.error("it is no model directory (no model_index.json, no config.json)", hint)
}

fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    format!("its files are {}{more}", names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", "))
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
}
