//! One file of a repository -> the cache: what the hub calls it is checked before, its bytes afterwards.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use artifact::{hex, warn_once};
use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiError, ApiRepo};
use sha1::{Digest, Sha1};

use super::select::is_hash;
use super::{Download, Hub, HubModel};
use crate::error::{Error, Result};

/// Redirections inside the hub, as for a repository that was renamed.
const MOST_REDIRECTIONS: usize = 5;
/// Between two looks at a file that another process fetches.
const PAUSE: Duration = Duration::from_millis(500);

/// The files of one commit.
pub(super) struct Fetching<'a> {
    pub hub: &'a Hub,
    pub model: &'a HubModel,
    pub files: ApiRepo,
    pub commit: &'a str,
}

impl Fetching<'_> {
    /// Puts `name` to `path`, where it is not there yet.
    pub fn fetch(&self, name: &str, path: &Path, progress: &mut dyn FnMut(Download)) -> Result<()> {
        let (mut tag, mut stale) = (None, false);
        loop {
            if path.is_file() {
                return Ok(());
            }
            // A link whose file is gone.
            let _absent = std::fs::remove_file(path);
            let tag = match &tag {
                Some(tag) => tag,
                None => tag.insert(self.tag(name)?),
            };
            let told = Told { file: name, done: 0, total: 0, tell: progress };
            match self.files.download_with_progress(name, told) {
                Ok(_) => return self.verify(name, path, tag),
                Err(ApiError::LockAcquisition(_)) => {
                    warn_once(format!("{}: another process fetches {name}; waiting for it", self.model));
                    std::thread::sleep(PAUSE);
                }
                // All of it came before, but nobody was left to name it; or it is longer than the file.
                Err(e) if !stale && is_stale(&e) => {
                    stale = true;
                    let part = self.hub.folder(self.model).join("blobs").join(tag).with_extension("part");
                    std::fs::remove_file(&part).map_err(Error::io(&part))?;
                }
                Err(e) => return Err(self.failed(name, e)),
            }
        }
    }

    /// The hash under which the hub keeps a file, which becomes its name in the cache: so it must be one, and the commit the one asked for.
    fn tag(&self, name: &str) -> Result<String> {
        let agent = ureq::AgentBuilder::new().redirects(0).try_proxy_from_env(true).build();
        let mut url = self.files.url(name);
        for _ in 0..MOST_REDIRECTIONS {
            let request = agent.get(&url).set("Range", "bytes=0-0");
            let request = match &self.hub.token {
                Some(token) => request.set("Authorization", &format!("Bearer {token}")),
                None => request,
            };
            let answer = match request.call() {
                Ok(answer) => answer,
                Err(ureq::Error::Status(code, _)) => return Err(self.hub.refusal(self.model, code)),
                Err(e) => return Err(self.broken_off(name, &e.to_string())),
            };
            let location = answer.header("Location").filter(|_| (300..400).contains(&answer.status()));
            if let Some(inside) = location.filter(|to| to.starts_with('/') && !to.starts_with("//")) {
                url = format!("{}{inside}", origin(&self.hub.endpoint));
                continue;
            }
            let header = |name: &str| answer.header(name).unwrap_or_default().replace('"', "");
            let tag = match header("x-linked-etag") {
                none if none.is_empty() => header("etag"),
                tag => tag,
            };
            if !is_hash(&tag) || header("x-repo-commit") != self.commit {
                let problem = format!(
                    "{name} has the tag `{tag}` of commit `{}`, which are no hash and commit {}",
                    header("x-repo-commit"),
                    self.commit
                );
                return Err(self.model.error(problem, "is the endpoint a hub? nothing was written"));
            }
            return Ok(tag);
        }
        Err(self.model.error(format!("{name} leads from one address to the next"), "is the endpoint a hub?"))
    }

    /// Compares a new file with its hash: SHA-256 for large files, git's for small ones.
    fn verify(&self, name: &str, path: &Path, tag: &str) -> Result<()> {
        let found = match tag.len() {
            64 => artifact::file_sha256(path)?,
            40 => {
                let bytes = std::fs::read(path).map_err(Error::io(path))?;
                hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
            }
            _ => {
                warn_once(format!("{}: {name} could not be checked, since its tag `{tag}` is no hash of a known kind", self.model));
                return Ok(());
            }
        };
        if found.eq_ignore_ascii_case(tag) {
            return Ok(());
        }
        // Else it would pass for whole the next time. The link leads to the bytes, where there are links.
        let blob = std::fs::canonicalize(path).map_err(Error::io(path))?;
        for file in [path, &blob].into_iter().filter(|file| file.symlink_metadata().is_ok()) {
            std::fs::remove_file(file).map_err(Error::io(file))?;
        }
        Err(self.model.error(format!("{name} is damaged (its hash is {found})"), "it was removed; run the same command again"))
    }

    fn failed(&self, name: &str, e: ApiError) -> Error {
        match e {
            ApiError::IoError(source) if is_local(source.kind()) => Error::Io { path: self.hub.folder(self.model), source },
            e => {
                let why = e.to_string();
                match status(e) {
                    Some(code @ (401 | 403)) => self.hub.refusal(self.model, code),
                    _ => self.broken_off(name, &why),
                }
            }
        }
    }

    fn broken_off(&self, name: &str, why: &str) -> Error {
        self.model.error(format!("{name} was not fetched ({why})"), "run the same command again; it goes on where this one stopped")
    }
}

// Whether what is left of an earlier run cannot be continued.
fn is_stale(e: &ApiError) -> bool {
    match e {
        ApiError::InvalidResume => true,
        ApiError::RequestError(e) => matches!(**e, ureq::Error::Status(416, _)),
        _ => false,
    }
}

// Failures of this machine's disk; the others are of the connection.
fn is_local(kind: ErrorKind) -> bool {
    use ErrorKind as E;
    matches!(
        kind,
        E::StorageFull
            | E::QuotaExceeded
            | E::FileTooLarge
            | E::PermissionDenied
            | E::ReadOnlyFilesystem
            | E::NotADirectory
            | E::AlreadyExists
    )
}

// `https://host:port` of an address.
fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    url[start..].find('/').map_or(url, |at| &url[..start + at])
}

/// The HTTP status of an answer, `None` when there was none.
pub(super) fn status(e: ApiError) -> Option<u16> {
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
