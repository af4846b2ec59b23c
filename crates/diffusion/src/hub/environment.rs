//! The hub that the environment variables of Hugging Face's own tools name, so that both find the same cache and token.

use std::path::{Path, PathBuf};

use super::{ENDPOINT, Hub};

impl Hub {
    /// As huggingface_hub reads the variables that `var` gives (`None` for one that is not set): `HF_ENDPOINT`, `HF_HUB_CACHE`
    /// (`HUGGINGFACE_HUB_CACHE`), `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN` (`HUGGING_FACE_HUB_TOKEN`), `HF_TOKEN_PATH`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE` (`TRANSFORMERS_OFFLINE`). A `~` and `$NAME` in paths are filled in. `None` when
    /// no folder is named and there is no `home`.
    pub fn from_environment(var: impl Fn(&str) -> Option<String>, home: Option<&Path>) -> Option<Self> {
        let set = |names: &[&str]| names.iter().find_map(|name| var(name).filter(|value| !value.is_empty()));
        let path = |names: &[&str]| set(names).map(|text| expanded(&text, &var, home));
        let standard = || {
            let caches = set(&["XDG_CACHE_HOME"]).map(PathBuf::from).or_else(|| Some(home?.join(".cache")));
            caches.map(|caches| caches.join("huggingface"))
        };
        let folder = path(&["HF_HOME"]).or_else(standard);
        let cache = match path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]) {
            Some(cache) => cache,
            None => folder.as_ref()?.join("hub"),
        };
        let is_true = |names: &[&str]| set(names).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_lowercase().as_str()));
        let kept = || {
            let file = path(&["HF_TOKEN_PATH"]).or_else(|| Some(folder.as_ref()?.join("token")))?;
            std::fs::read_to_string(file).ok().filter(|_| !is_true(&["HF_HUB_DISABLE_IMPLICIT_TOKEN"]))
        };
        let clean = |token: String| Some(token.replace(['\r', '\n'], "").trim().to_string()).filter(|token| !token.is_empty());
        Some(Self {
            endpoint: set(&["HF_ENDPOINT"]).unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').to_string(),
            cache,
            token: set(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).and_then(clean).or_else(|| kept().and_then(clean)),
            offline: is_true(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]),
        })
    }
}

// `~/x`, `$NAME/x` and `${NAME}/x`; a name that is not set stays as it is.
fn expanded(text: &str, var: &impl Fn(&str) -> Option<String>, home: Option<&Path>) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, length) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        match var(name).filter(|_| !name.is_empty()) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&rest[at..at + 1 + length]),
        }
        rest = &after[length..];
    }
    out.push_str(rest);
    match (out.strip_prefix('~').and_then(|rest| rest.strip_prefix('/').or((rest.is_empty()).then_some(""))), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => out.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn hub(set: &[(&str, &str)], home: Option<&str>) -> Option<Hub> {
        let set: BTreeMap<String, String> = set.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Hub::from_environment(|name| set.get(name).cloned(), home.map(Path::new))
    }

    #[test]
    fn folders_are_those_of_huggingface_hub() {
        let home = Some("/home/me");
        for (set, expected) in [
            (&[][..], "/home/me/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (&[("HF_HOME", "~/hf")], "/home/me/hf/hub"),
            (&[("HF_HOME", "$DISK/hf"), ("DISK", "/big")], "/big/hf/hub"),
            (&[("HF_HOME", "${DISK}/${NONE}"), ("DISK", "/big")], "/big/${NONE}/hub"),
            (&[("HF_HUB_CACHE", "~"), ("HF_HOME", "/hf")], "/home/me"),
            (&[("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HOME", "/hf")], "/old"),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "")], "/home/me/.cache/huggingface/hub"),
        ] {
            assert_eq!(hub(set, home).unwrap().cache, Path::new(expected), "{set:?}");
        }
        assert!(hub(&[], None).is_none());
        assert!(hub(&[("HF_HUB_CACHE", "/c")], None).is_some());
    }

    #[test]
    fn token_endpoint_and_offline_too() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("token"), "hf_kept\n").unwrap();
        let token = |set: &[(&str, &str)]| hub(set, Some(at)).unwrap().token;
        assert_eq!(token(&[("HF_HOME", at), ("HF_HUB_CACHE", "/elsewhere")]).as_deref(), Some("hf_kept"));
        assert_eq!(token(&[("HF_HOME", at), ("HF_TOKEN", " hf_given\r\n")]).as_deref(), Some("hf_given"));
        assert_eq!(token(&[("HF_HOME", at), ("HUGGING_FACE_HUB_TOKEN", "hf_old")]).as_deref(), Some("hf_old"));
        assert_eq!(token(&[("HF_TOKEN_PATH", "~/token")]).as_deref(), Some("hf_kept"));
        assert_eq!(token(&[("HF_HOME", at), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "YES")]), None);
        assert_eq!(token(&[]), None);
        let found = hub(&[("HF_ENDPOINT", "https://mirror.example//"), ("TRANSFORMERS_OFFLINE", "True")], Some(at)).unwrap();
        assert_eq!((found.endpoint.as_str(), found.offline), ("https://mirror.example", true));
        assert!(!hub(&[("HF_HUB_OFFLINE", "0")], Some(at)).unwrap().offline);
    }
}
